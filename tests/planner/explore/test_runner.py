"""Trying arms on a real server: plans first, distinct ones only, the best time as the limit, within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from planner.advice import Advice
from planner.explore import runner
from planner.explore.runner import Budget, Statement, StoppedError, try_arms
from planner.explore.server import Timing
from planner.memory.arms import CUSTOM_PLAN, CUSTOM_PLAN_SETTINGS, PORTFOLIO
from planner.memory.evidence import Rules
from tests.planner.explore.shop import QUICK, SLOW

ARMS = {name: Advice(settings=settings) for name, settings in PORTFOLIO.items()}


async def test_the_better_plan_is_found(shop: Any) -> None:
    results = await try_arms(shop, SLOW, ARMS, 20.0)
    assert results.best.name != "default"
    assert results.best.ms * 2 < results.default.ms
    assert results.arms["no_nestloop"].plan is not None
    assert 0 < results.spent < 20
    told = results.as_json()
    assert len(told["arms"]) == len(ARMS)


async def test_equal_plans_are_not_run(shop: Any) -> None:
    results = await try_arms(shop, SLOW, ARMS, 20.0)
    plans = {"default": results.default.plan} | {name: arm.plan for name, arm in results.arms.items()}
    for name, arm in results.arms.items():
        plan = plans[name]
        assert plan is not None
        first = next(other for other, known in plans.items() if known is not None and known.shape == plan.shape)
        if first == "default":
            assert arm.outcome == "same_plan"
            assert arm.first is None
        elif first != name:
            assert (arm.outcome, arm.twin) == ("same_as", first)


async def test_a_worse_plan_costs_no_more_than_the_best(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[tuple[str, float]] = []

    async def watched(
        connection: Any, sql: str, params: Sequence[str | None], rendered: Any, limit: float, **more: Any
    ) -> Timing:
        timing = await real(connection, sql, params, rendered, limit, **more)
        limits.append((rendered.prefix, limit))
        return timing

    real = runner.time_query
    monkeypatch.setattr(runner, "time_query", watched)
    # No index serves this join: looping would take a minute.
    sql = "SELECT count(*) FROM sold s JOIN noted n ON n.sold_id + 0 = s.id + 0 WHERE n.word < 'w5'"
    results = await try_arms(
        shop, sql, {"none": Advice(settings={"enable_hashjoin": "off", "enable_mergejoin": "off"})}, 20.0, cheap_ms=1.0
    )
    assert results.arms["none"].outcome == "timed_out"
    [limit] = [limit for prefix, limit in limits if prefix]
    assert limit == pytest.approx(max(results.default.runs[0].ms * runner.FIRST_SLACK, runner.FLOOR_MS))
    assert results.spent < 10


async def test_pairs_are_aligned_and_rounds_end_when_judged(shop: Any) -> None:
    results = await try_arms(shop, SLOW, {"no_nestloop": ARMS["no_nestloop"]}, 20.0, rules=Rules())
    arm = results.arms["no_nestloop"]
    assert len(arm.runs) == len(arm.baseline)
    assert 3 <= len(arm.runs) < Rules().max_pairs


async def test_order_by_what_is_expected(shop: Any) -> None:
    results = await try_arms(shop, SLOW, ARMS, 20.0, expected={"no_nestloop": 3.0})
    assert next(iter(results.arms)) == "no_nestloop"


async def test_the_budget_ends_it(shop: Any) -> None:
    budget = Budget(0.04)
    results = await try_arms(shop, SLOW, ARMS, budget)
    assert results.stopped == "the budget is spent"
    assert "not_tried" in {arm.outcome for arm in results.arms.values()}
    assert not shop.is_in_transaction()


async def test_pacing_may_stop_it(shop: Any) -> None:
    async def busy(last: float) -> None:
        raise StoppedError("busy")

    results = await try_arms(shop, SLOW, ARMS, 20.0, pace=busy)
    assert results.stopped == "busy"
    assert results.spent == 0


async def test_what_is_cheap_is_left(shop: Any) -> None:
    results = await try_arms(shop, QUICK, ARMS, 20.0)
    assert {arm.outcome for arm in results.arms.values()} <= {"cheap", "same_plan", "same_as"}


async def test_what_cannot_be_run_comes_back_with_a_reason(shop: Any) -> None:
    assert (await try_arms(shop, "DELETE FROM part", ARMS, 5.0)).reason == "it is no SELECT"
    assert "42P01" in (await try_arms(shop, "SELECT * FROM nowhere", ARMS, 5.0)).reason
    failing = await try_arms(shop, SLOW.replace("count(*)", "sum(1 / (p.id - p.id))"), ARMS, 5.0)
    assert failing.reason == "it fails: 22012"
    slow = await try_arms(shop, SLOW.replace("count(*)", "count(*), max(pg_sleep(2)::text)"), ARMS, 5.0, limit_ms=50)
    assert slow.reason == "the statement takes too long"


async def test_a_custom_plan_against_the_generic_one(shop: Any) -> None:
    """The generic plan expects a third of the rows and reads the whole table, the custom one uses the index."""
    sql = "SELECT count(*), min(n.word) FROM sold s JOIN noted n ON n.sold_id = s.id WHERE s.id > $1"
    arms = {CUSTOM_PLAN: Advice(settings=dict(CUSTOM_PLAN_SETTINGS))}
    results = await try_arms(shop, Statement(sql, ("39999",)), arms, 20.0, cheap_ms=0.0)
    assert results.arms[CUSTOM_PLAN].outcome in ("", "same_plan")
    without = await try_arms(shop, SLOW, arms, 20.0)
    assert without.arms[CUSTOM_PLAN].outcome == "not_expressible"


async def test_by_settings_where_there_is_no_extension(shop_dsn: str) -> None:
    results = await try_arms(shop_dsn, SLOW, {"no_nestloop": ARMS["no_nestloop"]}, 20.0, capabilities=())
    assert results.arms["no_nestloop"].rendered.dialect == "settings"
    assert results.best.name == "no_nestloop"


async def test_an_arm_that_fails_now_and_then_is_no_fast_one(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def failing(
        connection: Any, sql: str, params: Sequence[str | None], rendered: Any, limit: float, **more: Any
    ) -> Timing:
        timing = await real(connection, sql, params, rendered, limit, **more)
        runs.append(rendered.prefix)
        return Timing(0.0, error="53200") if rendered.prefix and runs.count(rendered.prefix) > 1 else timing

    real, runs = runner.time_query, list[str]()
    monkeypatch.setattr(runner, "time_query", failing)
    results = await try_arms(shop, SLOW, {"no_nestloop": ARMS["no_nestloop"]}, 20.0)
    arm = results.arms["no_nestloop"]
    assert (arm.outcome, arm.error, arm.runs) == ("failed", "53200", [])


async def test_what_was_screened_only_is_not_judged(shop: Any) -> None:
    seen = 0

    async def stop(last: float) -> None:
        nonlocal seen
        seen += 1
        if seen == 6:  # two EXPLAINs, two runs of the default, one of the arm
            raise StoppedError("enough")

    results = await try_arms(shop, SLOW, {"no_nestloop": ARMS["no_nestloop"]}, 20.0, pace=stop)
    assert results.arms["no_nestloop"].first is not None
    assert results.arms["no_nestloop"].outcome == "not_tried"


@pytest.mark.parametrize(("spare", "runs", "stopped"), [(20.0, 7, ""), (0.0, 3, "the budget is spent")])
async def test_a_race_that_is_all_but_won_is_ended(shop: Any, spare: float, runs: int, stopped: str) -> None:
    budget = Budget(1000.0, spare=spare)
    seen = 0

    async def spend(last: float) -> None:
        nonlocal seen
        seen += 1
        if seen == 12:  # two EXPLAINs, two runs of the default, one of the arm, three rounds
            budget.spent = 1000.0

    arms = {"no_nestloop": ARMS["no_nestloop"]}
    results = await try_arms(shop, SLOW, arms, budget, rules=Rules(early=False), pace=spend)
    assert (len(results.arms["no_nestloop"].runs), results.stopped) == (runs, stopped)


async def test_what_takes_too_long_by_itself_may_have_a_quick_arm(shop: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "LONG_MS", 20.0)
    arms = {"no_nestloop": ARMS["no_nestloop"], "no_indexscan": ARMS["no_indexscan"]}
    results = await try_arms(shop, SLOW, arms, 20.0, limit_ms=30.0, cheap_ms=1.0, rounds=3)
    assert results.default.first is not None
    assert results.default.first.timed_out
    assert results.reason == ""
    arm = results.arms["no_nestloop"]
    assert len(arm.runs) == 3
    assert all(plain.timed_out for plain in arm.baseline)
    assert results.best is arm
