"""The table of clients: what is counted, what is written, and that a run which shows too little leaves it alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from tests.clients.matrix import CLIENTS, DOCUMENT, MODES, Matrix

ROOT = Path(__file__).resolve().parents[2]
Phase = Literal["setup", "call", "teardown"]
Outcome = Literal["passed", "failed", "skipped"]


def report(client: str, mode: str, phases: dict[Phase, Outcome], version: str = "1.0") -> list[pytest.TestReport]:
    """The reports of one test, phase by phase, as pytest makes them."""
    properties: list[tuple[str, object]] = [("client", client), ("mode", mode), ("version", version)]
    return [
        pytest.TestReport(
            nodeid=f"{client}-{mode}",
            location=("test.py", 1, "test"),
            keywords={},
            outcome=outcome,
            longrepr=None,
            when=phase,
            user_properties=properties,
        )
        for phase, outcome in phases.items()
    ]


PASSED: dict[Phase, Outcome] = {"setup": "passed", "call": "passed", "teardown": "passed"}


@pytest.mark.parametrize(
    ("phases", "run", "passed"),
    [
        (PASSED, 1, 1),
        ({"setup": "passed", "call": "failed", "teardown": "passed"}, 1, 0),
        ({"setup": "failed", "teardown": "passed"}, 1, 0),
        ({"setup": "passed", "call": "passed", "teardown": "failed"}, 1, 0),
        ({"setup": "skipped", "teardown": "passed"}, 0, 0),
        ({"setup": "passed", "call": "skipped", "teardown": "passed"}, 0, 0),
    ],
)
def test_a_test_counts_once(phases: dict[Phase, Outcome], run: int, passed: int) -> None:
    matrix = Matrix()
    for part in report("psql", "session", phases):
        matrix.add(part)
    assert (matrix.run["psql", "session"], matrix.passed["psql", "session"]) == (run, passed)


def test_a_row_without_a_test_is_found_and_every_row_is_written() -> None:
    matrix = Matrix()
    for client in CLIENTS:
        for mode in MODES:
            for part in report(client, mode, PASSED) if (client, mode) != ("JDBC", "transaction") else ():
                matrix.add(part)
    assert matrix.empty_rows() == [("JDBC", "transaction")]
    rows = [line for line in matrix.render().splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(CLIENTS) * len(MODES)
    assert rows[0] == "| psql | 1.0 | session | 1 | 1 |"
    assert rows[-1] == "| JDBC | 1.0 | transaction | 0 | 0 |"


def run_pytest(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A pytest of its own on this folder; it runs nothing but this file's first test, or only collects."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "PW_TEST_RUN"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.clients.matrix", *arguments],
        cwd=ROOT,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("selection", ["tests/clients/test_matrix.py", "tests/clients"])
def test_a_partial_run_leaves_the_table_alone(selection: str) -> None:
    before = DOCUMENT.read_bytes() if DOCUMENT.exists() else b""
    done = run_pytest(selection, "-k", "test_a_test_counts_once")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (DOCUMENT.read_bytes() if DOCUMENT.exists() else b"") == before


def test_an_unknown_target_is_refused() -> None:
    done = run_pytest("tests/clients/test_psql.py", "-x", PILOTWIRE_CLIENT_TARGETS="nowhere")
    assert done.returncode == 1
    assert "PILOTWIRE_CLIENT_TARGETS lists direct, session or transaction." in done.stdout
