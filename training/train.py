"""From a database and some queries to a model file: `train_baseline` does all of it.

Reads the catalog as the planner does, counts what the queries' sub-plans really return, trains boosted trees on the
difference to the native estimates, and writes one checked bundle. The steps are usable one by one: `training.queries`,
`training.dataset`, `training.labels`, `training.gbdt`, `training.export`.
"""

from __future__ import annotations

import asyncio
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import asyncpg
import numpy as np

from model_runtime import bundle
from model_runtime.limits import Limits
from model_runtime.manifest import (
    MEANINGS,
    Abstention,
    BeforeAfter,
    Featurizer,
    Manifest,
    SplitSummary,
    TrainingSummary,
    Vocabulary,
)
from planner.catalog_load import load, schema_hash
from planner.features import flat
from planner.snapshot import Snapshot
from training.dataset import Block, Collected, Dataset, assemble, collect
from training.errors import TrainingError
from training.export import tree_model
from training.gbdt import PERCENTILES, Settings, Split, Stopped, Trained, train
from training.labels import LabelFile, Labeller, Labels, connect
from training.queries import Workload, read_file

SELF_TEST_ROWS: Final = 16
LEAST_DEVIATION: Final = 0.01
BUDGET_SECONDS: Final = 300.0
COUNT_SECONDS: Final = 2.0


