"""The tables that ``pilotwire evaluate`` ends with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from training.evaluate.results import Results

SHOWN = 40
LISTED = 5
NAMES = 22
"""Room that the names of the compared get before figures do."""
SPARED = ("but two", "> 2x", "before", "timeouts", "geo.")


def show(results: Results, console: Console) -> None:
    """The verdict, the comparison, the splits, what got slower, what was left out."""
    from rich.text import Text

    from training.evaluate.verdict import judge

    styles = {"good": "green", "bad": "red", "mixed": "yellow", "none": ""}
    verdict = judge(results)
    if results.queries and (table := _compared(results, console)) is not None:
        console.print(table)
    for table in _splits(results, console):
        console.print(table)
    _slower(results, console)
    counts = f"{results.statements} statements read, {len(results.queries)} measured"
    for number, what in (
        (len(results.skipped), "skipped"),
        (len(results.failed), "refused by the server"),
        (results.unmeasured, "not run within the budget"),
    ):
        counts += f", {number} {what}" if number else ""
    console.print(counts)
    for line in [*results.failed[:LISTED], *results.skipped[:LISTED]]:
        console.print(Text(f"  {line}", style="dim"))
    if len(results.skipped) > LISTED:
        console.print(Text(f"  and {len(results.skipped) - LISTED} more skipped", style="dim"))
    for warning in results.warnings[:20]:
        console.print(Text("warning: ", style="yellow").append(warning, style="none"))
    console.print(Text(verdict.word, style=f"bold {styles[verdict.level]}".strip()))
    for sentence in verdict.sentences:
        console.print(Text(sentence))


def _compared(results: Results, console: Console) -> Table | None:
    """What is the same for all, and what nothing came of, takes no column; in a narrow terminal the names of the rows
    go before `SPARED` figures."""
    from pilotwire.fitted_table import BETWEEN, Column, fitted
    from training.evaluate.report import contenders
    from training.evaluate.verdict import seconds

    rows = [(row["title"], row["summary"]) for row in contenders(results)]
    if not rows:
        return None
    same = len({(found.statements, found.plain_ms) for _, found in rows}) == 1
    title = "against PostgreSQL as configured"
    if same:
        title += f": {rows[0][1].statements} statements in {seconds(rows[0][1].plain_ms)}"
    figures = {
        "statements": [str(found.statements) for _, found in rows],
        "before": [seconds(found.plain_ms) for _, found in rows],
        "after": [seconds(found.steered_ms) for _, found in rows],
        "total": [f"{found.total:.2f}x" for _, found in rows],
        "but two": [f"{found.total_without_two:.2f}x" for _, found in rows],
        "geo.": [f"{found.geometric_mean:.2f}x" for _, found in rows],
        "slower": [str(found.over_1_1) for _, found in rows],
        "> 2x": [str(found.over_2) for _, found in rows],
        "worst": [f"{found.worst:.2f}x" for _, found in rows],
        "timeouts": [str(found.timeouts) for _, found in rows],
    }
    if same:
        del figures["statements"], figures["before"]
    if not any(found.timeouts for _, found in rows):
        del figures["timeouts"]
    wanted = min(NAMES, max(len(name) for name, _ in rows))
    for name in SPARED:
        taken = sum(max(map(len, (head, *cells))) + BETWEEN for head, cells in figures.items())
        if console.width - taken < wanted + BETWEEN:
            figures.pop(name, None)
    columns = [Column("", 1), *(Column(name, right=True) for name in figures)]
    cells = [[name, *values] for (name, _), *values in zip(rows, *figures.values(), strict=True)]
    return fitted(console, columns, _texts(cells), title)


def _splits(results: Results, console: Console) -> Iterator[Table]:
    """Times where statements were run, q-errors where rows were counted."""
    from pilotwire.fitted_table import Column, fitted
    from training.evaluate.charts import number
    from training.evaluate.report import splits

    times, errors = [], []
    for row in splits(results):
        split, found = row["split"], row["summary"]
        names = [split.title.split(":")[0], split.kind]
        if found is not None:
            figures = (f"{found.total:.2f}x", f"{found.geometric_mean:.2f}x", str(found.over_1_1))
            times.append([*names, str(found.statements), *figures, f"{found.worst:.2f}x"])
        if row["errors"]:
            pairs = (f"{number(native)} -> {number(model)}" for native, model in row["errors"].values())
            errors.append([*names, str(row["sub_plans"]), *pairs])
    first = (Column("", 2), Column("model", 3))
    if times:
        numbers = ("statements", "total", "geo.", "slower", "worst")
        columns = [*first, *(Column(name, right=True) for name in numbers)]
        yield fitted(console, columns, _texts(times), "times by what the model knew")
    if errors:
        columns = [*first, *(Column(name, right=True) for name in ("joins", "p50", "p90", "p99"))]
        yield fitted(console, columns, _texts(errors), "q-errors by what the model knew, PostgreSQL -> model")


def _texts(rows: Sequence[Sequence[str]]) -> list[list[Text]]:
    from rich.text import Text

    return [[Text(cell) for cell in row] for row in rows]


def _slower(results: Results, console: Console) -> None:
    """By name, the worst first, of every steering kind."""
    from pilotwire.fitted_table import Column, fitted
    from training.evaluate.results import DEFAULT, PROXY

    rows = [(factor, query, kind) for kind in [*results.models, PROXY] for query, factor in results.regressions(kind)]
    if not rows:
        return
    cells = [
        [query.name, f"{factor:.2f}", f"{query.ms(DEFAULT) or 0:,.1f}", f"{query.ms(kind) or 0:,.1f}", kind]
        for factor, query, kind in sorted(rows, key=lambda row: -row[0])[:SHOWN]
    ]
    figures = [Column(name, right=True) for name in ("times slower", "before ms", "after ms")]
    columns = [Column("statement", 1), *figures, Column("model", 2)]
    table = fitted(console, columns, _texts(cells), "what got slower")
    console.print(table)
    if len(rows) > SHOWN:
        console.print(f"and {len(rows) - SHOWN} more")
