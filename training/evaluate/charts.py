"""Plots as inline SVG, drawn here so that they follow the page's colours, light or dark, and need no script.

A chart is a fixed view box that scales with the page. Colours are CSS variables of the page (``--series-1`` ...), text
takes the page's own; marks carry a ``<title>`` that a browser shows under the pointer. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

WIDTH: Final = 760
ROWS_WIDTH: Final = 900
LEFT, RIGHT, TOP, BOTTOM = 64, 16, 14, 46
NARROW: Final = 5.0
"""A logarithmic axis of less than this factor has ticks like a linear one."""
MAX_MARKS: Final = 1500
"""Marks of one series; what is more is thinned out evenly."""


@dataclass(frozen=True, slots=True)
class Axis:
    """``label`` says what and in which unit. A logarithmic axis has ticks at powers of ten, and between them where
    there are few."""

    label: str
    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """0 at the low end, 1 at the high end; beyond them clamped."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(max(value, 1e-12))
        if high <= low:
            return 0.5
        return min(max((value - low) / (high - low), 0.0), 1.0)

    def ticks(self) -> list[float]:
        if self.log and self.high / self.low > NARROW:
            first, last = math.floor(math.log10(self.low) + 1e-9), math.ceil(math.log10(self.high) - 1e-9)
            steps = (1.0,) if last - first > 3 else (1.0, 2.0, 5.0)
            every = max(1, math.ceil((last - first) / 8))
            found = [step * 10.0**power for power in range(first, last + 1, every) for step in steps]
        else:
            span = self.high - self.low or 1.0
            step = 10 ** math.floor(math.log10(span / 5))
            step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 6)
            found = [step * number for number in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [tick for tick in found if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]


def nice_log(values: Sequence[float], least: float, most: float) -> tuple[float, float]:
    """Ends of a logarithmic axis that hold all values and at least ``least`` to ``most``."""
    low, high = min([least, *values]), max([most, *values])
    return max(low * 0.9, 1e-9), high * 1.1


def number(value: float) -> str:
    """Short, for a tick or a label."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value:.0e}".replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Chart:
    """Axes first, then marks in the order given; `svg` is the text."""

    def __init__(self, title: str, x: Axis, y: Axis, height: int = 300) -> None:
        self._title = title
        self._x = x
        self._y = y
        self._height = height
        self._parts: list[str] = []

    def x(self, value: float) -> float:
        return LEFT + self._x.place(value) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return self._height - BOTTOM - self._y.place(value) * (self._height - TOP - BOTTOM)

    def line(self, points: Sequence[tuple[float, float]], style: str) -> None:
        """A line through all points, of class ``style``."""
        if len(points) > 1:
            places = " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)
            self._parts.append(f'<polyline class="{style}" points="{places}"/>')

    def steps(self, values: Sequence[float], style: str) -> None:
        """Values at 0, 1, 2 ... as a line."""
        self.line(list(enumerate(values)), style)

    def dots(self, points: Sequence[tuple[float, float, str]], style: str, radius: float = 3.0) -> None:
        """Points with what to say of each."""
        every = max(1, math.ceil(len(points) / MAX_MARKS))
        for x, y, said in points[::every]:
            self._parts.append(
                f'<circle class="{style}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:g}">'
                f"<title>{escape(said)}</title></circle>"
            )

    def bar(self, left: float, right: float, low: float, high: float, style: str, said: str) -> None:
        """A rectangle between two x and two y values."""
        x, top = self.x(left), self.y(max(low, high))
        width, height = max(self.x(right) - x, 0.6), max(self.y(min(low, high)) - top, 0.6)
        self._parts.append(
            f'<rect class="{style}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}">'
            f"<title>{escape(said)}</title></rect>"
        )

    def rule(self, y: float) -> None:
        """A horizontal line across."""
        place = self.y(y)
        self._parts.append(f'<line class="rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')

    def names(self, names: Mapping[float, str]) -> None:
        """Words under places of the x axis, instead of its ticks."""
        for x, name in names.items():
            self._parts.append(
                f'<text class="tick" x="{self.x(x):.1f}" y="{self._height - BOTTOM + 16}" text-anchor="middle">'
                f"{escape(name)}</text>"
            )

    def svg(self, *, ticks: bool = True) -> str:
        """The chart; ``ticks`` False leaves those of the x axis out, for `names`."""
        bottom = self._height - BOTTOM
        grid = []
        for tick in self._y.ticks():
            place = self.y(tick)
            grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>')
            grid.append(
                f'<text class="tick" x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{number(tick)}</text>'
            )
        for tick in self._x.ticks() if ticks else ():
            place = self.x(tick)
            grid.append(
                f'<text class="tick" x="{place:.1f}" y="{bottom + 16}" text-anchor="middle">{number(tick)}</text>'
            )
        middle = (TOP + bottom) / 2
        return (
            f'<svg viewBox="0 0 {WIDTH} {self._height}" role="img" aria-label="{escape(self._title)}">'
            f"{''.join(grid)}"
            f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
            f"{''.join(self._parts)}"
            f'<text class="label" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{self._height - 8}" text-anchor="middle">'
            f"{escape(self._x.label)}</text>"
            f'<text class="label" transform="translate(14 {middle:.0f}) rotate(-90)" text-anchor="middle">'
            f"{escape(self._y.label)}</text></svg>"
        )


def rows(items: Sequence[tuple[str, float, str, str]], title: str, shown: Callable[[float], str]) -> str:
    """Horizontal bars, each (name, value, class of its colour, remark behind the value), from zero."""
    most = max((value for _, value, _, _ in items), default=0.0) or 1.0
    height, name_width, text_width = 30, 270, 270
    room = ROWS_WIDTH - name_width - text_width
    parts = []
    for place, (name, value, style, remark) in enumerate(items):
        top = place * height
        width = max(value / most * room, 1.0)
        parts.append(
            f'<text class="name" x="{name_width - 8}" y="{top + 19}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="{style}" x="{name_width}" y="{top + 5}" width="{width:.1f}" height="{height - 10}"/>'
            f'<text class="value" x="{name_width + width + 8:.1f}" y="{top + 19}">{escape(shown(value))}'
            f'<tspan class="remark"> {escape(remark)}</tspan></text>'
        )
    return (
        f'<svg viewBox="0 0 {ROWS_WIDTH} {len(items) * height}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
