"""Plain settings on any server: put in place for one statement, and gone after it, whatever happens to it."""

from __future__ import annotations

import pytest

from planner.advice import Advice
from planner.dialects import settings
from proxy.wire.messages import query
from tests.planner.dialects.plans import SYNC, Plan, Session, bind, execute, first_column, parse
from tests.support.wireclient import ServerError

TEXT = "SELECT count(*) FROM a JOIN b ON b.a_id = a.id"
FAILS = "SELECT 1 / (count(*) - count(*)) FROM a JOIN b ON b.a_id = a.id"
RENDERED = settings.render(Advice(settings={"enable_hashjoin": "off", "random_page_cost": "1.5"}))
SIMPLE = "".join(f"SET LOCAL {name} = '{value}'; " for name, value in RENDERED.settings)
EXTENDED = b"".join(
    parse("", f"SELECT set_config('{name}', '{value}', true)") + bind("") + execute()
    for name, value in RENDERED.settings
)


async def in_place(session: Session) -> bool:
    return (await session.show("enable_hashjoin"), await session.show("random_page_cost")) == ("off", "1.5")


async def test_set_local_in_the_statements_own_message_acts_and_goes_back(plain_session: Session) -> None:
    """One message is one implicit transaction: no warning, no second round trip."""
    answers = await plain_session.run(query(f"{SIMPLE}EXPLAIN (FORMAT JSON) {TEXT}"))
    [explained] = first_column(answers)
    assert explained is not None
    assert "Hash Join" not in Plan(explained).nodes
    assert [kind for kind, _ in answers].count(b"C") == len(RENDERED.settings) + 1
    assert not await in_place(plain_session)
    assert plain_session.client.status == "I"
    assert plain_session.notices == []


async def test_it_goes_back_when_the_statement_fails(plain_session: Session) -> None:
    with pytest.raises(ServerError, match="division by zero"):
        await plain_session.run(query(f"{SIMPLE}{FAILS}"))
    assert not await in_place(plain_session)
    assert plain_session.client.status == "I"


async def test_in_the_users_transaction_set_local_stays_until_commit(plain_session: Session) -> None:
    """So the former value is put back there, or the statement is left alone."""
    await plain_session.sql("BEGIN")
    await plain_session.sql(f"{SIMPLE}{TEXT}")
    assert await in_place(plain_session)
    await plain_session.sql("COMMIT")
    assert not await in_place(plain_session)


async def test_a_savepoint_takes_them_back_inside_a_transaction(plain_session: Session) -> None:
    await plain_session.sql("BEGIN")
    await plain_session.sql("SAVEPOINT s")
    await plain_session.sql(f"{SIMPLE}{TEXT}")
    await plain_session.sql("ROLLBACK TO s")
    assert not await in_place(plain_session)
    await plain_session.sql("COMMIT")


async def test_set_config_in_the_batch_goes_back_at_sync(plain_session: Session) -> None:
    answers = await plain_session.run(
        EXTENDED + parse("", f"EXPLAIN (FORMAT JSON) {TEXT}") + bind("") + execute() + SYNC
    )
    explained = first_column(answers)[-1]
    assert explained is not None
    assert "Hash Join" not in Plan(explained).nodes
    assert not await in_place(plain_session)


async def test_set_config_goes_back_after_an_error_in_the_batch(plain_session: Session) -> None:
    with pytest.raises(ServerError, match="division by zero"):
        await plain_session.run(EXTENDED + parse("", FAILS) + bind("") + execute() + SYNC)
    assert not await in_place(plain_session)


async def test_a_cached_generic_plan_ignores_settings(plain_session: Session) -> None:
    """force_custom_plan, which acts before planning, has it planned again; but never a statement without parameters."""
    await plain_session.sql("SET plan_cache_mode = 'force_generic_plan'")
    await plain_session.sql(f"PREPARE one (int) AS {TEXT} WHERE b.k < $1")
    await plain_session.sql(f"PREPARE bare AS {TEXT}")
    before = [(await plain_session.explain(text)).methods for text in ("EXECUTE one (50)", "EXECUTE bare")]
    await plain_session.sql("SET enable_hashjoin = off")
    assert (await plain_session.explain("EXECUTE one (50)")).methods == before[0]
    await plain_session.sql("SET plan_cache_mode = 'force_custom_plan'")
    assert (await plain_session.explain("EXECUTE one (50)")).methods != before[0]
    assert (await plain_session.explain("EXECUTE bare")).methods == before[1]


async def test_every_setting_that_advice_may_name_is_known_to_the_server(plain_session: Session) -> None:
    """Names, and values at both ends; the server writes them as they are written here."""
    values = {"plan_cache_mode": ("auto", "force_custom_plan"), "join_collapse_limit": ("1", "100")}
    values |= {"from_collapse_limit": ("1", "100"), "max_parallel_workers_per_gather": ("0", "64")}
    values |= dict.fromkeys(settings.SWITCHES, ("on", "off"))
    for name in settings.ALLOWED:
        for value in values.get(name, ("0", "1000000", "0.25")):
            rendered = settings.render(Advice(settings={name: value}))
            assert rendered.settings == ((name, value),)
            await plain_session.sql(f"SET {name} = '{value}'")
            assert await plain_session.show(name) in (value, "1e+06")
    assert plain_session.notices == []
