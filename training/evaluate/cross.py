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
from typing import Final

from model_runtime import bundle
from planner.advise import Models
from training.collect import fill
from training.errors import TrainingError
from training.evaluate.cases import Case
from training.evaluate.splits import divide
from training.labels_arms import ArmTimes
from training.queries import Query, Workload
from training.steps import Tell
from training.train import Limits, Sources, train_model
from training.training_set import TrainingSet

HINTS: Final = "hints"
"""Models of settings, where the other algorithms make models of rows."""


@dataclass(slots=True)
class Crossed:
    """One split with one kind of model. ``models`` by the name of the case that they may steer; ``why`` says why there
    are none."""

    split: str
    algorithm: str = "gbdt"
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
    algorithm: str = "gbdt",
    folds: int,
    seed: int,
    count_seconds: float,
    budget: float,
    progress: Callable[[int, int], None],
) -> Crossed:
    """Train every fold (gbdt, mscn or `HINTS`) on what the training set ``kept`` has: counts, of which ``budget``
    seconds may make more, or times of arms (`measure_arms`), of which none are measured here. A fold that cannot be
    trained (too few joins) leaves its statements out, and says so."""
    crossed = Crossed(split, algorithm)
    divided = divide(split, cases, folds, seed)
    if not divided:
        crossed.why = "the workload cannot be divided so: one template only, or none with two statements"
    for number, fold in enumerate(divided):
        progress(number, len(divided))
        workload = Workload(tuple(Query(cases[place].line, cases[place].sql) for place in fold.train))
        try:
            with tempfile.TemporaryDirectory(prefix="pilotwire-fold-") as folder:
                file = Path(folder) / "fold.onnx"
                limits = Limits(budget=0.0 if algorithm == HINTS else budget, statement=count_seconds)
                trained = await train_model(
                    dsn,
                    file,
                    # The set lends its labels only: other statements in it are not learned from.
                    Sources(workload, kept=False),
                    limits,
                    kind="hints" if algorithm == HINTS else "cardinality",
                    algorithm="mscn" if algorithm == "mscn" else "gbdt",
                    training_set=kept,
                    generate=0,
                    seed=seed,
                )
                model = await asyncio.to_thread(bundle.load, file)
        except TrainingError as error:
            crossed.why = str(error)
            continue
        crossed.folds += 1
        crossed.train_seconds += trained.seconds
        for place in fold.test:
            crossed.models[cases[place].name] = Models(hints=model) if algorithm == HINTS else Models(model)
    progress(len(divided), len(divided))
    if crossed.why and divided:
        missing = f"{len(divided) - crossed.folds} of {len(divided)} folds"
        crossed.warnings.append(f"{split}, {algorithm}: {missing}: {crossed.why}")
    return crossed


async def measure_arms(dsn: str, cases: Sequence[Case], kept: Path, *, budget: float, tell: Tell) -> ArmTimes:
    """Run the statements under the portfolio's settings for so many seconds, into the training set ``kept``; what it
    has of them is not run again. Raises TrainingError."""
    workload = Workload(tuple(Query(case.line, case.sql) for case in cases))
    with TrainingSet(kept) as training_set:
        filled = await fill(
            training_set,
            dsn,
            Sources(workload, kept=False),
            Limits(budget=0.0, arms=budget),
            generate_count=0,
            tell=tell,
        )
    return filled.arms
