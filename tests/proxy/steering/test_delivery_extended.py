"""Advice in the extended protocol, with a real server: our statement in place of the client's, whatever it does."""

from __future__ import annotations

import struct

import asyncpg
import psycopg
import pytest

from proxy.wire.messages import error_fields, query
from tests.proxy.steering.planner import ScriptedPlanner
from tests.proxy.steering.statements import MARK, explain, joined, seen, setting
from tests.proxy.wire.transcript import FLUSH, SYNC, bind, close, describe, execute, parse
from tests.support.proxy import Proxy
from tests.support.wireclient import WireClient

NO_HASH = {"enable_hashjoin": "off"}
Messages = list[tuple[bytes, bytes]]


async def batch(client: WireClient, *messages: bytes) -> Messages:
    """What comes back for these messages, up to ReadyForQuery."""
    client.send(b"".join(messages))
    return await client.until(b"Z")


def kinds(messages: Messages) -> str:
    return b"".join(kind for kind, _ in messages if kind not in b"NS").decode()


def rows(messages: Messages) -> list[str]:
    """The first column of each row."""
    return [body[6 : 6 + struct.unpack_from("!i", body, 2)[0]].decode() for kind, body in messages if kind == b"D"]


def errors(messages: Messages) -> list[dict[str, str]]:
    return [error_fields(body) for kind, body in messages if kind == b"E"]


@pytest.mark.parametrize("name", ["", "s"])
@pytest.mark.parametrize("begin", ["", "begin"])
async def test_ours_is_bound_in_place_of_the_clients(
    client: WireClient, planner: ScriptedPlanner, name: str, begin: str
) -> None:
    planner.steer(MARK)
    if begin:
        await client.query(begin)
    text = seen()
    answer = await batch(client, parse(name, text), bind(name), describe("", b"P"), execute(), SYNC)
    assert kinds(answer) == "12TDCZ"
    assert rows(answer) == [MARK + text]
    answer = await batch(client, describe(name), SYNC)
    assert kinds(answer) == "tTZ"
    answer = await batch(client, bind(name), execute(), SYNC)
    assert kinds(answer) == "2DCZ"
    assert rows(answer) == [MARK + text]
    assert len(planner.asks) == 1
    if begin:
        await client.query("commit")
    # The client's own is as it was, and of ours nothing is left.
    if name:
        assert await client.query("select count(*) from pg_prepared_statements where name like 'pilotwire%'") == [
            ("0",)
        ]
        assert kinds(await batch(client, close(name), SYNC)) == "3Z"


