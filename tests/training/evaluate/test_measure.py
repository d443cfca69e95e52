"""The figures of many statements."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluate.measure import SLACK_MS, Series, percentile, q_error, slowdown, summarise

TIMES = st.floats(0.01, 1e6)


def test_a_summary_by_hand() -> None:
    found = summarise([(1000.0, 100.0), (500.0, 500.0), (40.0, 90.0), (10.0, 12.0), (1.0, 4.0)], timeouts=1)
    assert found.total == pytest.approx(1551 / 706)
    assert found.total_without_two == pytest.approx(51 / 106)
    assert found.geometric_mean == pytest.approx((10 * 1 * (40 / 90) * (10 / 12) * (1 / 4)) ** 0.2)
    # 1 ms that became 4 ms is below the slack and no slower statement.
    assert (found.over_1_1, found.over_2, found.worst) == (2, 1, 90 / 40)
    assert found.timeouts == 1
    assert found.percentiles["p50"] == (40.0, 90.0)


def test_two_statements_or_fewer_are_not_left_out() -> None:
    assert summarise([(10.0, 5.0), (20.0, 10.0)]).total_without_two == 2.0


@given(st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=30))
def test_whoever_is_slower_is_told(timings: list[tuple[float, float]]) -> None:
    found = summarise(timings)
    slower = [after / before for before, after in timings if after > 1.1 * before and after > SLACK_MS]
    assert found.over_1_1 == len(slower)
    assert found.worst == pytest.approx(max([slowdown(*pair) for pair in timings]))
    assert found.worst >= 1


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], at: float) -> None:
    assert percentile(values, at) == pytest.approx(float(np.percentile(values, at)), abs=1e-6)


def test_a_q_error_takes_less_than_a_row_for_one() -> None:
    assert q_error(0.0, 10.0) == q_error(10.0, 0.2) == 10.0
    assert q_error(5.0, 5.0) == 1.0


def test_the_median_of_counted_runs() -> None:
    assert Series(times=[3.0, 1.0, 9.0], first=100.0).ms == 3.0
    assert Series(first=100.0).ms == 100.0
