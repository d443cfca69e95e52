"""What the demo found: kept as JSON for the next start, printed as a table with what lost beside what won."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.evaluate.measure import SLACK_MS, Series, Summary, summarise

FORMAT: Final = 1
NAME_WIDTH: Final = 38
NUMBER_WIDTH: Final = 10
WIDTHS: Final = NAME_WIDTH + 3 * NUMBER_WIDTH + 4 * 2
"""Columns of the terminal that are taken before the reason begins."""


@dataclass(slots=True)
class Row:
    """One statement of the workload. ``advised`` tells that it was given advice, ``why`` what the advice was or why
    there was none, in a few words."""

    name: str
    kind: str
    sql: str
    plain: Series
    steered: Series
    advised: bool
    why: str

    @property
    def factor(self) -> float:
        """How many times faster: above 1 is a gain."""
        return self.plain.ms / self.steered.ms

    @property
    def pair(self) -> tuple[float, float]:
        return self.plain.ms, self.steered.ms

    @property
    def verdict(self) -> str:
        """``faster``, ``slower`` or ``same``: within a tenth, or too short to tell (`SLACK_MS`)."""
        before, after = self.pair
        if max(before, after) <= SLACK_MS or 1 / 1.1 <= before / after <= 1.1:
            return "same"
        return "faster" if before > after else "slower"


@dataclass(slots=True)
class Results:
    """One run of the workload. ``model`` is the model's name-version, ``taken_at`` local time."""

    seed: int
    scale: float
    model: str
    taken_at: str
    rounds: int
    rows: list[Row] = field(default_factory=list)

    def summary(self) -> Summary:
        return summarise([row.pair for row in self.rows])

    def save(self, path: Path) -> None:
        """Written beside and renamed, so that the file is whole or not there."""
        unfinished = path.with_suffix(".new")
        unfinished.write_text(json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n")
        unfinished.replace(path)


def read_results(path: Path) -> Results | None:
    """What `Results.save` wrote; None when there is nothing, or nothing that this version understands."""
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        if data.pop("format", None) != FORMAT:
            return None
        rows = [
            Row(**{**row, "plain": Series(**row["plain"]), "steered": Series(**row["steered"])})
            for row in data.pop("rows")
        ]
        return Results(**data, rows=rows)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def show(results: Results, console: Console) -> None:
    """The table, slowest first, then what it adds up to."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", title_justify="left")
    table.add_column("query", no_wrap=True, overflow="ellipsis", width=NAME_WIDTH)
    for title in ("plain ms", "steered ms", "factor"):
        table.add_column(title, justify="right", no_wrap=True, width=NUMBER_WIDTH)
    table.add_column("why", no_wrap=True)
    room = max(20, console.width - WIDTHS - 1)
    for row in sorted(results.rows, key=lambda row: -row.plain.ms):
        style = {"faster": "green", "slower": "red", "same": "dim"}[row.verdict]
        table.add_row(
            row.name,
            _ms(row.plain.ms),
            _ms(row.steered.ms),
            Text(f"{row.factor:.2f}", style=style),
            Text(row.why if len(row.why) <= room else f"{row.why[: room - 1]}…", style="" if row.advised else "dim"),
        )
    console.print(table)
    console.print()
    for line in totals(results):
        console.print(line)


def totals(results: Results) -> list[str]:
    """The sentences below the table."""
    summary = results.summary()
    rows = results.rows
    steered = [row for row in rows if row.advised]
    slower = [row for row in rows if row.verdict == "slower"]
    faster = sum(row.verdict == "faster" for row in rows)
    lines = [
        f"{summary.statements} statements: {summary.plain_ms / 1000:.2f} s plain, {summary.steered_ms / 1000:.2f} s "
        f"steered: [bold]{summary.total:.2f} times faster[/bold] in total, {summary.total_without_two:.2f} without the "
        f"two slowest, geometric mean {summary.geometric_mean:.2f}",
    ]
    if steered:
        among = summarise([row.pair for row in steered])
        lines.append(
            f"{len(steered)} got advice (geometric mean {among.geometric_mean:.2f} among them), "
            f"{len(rows) - len(steered)} were left alone"
        )
    worst = f"; the worst of them {summary.worst:.2f} times: {_worst(slower)}" if slower else ""
    lines.append(
        f"by more than a tenth, of those above {SLACK_MS:g} ms, {faster} got faster and {len(slower)} got slower{worst}"
    )
    disagreeing = [row.name for row in rows if row.plain.tag and row.steered.tag and row.plain.tag != row.steered.tag]
    if disagreeing:
        lines.append(f"[red]not the same number of rows plain and steered: {', '.join(disagreeing)}[/red]")
    return lines


def _worst(slower: Sequence[Row]) -> str:
    return min(slower, key=lambda row: row.factor).name


def _ms(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