async def test_types_and_values_are_the_clients(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = joined("$1 || x.c, $2", " where x.b = $2 limit 1")
    types = struct.pack("!hII", 2, 25, 23)
    values = struct.pack("!hhhhi3si4sh", 2, 0, 1, 2, 3, b"abc", 4, struct.pack("!i", 7), 0)
    answer = await batch(client, parse("", text, types), bind("", "", values), execute(), SYNC)
    assert rows(answer) == ["abcé7"]
    (ask,) = planner.asks
    assert ask.types == (25, 23)
    assert ask.bind == values
    # Unspecified types are found as for the client's own statement.
    planner.reset()
    planner.steer(MARK)
    text = joined("x.c", " where x.b = $1 limit 1")
    value = struct.pack("!hhi1sh", 0, 1, 1, b"3", 0)
    assert rows(await batch(client, parse("", text), bind("", "", value), execute(), SYNC)) == ["é3"]
    assert len(planner.asks) == 1


async def test_several_binds_in_a_batch(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    first, second = seen(), seen()
    plain = "select 'plain'"
    answer = await batch(
        client,
        parse("x1", first), parse("x2", second), parse("x3", plain),
        bind("x1", "p1"), bind("x2", "p2"), bind("x3", "p3"),
        execute("p2"), execute("p1"), execute("p3"),
        close("x1"), close("x2"), close("x3"), SYNC,
    )  # fmt: skip
    assert kinds(answer) == "111222DCDCDC333Z"
    # The second one sees the same, since the server keeps its view of the activity for a transaction.
    assert rows(answer) == [MARK + second, MARK + second, "plain"]


async def test_several_batches_at_once(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    planner.delay = 0.02
    texts = [seen() for _ in range(4)]
    client.send(b"".join(parse("", text) + bind() + execute() + SYNC for text in texts))
    found = []
    for _ in texts:
        found += rows(await client.until(b"Z"))
    assert found == [MARK + text for text in texts]


async def test_row_limits_and_portals(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = joined("x.b", " order by 1")
    await client.query("begin")
    answer = await batch(client, parse("", text), bind("", "cursor"), execute("cursor", 2), SYNC)
    assert kinds(answer) == "12DDsZ"
    assert kinds(await batch(client, execute("cursor", 3), SYNC)) == "DDDsZ"
    answer = await batch(client, describe("cursor", b"P"), execute("cursor"), close("cursor", b"P"), SYNC)
    assert kinds(answer)[:2] + kinds(answer)[-3:] == "TDC3Z"
    await client.query("commit")
    assert len(planner.asks) == 1


async def test_flush_is_answered_at_once(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = seen()
    client.send(parse("", text) + bind() + describe("", b"P") + FLUSH)
    assert kinds(await client.until(b"T")) == "12T"
    client.send(execute() + FLUSH)
    seen_rows = await client.until(b"C")
    assert rows(seen_rows) == [MARK + text]
    assert kinds(await batch(client, SYNC)) == "Z"


async def test_positions_and_names_in_errors(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer("/* über */ ")
    text = joined("x.c", " where x.b = $1")
    # Too few values: the server's own words would name our statement.
    (error,) = errors(await batch(client, parse("mine", text), bind("mine"), execute(), SYNC))
    assert error["C"] == "08P01"
    assert '"mine"' in error["M"]
    assert "pilotwire" not in str(error)
    # And afterwards everything works.
    value = struct.pack("!hhi1sh", 0, 1, 1, b"3", 0)
    answer = await batch(client, bind("mine", "", value), execute(), SYNC)
    assert rows(answer)[:1] == ["é3"]
    (error,) = errors(await batch(client, parse("", joined("nothing_there")), SYNC))
    assert "P" in error


async def test_an_error_in_the_batch_before(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = seen()
    answer = await batch(client, parse("e1", "select nothing_there"), parse("e2", text), bind("e2"), execute(), SYNC)
    assert kinds(answer) == "EZ"
    answer = await batch(client, parse("e2", text), bind("e2"), execute(), SYNC)
    assert rows(answer) == [MARK + text]


async def test_an_error_between_bind_and_close(client: WireClient, planner: ScriptedPlanner) -> None:
    """Ours stays prepared: it is closed before the next one, in the very batches that were sent already too."""
    planner.steer(MARK)
    bad, good = joined("x.c", " where x.b = $1"), seen()
    value = struct.pack("!hhi1sh", 0, 1, 1, b"x", 0)
    client.send(parse("", bad) + bind("", "", value) + execute() + SYNC + parse("", good) + bind() + execute() + SYNC)
    (error,) = errors(await client.until(b"Z"))
    assert error["C"] == "22P02"
    assert rows(await client.until(b"Z")) == [MARK + good]


async def test_settings(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(settings=NO_HASH)
    for begin in ("", "begin"):
        if begin:
            await client.query(begin)
        answer = await batch(
            client,
            parse("", setting("enable_hashjoin")), bind(), execute(),
            parse("", "show enable_hashjoin"), bind(), execute(), SYNC,
        )  # fmt: skip
        assert rows(answer) == ["off", "on"]
        assert kinds(answer) == "12DC12DCZ"
        assert await client.value("show enable_hashjoin") == "on"
        assert await client.query("select count(*) from pg_prepared_statements where name like 'pilotwire%'") == [
            ("0",)
        ]
        if begin:
            await client.query("commit")


async def test_settings_for_what_is_planned_when_it_runs(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(settings={"enable_hashjoin": "off", "enable_mergejoin": "off"})
    text = explain()
    assert "Nested Loop" in rows(await batch(client, parse("", text), bind(), execute(), SYNC))[1]
    assert await client.value("show enable_hashjoin") == "on"
    await client.query("begin")
    assert "Hash Join" in rows(await batch(client, parse("", text), bind(), execute(), SYNC))[1]
    await client.query("commit")


async def test_settings_go_back_when_the_bind_fails(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(settings=NO_HASH)
    await client.query("begin; savepoint s")
    value = struct.pack("!hhi1sh", 0, 1, 1, b"x", 0)
    text = joined("x.c", " where x.b = $1")
    (error,) = errors(await batch(client, parse("", text), bind("", "", value), execute(), SYNC))
    assert error["C"] == "22P02"
    await client.query("rollback to s")
    assert await client.value("show enable_hashjoin") == "on"
    assert rows(await batch(client, parse("", setting("enable_hashjoin")), bind(), execute(), SYNC)) == ["off"]
    await client.query("commit")


async def test_a_statement_that_is_not_there(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = seen()
    await batch(client, parse("gone", text), bind("gone"), execute(), SYNC)
    await batch(client, close("gone"), SYNC)
    (error,) = errors(await batch(client, bind("gone"), execute(), SYNC))
    assert (error["C"], '"gone"' in error["M"]) == ("26000", True)


async def test_a_name_that_is_taken_keeps_its_text(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = seen()
    await batch(client, parse("taken", text), SYNC)
    (error,) = errors(await batch(client, parse("taken", joined("'other'")), SYNC))
    assert error["C"] == "42P05"
    assert rows(await batch(client, bind("taken"), execute(), SYNC))[0].endswith(text)


async def test_a_name_that_gets_free_on_the_way(client: WireClient, planner: ScriptedPlanner) -> None:
    """Whether a Parse of a name that is taken fails is known with its answer only; a Bind that came along is for it."""
    planner.steer(MARK)
    await batch(client, parse("free", seen()), bind("free"), execute(), SYNC)
    discard = (parse("", "discard all"), bind(), execute())
    answer = await batch(client, *discard, parse("free", "select 'new'"), bind("free"), execute(), SYNC)
    assert (kinds(answer), rows(answer)) == ("12C12DCZ", ["new"])
    await client.query("deallocate all")


async def test_names_given_another_meaning_by_sql(client: WireClient, planner: ScriptedPlanner, steered: Proxy) -> None:
    planner.steer(MARK)
    await batch(client, parse("again", joined("'old'")), bind("again"), execute(), SYNC)
    await client.query("deallocate again")
    if steered.settings["pool_mode"] == "session":
        await client.query("prepare again as select 'new'")
        assert rows(await batch(client, bind("again"), execute(), SYNC)) == ["new"]
    else:
        (error,) = errors(await batch(client, bind("again"), execute(), SYNC))
        assert error["C"] == "26000"
    await client.query("deallocate all")


async def test_only_the_name_that_sql_removes_is_forgotten(
    client: WireClient, planner: ScriptedPlanner, steered: Proxy
) -> None:
    planner.steer(MARK)
    kept = seen()
    await batch(client, parse("kept", kept), parse("gone", seen()), parse("remover", "deallocate gone"), SYNC)
    assert rows(await batch(client, bind("kept"), execute(), SYNC)) == [MARK + kept]
    await batch(client, bind("remover"), execute(), SYNC)
    assert rows(await batch(client, bind("kept"), execute(), SYNC)) == [MARK + kept]
    await batch(client, parse("gone", joined("'old'")), SYNC)
    # A removal that was prepared before counts when it is run.
    await batch(client, bind("remover"), execute(), SYNC)
    if steered.settings["pool_mode"] == "session":
        await client.query("prepare gone as select 'new'")
        assert rows(await batch(client, bind("gone"), execute(), SYNC)) == ["new"]
    await client.query("deallocate all")


async def test_a_result_that_changed_its_type(client: WireClient, planner: ScriptedPlanner) -> None:
    """Ours would be prepared anew and never know; the client, which was told of the old columns, must."""
    planner.steer(MARK)
    await client.query("drop table if exists changing; create table changing (b int); insert into changing values (1)")
    text = joined("changing.*").replace("left_side", "changing").replace("changing.*", "*")
    await batch(client, parse("all", text), bind("all"), execute(), SYNC)
    await client.query("alter table changing add z int")
    (error,) = errors(await batch(client, bind("all"), execute(), SYNC))
    assert error["M"] == "cached plan must not change result type"
    await client.query("drop table changing")


@pytest.mark.parametrize(
    ("constant", "change", "meaning"),
    [
        ("('03/04/2013'::date)::text", "set datestyle = 'ISO, DMY'", "2013-03-04"),
        (
            "('2013-03-04 12:00'::timestamptz at time zone 'UTC')::text",
            "set timezone = 'Asia/Tokyo'",
            "2013-03-04 12:00:00",
        ),
    ],
)
async def test_constants_keep_the_meaning_they_were_prepared_with(
    client: WireClient, planner: ScriptedPlanner, constant: str, change: str, meaning: str
) -> None:
    """Parsed anew for the advice they would be read under the settings of today."""
    await client.query("set datestyle = 'ISO, MDY'")
    await client.query("set timezone = 'UTC'")
    planner.steer(MARK)
    text = joined(constant, " limit 1")
    assert rows(await batch(client, parse("s", text), bind("s"), execute(), SYNC)) == [meaning]
    await client.query(change)
    assert rows(await batch(client, bind("s"), execute(), SYNC)) == [meaning]


async def test_a_constant_of_the_moment_is_not_read_again(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = joined("('now'::timestamptz)::text", " limit 1")
    first = rows(await batch(client, parse("s", text), bind("s"), execute(), SYNC))
    assert rows(await batch(client, bind("s"), execute(), SYNC)) == first
    assert planner.asks == []


async def test_simple_queries_between(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    first, second = seen(), seen()
    assert rows(await batch(client, parse("m", first), bind("m"), execute(), SYNC)) == [MARK + first]
    client.send(query(second) + bind("m") + execute() + SYNC + query(second))
    found = []
    for _ in range(3):
        found += rows(await client.until(b"Z"))
    assert found == [MARK + second, MARK + first, MARK + second]


async def test_asyncpg(steered: Proxy, planner: ScriptedPlanner, shop: str) -> None:
    planner.steer(MARK)
    connection = await asyncpg.connect(steered.dsn(shop))
    try:
        text = seen()
        for _ in range(3):
            assert await connection.fetchval(text) == MARK + text
        async with connection.transaction():
            assert await connection.fetchval(text) == MARK + text
            by_value = joined("x.c", " where x.b = $1 and a = $2")
            assert await connection.fetchval(by_value, 3, 3) == "é3"
            numbers = [row[0] async for row in connection.cursor(joined("a", " order by 1"), prefetch=100)]
            assert numbers[:3] == [1, 2, 3]
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.fetch(joined("1 / (x.b - $1)"), 3)
        assert await connection.fetchval(text) == MARK + text
        assert len(planner.asks) == 4
    finally:
        await connection.close()


async def test_psycopg(steered: Proxy, planner: ScriptedPlanner, shop: str) -> None:
    planner.steer(MARK)
    async with await psycopg.AsyncConnection.connect(steered.dsn(shop), autocommit=True) as connection:
        text = joined("x.c", " where x.b = %s and a = %s")
        for number in range(8):  # prepared from the fifth time on
            cursor = await connection.execute(text, (3, 3))
            assert await cursor.fetchone() == ("é3",), number
        async with connection.pipeline():
            cursors = [await connection.execute(seen()) for _ in range(5)]
            found = [await cursor.fetchone() for cursor in cursors]
        assert all(row is not None and row[0].startswith(MARK) for row in found)
