"""Cross-validation: models trained on one part of the workload steer the other, for each split and fold.

Each fold is trained by `training.train` as a person would train, on the same counts, but without statements made up
besides; nothing about the judged statements but the counts of joins that both parts share is known to it.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model_runtime import bundle
from planner.advise import Models
from training.errors import TrainingError
from training.evaluate.cases import Case
from training.evaluate.splits import divide
from training.queries import Query, Workload
from training.train import Limits, Sources, train_model


@dataclass(slots=True)
class Crossed:
    """One split. ``models`` by the name of the case that they may steer; ``why`` says why there are none."""

    split: str
    models: dict[str, Models] = field(default_factory=dict)
    folds: int = 0
    train_seconds: float = 0.0
    why: str = ""
    warnings: list[str] = field(default_factory=list)


async def cross_validate(
    dsn: str,
    cases: Sequence[Case],
    split: str,
    kept: Path,
    *,
    folds: int,
    seed: int,
    count_seconds: float,
    budget: float,
    progress: Callable[[int, int], None],
) -> Crossed:
    """Train every fold on counts of the training set ``kept``. A fold that cannot be trained (too few joins) leaves its
    statements out, and says so."""
    crossed = Crossed(split)
    divided = divide(split, cases, folds, seed)
    if not divided:
        crossed.why = "the workload cannot be divided so: one template only, or none with two statements"
    for number, fold in enumerate(divided):
        progress(number, len(divided))
        workload = Workload(tuple(Query(cases[place].line, cases[place].sql) for place in fold.train))
        try:
            with tempfile.TemporaryDirectory(prefix="pilotwire-fold-") as folder:
                file = Path(folder) / "fold.onnx"
                limits = Limits(budget=budget, statement=count_seconds)
                # The set lends its labels only: other statements in it are not learned from.
                sources = Sources(workload, kept=False)
                trained = await train_model(dsn, file, sources, limits, training_set=kept, generate=0, seed=seed)
                model = await asyncio.to_thread(bundle.load, file)
        except TrainingError as error:
            crossed.why = str(error)
            continue
        crossed.folds += 1
        crossed.train_seconds += trained.seconds
        for place in fold.test:
            crossed.models[cases[place].name] = Models(model)
    progress(len(divided), len(divided))
    if crossed.why and divided:
        crossed.warnings.append(f"{split}: {len(divided) - crossed.folds} of {len(divided)} folds: {crossed.why}")
    return crossed
