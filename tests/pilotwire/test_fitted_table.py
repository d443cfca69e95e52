"""Tables in terminals of every width: what may not be cut is not, and no line is longer than the terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from pilotwire.fitted_table import Column, fitted
from pilotwire.memory_command import states
from planner.memory.arms import PORTFOLIO
from tests.planner.memory.store.made import arm, query

COLUMNS = (Column("key"), Column("calls", right=True), Column("arms", 1), Column("statement", 3))
ROWS = [
    [
        Text("0123456789ab"), Text("1,234,567"), Text("approved 12.35x no_nestloop_mergejoin\n9 rejected"),
        Text("SELECT " * 40),
    ],
    [Text("ba9876543210"), Text("3"), Text("-"), Text("SELECT 1")],
]  # fmt: skip


def printed(width: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False)
    console.print(fitted(console, COLUMNS, ROWS))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [25, 40, 44, 60, 80, 120, 200])
def test_numbers_stand_whole_and_texts_are_cut(width: int) -> None:
    lines = printed(width)
    assert max(len(line) for line in lines) <= width
    assert [line.split()[:2] for line in (lines[1], lines[-1])] == [
        ["0123456789ab", "1,234,567"],
        ["ba9876543210", "3"],
    ]
    assert len(lines) == 3 if width < 35 else 4
    assert ("statement" in lines[0]) == (width >= 46)
    assert ("approved 12.35x no_nestloop_mergejoin" in lines[1]) == (width >= 180)


def test_what_does_not_matter_any_more_is_counted() -> None:
    arms = [arm(1, name, state="rejected") for name in PORTFOLIO] + [arm(1, "cardinality", state="approved")]
    assert [str(text) for text in states(query(), arms)] == ["approved 2.00x cardinality", f"{len(PORTFOLIO)} rejected"]
    assert len(states(query(), arms, "rejected")) == len(PORTFOLIO) + 1
    assert [str(text) for text in states(query(opted_out=True), [])] == ["frozen"]
    assert [str(text) for text in states(query(), [])] == ["-"]
