"""The trainer from events to a handover, against a real database, and what is left when it fails or is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import training.train
from planner.features import flat
from planner.memory.records import Execution
from planner.memory.store import open_store
from tests.support.models import cardinality_model, load_model
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until
from tests.training import shop
from training import gbdt
from training.errors import TrainingError
from training.trainer import challenge, files, handover
from training.trainer import trainer as trainer_module
from training.trainer.events import Marks
from training.trainer.jobs import CRASHED, Jobs, JobState
from training.trainer.trainer import DRIFT_RETRY, MARKS, Settings, Trainer
from training.training_set import EXACT, TrainingSet

QUERIES = shop.queries(40, seed=11)


@pytest.fixture
def settings(shop_dsn: str, tmp_path: Path) -> Settings:
    file = tmp_path / "queries.sql"
    file.write_text(";\n".join(QUERIES))
    return Settings(
        dsn=shop_dsn, models=tmp_path / "models", state=tmp_path / "state", queries=file, count_budget=20,
        run_budget=10, rounds=1, check_every=0.05,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few trees, no made-up statements."""
    small = gbdt.Settings(members=2, rounds=25, deviation_rounds=10)
    train = training.train.train_model

    async def quicker(*arguments: object, **options: object) -> object:
        return await train(*arguments, **{**options, "settings": small, "generate": 0})  # type: ignore[arg-type]

    monkeypatch.setattr(trainer_module, "train_model", quicker)


async def once(settings: Settings, **options: bool) -> tuple[bool, Trainer, list[str]]:
    said: list[str] = []
    with files.Lock(settings.state):
        trainer = Trainer(settings, said.append)
        good = await trainer.run(once=True, **options)
    return good, trainer, said


async def test_a_better_model_takes_over_and_one_as_good_does_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.models.mkdir()
    bad = cardinality_model(settings.models / "bad.onnx", "bad", log_ratio=6.0, features=flat.NAMES, clip=(-8.0, 8.0))
    # Times of such small statements are chance: here the estimates decide.
    monkeypatch.setattr(challenge, "SLACK_MS", 1e6)
    good, trainer, said = await once(settings, now=True)
    (job,) = trainer.jobs.known()
    assert (good, job.reasons, job.outcome) == (True, ["asked for"], "handed_over"), said
    served = load_model(settings.models / "trained.onnx")
    assert job.figures["training"]["model"] == served.label
    assert job.figures["champion"]["name"] == f"{bad.name}-{bad.version}"
    assert job.figures["challenger"]["error"] < job.figures["champion"]["error"] / 2
    assert job.figures["held_out"] + job.figures["trained_on"] == len(set(QUERIES))
    assert not handover.candidate_path(settings.models, "trained").exists()
    report = Path(job.report)
    assert "<svg" in report.read_text()  # noqa: ASYNC240
    assert json.loads(report.with_suffix(".json").read_text())["complete"]
    assert [model.label for model in handover.serving(settings.models)] == [served.label]

    before = (settings.models / "trained.onnx").read_bytes()
    # Too little for a model of settings is no failure.
    good, trainer, said = await once(replace(settings, arms_budget=0.001), now=True)
    job = trainer.jobs.known()[0]
    assert (good, job.outcome) == (True, "kept"), said
    assert "; settings: only" in job.why
    assert job.figures["champion"]["name"] == served.label
    assert job.why in said[-1]
    assert (settings.models / "trained.onnx").read_bytes() == before
    assert handover.candidate_path(settings.models, "trained").exists()
    # Nothing was counted a second time.
    assert job.figures["training"]["counts_known"] > 50