@dataclass(frozen=True, slots=True)
class Step:
    """Where training is: ``done`` of ``total`` parts of what ``name`` says; ``note`` has details in a few words."""

    name: str
    done: int = 0
    total: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What was done. ``sub_plans`` are those with a label and rows, which is what the model learned from;
    ``native_only`` tells that the model corrects nothing, since no correction held on templates it had not seen."""

    file: str
    file_bytes: int
    model: str
    queries: int
    queries_skipped: int
    queries_learned: int
    sub_plans: int
    sub_plans_empty: int
    sub_plans_uncountable: int
    counts: int
    counts_known: int
    counts_timed_out: int
    counts_failed: int
    counts_left: int
    count_seconds: float
    train_seconds: float
    seconds: float
    splits: dict[str, Split]
    native_only: bool
    labels_file: str
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


def labels_path(out: Path) -> Path:
    """Where the counts for that model file are kept."""
    return out.with_name(f"{out.stem}.labels.jsonl")


async def train_baseline(
    dsn: str,
    queries: Path | Workload,
    out: Path,
    *,
    budget_seconds: float = BUDGET_SECONDS,
    count_seconds: float = COUNT_SECONDS,
    seed: int = 0,
    connections: int = 2,
    settings: Settings | None = None,
    progress: Callable[[Step], None] | None = None,
) -> Report:
    """Train on the statements of ``queries`` against the database and write the model to ``out``.

    ``budget_seconds`` bounds the counting, ``count_seconds`` each count. The counts are kept beside the model file and
    used again by the next run. Raises TrainingError with a sentence for the person who asked. Cancelling is safe at
    any moment: the model file is there complete or not at all.
    """
    started = time.monotonic()
    tell = progress or _nobody
    _check_writable(out)
    workload = queries if isinstance(queries, Workload) else read_file(queries)
    tell(Step("reading the catalog"))
    snapshot, search_path = await _catalog(dsn)
    tell(Step("reading the queries", 0, len(workload.queries)))
    collected = await asyncio.to_thread(collect, workload, snapshot, search_path)
    _check_collected(collected, workload, snapshot)
    labels = await _label(dsn, collected, snapshot, labels_path(out), budget_seconds, count_seconds, connections, tell)
    data = assemble(collected.blocks, labels.rows)
    trained, train_seconds = await _train(data, settings or Settings(), seed, tell)
    tell(Step("writing the model"))
    manifest, size = await asyncio.to_thread(_write, trained, data, collected, snapshot, out, train_seconds, seed)
    return Report(
        file=str(out),
        file_bytes=size,
        model=manifest.label,
        queries=len(workload.queries) + len(workload.skipped),
        queries_skipped=len(collected.skipped),
        queries_learned=data.queries,
        sub_plans=len(data),
        sub_plans_empty=data.empty,
        sub_plans_uncountable=collected.uncountable,
        counts=labels.wanted,
        counts_known=labels.known,
        counts_timed_out=labels.timed_out,
        counts_failed=labels.failed,
        counts_left=labels.left,
        count_seconds=labels.seconds,
        train_seconds=train_seconds,
        seconds=time.monotonic() - started,
        splits=dict(trained.splits),
        native_only=trained.scale == 0,
        labels_file=str(labels_path(out)),
        skipped=tuple(str(skipped) for skipped in collected.skipped),
        warnings=tuple(_warnings(collected.blocks, snapshot, labels, trained)),
    )


def _nobody(_: Step) -> None:
    """Progress that nobody looks at."""


def _check_writable(out: Path) -> None:
    """Before minutes of counting, not after. Raises TrainingError."""
    if out.is_dir():
        raise TrainingError(f"{out} is a folder: name a file in it, for instance {out / 'baseline.onnx'}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        probe = out.with_name(f".{out.name}.{os.getpid()}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error.strerror}") from None


async def _catalog(dsn: str) -> tuple[Snapshot, tuple[str, ...]]:
    """The database as the planner sees it, and the schemas that names are looked up in."""
    connection = await connect(dsn)
    try:
        # As the planner loads it: its own settings, not those of a counting session, would change nothing here.
        snapshot = await load(connection)
        schemas = await connection.fetchval("SELECT current_schemas(false)::text[]")
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise TrainingError(f"the catalog cannot be read: {' '.join(str(error).split())}") from None
    finally:
        await connection.close(timeout=5)
    return snapshot, tuple(schemas)


def _check_collected(collected: Collected, workload: Workload, snapshot: Snapshot) -> None:
    """TrainingError when there is nothing to count."""
    if not any(table.steerable and schema != "pg_catalog" for (schema, _), table in snapshot.tables.items()):
        raise TrainingError(f"the database {snapshot.database} has no tables that this user can see")
    if not collected.blocks:
        first = f"; the first: {collected.skipped[0]}" if collected.skipped else ""
        raise TrainingError(
            f"none of the {len(workload.queries)} statements joins tables of the database {snapshot.database} in a way "
            f"that can be counted{first}"
        )


async def _label(
    dsn: str,
    collected: Collected,
    snapshot: Snapshot,
    path: Path,
    budget: float,
    count_seconds: float,
    connections: int,
    tell: Callable[[Step], None],
) -> Labels:
    def show(labels: Labels) -> None:
        note = f"{labels.timed_out} timed out" if labels.timed_out else ""
        tell(Step("counting joins", labels.wanted - labels.left, labels.wanted, note))

    with LabelFile(path, snapshot.database, snapshot.schema_hash) as file:
        labeller = Labeller(dsn, file, budget=budget, timeout=count_seconds, connections=connections, progress=show)
        return await labeller.run(count for block in collected.blocks for count in block.counts)


async def _train(data: Dataset, settings: Settings, seed: int, tell: Callable[[Step], None]) -> tuple[Trained, float]:
    """Training in a thread, so that the progress is shown and a cancellation ends it soon."""
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def show(done: int, total: int) -> None:
        loop.call_soon_threadsafe(tell, Step("growing trees", done, total))

    task = asyncio.create_task(asyncio.to_thread(train, data, settings, seed=seed, stop=stop, progress=show))
    try:
        trained = await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait({task})
        if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, Stopped):
            raise error from None
        raise
    return trained, time.monotonic() - started


def _write(
    trained: Trained, data: Dataset, collected: Collected, snapshot: Snapshot, out: Path, seconds: float, seed: int
) -> tuple[Manifest, int]:
    """Write the bundle under a hidden name, load it with all checks, then put it in place; also gives its size in
    bytes. Raises TrainingError."""
    graph = tree_model(
        trained.members,
        data.features.shape[1],
        scale=trained.scale,
        deviation=trained.deviation,
        floor=LEAST_DEVIATION,
    )
    rows = data.features[np.linspace(0, len(data) - 1, min(SELF_TEST_ROWS, len(data))).astype(int)]
    now = datetime.now(UTC)
    manifest = Manifest(
        kind="cardinality",
        name=_model_name(out),
        version=f"{now.year}.{now.month * 100 + now.day}.{now.hour * 10_000 + now.minute * 100 + now.second}",
        trained_at=now,
        featurizer=Featurizer(name=flat.Flat.name, version=flat.VERSION),
        features=flat.NAMES,
        vocabulary=_vocabulary(collected.blocks),
        schema_hash=snapshot.schema_hash,
        relation_hashes=_relation_hashes(collected.blocks, snapshot),
        ranges=dict(zip(flat.NAMES, trained.ranges, strict=True)),
        clip=trained.clip,
        abstention=Abstention(outside_ranges=trained.outside_ranges, log_std=trained.log_std),
        output_meaning=MEANINGS["cardinality"],
        training=_summary(trained, data, seconds, seed),
        self_test=bundle.self_test(graph, {"features": rows}),
    )
    hidden = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        bundle.write(graph, manifest, hidden)
        bundle.load(hidden, Limits())
        hidden.replace(out)
        size = out.stat().st_size
    except bundle.Refused as refused:
        raise TrainingError(f"the model does not pass its own checks ({refused.step}: {refused.reason})") from None
    except OSError as error:
        raise TrainingError(f"{out} cannot be written: {error.strerror}") from None
    finally:
        hidden.unlink(missing_ok=True)
    return manifest, size


def _model_name(out: Path) -> str:
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


def _summary(trained: Trained, data: Dataset, seconds: float, seed: int) -> TrainingSummary:
    splits = {
        name: SplitSummary(
            queries=split.queries,
            sub_plans=split.sub_plans,
            q_error={
                f"p{point}": BeforeAfter(before=before, after=after)
                for point, before, after in zip(PERCENTILES, split.native, split.model, strict=True)
            },
        )
        for name, split in trained.splits.items()
    }
    return TrainingSummary(
        queries=data.queries,
        sub_plans=len(data),
        seconds=seconds,
        splits=splits,
        notes={"seed": seed, "trees": trained.rounds * len(trained.members), "scale": trained.scale},
    )


def _warnings(blocks: Sequence[Block], snapshot: Snapshot, labels: Labels, trained: Trained) -> list[str]:
    """What the person who trains should know."""
    used = {table for block in blocks for table in block.tables}
    bare = [
        f"{table.schema}.{table.name}"
        for table in snapshot.tables.values()
        if f"{table.schema}.{table.name}" in used
        and table.rows > 0
        and not any(column.statistics for column in table.columns.values())
    ]
    found = []
    if bare:
        found.append(f"{', '.join(sorted(bare)[:5])}: no statistics; run ANALYZE and train again")
    if labels.left:
        found.append(f"{labels.left} joins were not counted within the budget: run again to go on, or give more time")
    if labels.failed:
        found.append(f"{labels.failed} counts were refused by the server, the first with: {labels.first_failure}")
    if trained.scale == 0:
        found.append("no correction held on joins that were not trained on: the model leaves all estimates as they are")
    return found
