"""One statement on a real server: plans, runs, limits; nothing is changed and nothing stays behind."""

from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from planner.advice import Advice, Rendered, RowsAdvice
from planner.dialects import render
from planner.explore.plans import honoured
from planner.explore.server import Link, NotExplorableError, OutOfStepError, check, connect, explain, time_query
from tests.planner.explore.shop import QUICK, SLOW

HINTED = frozenset({"hint_plan"})


def rendered(**settings: str) -> Rendered:
    return render(Advice(settings=settings), HINTED)


async def test_advice_changes_the_plan(shop: Any) -> None:
    plain = await explain(shop, SLOW)
    hashed = await explain(shop, SLOW, advice=rendered(enable_nestloop="off"))
    assert "Nested Loop" in {node["Node Type"] for node in plain}
    assert "Nested Loop" not in {node["Node Type"] for node in hashed}
    assert plain.shape != hashed.shape
    assert plain.shape == (await explain(shop, SLOW)).shape


async def test_settings_are_delivered_without_the_extension(shop: Any) -> None:
    by_comment = await explain(shop, SLOW, advice=rendered(enable_nestloop="off"))
    by_settings = await explain(shop, SLOW, advice=render(Advice(settings={"enable_nestloop": "off"}), ()))
    assert by_comment.shape == by_settings.shape
    assert await shop.fetchval("SHOW enable_nestloop") == "on"


async def test_rows_are_honoured_or_not(shop: Any) -> None:
    advice = Advice((RowsAdvice(("p", "q"), 777),))
    plain = await explain(shop, SLOW)
    told = await explain(shop, SLOW, advice=render(advice, HINTED))
    assert told.joins[frozenset("pq")] == 777
    assert honoured(told, plain, advice)
    assert not honoured(plain, plain, advice)


async def test_a_switched_off_method_that_is_used_was_not_honoured(shop: Any) -> None:
    advice = Advice(settings={"enable_nestloop": "off"})
    plain = await explain(shop, SLOW)
    assert not honoured(plain, plain, advice)
    assert honoured(plain, plain, Advice(settings={"enable_mergejoin": "off"}))


async def test_parameters_are_texts_and_planned_for(shop: Any) -> None:
    sql = "SELECT count(*) FROM part p JOIN sold s ON s.part_id = p.id WHERE p.kind = $1 AND s.amount > $2"
    custom = await explain(shop, sql, ("7", None))
    assert custom.rows == 1
    hashed = await explain(shop, sql, ("7", "3"), advice=rendered(enable_hashjoin="off"))
    assert "Hash Join" not in {node["Node Type"] for node in hashed}
    timing = await time_query(shop, sql, ("7", "3"), rendered(enable_hashjoin="off"))
    assert timing.completed
    assert timing.rows == 1
    assert await shop.fetch("SELECT name FROM pg_prepared_statements") == []


async def test_quotes_and_backslashes_in_parameters(shop: Any) -> None:
    sql = "SELECT word FROM noted WHERE word <> $1 LIMIT 3"
    assert (await time_query(shop, sql, ("a'b\\'c",))).rows == 3


async def test_the_time_limit(shop: Any) -> None:
    timing = await time_query(shop, "SELECT pg_sleep(5)", limit_ms=50)
    assert timing.timed_out
    assert timing.ms == 50
    assert (await time_query(shop, QUICK, limit_ms=5000)).completed
    assert not shop.is_in_transaction()


async def test_the_time_limit_may_hit_the_end_of_the_transaction(shop_dsn: str) -> None:
    """On a busy machine that takes long, too; the run is over by then, and the connection is as good as before."""

    class HeldUp:
        held_up = False

        async def execute(self, query: str) -> Any:
            if query == "ROLLBACK" and not self.held_up:
                self.held_up = True
                query = "SELECT pg_sleep(1); ROLLBACK"
            return await connection.execute(query)

        def __getattr__(self, name: str) -> Any:
            return getattr(connection, name)

    connection = await connect(shop_dsn)
    slow = HeldUp()
    try:
        assert (await time_query(slow, QUICK, limit_ms=300)).completed
        assert slow.held_up
        assert await connection.fetchval("SHOW statement_timeout") == "0"
        assert not connection.is_in_transaction()
        assert (await time_query(connection, QUICK, limit_ms=5000)).completed
    finally:
        await connection.close()


async def test_what_the_server_refuses_is_told(shop: Any) -> None:
    assert (await time_query(shop, "SELECT 1 / (id - 1) FROM part")).error == "22012"
    assert (await time_query(shop, "SELECT nothing FROM part")).error == "42703"
    with pytest.raises(asyncpg.UndefinedColumnError):
        await explain(shop, "SELECT nothing FROM part")
    assert (await time_query(shop, QUICK)).rows == 1


async def test_nothing_is_written(shop: Any) -> None:
    assert (await time_query(shop, "SELECT setval('nothing_at_all', 1)")).error
    assert (await time_query(shop, "SELECT lo_creat(-1)")).error == "25006"


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM part", "SELECT 1; DROP TABLE part", "SELECT 1 INTO other", "COMMIT", "SELECT 1; SELECT 2", "",
        "SET x = 1", "EXPLAIN ANALYZE DELETE FROM part", "not sql", "CREATE TABLE other AS SELECT 1",
    ],
)  # fmt: skip
async def test_only_one_select_is_run(shop: Any, sql: str) -> None:
    with pytest.raises(NotExplorableError):
        await time_query(shop, sql)
    with pytest.raises(NotExplorableError):
        await explain(shop, sql)


def test_queries_of_all_forms_are_taken() -> None:
    for sql in ("SELECT 1;", "VALUES (1)", "TABLE part", "WITH a AS (SELECT 1) SELECT * FROM a", "/* c */ SELECT 1"):
        check(sql)


async def test_the_plan_that_a_prepared_statement_keeps(shop: Any) -> None:
    await shop.execute("SET plan_cache_mode = auto")
    sql = "SELECT count(*) FROM part WHERE id > $1"
    custom = await explain(shop, sql, ("9999",))
    generic = await explain(shop, sql, ("9999",), generic=True)
    assert custom.rows == 1
    assert generic.cost > custom.cost
    assert (await explain(shop, sql, ("9999",), settled=True)).cost == custom.cost


async def test_a_connection_out_of_step_is_ended_and_another_opened(shop_dsn: str) -> None:
    link = Link(shop_dsn)
    try:
        first = await link.get()
        await first.execute("BEGIN")
        with pytest.raises(asyncpg.UndefinedTableError):
            await first.execute("SELECT 1 FROM no_such_table")
        # The transaction has failed: what begins now is answered by an error that belongs to something else.
        with pytest.raises(OutOfStepError):
            await time_query(first, QUICK)
        assert first.is_closed()
        assert (await time_query(await link.get(), QUICK)).completed
    finally:
        await link.close()
