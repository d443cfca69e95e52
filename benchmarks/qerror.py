"""How far estimates are off, native and modelled: ``python -m benchmarks.qerror --dsn DSN --train FILE --test FILE``.

Trains on the first file of queries, counts the sub-plans of the second, of which nothing was trained on, and prints the
percentiles of the q-error over them: all, those of join templates that training has seen and those of templates that it
has not. Rows are those that the proxy would state: the native estimate where the model abstains. Empty sub-plans are
left out and counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from planner.planner import Planner
from training.collect import Limits, Sources, catalog
from training.dataset import Block, collect
from training.labels import Labeller
from training.queries import Workload, read_file
from training.train import Algorithm, train_model
from training.training_set import TrainingSet

PERCENTILES = (50, 90, 95, 99)
Rows = list[tuple[Block, int, float]]


def main(
    dsn: Annotated[str, typer.Option(help="A database that has the data.")],
    train: Annotated[Path, typer.Option(help="Queries to train on.")],
    test: Annotated[Path, typer.Option(help="Queries to measure on.")],
    out: Annotated[Path | None, typer.Option(help="A folder for the model, the training set and the counts.")] = None,
    algorithm: Annotated[str, typer.Option(help="gbdt or mscn.")] = "gbdt",
    budget: Annotated[float, typer.Option(help="Seconds for labels, of training and of measuring alike.")] = 300.0,
    seed: Annotated[int, typer.Option()] = 0,
) -> None:
    """Train on one file of queries and measure q-errors on the sub-plans of another."""
    with tempfile.TemporaryDirectory() as work:
        result = asyncio.run(_measure(dsn, train, test, out or Path(work), algorithm, budget, seed))
    print(json.dumps(result, indent=1))


async def _measure(
    dsn: str, train: Path, test: Path, out: Path, algorithm: str, budget: float, seed: int
) -> dict[str, Any]:
    chosen: Algorithm = "mscn" if algorithm == "mscn" else "gbdt"
    models = out / f"models-{chosen}"
    learned = read_file(train)
    report = await train_model(
        dsn,
        models / f"{chosen}.onnx",
        Sources(learned, kept=False),
        Limits(budget=budget),
        algorithm=chosen,
        training_set=out / "train.training",
        seed=seed,
    )
    snapshot, path = await catalog(dsn)
    seen = {block.template for block in collect(learned, snapshot, path).blocks}
    rows, missing = await _truth(dsn, read_file(test), out / "test.training", budget)
    errors = await _errors(dsn, models, read_file(test), rows)
    native, model, known, abstained = (np.array(column) for column in zip(*errors, strict=True))
    known = np.array([template in seen for template in known])
    splits = {"all": np.ones(len(known), bool), "templates seen": known, "templates not seen": ~known}
    return {
        "algorithm": chosen,
        "inputs": {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in (train, test)},
        "seed": seed,
        "trained": {
            key: report.as_json()[key] for key in ("sub_plans", "sub_plans_generated", "seconds", "file_bytes")
        },
        "cross_validated": report.as_json()["splits"],
        "sub_plans_not_counted": missing,
        "sub_plans_empty": sum(actual < 1 for _, _, actual in rows),
        "abstained": int(abstained.sum()),
        "q_error": {
            name: {
                "sub_plans": int(part.sum()),
                "native": _percentiles(native[part]),
                "model": _percentiles(model[part]),
            }
            for name, part in splits.items()
            if part.any()
        },
    }


async def _truth(dsn: str, workload: Workload, place: Path, budget: float) -> tuple[Rows, int]:
    """Every sub-plan of these queries with its true rows, and how many could not be counted in time."""
    snapshot, path = await catalog(dsn)
    collected = await asyncio.to_thread(collect, workload, snapshot, path)
    with TrainingSet(place) as kept:
        kept.belongs_to(snapshot.database, snapshot.schema_hash)
        labeller = Labeller(dsn, kept, budget=budget, timeout=20.0, most_rows=0)
        labels = await labeller.run(count for block in collected.blocks for count in block.counts)
    found = [
        (block, place_in_block, labels.rows[name])
        for block in collected.blocks
        for place_in_block, name in enumerate(block.digests)
        if name in labels.rows
    ]
    return found, sum(len(block.digests) for block in collected.blocks) - len(found)


async def _errors(dsn: str, models: Path, workload: Workload, rows: Rows) -> list[tuple[float, float, str, bool]]:
    """(native, model, template, abstained) of each sub-plan with rows; q-errors."""
    said: dict[tuple[int, int, int], float] = {}
    async with await Planner.connect(dsn, models=models) as planner:
        for number, query in enumerate(workload.queries):
            decision = await planner.advise(query.text)
            for one in decision.estimates:
                if one.rows is not None:
                    said[number, one.block, one.mask] = one.rows
    found = []
    for block, place, actual in rows:
        if actual < 1:
            continue
        native = float(block.native[place])
        model = said.get((block.query, block.resolved.block.index, block.masks[place]))
        found.append((_off(native, actual), _off(model or native, actual), block.template, model is None))
    return found


def _off(estimate: float, actual: float) -> float:
    estimate = max(estimate, 1.0)
    return max(estimate / actual, actual / estimate)


def _percentiles(errors: np.ndarray[Any, Any]) -> dict[str, float]:
    return {f"p{at}": round(float(np.percentile(errors, at)), 3) for at in PERCENTILES} | {
        "max": round(float(errors.max()), 1)
    }


if __name__ == "__main__":
    typer.run(main)
