"""Prepared statements and hints: what leaks between them, and the batch that lets nothing leak."""

from __future__ import annotations

import pytest

from planner.advice import Advice, RowsAdvice
from planner.dialects import hint_plan
from tests.planner.dialects.conftest import OpenSession
from tests.planner.dialects.plans import SYNC, Plan, Session, bind, close, execute, parse
from tests.support.wireclient import ServerError

TEXT = "SELECT count(*) FROM a JOIN b ON b.a_id = a.id WHERE b.k < $1::int"
OTHER = "SELECT count(*) FROM a JOIN c ON c.id = a.id"
HINT = hint_plan.render(Advice((RowsAdvice(("a", "b"), 77.0),), relations=2)).prefix
UNHINTED = parse("ours", "SELECT 1")


@pytest.fixture
async def watched(open_session: OpenSession) -> Session:
    """A session with query ids, whose plans come as notices: EXPLAIN does not show the leak."""
    session = await open_session(compute_query_id="on")
    await session.sql("LOAD 'auto_explain'")
    await session.sql("SET auto_explain.log_min_duration = 0")
    await session.sql("SET auto_explain.log_level = 'notice'")
    await session.sql("SET auto_explain.log_format = 'json'")
    await session.sql("SET client_min_messages = 'notice'")
    session.notices.clear()
    return session


def planned(session: Session) -> list[int]:
    """The rows of the topmost join of each plan since the last call."""
    found = []
    for notice in session.notices:
        if "plan:" in notice:
            plan = Plan(f"[{notice[notice.index('{') :]}]")
            found += [plan.joins[max(plan.joins, key=len)]] if plan.joins else []
    session.notices.clear()
    return found


async def native(session: Session, text: str, *values: str) -> int:
    await session.run(parse("", text) + bind("", *values) + execute() + SYNC)
    [rows] = planned(session)
    return rows


async def test_hints_leak_from_a_later_parse(watched: Session) -> None:
    """Parse(A), Parse(B with a hint), Bind(A): A is planned with B's hint (pg_hint_plan's issues 67, 145, 237)."""
    expected = await native(watched, TEXT, "100")
    assert expected != 77
    await watched.run(parse("plain", TEXT) + SYNC)
    await watched.run(parse("hinted", HINT + TEXT) + SYNC)
    await watched.run(bind("plain", "100") + execute() + SYNC)
    assert planned(watched) == [77]


async def test_hints_are_lost_by_a_later_parse(watched: Session) -> None:
    expected = await native(watched, TEXT, "100")
    await watched.run(parse("hinted", HINT + TEXT) + SYNC)
    await watched.run(parse("plain", OTHER) + SYNC)
    await watched.run(bind("hinted", "100") + execute() + SYNC)
    assert planned(watched) == [expected]


async def test_our_own_parse_right_before_bind_and_execute_leaks_nothing(watched: Session) -> None:
    """The client's statement was parsed before and is bound after, with another's between: each has its own plan."""
    expected = await native(watched, TEXT, "100")
    await watched.run(parse("client", TEXT) + parse("second", OTHER) + SYNC)
    await watched.run(parse("ours", HINT + TEXT) + bind("ours", "100") + execute() + close("ours") + SYNC)
    assert planned(watched) == [77]
    await watched.run(bind("client", "100") + execute() + SYNC)
    await watched.run(bind("second") + execute() + SYNC)
    assert planned(watched) == [expected, await native(watched, OTHER)]


async def test_an_error_at_bind_leaves_the_hint_behind(watched: Session) -> None:
    expected = await native(watched, TEXT, "100")
    await watched.run(parse("client", TEXT) + SYNC)
    with pytest.raises(ServerError, match="invalid input syntax"):
        await watched.run(parse("ours", HINT + TEXT) + bind("ours", "not a number") + execute() + SYNC)
    await watched.run(bind("client", "100") + execute() + SYNC)
    assert planned(watched) == [77]
    assert expected != 77


async def test_parsing_an_unhinted_text_after_an_error_takes_it_away(watched: Session) -> None:
    expected = await native(watched, TEXT, "100")
    await watched.run(parse("client", TEXT) + SYNC)
    await watched.ask(parse("ours", HINT + TEXT) + bind("ours", "not a number") + execute() + SYNC)
    await watched.run(close("ours") + UNHINTED + close("ours") + SYNC)
    await watched.run(bind("client", "100") + execute() + SYNC)
    assert planned(watched) == [expected]


async def test_explain_does_not_show_the_leak(watched: Session) -> None:
    """So these tests look at the plans that were executed."""
    await watched.run(parse("plain", TEXT) + parse("hinted", HINT + TEXT) + SYNC)
    expected = (await watched.explain(TEXT.replace("$1::int", "100"))).joins
    assert 77 not in expected.values()


async def test_a_cached_generic_plan_ignores_hints_and_settings_that_come_later(watched: Session) -> None:
    await watched.sql("SET plan_cache_mode = 'force_generic_plan'")
    await watched.run(parse("client", TEXT) + bind("client", "100") + execute() + SYNC)
    before = planned(watched)
    await watched.sql("SET enable_hashjoin = off")
    await watched.run(bind("client", "100") + execute() + SYNC)
    assert planned(watched) == before
    await watched.sql("RESET enable_hashjoin")
    await watched.run(parse("ours", HINT + TEXT) + bind("ours", "100") + execute() + close("ours") + SYNC)
    assert planned(watched) == [77]
    await watched.run(bind("client", "100") + execute() + SYNC)
    assert planned(watched) == before


async def test_sql_level_prepare_keeps_the_hint_inside(session: Session) -> None:
    """The text that PREPARE carries is hinted by the comment in front of PREPARE, for all its executions."""
    await session.sql(f"{HINT}PREPARE one (int) AS {TEXT.replace('$1::int', '$1')}")
    for _ in range(7):
        assert 77 in (await session.explain("EXECUTE one (100)")).joins.values()
