"""Tables that fit the terminal: numbers and keys stand whole, texts share what is left and are cut.

rich takes the room that is missing from all columns alike, so that a long statement would wrap or shrink the numbers
beside it. Here each column says whether it may be cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

BETWEEN: Final = 2
"""Blanks between two columns."""
LEAST: Final = 8
"""A text that would get less room than this is left out, the last first."""


class Column(NamedTuple):
    """``share``: 0 for what is never cut; of the room that the others leave, texts get theirs by these weights."""

    name: str
    share: int = 0
    right: bool = False


def fitted(
    console: Console, columns: Sequence[Column], rows: Sequence[Sequence[Text]], title: str | None = None
) -> Table:
    """Cells may have several lines, each of which is cut for itself."""
    from rich.table import Table

    natural = [_width(column.name, [row[number] for row in rows]) for number, column in enumerate(columns)]
    widths = _widths(console.width, columns, natural)
    table = Table(box=None, pad_edge=False, padding=(0, BETWEEN, 0, 0), title=title, title_justify="left")
    for column, width in zip(columns, widths, strict=True):
        if width:
            table.add_column(
                column.name, no_wrap=True, overflow="ellipsis", width=width, justify="right" if column.right else "left"
            )
    for row in rows:
        table.add_row(*(cell for cell, width in zip(row, widths, strict=True) if width))
    return table


def _width(name: str, cells: Sequence[Text]) -> int:
    return max(len(name), *(line.cell_len for cell in cells for line in cell.split("\n")), 1)


def _widths(total: int, columns: Sequence[Column], natural: Sequence[int]) -> list[int]:
    """0 for a column that is left out."""
    widths = [0 if column.share else width for column, width in zip(columns, natural, strict=True)]
    room = total - sum(width + BETWEEN for width in widths if width)
    texts = [number for number, column in enumerate(columns) if column.share]
    while texts and room < sum(min(LEAST, natural[number]) + BETWEEN for number in texts):
        texts.pop()
    room -= BETWEEN * len(texts)
    # Who needs least is served first, and what he leaves goes to the others.
    for number in sorted(texts, key=lambda number: natural[number] / columns[number].share):
        shares = sum(columns[other].share for other in texts if not widths[other])
        least = min(len(columns[number].name), room)
        widths[number] = max(1, least, min(natural[number], room * columns[number].share // shares))
        room -= widths[number]
    return widths
