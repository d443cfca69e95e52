"""The frames between supervisor and planner process."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.control import MAX_FRAME, Control, Event, Limits, ModelState, Poll, Reader, Reload, Report, Start, Upstream
from planner.counters import BOUNDS, MAX_LABELS, Counters
from planner.messages import encode as encoded
from proxy import declared_metrics

MESSAGES: list[Control] = [
    Start(
        "/s", Upstream((("h", 5432),), "u", "p", "d", {"sslmode": "prefer"}), "m", Limits(users_off=("a",)), 3, (b"x",)
    ),
    Poll(),
    Reload(7, Limits(min_ms=2.0)),
    Report({"a{b}": 1.0}, (ModelState("f", "cardinality", "n", "1", "active"),), 1, 2.0, 3, 4.0),
    Event("e", "warning", {"text": "x", "number": 1, "none": None}),
]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_messages_arrive_whole_however_they_are_cut(cuts: list[int]) -> None:
    stream = b"".join(encoded(message) for message in MESSAGES)
    found: list[Control] = []
    reader, position, turn = Reader(), 0, 0
    while position < len(stream):
        size = cuts[turn % len(cuts)]
        found += reader.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert found == MESSAGES


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", (MAX_FRAME + 1).to_bytes(4, "big"), b"\0\0\0\1\xc1", b"\0\0\0\2{}"]
)
def test_what_is_not_ours_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - that it is refused at all
        list(Reader().feed(data))


def test_labels_are_bounded() -> None:
    counters = Counters()
    for number in range(3 * MAX_LABELS):
        counters.add("planner_decisions", f"reason{number}")
    found = counters.snapshot()
    assert len(found) == MAX_LABELS + 1
    assert found["planner_decisions{other}"] == 2 * MAX_LABELS


def test_the_histograms_are_those_that_are_exposed() -> None:
    assert BOUNDS == declared_metrics.DECISION_BOUNDS
    counters = Counters()
    for seconds in (0.00001, 0.0003, 5.0):
        counters.observe("planner_decision", seconds)
    found = counters.snapshot()
    labels = {f"planner_decision{{{bound}}}" for bound in (*declared_metrics.DECISION_BOUNDS, "+Inf")}
    assert found.keys() - {"planner_decision_sum"} <= labels
    assert found["planner_decision{+Inf}"] == 1
    assert found["planner_decision_sum"] == pytest.approx(5.00031)
