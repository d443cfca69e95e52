"""The table of clients: what is counted, what is written, and that a run which shows too little leaves it alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tests.clients.matrix import CLIENTS, MODES, Matrix

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


def run_pytest(*arguments: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """A pytest of its own in ``folder``, with nothing of this run in its environment."""
    ours = ("PYTEST_", "PW_TEST_RUN", "PYTHONPATH", "PYTHONSAFEPATH")  # the compiled build is found by the last two
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "tests.clients.matrix", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env=inherited | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


SMALL = """
import pytest
from tests.clients.matrix import CLIENTS, MODES

ROWS = [(client, mode) for client in CLIENTS for mode in MODES if (client, mode) != LEFT_OUT]

@pytest.mark.client("any")
@pytest.mark.parametrize(("client", "mode"), ROWS)
def test_it(client, mode, record_property):
    record_property("client", client)
    record_property("mode", mode)
    record_property("version", "1.0")
    assert client != FAILING
"""


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Path]:
    """A project of one file of tests and this plugin, in which one row can be left out or one client can fail."""

    def make(left_out: tuple[str, str] | None = None, failing: str = "") -> Path:
        folder = tmp_path / "tests" / "clients"
        folder.mkdir(parents=True)
        (tmp_path / "docs").mkdir()
        (tmp_path / "tests" / "__init__.py").touch()
        (folder / "__init__.py").touch()
        shutil.copy(Path(__file__).parent / "matrix.py", folder)
        (folder / "test_small.py").write_text(f"LEFT_OUT = {left_out!r}\nFAILING = {failing!r}\n{SMALL}")
        (tmp_path / "pytest.ini").write_text(
            "[pytest]\nmarkers =\n    client: any\nasyncio_default_fixture_loop_scope = function\n"
        )
        return tmp_path

    return make


def test_a_whole_run_writes_the_table(small: Callable[..., Path]) -> None:
    folder = small(failing="Django")
    done = run_pytest(folder=folder)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    table = (folder / "docs" / "clients.md").read_text()
    assert "| psql | 1.0 | transaction | 1 | 1 |" in table
    assert "| Django | 1.0 | session | 1 | 0 |" in table


@pytest.mark.parametrize("parallel", [(), ("-n", "1")], ids=["alone", "controller"])
def test_a_row_without_a_test_fails_the_run(small: Callable[..., Path], parallel: tuple[str, ...]) -> None:
    folder = small(left_out=("JDBC", "transaction"))
    done = run_pytest(*parallel, folder=folder)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "no test was run for JDBC in transaction mode" in done.stdout
    assert not (folder / "docs" / "clients.md").exists()


@pytest.mark.parametrize(
    "selection",
    [["-k", "psql"], ["tests/clients/test_small.py::test_it"], ["-x"]],
    ids=["expression", "node", "stopped"],
)
def test_part_of_a_run_writes_no_table(small: Callable[..., Path], selection: list[str]) -> None:
    folder = small(failing="pgbench" if selection == ["-x"] else "")
    run_pytest(*selection, folder=folder)
    assert not (folder / "docs" / "clients.md").exists()


def test_an_unknown_target_is_refused() -> None:
    done = run_pytest("tests/clients/test_psql.py", "-x", PILOTWIRE_CLIENT_TARGETS="nowhere")
    assert done.returncode == 1
    assert "PILOTWIRE_CLIENT_TARGETS lists direct, session or transaction." in done.stdout
