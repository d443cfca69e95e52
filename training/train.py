"""From a database and some queries to a model file: `train_model` does all of it.

Reads the catalog as the planner does, takes the workload from its sources, labels it within a budget
(`training.collect`), trains the model that was asked for, and writes one checked bundle (`training.model_file`). What
was collected and labelled stays in a training set beside the model file.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from training.collect import BUDGET_SECONDS, COUNT_SECONDS, Filled, Limits, Sources, fill
from training.dataset import Labelled
from training.errors import TrainingError
from training.gbdt import PERCENTILES, Settings, Split, Stopped, train
from training.model_file import Built, of_trees, write
from training.queries import Workload, read_file
from training.steps import Step, Tell
from training.training_set import TrainingSet, explain_os

__all__ = ["Limits", "Report", "Sources", "Step", "set_path", "train_baseline", "train_model"]

Kind: TypeAlias = Literal["cardinality", "hints"]
Algorithm: TypeAlias = Literal["gbdt", "mscn"]
MSCN_MODULE: Final = "training.mscn"
HINTS_MODULE: Final = "training.hints"


@dataclass(frozen=True, slots=True)
class Report:
    """What was done. ``sub_plans`` are those with a label and rows, which is what the model learned from;
    ``native_only`` tells that the model corrects nothing, since no correction held on templates it had not seen.
    ``queries_given_values`` are statements of the file that had parameters, and count as often as they were taken, with
    other values each time. ``counts`` are those of the workload's own statements; ``labels_explained`` came from plans
    that were run, here or elsewhere."""

    file: str
    file_bytes: int
    model: str
    kind: str
    algorithm: str
    queries: int
    queries_skipped: int
    queries_learned: int
    queries_generated: int
    queries_given_values: int
    sub_plans: int
    sub_plans_empty: int
    sub_plans_uncountable: int
    sub_plans_generated: int
    sub_plans_bounded: int
    counts: int
    counts_known: int
    counts_timed_out: int
    counts_bounded: int
    counts_failed: int
    counts_left: int
    generated_counts: int
    generated_counts_left: int
    labels_explained: int
    statements_explained: int
    statements_stopped: int
    arms_measured: int
    arms_left: int
    label_seconds: float
    train_seconds: float
    seconds: float
    splits: dict[str, Split]
    native_only: bool
    training_set: str
    notes: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = field(default=())
    warnings: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """Plain data; q-errors by percentile."""
        data = asdict(self)
        data["splits"] = {
            name: {
                "queries": split.queries,
                "sub_plans": split.sub_plans,
                "q_error": {
                    f"p{point}": {"native": before, "model": after}
                    for point, before, after in zip(PERCENTILES, split.native, split.model, strict=True)
                },
            }
            for name, split in self.splits.items()
        }
        return data


def set_path(out: Path) -> Path:
    """The training set of that model file, unless another one is named."""
    return out.with_name(f"{out.stem}.training")


async def train_baseline(
    dsn: str,
    queries: Path | Workload,
    out: Path,
    *,
    budget_seconds: float = BUDGET_SECONDS,
    count_seconds: float = COUNT_SECONDS,
    seed: int = 0,
    connections: int = 2,
    algorithm: Algorithm = "gbdt",
    training_set: Path | None = None,
    generate: int | None = None,
    max_age: float | None = None,
    settings: Settings | None = None,
    progress: Tell | None = None,
) -> Report:
    """`train_model` on the statements of a file or workload and on no others, whatever the training set has."""
    check_writable(out)
    workload = queries if isinstance(queries, Workload) else read_file(queries)
    return await train_model(
        dsn,
        out,
        Sources(workload, kept=False),
        Limits(budget=budget_seconds, statement=count_seconds, connections=connections),
        algorithm=algorithm,
        training_set=training_set,
        generate=generate,
        seed=seed,
        max_age=max_age,
        settings=settings,
        progress=progress,
    )


async def train_model(
    dsn: str,
    out: Path,
    sources: Sources,
    limits: Limits,
    *,
    kind: Kind = "cardinality",
    algorithm: Algorithm = "gbdt",
    training_set: Path | None = None,
    generate: int | None = None,
    seed: int = 0,
    max_age: float | None = None,
    settings: Settings | None = None,
    progress: Tell | None = None,
) -> Report:
    """Train on the workload of ``sources`` and of the training set, and write the model to ``out``.

    ``generate`` statements are made up besides, None: as many as are good for a workload of that size. Labels older
    than ``max_age`` seconds are made anew. Raises TrainingError with a sentence for the person who asked. Cancelling is
    safe at any moment: what was labelled is in the training set, and the model file is there complete or not at all.
    """
    started = time.monotonic()
    tell = progress or _nobody
    check_writable(out)
    _check_libraries(kind, algorithm)
    with TrainingSet(training_set or set_path(out)) as kept:
        filled = await fill(
            kept,
            dsn,
            sources,
            limits if kind == "cardinality" else _for_times(limits),
            generate_count=0 if kind == "hints" else generate,
            seed=seed,
            max_age=max_age,
            tell=tell,
        )
        labelled, place = filled.labelled(kept), str(kept.path)
    built, train_seconds = await _train(labelled, kind, algorithm, settings or Settings(), seed, tell)
    tell(Step("writing the model"))
    manifest, size = await asyncio.to_thread(write, built, labelled, out, seconds=train_seconds, seed=seed)
    data, labels, more = labelled.data, filled.labels, filled.generated_labels
    return Report(
        file=str(out),
        file_bytes=size,
        model=manifest.label,
        kind=kind,
        algorithm=str(built.notes.get("algorithm", algorithm)),
        queries=filled.statements + len(filled.workload.skipped),
        queries_skipped=len(filled.collected.skipped),
        queries_learned=data.queries,
        queries_generated=filled.generated,
        queries_given_values=filled.given_values,
        sub_plans=len(data),
        sub_plans_empty=data.empty,
        sub_plans_uncountable=filled.collected.uncountable,
        sub_plans_generated=int((data.weight < 1).sum()),
        sub_plans_bounded=int(data.lower.sum()),
        counts=labels.wanted,
        counts_known=labels.known,
        counts_timed_out=labels.timed_out,
        counts_bounded=labels.bounded,
        counts_failed=labels.failed,
        counts_left=labels.left,
        generated_counts=more.wanted,
        generated_counts_left=more.left,
        labels_explained=filled.explained.labels + filled.from_plans,
        statements_explained=filled.explained.run,
        statements_stopped=filled.explained.stopped,
        arms_measured=filled.arms.known + filled.arms.measured,
        arms_left=filled.arms.left,
        label_seconds=filled.explained.seconds + labels.seconds + more.seconds + filled.arms.seconds,
        train_seconds=train_seconds,
        seconds=time.monotonic() - started,
        splits=dict(built.splits),
        native_only=built.native_only,
        training_set=place,
        notes=dict(built.notes),
        skipped=tuple(str(skipped) for skipped in filled.skipped),
        warnings=tuple(_warnings(filled, built)),
    )


def _for_times(limits: Limits) -> Limits:
    """A model of settings learns from nothing else."""
    return replace(limits, arms=limits.arms or limits.budget, budget=0.0)


def _nobody(_: Step) -> None:
    """Progress that nobody looks at."""


def check_writable(out: Path) -> None:
    """Before minutes of counting, not after. Raises TrainingError."""
    if out.is_dir():
        raise TrainingError(f"{out} is a folder: name a file in it, for instance {out / 'baseline.onnx'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(f".{out.name}.{os.getpid()}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {explain_os(error)}") from None


def _check_libraries(kind: Kind, algorithm: Algorithm) -> None:
    """Before minutes of counting, not after. Raises TrainingError."""
    if kind == "cardinality" and algorithm == "mscn":
        importlib.import_module(MSCN_MODULE).check_torch()


def build(
    labelled: Labelled,
    kind: Kind,
    algorithm: Algorithm,
    settings: Settings,
    *,
    seed: int,
    stop: threading.Event,
    progress: Callable[[int, int], None],
) -> Built:
    """The model that was asked for. Raises TrainingError, and `Stopped` soon after ``stop`` is set."""
    if kind == "cardinality" and algorithm == "gbdt":
        return of_trees(train(labelled.data, settings, seed=seed, stop=stop, progress=progress), labelled)
    module = importlib.import_module(HINTS_MODULE if kind == "hints" else MSCN_MODULE)
    built = module.train(labelled, seed=seed, stop=stop, progress=progress)
    if not isinstance(built, Built):
        raise TypeError(f"{module.__name__}.train gave a {type(built).__name__}")
    return built


async def _train(
    labelled: Labelled, kind: Kind, algorithm: Algorithm, settings: Settings, seed: int, tell: Tell
) -> tuple[Built, float]:
    """Training in a thread, so that the progress is shown and a cancellation ends it soon."""
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    stop = threading.Event()
    name = "growing trees" if (kind, algorithm) == ("cardinality", "gbdt") else "training"

    def show(done: int, total: int) -> None:
        loop.call_soon_threadsafe(tell, Step(name, done, total))

    task = asyncio.create_task(
        asyncio.to_thread(build, labelled, kind, algorithm, settings, seed=seed, stop=stop, progress=show)
    )
    try:
        built = await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Stopped):
            raise error from None
        raise
    return built, time.monotonic() - started


def _warnings(filled: Filled, built: Built) -> list[str]:
    """What the person who trains should know."""
    used = {table for block in filled.collected.blocks for table in block.tables}
    tables = [table for table in filled.snapshot.tables.values() if f"{table.schema}.{table.name}" in used]
    bare = [
        f"{table.schema}.{table.name}"
        for table in tables
        if table.rows > 0 and not any(column.statistics for column in table.columns.values())
    ]
    labels = filled.labels
    found = list(filled.notes)
    if not filled.collected.queries:
        found.append("none of the workload's own statements could be learned from: only generated ones were")
    if bare:
        found.append(
            f"{', '.join(sorted(bare)[:5])}: no statistics that this user can see; run ANALYZE and train again"
        )
    if filled.arms.left and built.kind == "hints":
        found.append(f"{filled.arms.left} statements were not tried within the budget: run again to go on")
    if labels.left and built.kind == "cardinality":
        found.append(f"{labels.left} joins were not counted within the budget: run again to go on, or give more time")
    if labels.failed:
        found.append(f"{labels.failed} counts were refused by the server, the first with: {labels.first_failure}")
    if filled.explained.failed:
        found.append(
            f"{filled.explained.failed} statements could not be run, the first with: {filled.explained.first_failure}"
        )
    if built.native_only and built.kind == "cardinality":
        found.append("no correction held on joins that were not trained on: the model leaves all estimates as they are")
    elif built.kind == "cardinality" and built.notes.get("scale") == 0:
        found.append("no correction held on join templates not trained on: the model corrects only those that were")
    elif built.kind == "hints" and not (built.notes.get("steered") or built.notes.get("known_steered")):
        found.append("no other settings were confidently faster: the model leaves most statements as they are")
    return found
