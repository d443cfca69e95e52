"""A small MSCN file without PyTorch: ``python -m tests.support.mscn_model FILE [--seed N]``, or `write` in a test.

The network is MSCN's own (`training.mscn_graph`) in a small size. Its hidden layers are drawn from the seed and stay as
they are; the last layer is the ridge regression of the ratios on them (random features, as in Rahimi and Recht,
2007). So the file has really learned something, is made in a moment by numpy and onnx alone, and is the same bytes for
the same seed and the same data.

The data are queries over the made-up catalog of `tests.planner.features.shop`, whose joins are labelled with what they
really return (`made_up`); tests with a database of their own give theirs.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np

from model_runtime import bundle
from model_runtime.manifest import MEANINGS, Manifest
from planner.subplans import connected
from tests.planner.features import shop
from training.model_file import Built
from training.mscn import model_of
from training.mscn_data import Counted, SetDataset, encode, normal
from training.mscn_graph import FAR, Network, SetLayers

HIDDEN: Final = 8
MEMBERS: Final = 2
RIDGE: Final = 1.0
BITMAP: Final = 16
QUERY: Final = (
    "SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id JOIN visit v ON v.buyer_id = b.id "
    "WHERE b.age > {age} AND b.region <> {region} AND o.note <> 'n{note}' AND v.page < {page}"
)


def made_up(queries: int = 60, seed: int = 0) -> SetDataset:
    """Queries over the made-up shop with random values, each sub-plan labelled with its true rows."""
    data = shop.shop_data()
    shot = shop.snapshot(data)
    dice = random.Random(seed)
    labelled: list[Counted] = []
    for number in range(queries):
        drawn = {name: dice.randrange(most) for name, most in (("age", 95), ("region", 7), ("note", 13), ("page", 50))}
        query = shop.estimates(QUERY.format(**drawn), shot)
        masks = connected(query.block, query)
        labelled.append(Counted(query, masks, _truth(data, masks, **drawn), number, f"template {number % 3}"))
    return encode(labelled, BITMAP)


def _truth(
    data: Mapping[str, shop.Data], masks: Sequence[int], age: int, region: int, note: int, page: int
) -> list[float]:
    """All three tables are joined on the buyer: of each set the products of how many rows each buyer has, summed."""
    buyers, orders, visits = data["buyer"], data["orders"], data["visit"]
    of_buyer = [
        {
            one: 1
            for one, years, place in zip(buyers["id"], buyers["age"], buyers["region"], strict=True)
            if isinstance(years, int) and years > age and place != region
        },
        Counter(
            one for one, text in zip(orders["buyer_id"], orders["note"], strict=True) if text != f"n{note}"
        ),
        Counter(
            one for one, at in zip(visits["buyer_id"], visits["page"], strict=True) if isinstance(at, int) and at < page
        ),
    ]  # fmt: skip
    found = []
    for mask in masks:
        counts = [one for place, one in enumerate(of_buyer) if mask >> place & 1]
        common = set(counts[0]).intersection(*counts[1:]) - {None}
        found.append(float(sum(math.prod(one[key] for one in counts) for key in common)))
    return found


def network(data: SetDataset, *, seed: int = 0) -> Network:
    """Random layers, and an output that fits the data."""
    random_numbers = np.random.default_rng(seed)

    def layer(*shape: int) -> np.ndarray[Any, Any]:
        return (random_numbers.normal(size=shape) * math.sqrt(2 / shape[-2])).astype(np.float32)

    parts = {}
    for part, names in data.names.items():
        center, scale = normal(data, part)
        bias = np.zeros((MEMBERS, HIDDEN), np.float32)
        parts[part] = SetLayers(
            center, scale, layer(MEMBERS, len(names), HIDDEN), bias, layer(MEMBERS, HIDDEN, HIDDEN), bias
        )
    bias = np.zeros((MEMBERS, HIDDEN), np.float32)
    merge = layer(MEMBERS, 3 * HIDDEN, HIDDEN)
    hidden = _hidden(Network(parts, merge, bias, np.zeros((MEMBERS, HIDDEN, 2)), np.zeros((MEMBERS, 2))), data)
    out = np.zeros((MEMBERS, HIDDEN, 2), np.float32)
    out_bias = np.zeros((MEMBERS, 2), np.float32)
    for member, values in enumerate(hidden):
        design = np.hstack([values, np.ones((len(data), 1))])
        normal_matrix = design.T @ design + RIDGE * np.eye(HIDDEN + 1)
        weights = np.linalg.solve(normal_matrix, design.T @ data.target)
        out[member, :, 0], out_bias[member, 0] = weights[:-1], weights[-1]
        out_bias[member, 1] = np.log(np.abs(data.target - design @ weights).mean())
    return Network(parts, merge, bias, out, out_bias)


def _hidden(made: Network, data: SetDataset) -> np.ndarray[Any, Any]:
    """What the last layer sees, [members, n, HIDDEN]: the formulas of the graph in numpy."""
    inputs = data.inputs(np.arange(len(data)))
    pooled = []
    for part, layers in made.sets.items():
        mask = inputs[f"{part}_mask"]
        small = np.clip((inputs[part] - layers.center) * layers.scale, -FAR, FAR)
        first = np.maximum(np.einsum("nsw,kwh->knsh", small, layers.first) + layers.first_bias[:, None, None], 0)
        second = np.maximum(np.einsum("knsh,khg->knsg", first, layers.second) + layers.second_bias[:, None, None], 0)
        pooled.append((second * mask[..., None]).sum(axis=2) / np.maximum(mask.sum(axis=1), 1)[:, None])
    merged = np.einsum("knh,khg->kng", np.concatenate(pooled, axis=2), made.merge) + made.merge_bias[:, None]
    hidden: np.ndarray[Any, Any] = np.maximum(merged, 0)
    return hidden


def answers(made: Network, data: SetDataset) -> np.ndarray[Any, Any]:
    """The network's ratios and log deviations of all sub-plans in numpy, [members, n, 2]."""
    found: np.ndarray[Any, Any] = np.einsum("knh,kho->kno", _hidden(made, data), made.out) + made.out_bias[:, None]
    return found


def write(path: Path, data: SetDataset, *, seed: int = 0, name: str = "small-mscn", **manifest: Any) -> Manifest:
    """The model file; further keywords go into the manifest."""
    low, high = float(data.target.min()), float(data.target.max())
    built = model_of(network(data, seed=seed), data, scale=1.0, clip=(min(low, 0.0), max(high, 0.0)))
    return save(path, built, name, **manifest)


def save(path: Path, built: Built, name: str, **fields: Any) -> Manifest:
    """What a trainer hands over as a model file, the same bytes each time."""
    manifest = Manifest(
        kind=built.kind,
        name=name,
        version="1.0.0",
        trained_at=datetime(2025, 1, 1, tzinfo=UTC),
        output_meaning=MEANINGS[built.kind],
        **{
            "featurizer": built.featurizer,
            "features": built.features,
            "sets": built.sets,
            "vocabulary": built.vocabulary,
            "ranges": built.ranges,
            "clip": built.clip,
            "abstention": built.abstention,
            "arms": built.arms,
            "self_test": bundle.self_test(built.graph, built.self_test),
            **fields,
        },
    )
    bundle.write(built.graph, manifest, path)
    return manifest


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small MSCN model file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    manifest = write(chosen.file, made_up(), seed=chosen.seed)
    print(f"{manifest.label} is in {chosen.file} ({chosen.file.stat().st_size} bytes)")


if __name__ == "__main__":
    main()
