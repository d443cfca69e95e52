"""What steering may risk, in numbers."""

from __future__ import annotations

import pytest

from planner.memory.guard import FIRST_SPENDING_MS, Pace, Policy, Spending, budget_ms, important, suspicious


@pytest.mark.parametrize(
    ("calls", "typical", "why"),
    [
        (4, 100.0, "few_calls"),
        (5, 1.0, "too_fast"),
        (5, 100.0, ""),
        (1000, 5.9, "too_fast"),
        (8, 12.4, "little_time"),
        (9, 12.4, ""),
    ],
)
def test_importance(calls: int, typical: float, why: str) -> None:
    assert important(calls, typical, Policy()) == why


def test_a_budget_comes_from_the_unsteered_time() -> None:
    assert budget_ms([100.0] * 9, 7.0, 2.0) == 200.0
    assert budget_ms([], 300.0, 2.0) == 600.0
    assert budget_ms([1.0], 0.0, 2.0) == 6.0
    assert budget_ms([], 0.0, 2.0) == 0.0
    assert budget_ms([100.0], 0.0, 0.0) == 0.0
    # A statement that takes long now and then is given that time.
    assert budget_ms([100.0] * 7 + [400.0] * 3, 0.0, 1.2) == pytest.approx(440.0)


def test_suspicion_needs_several_slow_runs() -> None:
    assert not suspicious([200.0] * 5, [100.0])
    assert suspicious([200.0] * 6, [100.0])
    assert not suspicious([90.0] * 4 + [500.0] * 2, [100.0])
    assert not suspicious([200.0] * 6, [])


def test_trials_spend_what_statements_earn() -> None:
    spending = Spending(0.1)
    spending.lost(FIRST_SPENDING_MS)
    assert not spending.allowed
    spending.took(1000.0)
    assert spending.left == pytest.approx(100.0)
    spending.lost(-50.0)
    assert spending.left == pytest.approx(100.0)
    spending.took(1e12)
    assert spending.left <= 600_000.0


def test_pace_follows_a_slow_server_and_comes_back() -> None:
    pace = Pace()
    changed = sum(pace.took(300.0, 100.0) for _ in range(100))
    assert 1 <= changed <= 6
    assert 2.0 < pace.factor < 4.5
    changed = sum(pace.took(100.0, 100.0) for _ in range(200))
    assert changed >= 1
    assert pace.factor == pytest.approx(1.0)
    # Never below 1: a server that is fast for a while leaves the budgets as they are.
    for _ in range(200):
        pace.took(1.0, 100.0)
    assert pace.factor == pytest.approx(1.0)
    assert not pace.took(0.0, 0.0)
