"""Advice that the server refuses: the statement runs as the client sent it, when nobody can notice, and is not steered
again."""

from __future__ import annotations

import pytest

from proxy.wire.messages import error_fields, query
from tests.proxy.pooled_fixtures import sample
from tests.proxy.steering.planner import ScriptedPlanner
from tests.proxy.steering.statements import MARK, joined, seen
from tests.proxy.steering.test_delivery_extended import batch, errors, kinds, rows
from tests.proxy.wire.transcript import FLUSH, SYNC, bind, close, describe, execute, parse
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import WireClient

BROKEN = "nonsense "


async def told(planner: ScriptedPlanner) -> tuple[str, str]:
    """The refusal that the planner was told of: SQLSTATE and text."""
    await eventually(lambda: len(planner.refused) > 0, what="the planner is told")
    (refused,) = planner.refused
    return refused.sqlstate, refused.text.decode()


async def test_a_query_is_run_again(client: WireClient, planner: ScriptedPlanner, steered: Proxy) -> None:
    planner.steer(BROKEN)
    before = sample(steered, "steering_run_again_total")
    text = seen()
    client.send(query(text))
    answer = await client.until_ready()
    assert kinds(answer) == "TDCZ"
    assert rows(answer) == [text]
    assert await told(planner) == ("42601", text)
    planner.steer(MARK)
    planner.change()
    assert await client.value(text) == text
    assert len(planner.asks) == 1
    assert sample(steered, "steering_run_again_total") == before + 1


@pytest.mark.parametrize("settings", [{"work_mem": "1"}, {"enable_something_new": "off"}])
async def test_refused_settings(client: WireClient, planner: ScriptedPlanner, settings: dict[str, str]) -> None:
    planner.steer(settings=settings)
    text = joined()
    assert await client.value(text) == "900"
    assert (await told(planner))[1] == text
    assert await client.value(text) == "900"


async def test_a_batch_is_run_again(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(BROKEN)
    text = seen()
    answer = await batch(client, parse("r", text), bind("r"), describe("", b"P"), execute(), SYNC)
    assert kinds(answer) == "12TDCZ"
    assert rows(answer) == [text]
    assert await told(planner) == ("42601", text)
    answer = await batch(client, bind("r"), execute(), SYNC)
    assert rows(answer) == [text]
    assert kinds(await batch(client, close("r"), SYNC)) == "3Z"


@pytest.mark.parametrize("described", [True, False])
async def test_run_again_when_the_answer_has_begun(
    client: WireClient, planner: ScriptedPlanner, described: bool
) -> None:
    """What the client was told of the first run it is not told again."""
    planner.steer(MARK)
    text = joined("picky(x.b, 1)", " limit 3")
    wanted = [describe("", b"P")] if described else []
    answer = await batch(client, parse("", text), bind(), *wanted, execute(), SYNC)
    assert kinds(answer) == ("12TDDDCZ" if described else "12DDDCZ")
    assert await told(planner) == ("XX000", text)


async def test_not_when_rows_are_out(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    answer = await batch(client, parse("", joined("picky(a, 500)")), bind(), execute(), SYNC)
    assert kinds(answer).startswith("12DDD")
    assert [error["C"] for error in errors(answer)] == ["XX000"]
    assert len(rows(answer)) < 600
    client.send(query(joined("picky(a, 500)")))
    answer = await client.until(b"Z")
    assert kinds(answer).startswith("TDDD")
    assert [error["C"] for error in errors(answer)] == ["XX000"]


async def test_not_in_a_transaction(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(BROKEN)
    text = seen()
    await client.query("begin")
    client.send(query(text))
    ((kind, body), _) = await client.until(b"Z")
    assert kind == b"E"
    assert "P" not in error_fields(body)  # it would point into what the client did not write
    assert client.status == "E"
    await client.query("rollback")
    assert await told(planner) == ("42601", text)
    await client.query("begin")
    assert await client.value(text) == text
    await client.query("commit")


@pytest.mark.parametrize("behind", ["flush", "another", "query"])
async def test_not_when_it_does_not_stand_alone(client: WireClient, planner: ScriptedPlanner, behind: str) -> None:
    planner.steer(BROKEN)
    text = joined("'alone'")
    sent = parse("", text) + bind() + execute()
    more = {
        "flush": FLUSH,
        "another": parse("", "select 1") + bind() + execute() + SYNC,
        "query": SYNC + query("select 1"),
    }
    client.send(sent + more[behind])
    (error,) = errors(await client.until(b"E"))
    assert error["C"] == "42601"
    if behind == "flush":
        client.send(SYNC)
    await client.until(b"Z")
    if behind == "query":
        await client.until(b"Z")
    assert await client.value("select 2") == "2"


async def test_what_fails_anyway_is_not_held_against_advice(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = joined("'1'::nothing_there")
    for number in (1, 2):
        client.send(query(text))
        (error,) = errors(await client.until(b"Z"))
        assert error["C"] == "42704", number
        assert int(error["P"]) == text.index("nothing_there") + 1
    assert planner.refused == []


async def test_what_follows_is_as_ever(client: WireClient, planner: ScriptedPlanner) -> None:
    """The next statement is bound without a trace of the refused one."""
    planner.steer(BROKEN)
    await batch(client, parse("", seen()), bind(), execute(), SYNC)
    planner.steer(MARK)
    text = seen()
    assert rows(await batch(client, parse("", text), bind(), execute(), SYNC)) == [MARK + text]
    assert rows(await batch(client, parse("", "select 'plain'"), bind(), execute(), SYNC)) == ["plain"]
    names = await client.query("select name from pg_prepared_statements where name like 'pilotwire%'")
    assert names == []
