"""What the demo prints and keeps."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from pilotwire.demo.report import Results, Row, read_results, show
from pilotwire.demo.why import advised, left_alone
from planner.advise import SubPlan
from planner.planner import Decision
from training.evaluate.measure import Series


def series(ms: float, tag: str = "SELECT 3") -> Series:
    return Series([ms - 0.1, ms, ms + 0.1], ms * 2, 0, tag)


def results() -> Results:
    rows = [
        Row("won", "report", "SELECT 1", series(900), series(300), True, "a ⋈ b: 10 → 5,000 rows; 3 new steps"),
        Row("lost", "report", "SELECT 2", series(100), series(180), True, "c ⋈ d: 7 → 9 rows; 2 new steps"),
        Row("left", "point", "SELECT 3", series(0.3), series(0.31), False, "left alone: joins nothing"),
        Row("odd", "list", "SELECT 4", series(50), series(50, "SELECT 4"), True, "same plan"),
    ]
    return Results(1, 1.0, "demo-1.0.0", "2025-01-01 10:00", 3, rows)


def printed(found: Results, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width)
    show(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_kept_results_come_back_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results().save(path)
    assert read_results(path) == results()
    assert read_results(tmp_path / "nothing.json") is None
    path.write_text('{"format": 1, "rows": [{"name": "half"}]}')
    assert read_results(path) is None
    path.write_text('{"format": 0}')
    assert read_results(path) is None


def test_what_lost_is_shown_beside_what_won() -> None:
    text = printed(results())
    lines = [line for line in text.splitlines() if line.strip()]
    assert [line.split()[0] for line in lines[1:5]] == ["won", "lost", "odd", "left"]
    assert "3.00" in lines[1]
    assert "0.56" in lines[2]
    assert "4 statements: 1.05 s plain, 0.53 s steered: 1.98 times faster in total" in text
    assert "1 got faster and 1 got slower; the worst of them 1.80 times: lost" in text
    assert "3 got advice" in text
    assert "not the same number of rows plain and steered: odd" in text


def test_a_narrow_terminal_keeps_the_numbers() -> None:
    for line in printed(results(), 100).splitlines()[:5]:
        assert len(line) <= 100
    assert "0.56" in printed(results(), 80)


def test_why_in_a_few_words() -> None:
    estimates = (
        SubPlan(0, 3, ("o", "c"), 100.0, 250.0),
        SubPlan(0, 7, ("o", "c", "i"), 52_000.0, 2_222.0),
        SubPlan(0, 5, ("o", "i"), 10.0),
    )
    found = Decision("SELECT 1", "", estimates=estimates)
    assert advised(found, 4) == "o ⋈ c ⋈ i: 52k → 2,222 rows; 4 new steps"
    assert advised(found, 1).endswith("; 1 new step")
    assert advised(found, 0).endswith("; same plan")
    only = Decision("SELECT 1", "", settings=(("enable_nestloop", "off"),))
    assert advised(only, 2) == "settings: enable_nestloop=off; 2 new steps"
    assert left_alone(Decision("SELECT 1", "no_join")) == "left alone: joins nothing"
    assert left_alone(Decision("SELECT 1", "")) == "left alone: too short to gain"
    assert left_alone(Decision("SELECT 1", "view")).startswith("left alone: it reads a view")
