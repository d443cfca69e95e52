"""What the benchmark reads: pgbench's report, versions, package sources, its own options."""

from __future__ import annotations

import pytest

from benchmarks.debian_packages import later_suite
from benchmarks.pgbench import Outcome, parse
from benchmarks.pgbouncer import PgBouncerProgram, version_of
from benchmarks.processes import BenchmarkError
from benchmarks.ratios import Cell
from benchmarks.speed import GRID, parse_cells
from pilotwire.debian_archive import one_line_entries, stanza_entries

REPORT = """pgbench (18.6)
transaction type: <builtin: select only>
scaling factor: 10
query mode: prepared
number of clients: 8
number of threads: 1
maximum number of tries: 1
duration: 1 s
number of transactions actually processed: 32123
number of failed transactions: 0 (0.000%)
latency average = 0.247 ms
initial connection time = 10.101 ms
tps = 32388.123456 (without initial connection time)
"""

DEB822 = """Types: deb
# a snapshot
URIs: http://archive.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://archive.example/debian-security
Suites: bookworm-security
Components: main
"""


def test_pgbench_report() -> None:
    assert parse(REPORT) == Outcome(32388.123456, 32123, 0)
    assert parse(REPORT.replace("transactions: 0 (0", "transactions: 17 (0")).failed == 17


def test_an_older_pgbench_says_nothing_of_failures() -> None:
    without = "\n".join(line for line in REPORT.splitlines() if "failed" not in line)
    assert parse(without).failed == 0


def test_something_else_is_no_report() -> None:
    with pytest.raises(BenchmarkError, match="printed no result: 'connection refused'"):
        parse("connection refused\n")


@pytest.mark.parametrize(
    ("text", "version", "prepared"),
    [("PgBouncer 1.18.0\nlibevent 2.1", (1, 18), False), ("PgBouncer 1.25.2", (1, 25), True)],
)
def test_which_pgbouncer_follows_prepared_statements(text: str, version: tuple[int, int], prepared: bool) -> None:
    assert version_of(text) == version
    assert PgBouncerProgram(("pgbouncer",), text).follows_prepared is prepared


def test_no_pgbouncer() -> None:
    with pytest.raises(BenchmarkError, match="no PgBouncer version"):
        version_of("bash 5.2")


def test_a_later_suite_keeps_archive_and_key() -> None:
    key = "/usr/share/keyrings/debian-archive-keyring.gpg"
    wanted = [f"deb [signed-by={key}] http://archive.example/debian later main"]
    assert later_suite(stanza_entries(DEB822), "later") == wanted
    text = f"deb [signed-by={key}] http://archive.example/debian bookworm main contrib\n"
    assert later_suite(one_line_entries(text), "later") == wanted
    assert later_suite(one_line_entries("deb http://archive.example/debian-x y other\n"), "later") == []
    assert later_suite(one_line_entries("deb http://archive.example/x y main\n"), "later") == []


def test_cells() -> None:
    assert parse_cells("") == GRID
    assert len(GRID) == 9
    assert parse_cells("8:simple, 32:prepared") == (Cell(8, "simple"), Cell(32, "prepared"))


@pytest.mark.parametrize("text", ["8", "8:", "x:simple", "0:simple", "8:fast"])
def test_no_cell(text: str) -> None:
    with pytest.raises(ValueError, match="write clients:mode"):
        parse_cells(text)
