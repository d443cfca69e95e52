"""The table of clients: a pytest plugin that counts each client's tests and writes docs/clients.md.

A test belongs to a client by the marker ``client("<name>")`` and to a mode by the parameter of the fixture ``mode``.
Both travel with the test's report as user properties, so the controller of a parallel run sees them like any other. The
plugin must be loaded in the controller too, which imports no subfolder's conftest: tests/conftest.py names it in
``pytest_plugins``.

The table is written, and an empty row turns the run red, only when all of tests/clients was selected: a run of one file
or of one expression says nothing about the others. Whether it was is known where tests are collected, so workers tell
the controller.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
DOCUMENT = HERE.parents[1] / "docs" / "clients.md"

CLIENTS = (
    "psql",
    "pg_dump and pg_restore",
    "pgbench",
    "psycopg 3",
    "asyncpg",
    "SQLAlchemy",
    "Alembic",
    "Django",
    "node-postgres",
    "JDBC",
)
MODES = ("session", "transaction")

INTRODUCTION = """\
# Clients tried through the proxy

Written by the test run (`make test`): each line is one client through one pool mode, in front of a real server, judged
by what came back. The tests are in `tests/clients/`; some of each client's run over TLS with SCRAM.
"""


@dataclass
class Matrix:
    """What the run knows so far: tests run and passed per (client, mode), and whether everything was selected."""

    run: Counter[tuple[str, str]] = field(default_factory=Counter)
    passed: Counter[tuple[str, str]] = field(default_factory=Counter)
    versions: dict[str, set[str]] = field(default_factory=dict)
    expected: int = 0
    finished: set[str] = field(default_factory=set)
    complete: bool = False
    complaints: list[str] = field(default_factory=list)

    def add(self, report: pytest.TestReport) -> None:
        """Count one report; a test is one, and passed only when set-up, call and teardown all passed."""
        properties = dict(report.user_properties)
        client, mode = properties.get("client"), properties.get("mode")
        if not isinstance(client, str) or not isinstance(mode, str):
            return
        row = (client, mode)
        version = properties.get("version")
        if isinstance(version, str):
            self.versions.setdefault(client, set()).add(version)
        if report.when == "call" and not report.skipped:
            self.run[row] += 1
            self.passed[row] += report.passed
        elif report.when == "setup" and report.failed:
            self.run[row] += 1
        elif report.when == "teardown":
            self.finished.add(report.nodeid)
            if report.failed:
                self.passed[row] -= 1

    def empty_rows(self) -> list[tuple[str, str]]:
        return [(client, mode) for client in CLIENTS for mode in MODES if not self.run[client, mode]]

    def render(self) -> str:
        """The whole document; deterministic for a given set of results."""
        lines = [INTRODUCTION, "| client | version | mode | tests run | passed |", "|---|---|---|---:|---:|"]
        for client in CLIENTS:
            version = ", ".join(sorted(self.versions.get(client, {"unknown"})))
            for mode in MODES:
                row = (client, mode)
                lines.append(f"| {client} | {version} | {mode} | {self.run[row]} | {self.passed[row]} |")
        return "\n".join(lines) + "\n"


_MATRIX = pytest.StashKey[Matrix]()
_DESELECTED = pytest.StashKey[bool]()


def _is_ours(path: Path) -> bool:
    return path.parent == HERE


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MATRIX] = Matrix()
    config.stash[_DESELECTED] = False


@pytest.hookimpl(optionalhook=True)
def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if _is_ours(item.path):
            item.config.stash[_DESELECTED] = True


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where tests are collected: was the whole folder selected, and how many tests is that?"""
    ours = [item for item in session.items if _is_ours(item.path)]
    config = session.config
    modes = {callspec.params.get("mode") for item in ours if (callspec := getattr(item, "callspec", None)) is not None}
    complete = (
        {item.path for item in ours} >= set(HERE.glob("test_*.py"))
        and bool(ours)
        and not config.stash[_DESELECTED]
        and not any("::" in argument for argument in config.args)
        and modes >= set(MODES)
    )
    tests = sum(item.get_closest_marker("client") is not None for item in ours)
    output: dict[str, Any] | None = getattr(config, "workeroutput", None)
    if output is not None:
        output["clients_complete"], output["clients_expected"] = complete, tests
    else:
        matrix = config.stash[_MATRIX]
        matrix.complete, matrix.expected = complete, tests


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """A worker of a parallel run has ended: take over what it knew about the selection."""
    output: dict[str, Any] = getattr(node, "workeroutput", None) or {}
    matrix: Matrix = node.config.stash[_MATRIX]
    matrix.complete = matrix.complete or bool(output.get("clients_complete"))
    matrix.expected = max(matrix.expected, int(output.get("clients_expected", 0)))


class _Reports:
    """Feeds the reports of this process (the controller's, in a parallel run) to the matrix."""

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.matrix.add(report)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(_Reports(session.config.stash[_MATRIX]), "clients-reports")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table, or say which row is empty, once every selected test has been run."""
    config = session.config
    matrix = config.stash[_MATRIX]
    if hasattr(config, "workeroutput") or not matrix.complete or len(matrix.finished) < matrix.expected:
        return
    matrix.complaints = [f"no test was run for {client} in {mode} mode" for client, mode in matrix.empty_rows()]
    if matrix.complaints:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return
    DOCUMENT.write_text(matrix.render(), encoding="utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for complaint in config.stash[_MATRIX].complaints:
        terminalreporter.write_line(f"docs/clients.md: {complaint}", red=True)
