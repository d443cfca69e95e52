"""A whole evaluation against a real server with pg_hint_plan."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path

import asyncpg
import pytest

import training.train
from planner.features import flat
from tests.support.models import cardinality_model
from tests.support.postgres import Postgres
from tests.training import shop
from training import gbdt
from training.errors import TrainingError
from training.evaluate import cross
from training.evaluate.evaluation import Evaluation
from training.evaluate.measure import Series
from training.evaluate.options import Options
from training.evaluate.report import render
from training.evaluate.results import DEFAULT, TRUE_ROWS, Results
from training.queries import Query, Workload
from training.steps import Step

QUICK = Options(rounds=1, limit=5, truth_budget=20, count_seconds=5)
QUERIES = shop.queries(12, seed=3)


@pytest.fixture(scope="module")
def dsn(hinted_postgres: Postgres) -> str:
    return shop.create(hinted_postgres)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Believes every join to be a hundred times larger than PostgreSQL does."""
    path = tmp_path / "much.onnx"
    cardinality_model(path, "much", log_ratio=4.6, features=flat.NAMES, clip=(-8.0, 8.0))
    return path


def workload(*texts: str) -> Workload:
    return Workload(tuple(Query(number, text) for number, text in enumerate(texts, 1)))


async def test_everything_is_measured_and_written_down(dsn: str, model: Path, tmp_path: Path) -> None:
    trained = tmp_path / "trained.sql"
    trained.write_text(";\n".join(QUERIES[:4]))
    queries = tmp_path / "queries.sql"
    queries.write_text(
        ";\n".join([*QUERIES, "SELECT 1 / (count(*) - 400) FROM customers", "UPDATE items SET amount = 1", "SELEC 1"])
    )
    steps: list[Step] = []
    evaluation = Evaluation(
        dsn, queries, kept=tmp_path / "counts", models=[model], trained_on=trained, options=QUICK, progress=steps.append
    )
    results = await evaluation.run()

    assert results.complete
    assert sorted(one.sql for one in results.queries) == sorted(set(QUERIES))
    assert [line.split(": ")[1] for line in results.failed] == ["the server says 22012"]
    assert len(results.skipped) == 2
    assert results.models == ["much-1.0.0"]
    assert {"queries queries.sql", "training queries trained.sql", "model much-1.0.0", "true counts", "schema"} == set(
        results.inputs
    )
    assert all(len(digest) in (32, 64) for digest in results.inputs.values())

    advised = [one for one in results.queries if not one.steered["much-1.0.0"].reason]
    assert len(advised) >= 8
    for one in results.queries:
        assert len(one.series[DEFAULT].times) == 1
        assert one.ms("much-1.0.0") is not None
        assert one.ms(TRUE_ROWS) is not None
        assert len(one.arms) == 8
        assert not one.notes
    # It is a hundred times too large almost everywhere, and the truth is the count itself.
    count, points = results.q_errors("much-1.0.0")
    assert count > 20
    assert points["p50"][1] > 20 * points["p50"][0]
    connection = await asyncpg.connect(dsn)
    try:
        for one in results.queries:
            whole = max((sub for sub in results.sub_plans if sub.case == one.name), key=lambda sub: len(sub.aliases))
            assert whole.true == await connection.fetchval(one.sql), one.sql
    finally:
        await connection.close()
    assert {split.name for split in results.splits} >= {"repeated"}
    assert sum(len(split.cases) for split in results.splits) == len(results.queries)
    assert {step.name for step in steps} >= {"counting true rows", "running the queries"}
    assert "much-1.0.0" in render(results)


async def test_runs_that_take_too_long_count_as_the_limit(dsn: str, tmp_path: Path) -> None:
    options = Options(rounds=2, limit=0.2, truth_budget=0, arms=False)
    slow = workload("SELECT pg_sleep(5)", "SELECT 1")
    results = await Evaluation(dsn, slow, kept=tmp_path / "counts", options=options).run()
    series = {one.sql: one.series[DEFAULT] for one in results.queries}
    assert series["SELECT pg_sleep(5)"] == Series(times=[200.0, 200.0], first=200.0, timeouts=2, tag="")
    assert series["SELECT 1"].timeouts == 0
    assert results.sub_plans == []


async def test_a_short_budget_leaves_statements_out_and_says_so(dsn: str, tmp_path: Path) -> None:
    options = Options(rounds=1, budget=0.0, truth_budget=0, arms=False)
    with pytest.raises(TrainingError, match="no statement could be measured"):
        await Evaluation(dsn, workload(*QUERIES), kept=tmp_path / "counts", options=options).run()


