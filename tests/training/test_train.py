"""From queries to a model file, against a real database, and what is said when that cannot be done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import asyncpg
import numpy as np
import pytest

from planner.features import flat
from planner.snapshot import Snapshot
from tests.support.models import load_model
from tests.support.postgres import Postgres
from tests.training import shop
from training import train as module
from training.dataset import Collected, Dataset, assemble, collect
from training.errors import TrainingError
from training.explained import Harvested
from training.gbdt import Settings, Trained, train
from training.labels import Labels
from training.labels_arms import ArmTimes
from training.model_file import LEAST_DEVIATION
from training.queries import read_file
from training.steps import Step
from training.train import Limits, Sources, _warnings, set_path, train_baseline, train_model
from training.training_set import TrainingSet

QUICK = Settings(folds=3, members=1, rounds=60, rate=0.15, deviation_rounds=10)
QUERIES = shop.queries(50, seed=5)


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    file = tmp_path / "queries.sql"
    file.write_text(";\n".join([*QUERIES, "SELEC 1", "SELECT 1"]))
    return file


async def test_from_end_to_end(
    shop_dsn: str, shop_snapshot: Snapshot, queries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Dataset, Trained]] = []

    def watched(data: Dataset, *arguments: object, **options: object) -> Trained:
        trained = train(data, *arguments, **options)  # type: ignore[arg-type]
        seen.append((data, trained))
        return trained

    monkeypatch.setattr(module, "train", watched)
    steps: list[Step] = []
    out = tmp_path / "models" / "Shop 1.onnx"
    report = await train_baseline(shop_dsn, queries, out, settings=QUICK, generate=20, progress=steps.append)
    ((data, trained),) = seen

    assert (report.queries, report.queries_skipped) == (52, 2)
    assert (report.counts_left, report.counts_failed, report.counts_timed_out) == (0, 0, 0)
    assert report.sub_plans == len(data) > 100
    assert report.queries_generated == 20
    assert report.sub_plans_generated == (data.weight < 1).sum() > 10
    assert report.labels_explained > 20
    assert report.skipped[0].startswith('line 51: syntax error at or near "SELEC"')
    assert {step.name for step in steps} >= {"counting joins", "growing trees"}
    assert json.loads(json.dumps(report.as_json()))["splits"]["templates"]["q_error"]["p90"]["native"] > 1

    model = load_model(out)
    assert report.file_bytes == out.stat().st_size
    assert model.label == report.model
    assert model.name == "shop-1"
    assert model.manifest.features == flat.NAMES
    assert model.manifest.schema_hash == shop_snapshot.schema_hash
    assert set(model.manifest.vocabulary.tables) == {f"public.{name}" for name in shop.TABLES.values()}
    assert set(model.manifest.relation_hashes) == set(model.manifest.vocabulary.tables)
    assert model.manifest.training.splits["random"].q_error["p50"].before == report.splits["random"].native[0]
    outputs = model.predict({"features": data.features})
    assert np.abs(outputs["log_ratio"] - trained.predict(data.features)).max() < 1e-4
    assert (outputs["log_std"] >= LEAST_DEVIATION - 1e-6).all()
    assert (model.outside_ranges(data.features) == 0).all()
    corrected = np.clip(outputs["log_ratio"], *model.manifest.clip)
    assert np.abs(data.target - corrected).mean() < 0.9 * np.abs(data.target).mean()
    assert sorted(path.name for path in out.parent.iterdir()) == ["Shop 1.onnx", "Shop 1.training"]


async def test_labels_are_the_true_counts(
    shop_dsn: str, shop_snapshot: Snapshot, queries: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.onnx"
    await train_baseline(shop_dsn, queries, out, settings=QUICK, generate=0)
    collected = collect(read_file(queries), shop_snapshot, ("public",))
    with TrainingSet(set_path(out)) as kept:
        rows = kept.rows
    connection = await asyncpg.connect(shop_dsn)
    try:
        for block in collected.blocks[:20]:
            text = QUERIES[block.query]
            assert rows[block.digests[-1]] == await connection.fetchval(text), text
    finally:
        await connection.close()
    assert len(assemble(collected.blocks, rows)) > 100


async def test_a_training_set_lends_labels_but_no_statements(
    shop_dsn: str, shop_snapshot: Snapshot, queries: Path, tmp_path: Path
) -> None:
    place = tmp_path / "set"
    first = await train_baseline(shop_dsn, queries, tmp_path / "a.onnx", generate=0, training_set=place, settings=QUICK)
    part = tmp_path / "part.sql"
    part.write_text(";\n".join(QUERIES[:40]))
    second = await train_baseline(shop_dsn, part, tmp_path / "b.onnx", generate=0, training_set=place, settings=QUICK)
    assert (second.queries, second.counts_known) == (40, second.counts)
    assert second.counts < first.counts
    # The command's --set means the statements in it as well; and needs no file then.
    third = await train_model(
        shop_dsn, tmp_path / "c.onnx", Sources(), Limits(), generate=0, training_set=place, settings=QUICK
    )
    assert (third.queries, third.counts_known) == (51, first.counts)
    assert (load_model(tmp_path / "c.onnx").label, third.training_set) == (third.model, str(place))


async def test_few_queries_are_enough_with_generated_ones(shop_dsn: str, tmp_path: Path) -> None:
    few = tmp_path / "few.sql"
    few.write_text(QUERIES[0])
    report = await train_baseline(shop_dsn, few, tmp_path / "model.onnx", generate=40, settings=QUICK)
    assert report.queries_learned <= 1
    assert report.sub_plans_generated > 40
    assert load_model(tmp_path / "model.onnx").label == report.model


async def test_cancelled_training_keeps_the_counts_and_the_old_model(
    shop_dsn: str, queries: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.onnx"
    out.write_bytes(b"the old one")
    reached = asyncio.Event()

    def wait_for(name: str, done: int) -> Callable[[Step], None]:
        reached.clear()
        return lambda step: reached.set() if step.name == name and step.done >= done else None

    slow = Settings(rounds=1_000_000)
    known = 0
    for name, done in (("counting joins", 20), ("growing trees", 0)):
        task = asyncio.create_task(
            train_baseline(shop_dsn, queries, out, settings=slow, generate=0, progress=wait_for(name, done))
        )
        await asyncio.wait_for(reached.wait(), 30)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        with TrainingSet(set_path(out)) as kept:
            counted = len(kept.rows)
        assert counted >= max(known, done)
        known = counted
    assert out.read_bytes() == b"the old one"

    report = await train_baseline(shop_dsn, queries, out, settings=QUICK, generate=0)
    assert report.counts_known == report.counts == known
    assert load_model(out).label == report.model


async def test_what_cannot_be_trained(postgres: Postgres, shop_dsn: str, queries: Path, tmp_path: Path) -> None:
    empty = postgres.dsn(postgres.create_database())
    single = tmp_path / "single.sql"
    single.write_text("SELECT * FROM orders; SELECT 1;")
    few = tmp_path / "few.sql"
    few.write_text(QUERIES[0])
    blocked = tmp_path / "file"
    blocked.write_text("")
    out = tmp_path / "model.onnx"
    cases = [
        (empty, queries, out, "has no tables that this user can see"),
        (
            shop_dsn,
            single,
            out,
            r"none of the 2 statements joins tables of the database .*: line 1: no join",
        ),
        (shop_dsn, few, out, r"only \d joins with rows were counted, at least 40 are needed"),
        (shop_dsn, tmp_path / "none.sql", out, "none.sql cannot be read"),
        (shop_dsn, queries, tmp_path, r"is a folder: name a file in it"),
        (shop_dsn, queries, blocked / "model.onnx", "cannot be written: (File exists|Not a directory)"),
        ("postgresql://nobody@127.0.0.1:1/none", queries, out, "the database cannot be reached"),
    ]
    for number, (dsn, file, path, message) in enumerate(cases):
        place = tmp_path / f"set {number}"
        with pytest.raises(TrainingError, match=message):
            await train_baseline(dsn, file, path, settings=QUICK, generate=0, training_set=place)
    assert not out.exists()


async def test_tables_without_statistics_are_told(postgres: Postgres, queries: Path, tmp_path: Path) -> None:
    name = postgres.create_database()
    postgres.sql(shop.SCHEMA, name)
    report = await train_baseline(postgres.dsn(name), queries, tmp_path / "model.onnx", generate=0, settings=QUICK)
    assert any("no statistics that this user can see; run ANALYZE" in warning for warning in report.warnings)


def test_a_workload_that_nothing_was_learned_from_is_told() -> None:
    none = Collected((), (), 0, 0)
    filled: Any = SimpleNamespace(
        collected=none, snapshot=SimpleNamespace(tables={}), notes=[], labels=Labels(wanted=9), explained=Harvested(),
        arms=ArmTimes(wanted=3),
    )  # fmt: skip
    rows: Any = SimpleNamespace(kind="cardinality", native_only=False, notes={})
    assert _warnings(filled, rows)[0].startswith("none of the workload's own statements could be learned from")
    arms: Any = SimpleNamespace(kind="hints", native_only=False, notes={"steered": 1})
    assert _warnings(filled, arms)[1:] == ["3 statements were not tried within the budget: run again to go on"]


async def test_a_short_budget_leaves_some_for_the_next_run(shop_dsn: str, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.onnx"
    known = -1
    refused: list[str] = []
    for _ in range(200):
        try:
            report = await train_baseline(shop_dsn, queries, out, budget_seconds=1.0, generate=0, settings=QUICK)
        except TrainingError as error:
            refused.append(str(error))
            continue
        assert report.counts_known > known
        known = report.counts_known
        if not report.counts_left:
            break
        assert any("were not counted within the budget" in warning for warning in report.warnings)
    assert report.counts_left == 0
    assert all("more time with --budget" in message for message in refused)
