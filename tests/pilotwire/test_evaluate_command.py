"""``pilotwire evaluate`` as a command: what it prints and writes, and with which code it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pilotwire.cli import run_program
from planner.features import flat
from tests.support.models import cardinality_model
from tests.support.postgres import Postgres
from tests.training import shop

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PILOTWIRE_")}
QUICK = ("--rounds", "1", "--no-arms", "--truth-budget", "5", "--splits", "none")


@pytest.fixture(scope="module")
def dsn(hinted_postgres: Postgres) -> str:
    return shop.create(hinted_postgres)


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    file = tmp_path / "queries.sql"
    file.write_text(";\n".join([*shop.queries(6, seed=4), "SELEC 1"]))
    return file


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "pilotwire", "evaluate", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), check=False, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip


def test_tables_a_page_and_every_timing(dsn: str, queries: Path, tmp_path: Path) -> None:
    model = tmp_path / "large.onnx"
    cardinality_model(model, "large", log_ratio=3.0, features=flat.NAMES, clip=(-8.0, 8.0))
    html = tmp_path / "out" / "report.html"
    done = run("--upstream", dsn, "--queries", queries, "--model", model, *QUICK, "--html", html)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[0] == "reading the catalog ..."
    assert "against PostgreSQL as configured" in done.stdout
    assert any(line.split()[0] == "large-1.0.0" for line in done.stdout.splitlines() if line.strip())
    assert "7 statements read, 6 measured, 1 skipped" in done.stdout
    assert 'line 7: syntax error at or near "SELEC"' in done.stdout
    assert done.stdout.splitlines()[-1] == f"the report is in {html}, every timing in {html.with_suffix('.json')}"
    raw = json.loads(html.with_suffix(".json").read_text())
    assert raw["complete"]
    assert len(raw["inputs"]["queries queries.sql"]) == 64
    assert all(len(query["series"]["default"]["times"]) == 1 for query in raw["queries"])
    assert "large-1.0.0" in html.read_text()


def test_json_is_one_object(dsn: str, queries: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(["evaluate", "--upstream", dsn, "--queries", str(queries), *QUICK, "--json"]) == 0
    printed, said = capsys.readouterr()
    assert said == ""
    found = json.loads(printed)
    assert found["models"] == []
    assert len(found["queries"]) == 6


def test_interrupted_it_shows_what_it_has(dsn: str, tmp_path: Path) -> None:
    queries = tmp_path / "slow.sql"
    queries.write_text(";".join(f"SELECT pg_sleep(0.2), {number}" for number in range(100)))
    html = tmp_path / "report.html"
    arguments = ("--upstream", dsn, "--queries", queries, *QUICK, "--html", html)
    process = subprocess.Popen(
        command(*arguments), env=ENVIRONMENT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("running the queries"):
                break
        time.sleep(2)
        process.send_signal(signal.SIGTERM)
        printed, said = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "pilotwire: interrupted; what was measured until then" in said
    assert "100 statements read" in printed
    assert "This evaluation is not complete: interrupted." in html.read_text()
    assert 0 < len(json.loads(html.with_suffix(".json").read_text())["queries"]) < 100


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--queries", "none.sql"), 2, "Missing option '--upstream'"),
        (("--upstream", "DSN", "--queries", "none.sql"), 1, "none.sql cannot be read: No such file or directory"),
        (("--upstream", "DSN", "--queries", "QUERIES", "--splits", "odd"), 2, "'odd' is no split: choose from random"),
        (
            ("--upstream", "DSN", "--queries", "QUERIES", "--algorithms", "x"),
            2,
            "'x' is no algorithm: choose from gbdt",
        ),
        (("--upstream", "DSN", "--queries", "QUERIES", "--html", "FOLDER"), 1, "is a folder: name a file in it"),
        (("--upstream", "DSN", "--queries", "QUERIES", "--html", "/dev/null/x.html"), 1, "cannot be written"),
        (("--upstream", "DSN", "--queries", "QUERIES", "--html", "a.json"), 1, "a report ends in .html"),
        (("--upstream", "DSN", "--queries", "QUERIES", "--model", "QUERIES"), 1, "is not used"),
        (("--upstream", "postgresql://a@127.0.0.1:1/a", "--queries", "QUERIES"), 1, "the database cannot be reached"),
    ],
)
def test_mistakes_end_in_one_line(
    dsn: str,
    queries: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    code: int,
    said: str,
) -> None:
    given = {"DSN": dsn, "QUERIES": str(queries), "FOLDER": str(tmp_path)}
    assert run_program(["evaluate", *(given.get(argument, argument) for argument in arguments)]) == code
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("pilotwire: ")
    assert said in line
