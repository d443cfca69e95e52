"""What every trainer hands over, and how it becomes a model file: one bundle, written, checked and put in place.

`Built` is all in which models differ; what they have in common (name, version, the schema they belong to) is added
here. The file is written under a hidden name, loaded with all the checks that the proxy makes, and only then renamed: a
model that would be refused never appears.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from model_runtime import bundle
from model_runtime.limits import Limits
from model_runtime.manifest import (
    MEANINGS,
    Abstention,
    BeforeAfter,
    Featurizer,
    Kind,
    KnownTemplates,
    Manifest,
    SetFeatures,
    SplitSummary,
    TrainingSummary,
    Vocabulary,
)
from planner.catalog_load import schema_hash
from planner.features import flat
from planner.snapshot import Snapshot
from planner.templates import digest
from training.dataset import Block, Labelled
from training.errors import TrainingError
from training.export import tree_model
from training.gbdt import Trained
from training.gbdt_known import Known
from training.gbdt_scores import PERCENTILES, Split
from training.training_set import explain_os

Array = npt.NDArray[Any]
SELF_TEST_ROWS: Final = 16
LEAST_DEVIATION: Final = 0.01


@dataclass(frozen=True, slots=True)
class Built:
    """A trained model. ``self_test`` are inputs by name, at most `SELF_TEST_ROWS` rows; without a ``vocabulary`` the
    tables and joins that were learned from are named. ``native_only``: it corrects nothing, or never chooses an
    arm."""

    graph: onnx.ModelProto
    kind: Kind
    featurizer: Featurizer
    clip: tuple[float, float]
    abstention: Abstention
    self_test: Mapping[str, Array]
    splits: Mapping[str, Split]
    features: tuple[str, ...] = ()
    sets: SetFeatures | None = None
    vocabulary: Vocabulary | None = None
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    arms: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    notes: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    native_only: bool = False


def of_trees(trained: Trained, labelled: Labelled) -> Built:
    """The boosted trees of `training.gbdt` as a model."""
    features = labelled.data.features
    graph = tree_model(
        trained.members,
        features.shape[1],
        scale=trained.scale,
        deviation=trained.deviation,
        deviation_scale=trained.deviation_scale,
        floor=LEAST_DEVIATION,
        supports=[[leaves.tolist() for leaves in own] for own in trained.supports],
        least_support=trained.least_support,
    )
    notes: dict[str, bool | int | float | str] = {
        "algorithm": "gbdt",
        "trees": trained.rounds * len(trained.members),
        "scale": trained.scale if trained.general else 0.0,
        "within_log_std": round(trained.within, 4),
        "generated_sub_plans": int((labelled.data.weight < 1).sum()),
        "lower_bounds": int(labelled.data.lower.sum()),
    }
    notes |= known_notes(trained.known)
    if trained.least_support is not None:
        notes["least_support"] = trained.least_support
    return Built(
        graph=graph,
        kind="cardinality",
        featurizer=Featurizer(name=flat.Flat.name, version=flat.VERSION),
        features=flat.NAMES,
        ranges=dict(zip(flat.NAMES, trained.ranges, strict=True)),
        clip=trained.clip,
        abstention=Abstention(
            outside_ranges=trained.outside_ranges, log_std=trained.log_std, known=_known(trained, labelled)
        ),
        self_test={"features": some_rows(features)},
        splits=trained.splits,
        notes=notes,
        native_only=trained.scale == 0,
    )


def _known(trained: Trained, labelled: Labelled) -> KnownTemplates | None:
    """The limits of the templates that were trained on."""
    return known_templates(trained.known, trained.scale, trained_on(labelled))


def known_templates(known: Known | None, scale: float, templates: Sequence[str]) -> KnownTemplates | None:
    """As the manifest has them, for a graph whose predictions are scaled by ``scale``."""
    if known is None:
        return None
    return KnownTemplates(
        outside_ranges=known.outside_ranges,
        log_std=known.log_std,
        factor=known.scale / scale,
        templates=tuple(templates),
    )


def trained_on(labelled: Labelled) -> tuple[str, ...]:
    """The digests of the join templates with a judged label."""
    templates = {labelled.blocks[block].template for block in np.unique(labelled.data.block[labelled.data.judged])}
    return tuple(sorted(digest(template) for template in templates))


def known_notes(known: Known | None) -> dict[str, bool | int | float | str]:
    """How far the model is believed on templates that it knows."""
    if known is None:
        return {}
    return {
        "known_scale": known.scale,
        "used_of_new_values": round(known.used, 4),
        "used_before": round(known.before, 4),
    }


def some_rows(values: Array) -> Array:
    """Rows for a self-test, evenly from all."""
    return np.asarray(values[np.linspace(0, len(values) - 1, min(SELF_TEST_ROWS, len(values))).astype(int)])


def write(built: Built, labelled: Labelled, out: Path, *, seconds: float, seed: int) -> tuple[Manifest, int]:
    """Write the bundle and put it in place when it passes all checks; also gives its size in bytes. ``seconds`` is how
    long training took. Raises TrainingError."""
    now = datetime.now(UTC)
    hidden = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        manifest = Manifest(
            kind=built.kind,
            name=model_name(out),
            version=f"{now.year}.{now.month * 100 + now.day}.{now.hour * 10_000 + now.minute * 100 + now.second}",
            trained_at=now,
            featurizer=built.featurizer,
            features=built.features,
            sets=built.sets,
            vocabulary=built.vocabulary or _vocabulary(labelled.blocks),
            schema_hash=labelled.snapshot.schema_hash,
            relation_hashes=_relation_hashes(labelled.blocks, labelled.snapshot),
            ranges=dict(built.ranges),
            clip=built.clip,
            abstention=built.abstention,
            output_meaning=MEANINGS[built.kind],
            training=_summary(built, labelled, seconds, seed),
            arms={name: dict(settings) for name, settings in built.arms.items()},
            self_test=bundle.self_test(built.graph, built.self_test),
        )
        bundle.write(built.graph, manifest, hidden)
        bundle.load(hidden, Limits())
        hidden.replace(out)
        size = out.stat().st_size
    except bundle.Refused as refused:
        raise TrainingError(f"the model does not pass its own checks ({refused.step}: {refused.reason})") from None
    except ValueError as error:
        raise TrainingError(f"the model does not pass its own checks ({' '.join(str(error).split())[:300]})") from None
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {explain_os(error)}") from None
    finally:
        hidden.unlink(missing_ok=True)
    return manifest, size


def model_name(out: Path) -> str:
    """The file's name, as models are named."""
    name = re.sub(r"[^a-z0-9_-]+", "-", out.stem.lower()).strip("-_")[:63]
    return name or "baseline"


