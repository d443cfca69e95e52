"""``pilotwire train`` as a command: what it prints, what Ctrl-C leaves, and with which code it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pilotwire.train_command import _summarise
from tests.pilotwire.conftest import Refused
from tests.support.postgres import Postgres
from tests.training import shop
from training.train import Report

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PILOTWIRE_")}


@pytest.fixture(scope="module")
def dsn(postgres: Postgres) -> str:
    return shop.create(postgres)


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    file = tmp_path / "queries.sql"
    file.write_text(";\n".join([*shop.queries(40, seed=9), *["SELEC 1"] * 7]))
    return file


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "pilotwire", "train", *map(str, arguments)]


def run(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        check=False,
        env=ENVIRONMENT | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_model_and_a_summary(dsn: str, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "models" / "shop.onnx"
    done = run("--queries", queries, "--out", out, "--generate", "10", PILOTWIRE_UPSTREAM=dsn)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "reading the catalog ..."
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert lines[0].startswith("queries 47 read, 7 skipped, ")
    assert lines[1] == 'line 41: syntax error at or near "SELEC": SELEC 1'
    assert lines[6] == "and 2 more"
    assert lines[7] == "10 more were generated from the schema"
    assert lines[8].startswith("joins ")
    assert any(line.startswith("join templates not seen ") and line.count("->") == 3 for line in lines)
    assert lines[-1].startswith(f"shop-{time.gmtime().tm_year}.")
    assert out.stat().st_size > 10_000


@pytest.mark.long
def test_what_was_counted_is_not_counted_again(dsn: str, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "shop.onnx"
    assert run("--queries", queries, "--out", out, "--upstream", dsn, "--generate", "10").returncode == 0
    again = run("--queries", queries, "--out", out, "--upstream", dsn, "--generate", "10", "--json")
    assert (again.returncode, again.stderr) == (0, "")
    report = json.loads(again.stdout)
    assert report["counts_known"] == report["counts"] > 50
    assert report["splits"]["random"]["q_error"]["p50"]["model"] >= 1


def test_interrupted(dsn: str, queries: Path, tmp_path: Path) -> None:
    out = tmp_path / "shop.onnx"
    labels = tmp_path / "shop.training"
    with subprocess.Popen(
        command("--upstream", dsn, "--queries", queries, "--out", out),
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("counting joins"):
                break
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        code = process.wait(20)
    assert code == 130, said
    assert said.splitlines()[-1] == (
        f"pilotwire: interrupted: what was done is kept in {labels}, run the same command again to go on"
    )
    assert "Traceback" not in said
    assert not out.exists()


def test_a_model_of_settings_speaks_of_arms_and_not_of_joins(capsys: pytest.CaptureFixture[str]) -> None:
    nothing: dict[str, Any] = {field.name: 0 for field in fields(Report)}
    some = {"kind": "hints", "queries": 9, "counts_left": 7, "arms_measured": 4, "arms_left": 5, "splits": {}}
    _summarise(Report(**nothing | some | {"notes": {}, "skipped": (), "warnings": ()}), Console(width=80))
    shown = capsys.readouterr().out
    assert "queries    9 read, 4 learned from" in shown
    assert "arms       4 statements measured, 5 left; 0 s" in shown
    assert "joins " not in shown


def test_what_goes_wrong_is_one_line(dsn: str, queries: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "shop.onnx"
    cases: list[tuple[list[str | Path], int, str]] = [
        (["--queries", queries, "--out", out], 2, "Missing option '--upstream'"),
        (["--upstream", dsn, "--queries", tmp_path / "none", "--out", out], 1, "cannot be read: No such file"),
        (["--upstream", "postgresql://x@127.0.0.1:1/x", "--queries", queries, "--out", out], 1, "cannot be reached"),
        (["--upstream", dsn, "--queries", queries, "--out", out, "--budget", "-1"], 2, "Invalid value for '--budget'"),
        (["--upstream", dsn, "--out", out], 2, "name a file of queries, or another source"),
        (["--upstream", dsn, "--queries", queries, "--out", out, "--kind", "x"], 2, "Invalid value for '--kind'"),
        (
            ["--upstream", dsn, "--queries", queries, "--out", out, "--kind", "hints", "--algorithm", "mscn"],
            2,
            "it is for models of rows",
        ),
    ]
    for arguments, code, message in cases:
        ended, lines = refused("train", *arguments)
        assert ended == code, lines
        assert message in lines[-1]
        assert lines[-1].startswith("pilotwire: ")
        assert "Traceback" not in "".join(lines)
    done = run("--upstream", dsn, "--queries", queries, "--out", tmp_path)
    assert done.returncode == 1
    assert "is a folder" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].startswith("pilotwire: ")
    assert "Traceback" not in done.stderr
    assert not out.exists()
