"""``pilotwire trainer``: its options, its status, and what it says when stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pilotwire.cli import run_program
from tests.support.waiting import wait_until
from training.trainer import files
from training.trainer.jobs import Jobs

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PILOTWIRE_")}
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "pilotwire", "trainer", *map(str, arguments)]


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.sql"
    path.write_text("SELECT 1;")
    return path


def test_the_status_tells_what_is_set_aside_and_retry_takes_it_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PILOTWIRE_STATE_DIR", str(tmp_path))
    jobs = Jobs(tmp_path / "trainer" / "jobs", max_attempts=1)
    failed = jobs.add(["the schedule"], now=1e9)
    jobs.begin(failed)
    jobs.failed(failed, "the disk is full")
    done = jobs.add(["the schema changed"], now=2e9)
    jobs.begin(done)
    jobs.done(done, "kept", "it is not better by 5%", {"error": 1.0})

    assert run_program(["trainer", "status"]) == 0
    shown = capsys.readouterr().out
    assert "the trainer does not run" in shown
    assert f"{failed.id}  set aside  the schedule" in shown
    assert "1 attempt failed with: the disk is full" in shown
    assert "kept: it is not better by 5%" in shown
    state = str(tmp_path / "trainer")
    assert run_program(["trainer", "status", "--json", "--state", state]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["running"], found["set_aside"]) == (False, [failed.id])
    assert [job["state"] for job in found["jobs"]] == ["done", "set_aside"]

    assert run_program(["trainer", "retry", failed.id]) == 0
    assert jobs.get(failed.id).state == "waiting"  # type: ignore[union-attr]
    capsys.readouterr()
    assert run_program(["trainer", "status"]) == 0
    assert "to be tried again; it failed with: the disk is full\n" in capsys.readouterr().out
    assert run_program(["trainer", "retry", failed.id]) == 1
    assert capsys.readouterr().err == f"pilotwire: no job {failed.id} is set aside\n"


def test_once_with_a_database_that_is_away(queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--once", "--now", "--attempts", "1"]
    folders = ["--models", str(tmp_path / "models"), "--queries", str(queries), "--state", str(tmp_path / "state")]
    assert run_program(["trainer", "--upstream", NOWHERE, *folders, *options]) == 1
    said = capsys.readouterr().err
    assert "the database cannot be reached" in said
    assert "set aside after 1 attempts" in said


def test_it_stops_on_sigterm_and_only_one_works_in_a_folder(
    queries: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = tmp_path / "state"
    arguments = ("--upstream", NOWHERE, "--models", tmp_path, "--queries", queries, "--state", state)
    process = subprocess.Popen(command(*arguments), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: files.locked(state) and (state / "status.json").exists(), what="it works", timeout=30)
        assert run_program(["trainer", *map(str, arguments)]) == 1
        assert capsys.readouterr().err == f"pilotwire: another trainer works in {state}\n"
        assert run_program(["trainer", "status", "--json", "--state", str(state)]) == 0
        assert json.loads(capsys.readouterr().out)["running"]
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "give the database with --upstream"),
        (("--upstream", NOWHERE), 2, "give the folder that is served from with --models"),
        (("--upstream", NOWHERE, "--models", "m", "--name", "a/b"), 2, "--name is the plain name of a file"),
        (("--upstream", NOWHERE, "--models", "m", "--store", "none", "--once"), 1, "nothing to train from"),
        (("--upstream", NOWHERE, "--models", "m", "--store", "mysql://x", "--once"), 1, "the store is given as"),
        (("--upstream", NOWHERE, "--models", "m", "--queries", "q", "--schedule", "daily"), 1, "is no schedule"),
        (("status", "--state", "/nowhere/at/all"), 1, "no trainer has worked in /nowhere/at/all"),
    ],
)
def test_mistakes_end_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    monkeypatch.setenv("PILOTWIRE_STATE_DIR", str(tmp_path))
    assert run_program(["trainer", *arguments]) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert said in line
    assert line.startswith("pilotwire: ")