async def test_splits_are_trained_and_judged_apart(dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = gbdt.Settings(members=2, rounds=20, deviation_rounds=5)
    monkeypatch.setattr(cross, "train_model", partial(training.train.train_model, settings=small))
    options = Options(rounds=1, limit=5, truth_budget=20, arms=False, splits=("template",), folds=2)
    texts = shop.queries(40, seed=3)
    results = await Evaluation(dsn, workload(*texts), kept=tmp_path / "counts", options=options).run()
    assert results.training["gbdt trained: template"]["folds"] == 2
    assert results.models == ["gbdt trained: template"]
    (split,) = results.splits
    assert len(split.cases) == len(set(split.cases)) > 30
    count, _ = results.q_errors(split.kind, split.cases)
    assert count > 50
    # Each model steers a part only: there is no comparison over the whole workload.
    assert results.main() == ("gbdt trained: template", split.cases)
    assert "gbdt trained: template" not in results.kinds()


@pytest.mark.long
async def test_models_of_settings_are_cross_validated_too(dsn: str, tmp_path: Path) -> None:
    options = Options(
        rounds=1, limit=5, truth_budget=20, arms=False, splits=("template",), algorithms=("hints",), folds=2,
        arms_budget=60,
    )  # fmt: skip
    texts = shop.queries(40, seed=3)
    results = await Evaluation(dsn, workload(*texts), kept=tmp_path / "counts", options=options).run()
    assert results.models == ["hints trained: template"]
    assert results.training["hints trained: template"]["algorithm"] == "hints"
    assert results.seconds["arms"] > 0
    (split,) = results.splits
    assert sum(results.reasons(split.kind).values()) == len(split.cases) > 30
    # It says nothing of rows.
    assert results.sub_plans
    assert results.q_errors(split.kind, split.cases) == (0, {})


def stop_after(count: int, then: Callable[[], None]) -> Callable[[Step], None]:
    def look(step: Step) -> None:
        if step.name == "running the queries" and step.done == count:
            then()

    return look


async def test_a_database_that_goes_away_leaves_what_was_measured(
    start_postgres: Callable[..., Postgres], tmp_path: Path
) -> None:
    server = start_postgres()
    evaluation = Evaluation(
        server.dsn(), workload(*(f"SELECT {number}" for number in range(8))), kept=tmp_path / "counts",
        options=Options(rounds=1, truth_budget=0, arms=False), progress=stop_after(3, server.kill),
    )  # fmt: skip
    with pytest.raises(TrainingError, match=r"the database (is gone|cannot be reached)"):
        await evaluation.run()
    assert len(evaluation.results.queries) == 3
    assert not evaluation.results.complete
    assert evaluation.results.finished


async def test_a_connection_that_breaks_is_opened_again(dsn: str, tmp_path: Path) -> None:
    other = await asyncpg.connect(dsn)
    kill = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'pilotwire explorer' AND datname = current_database()"
    )
    pending: list[asyncio.Task[object]] = []

    def end() -> None:
        pending.append(asyncio.get_running_loop().create_task(other.execute(kill)))

    try:
        evaluation = Evaluation(
            dsn, workload("SELECT pg_sleep(0.1)", "SELECT pg_sleep(0.11)", "SELECT 3"), kept=tmp_path / "counts",
            options=Options(rounds=1, truth_budget=0, arms=False), progress=stop_after(1, end),
        )  # fmt: skip
        results = await evaluation.run()
        await asyncio.gather(*pending)
    finally:
        await other.close()
    assert results.complete
    assert len(results.queries) == 3
    assert results.failed == []


async def test_interrupted_it_keeps_what_it_has(dsn: str, tmp_path: Path) -> None:
    kept: list[Results] = []
    reached = asyncio.Event()
    evaluation = Evaluation(
        dsn, workload(*(f"SELECT pg_sleep(0.0{number})" for number in range(1, 9))), kept=tmp_path / "counts",
        options=Options(rounds=1, truth_budget=0, arms=False), progress=stop_after(2, reached.set), keep=kept.append,
    )  # fmt: skip
    task = asyncio.create_task(evaluation.run())
    await asyncio.wait_for(reached.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert kept[-1].stopped == "interrupted"
    assert len(kept[-1].queries) == 2


async def test_interrupted_while_counting_it_shows_what_was_counted(dsn: str, model: Path, tmp_path: Path) -> None:
    reached = asyncio.Event()

    def look(step: Step) -> None:
        if step.name == "counting true rows" and step.done > 5:
            reached.set()

    evaluation = Evaluation(
        dsn, workload(*QUERIES), kept=tmp_path / "counts", models=[model], options=QUICK, progress=look
    )
    task = asyncio.create_task(evaluation.run())
    await asyncio.wait_for(reached.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert evaluation.results.queries == []
    assert evaluation.results.sub_plans
    assert all(one.predicted for one in evaluation.results.sub_plans)


async def test_what_cannot_be_evaluated(dsn: str, tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    (tmp_path / "empty").mkdir()
    cases: list[tuple[str, Workload, list[Path], str]] = [
        ("postgresql://nobody@127.0.0.1:1/none", workload("SELECT 1"), [], "the database cannot be reached"),
        (dsn, workload("UPDATE items SET amount = 1"), [], r"none of the 1 statements can be run .* the first: line 1"),
        (dsn, workload("SELECT 1"), [broken], "broken.onnx is not used"),
        (dsn, workload("SELECT 1"), [tmp_path / "empty"], "no model serves from"),
        (dsn, workload("SELECT nothing FROM items"), [], r"no statement could be measured; the first: q1 \(line 1\)"),
    ]
    for target, found, models, message in cases:
        options = Options(rounds=1, truth_budget=0, arms=False)
        with pytest.raises(TrainingError, match=message):
            await Evaluation(target, found, kept=tmp_path / "counts", models=models, options=options).run()
