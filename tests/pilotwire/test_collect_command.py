"""``pilotwire collect`` as a command, and training from what it made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pilotwire.conftest import Refused
from tests.pilotwire.test_train_command import ENVIRONMENT
from tests.support.postgres import Postgres
from tests.training import shop


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    return shop.create(postgres)


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pilotwire", *map(str, arguments)],
        check=False,
        env=ENVIRONMENT | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_twice_from_two_sources(dsn: str, tmp_path: Path) -> None:
    queries, log, place = tmp_path / "queries.sql", tmp_path / "postgresql.log", tmp_path / "shop.training"
    texts = shop.queries(40, seed=9)
    queries.write_text(";\n".join([*texts[:30], "SELEC 1"]))
    log.write_text("".join(f"LOG:  duration: 2.5 ms  statement: {text}\n" for text in texts[30:]))
    first = run("collect", "--set", place, "--queries", queries, "--generate", "5", PILOTWIRE_UPSTREAM=dsn)
    assert first.returncode == 0, first.stderr
    lines = [" ".join(line.split()) for line in first.stdout.splitlines()]
    assert lines[:2] == ["statements 30, 30 new from file", "and 5 generated from the schema"]
    assert lines[2].startswith("line 31: syntax error")
    assert lines[-1].startswith(f"{place} holds ")
    again = run("collect", "--set", place, "--log", log, "--generate", "5", "--upstream", dsn, "--json")
    assert (again.returncode, again.stderr) == (0, "")
    summary = json.loads(again.stdout)
    assert (summary["statements"], summary["new"]["log"], summary["joins_left"]) == (40, 10, 0)
    assert summary["joins_known"] > 30


@pytest.mark.long
def test_collected_then_trained(dsn: str, tmp_path: Path) -> None:
    queries, place = tmp_path / "queries.sql", tmp_path / "shop.training"
    queries.write_text(";\n".join(shop.queries(40, seed=9)))
    collected = run("collect", "--set", place, "--queries", queries, "--generate", "5", "--upstream", dsn, "--json")
    assert (collected.returncode, collected.stderr) == (0, "")
    trained = run(
        "train", "--set", place, "--out", tmp_path / "shop.onnx", "--upstream", dsn, "--generate", "5", "--json"
    )
    assert (trained.returncode, trained.stderr) == (0, "")
    report = json.loads(trained.stdout)
    assert report["counts_known"] == report["counts"] == json.loads(collected.stdout)["joins"]
    assert (report["training_set"], report["algorithm"]) == (str(place), "gbdt")


def test_what_goes_wrong_is_one_line(dsn: str, tmp_path: Path, refused: Refused) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    place = tmp_path / "set"
    cases: list[tuple[list[str | Path], int, str]] = [
        (["--upstream", dsn], 2, "Missing option '--set'"),
        (["--upstream", dsn, "--set", place, "--generate", "0"], 1, "there is no statement to learn from"),
        (["--upstream", dsn, "--set", place, "--log", tmp_path / "none"], 1, "none cannot be read"),
        (["--upstream", dsn, "--set", place, "--pg-stat-statements"], 1, "pg_stat_statements is not installed"),
        (["--upstream", dsn, "--set", place, "--store", f"sqlite:///{tmp_path}/none.db"], 1, "what the proxy saw"),
    ]
    for arguments, code, message in cases:
        ended, lines = refused("collect", *arguments)
        assert ended == code, lines
        assert message in lines[-1]
        assert lines[-1].startswith("pilotwire: ")
        assert "Traceback" not in "".join(lines)
    done = run("collect", "--upstream", dsn, "--set", blocked, "--queries", blocked)
    assert done.returncode == 1, done.stderr
    assert "holds no statement" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("pilotwire: ")
    assert "Traceback" not in done.stderr