def _vocabulary(blocks: Sequence[Block]) -> Vocabulary:
    tables = {table for block in blocks for table in block.tables}
    return Vocabulary(
        schemas=tuple(sorted({table.split(".")[0] for table in tables})),
        tables=tuple(sorted(tables)),
        joins=tuple(sorted({join for block in blocks for join in block.joins})),
    )


def _relation_hashes(blocks: Sequence[Block], snapshot: Snapshot) -> dict[str, str]:
    used = {table for block in blocks for table in block.tables}
    names = {f"{table.schema}.{table.name}": table for table in snapshot.tables.values()}
    return {name: schema_hash([names[name]]) for name in sorted(used)}


def _summary(built: Built, labelled: Labelled, seconds: float, seed: int) -> TrainingSummary:
    splits = {
        name: SplitSummary(
            queries=split.queries,
            sub_plans=split.sub_plans,
            q_error={
                f"p{point}": BeforeAfter(before=before, after=after)
                for point, before, after in zip(PERCENTILES, split.native, split.model, strict=True)
            },
        )
        for name, split in built.splits.items()
    }
    return TrainingSummary(
        queries=labelled.data.queries,
        sub_plans=len(labelled.data),
        seconds=seconds,
        splits=splits,
        notes={"seed": seed, **built.notes},
    )
