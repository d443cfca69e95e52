"""Keys of values: the same order and distances as the server's."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.selectivity_values import (
    INFINITE,
    Family,
    Interval,
    family,
    following,
    interval,
    key,
    moment,
    scalars,
    shift,
    type_name,
)

anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.decimals(), st.text(), st.datetimes(), st.dates(),
    st.binary(),
)  # fmt: skip


@given(anything, st.sampled_from(Family))
def test_keys_of_a_family_compare_or_there_is_none(value: object, kind: Family) -> None:
    found = key(value, kind)
    other = {Family.TEXT: "m", Family.BOOLEAN: True, Family.OTHER: "m"}.get(kind, 5)
    if found is not None:
        assert (found < other) + (found == other) + (found > other) == 1  # type: ignore[operator]


@given(st.datetimes(), st.datetimes())
def test_points_in_time_keep_their_order(one: datetime, two: datetime) -> None:
    first, second = key(one, Family.TIME), key(two, Family.TIME)
    assert isinstance(first, int)
    assert isinstance(second, int)
    assert second - first == (two - one) // timedelta(microseconds=1)
    assert key(str(one), Family.TIME) == first


def test_times_in_all_their_forms() -> None:
    noon = key(datetime(2020, 5, 1, 12, tzinfo=UTC), Family.TIME)
    assert noon == moment("2020-05-01 12:00:00+00") == moment("2020-05-01T14:00+02") == moment("2020-05-01 12:00")
    assert noon == key(datetime(2020, 5, 1, 7, tzinfo=timezone(timedelta(hours=-5))), Family.TIME)
    assert key(date(1970, 1, 2), Family.TIME) == 86_400_000_000
    assert moment("infinity") == INFINITE
    assert moment("0044-03-15 BC") == moment("-infinity") == -INFINITE
    for text in ("", "now", "2020-13-01", "2020-02-30", "20200101", "2020-01-01 25:00", "x" * 1000):
        assert moment(text) is None


def test_intervals() -> None:
    assert interval("1 year 2 mons 3 days 04:05:06.5") == Interval(14, 3, 14_706_500_000)
    assert interval("90 days") == Interval(0, 90, 0)
    assert interval("-1 week") == Interval(0, -7, 0)
    assert interval("1.5 hours") == Interval(0, 0, 5_400_000_000)
    for text in ("", "1", "day", "1 fortnight", "P1D", "1.5 months", "9" * 300 + " days"):
        assert interval(text) is None
    at = moment("2020-01-31 10:00")
    assert at is not None
    assert shift(at, Interval(1)) == moment("2020-02-29 10:00")
    assert shift(at, Interval(12), -1) == moment("2019-01-31 10:00")
    assert shift(at, Interval(12 * 9000)) is None
    assert shift(INFINITE, Interval(1)) == INFINITE


@pytest.mark.parametrize(
    ("value", "kind", "wanted"),
    [
        ("12", Family.INTEGER, 12),
        ("1.50", Family.NUMERIC, Decimal("1.5")),
        ("nan", Family.FLOAT, None),
        (True, Family.INTEGER, None),
        ("yes", Family.BOOLEAN, True),
        ("off", Family.BOOLEAN, False),
        ("maybe", Family.BOOLEAN, None),
        (5, Family.TEXT, None),
        ("9" * 10_000, Family.INTEGER, None),
    ],
)
def test_single_values(value: object, kind: Family, wanted: object) -> None:
    assert key(value, kind) == wanted


@given(st.text(min_size=1, max_size=6), st.text(max_size=4))
def test_what_follows_a_prefix_is_above_all_that_begin_with_it(prefix: str, rest: str) -> None:
    above = following(prefix)
    assert above is None or prefix + rest < above


def test_places_between_bounds() -> None:
    placed = scalars("b", "a", "c")
    assert placed is not None
    assert placed[1] < placed[0] < placed[2]
    assert scalars(15, 10, 20) == (15.0, 10.0, 20.0)
    assert scalars("x", 1, 2) is None
    assert scalars(Decimal(10) ** 500, 1, 2) == (math.inf, 1.0, 2.0)
    assert scalars(10**500, 1, 2) is None
    assert scalars("", "", "") is not None


def test_names_of_types() -> None:
    assert type_name("int4") == "integer"
    assert family("timestamptz") is family("timestamp with time zone") is Family.TIME
    assert family("int4[]") is Family.OTHER
