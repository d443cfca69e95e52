"""Plots are well-formed whatever they are given."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from training.evaluate import charts
from training.evaluate.charts import MAX_MARKS, Axis, Chart, nice_log

SVG = "{http://www.w3.org/2000/svg}"
VALUES = st.floats(1e-6, 1e9)
HOSTILE = '<script>alert("x")</script> & \' ]]>'


def parsed(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1))


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=20))
def test_all_marks_lie_within_the_axes(points: list[tuple[float, float]]) -> None:
    xs = nice_log([x for x, _ in points], 1, 2)
    ys = nice_log([y for _, y in points], 1, 2)
    chart = Chart("title", Axis("x", *xs, log=True), Axis("y", *ys, log=True))
    chart.dots([(x, y, "point") for x, y in points], "dot")
    chart.line(points, "line")
    for x, y in points:
        chart.bar(x, x, 1.0, y, "bar", "bar")
    for circle in parsed(chart.svg()).iter(f"{SVG}circle"):
        assert charts.LEFT - 0.1 <= float(circle.attrib["cx"]) <= charts.WIDTH - charts.RIGHT + 0.1
        assert charts.TOP - 0.1 <= float(circle.attrib["cy"]) <= 300 - charts.BOTTOM + 0.1


@given(VALUES, VALUES, st.booleans())
def test_axes_have_some_ticks_and_not_too_many(one: float, other: float, log: bool) -> None:
    low, high = min(one, other), max(one, other)
    if log:
        low, high = nice_log([low, high], low, high * 10)
    ticks = Axis("x", low, high, log=log).ticks()
    assert len(ticks) <= 13
    assert all(low * 0.999 <= tick <= high * 1.001 for tick in ticks)
    assert ticks == sorted(ticks)
    if log:
        assert ticks


def test_text_is_escaped() -> None:
    chart = Chart(HOSTILE, Axis(HOSTILE, 0, 1), Axis(HOSTILE, 0, 1))
    chart.dots([(0.5, 0.5, HOSTILE)], "dot")
    chart.bar(0, 1, 0, 1, "good", HOSTILE)
    chart.names({0.5: HOSTILE})
    for svg in (chart.svg(ticks=False), charts.rows([(HOSTILE, 1.0, "s1", HOSTILE)], HOSTILE, str)):
        assert "<script" not in svg
        assert HOSTILE in "".join(parsed(svg).itertext())


def test_many_marks_are_thinned_out() -> None:
    chart = Chart("t", Axis("x", 0, 1e5), Axis("y", 0, 1))
    chart.dots([(float(x), 0.5, "") for x in range(10 * MAX_MARKS)], "dot")
    assert chart.svg().count("<circle") <= MAX_MARKS


def test_numbers_are_short() -> None:
    assert [charts.number(value) for value in (0, 0.05, 1.234, 12.5, 12345, 2.5e7)] == [
        "0", "0.05", "1.23", "12.5", "12,345", "2e7",
    ]  # fmt: skip
    assert math.isclose(Axis("x", 1, 100, log=True).place(10), 0.5)