async def test_settings_are_trained_where_asked_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both models by themselves; an attempt that fails in the second does not do the first again."""
    trained: list[str] = []
    train = vars(trainer_module)["train_model"]

    async def noting(*arguments: object, **options: object) -> object:
        trained.append(str(options["kind"]))
        if trained == ["cardinality", "hints"]:
            raise TrainingError("no luck")
        return await train(*arguments, **options)

    monkeypatch.setattr(trainer_module, "train_model", noting)
    settings = replace(settings, arms_budget=6.0, run_budget=1.0, first_delay=0.0)
    good, trainer, said = await once(settings, now=True)
    (job,) = trainer.jobs.known()
    assert not good
    assert (job.state, job.attempts, job.errors) == (JobState.DONE, 2, ["no luck"]), said
    assert trained == ["cardinality", "hints", "hints"]
    assert "; settings: " in job.why
    assert job.figures["settings"]["training"]["model"].startswith("trained-settings-")
    assert Path(job.report).with_stem(f"{job.id}-settings").exists()
    assert handover.candidate_path(settings.models, "trained-settings").exists()


async def test_a_job_that_keeps_failing_is_set_aside(settings: Settings) -> None:
    settings = replace(settings, dsn="postgresql://nobody@127.0.0.1:1/none", max_attempts=2, first_delay=0.0)
    good, trainer, said = await once(settings, now=True)
    (job,) = trainer.jobs.known()
    assert not good
    assert (job.state, job.attempts) == (JobState.SET_ASIDE, 2)
    assert all("the database cannot be reached" in error for error in job.errors)
    assert said[-1].endswith("it is set aside after 2 attempts")
    # It is not made anew by the event that it came from.
    good, trainer, said = await once(settings)
    assert [one.id for one in trainer.jobs.known()] == [job.id]


async def test_a_folder_of_models_that_cannot_be_written_fails_the_job(settings: Settings) -> None:
    settings.models.write_text("a file")
    good, trainer, _ = await once(replace(settings, max_attempts=1), now=True)
    (job,) = trainer.jobs.known()
    assert not good
    assert (job.state, "cannot be written" in job.why) == (JobState.SET_ASIDE, True)


async def test_new_statements_of_the_store_and_a_changed_schema_are_events(
    settings: Settings, postgres: Postgres, tmp_path: Path
) -> None:
    name = postgres.create_database()
    postgres.sql("CREATE TABLE one (id int)", name)
    url = f"sqlite:///{tmp_path / 'store.db'}"
    settings = replace(settings, dsn=postgres.dsn(name), store=url, on_queries=3, queries=None, max_attempts=1)
    (settings.state / "jobs").mkdir(parents=True)
    Jobs(settings.state / "jobs").add(["kept busy"])
    trainer = Trainer(settings, lambda _: None)

    def seen(*numbers: int) -> None:
        with open_store(url, literals=True) as store:
            store.save(
                executions=[
                    Execution(
                        at=time.time(),
                        database=name,
                        key=f"key{number}",
                        text=f"SELECT {number}",
                        uid=f"{number}-{time.time()}",
                    )
                    for number in numbers
                ]
            )

    await trainer._look()
    assert trainer.jobs.known()[0].reasons == ["kept busy"]
    seen(1, 2)
    await trainer._look()
    seen(1, 2)
    await trainer._look()
    assert trainer.jobs.known()[0].reasons == ["kept busy"]
    seen(3)
    await trainer._look()
    assert trainer.jobs.known()[0].reasons == ["kept busy", "3 new statements"]
    seen(1, 2, 3, 4)
    await trainer._look()
    assert trainer.jobs.known()[0].reasons == ["kept busy", "3 new statements"]

    postgres.sql("ALTER TABLE one ADD COLUMN more text", name)
    await trainer._look()
    assert trainer.jobs.known()[0].reasons[-1] == "the schema changed"
    # What was there when the last job was made is known to the next trainer too.
    seen(5)
    again = Trainer(settings, lambda _: None)
    await again._look()
    assert again._fresh.count == 1
    # The statement that was first seen last is held out.
    divided = again._gather()
    assert [query.text for query in divided.train.queries] == [f"SELECT {number}" for number in (1, 2, 3, 4)]
    assert [query.text for query in divided.held_out.queries] == ["SELECT 5"]


async def test_drift_is_seen_by_fresh_counts(settings: Settings, postgres: Postgres) -> None:
    dsn = shop.create(postgres)
    settings.models.mkdir()
    cardinality_model(settings.models / "own.onnx", "own", features=flat.NAMES)
    settings = replace(settings, dsn=dsn, on_drift=1.5, drift_every=0.0)
    (settings.state / "jobs").mkdir(parents=True)
    trainer = Trainer(settings, lambda _: None)
    assert await trainer._drifted() == []
    assert trainer._marks.error > 0
    # Many more orders than the statistics know of.
    database = dsn.rpartition("/")[2].partition("?")[0]
    postgres.sql(
        "INSERT INTO orders SELECT n, 10 * (n % 3 + 1), date '2024-05-05', 'paid' FROM generate_series(3000, 60000) n",
        database,
    )
    (reason,) = await trainer._drifted()
    assert reason.startswith("drift: the typical q-error went from")
    # Counts of before are not believed any more.
    assert trainer._max_age() < 60


async def test_estimates_that_could_not_be_looked_at_are_looked_at_again_soon(settings: Settings) -> None:
    settings.models.mkdir()
    cardinality_model(settings.models / "own.onnx", "own", features=flat.NAMES)
    settings = replace(settings, dsn="postgresql://nobody@127.0.0.1:1/none", on_drift=1.5, drift_every=86_400.0)
    (settings.state / "jobs").mkdir(parents=True)
    trainer = Trainer(settings, lambda _: None)
    with pytest.raises(TrainingError, match="cannot be reached"):
        await trainer._drifted()
    due = trainer._marks.drift_checked + settings.drift_every - time.time()
    assert 0 < due <= DRIFT_RETRY
    # Not each time, since it may cost seconds of counting.
    assert await trainer._drifted() == []


def test_a_killed_trainer_loses_no_labels(settings: Settings, shop_dsn: str, tmp_path: Path) -> None:
    """kill -9 in the middle of counting; the next one goes on. As nothing serves, PostgreSQL is the champion."""
    command = [
        sys.executable, "-m", "pilotwire", "trainer", "--upstream", shop_dsn, "--models", str(settings.models),
        "--queries", str(settings.queries), "--state", str(settings.state), "--count-budget", "20", "--once",
        "--rounds", "1", "--run-budget", "1", "--retry-after", "0",
    ]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PILOTWIRE_")}
    journal = settings.state / "trained.training" / "labels.journal"
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)

    def counted() -> int:
        return journal.read_text().count("\n") if journal.exists() else 0

    some = 20
    try:
        wait_until(lambda: counted() >= some, what="some joins are counted", timeout=30)
        assert files.locked(settings.state)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.communicate(timeout=10)
    whole = [line for line in journal.read_text().splitlines(keepends=True) if line.endswith("\n")]
    labels = {label["count"]: label["rows"] for label in map(json.loads, whole) if label["kind"] == EXACT}
    (job,) = Jobs(settings.state / "jobs").known()
    assert job.state == JobState.RUNNING

    good, trainer, said = asyncio.run(once(replace(settings, first_delay=0.0)))
    (again,) = trainer.jobs.known()
    assert (good, again.id, again.state, again.attempts) == (True, job.id, JobState.DONE, 2), said
    assert again.errors == [CRASHED]
    assert again.reasons == ["no model serves"]
    assert again.figures["champion"]["name"] == "PostgreSQL"
    assert (settings.models / "trained.onnx").exists() == (again.outcome == "handed_over")
    assert len(labels) >= some - 1
    with TrainingSet(journal.parent) as kept:
        assert {count: kept.label(count) for count in labels} == {
            count: (EXACT, rows, 0.0) for count, rows in labels.items()
        }
    # Less than there are labels: EXPLAIN tells of joins, too, that nobody asks to be counted.
    assert again.figures["training"]["counts_known"] >= some - 1


def test_marks_survive_and_broken_ones_are_forgotten(tmp_path: Path) -> None:
    files.write(tmp_path / MARKS, Marks(seen=7, schema="x"))
    assert files.read(tmp_path / MARKS, Marks) == Marks(seen=7, schema="x")
    (tmp_path / MARKS).write_text("{")
    assert files.read(tmp_path / MARKS, Marks) is None
