"""Advice in the simple protocol, with a real server: what it runs, what the client sees, and what stays behind."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from planner.messages import Answer, Observed
from proxy.wire.messages import query
from tests.proxy.pooled_fixtures import sample
from tests.proxy.steering.planner import ScriptedPlanner
from tests.proxy.steering.statements import MARK, explain, joined, seen, setting
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import ServerError, WireClient

NO_HASH = {"enable_hashjoin": "off", "enable_mergejoin": "off"}


async def error_of(client: WireClient, sql: str) -> ServerError:
    with pytest.raises(ServerError) as caught:
        await client.query(sql)
    return caught.value


async def test_a_comment_goes_in_front(client: WireClient, planner: ScriptedPlanner, shop: str) -> None:
    planner.steer(MARK)
    text = seen()
    assert await client.value(text) == MARK + text
    (ask,) = planner.asks
    assert (ask.text.decode(), ask.database, ask.user, ask.bind) == (text, shop, "postgres", None)
    # The second time nobody is asked.
    assert await client.value(text) == MARK + text
    assert len(planner.asks) == 1

    def told() -> list[Observed]:
        return [told for told in planner.observed if told.template == ask.template]

    await eventually(lambda: len(told()) >= 2, what="what was measured is told")
    assert {(seen.steered, seen.model) for seen in told()} == {(True, "test-1")}


async def test_a_comment_of_the_clients_counts_for_nothing(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = seen()
    tagged = (f"{text} /*traceparent='00-1'*/", f"/* two */ {text}", text, f"{text} -- '")
    # What the server gets is the client's text, byte for byte.
    assert [await client.value(one) for one in tagged] == [MARK + one for one in tagged]
    (ask,) = planner.asks
    assert ask.text.decode() == text
    for barred in (f"{text} /* pilotwire: off */", f"/*+ Set(jit off) */ {text}"):
        assert await client.value(barred) == barred
    assert len(planner.asks) == 1


async def test_inside_a_transaction(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    text = seen()
    await client.query("begin")
    assert await client.value(text) == MARK + text
    assert client.status == "T"
    await client.query("commit")


async def test_never_in_a_failed_transaction(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    await client.query("begin")
    await error_of(client, "select 1/0")
    assert (await error_of(client, seen())).sqlstate == "25P02"
    await client.query("rollback")
    assert planner.asks == []


async def test_positions_are_the_clients(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer("/* über advised */ ")
    text = joined("'é', nothing_there")
    error = await error_of(client, text)
    assert error.sqlstate == "42703"
    assert int(error.fields["P"]) == text.index("nothing_there") + 1


@pytest.mark.parametrize("begin", ["", "begin"])
async def test_positions_behind_settings(client: WireClient, planner: ScriptedPlanner, begin: str) -> None:
    planner.steer(settings=NO_HASH)
    if begin:
        await client.query(begin)
    text = joined("'é', nothing_there")
    error = await error_of(client, text)
    assert int(error.fields["P"]) == text.index("nothing_there") + 1
    if begin:
        await client.query("rollback")


async def test_settings_outside_a_transaction(client: WireClient, planner: ScriptedPlanner) -> None:
    plain = await client.query(explain())
    planner.reset()
    planner.steer(settings=NO_HASH)
    advised = await client.query(explain())
    assert "Nested Loop" in str(advised[1][0])
    assert plain != advised
    assert await client.value("show enable_hashjoin") == "on"
    assert await client.value(setting("enable_hashjoin")) == "off"
    assert await client.value("show enable_hashjoin") == "on"


async def test_the_client_sees_no_trace_of_settings(client: WireClient, planner: ScriptedPlanner) -> None:
    text = joined()
    client.send(query(text))
    plain = await client.until_ready()
    planner.reset()
    planner.steer(settings=NO_HASH)
    client.send(query(joined()))
    assert await client.until_ready() == plain
    await client.query("begin")
    client.send(query(joined()))
    assert (await client.until_ready())[:-1] == plain[:-1]
    await client.query("commit")


async def test_settings_inside_a_transaction_go_back(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(settings={"enable_hashjoin": "off", "join_collapse_limit": "1"})
    await client.query("begin; set local enable_hashjoin = on; set join_collapse_limit = 5")
    assert await client.value(setting("enable_hashjoin")) == "off"
    assert await client.value("show enable_hashjoin") == "on"
    assert await client.value("show join_collapse_limit") == "5"
    await client.query("commit")
    assert await client.value("show join_collapse_limit") == "5"
    await client.query("reset join_collapse_limit")


async def test_settings_go_back_when_the_statement_fails(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(settings=NO_HASH)
    await client.query("begin")
    await client.query("savepoint s")
    assert (await error_of(client, joined("1 / (a.a - a.a)".replace("a.a", "x.b")))).sqlstate == "22012"
    assert client.status == "E"
    await client.query("rollback to s")
    assert await client.value("show enable_hashjoin") == "on"
    assert await client.value(setting("enable_hashjoin")) == "off"
    await client.query("commit")
    assert await client.value("show enable_hashjoin") == "on"
    # And in a transaction of its own.
    assert (await error_of(client, joined("1 / (x.b - x.b)"))).sqlstate == "22012"
    assert await client.value("show enable_hashjoin") == "on"


async def test_a_setting_this_server_does_not_know(client: WireClient, planner: ScriptedPlanner) -> None:
    """In the client's transaction it is passed over; else the server refuses it, and the statement runs as it is."""
    planner.steer(settings={"enable_something_new": "off"})
    await client.query("begin")
    assert await client.value(joined()) == "900"
    await client.query("commit")
    assert await client.value(joined()) == "900"


async def test_other_statements_that_carry_a_query(client: WireClient, planner: ScriptedPlanner) -> None:
    for advice in ({"prefix": MARK}, {"settings": NO_HASH}):
        planner.reset()
        planner.steer(**advice)
        for begin in ("", "begin"):
            if begin:
                await client.query("begin")
            assert len(await client.query(explain())) > 2
            client.send(query(f"copy ({joined('x.c', ' limit 2')}) to stdout"))
            assert [kind for kind, _ in await client.until_ready()] == [b"H", b"d", b"d", b"c", b"C", b"Z"]
            client.send(query(f"create table made as {joined()}"))
            assert [body for kind, body in await client.until_ready() if kind == b"C"] == [b"SELECT 1\0"]
            client.send(query(f"insert into made {joined()}"))
            assert [body for kind, body in await client.until_ready() if kind == b"C"] == [b"INSERT 0 1\0"]
            await client.query("drop table made")
            if begin:
                await client.query(f"declare c cursor for {joined('x.c', ' order by 1')}")
                assert await client.query("fetch 1 from c") == [("é1",)]
                await client.query("commit")
            else:
                assert (await error_of(client, f"declare c cursor for {joined()}")).sqlstate == "25P01"


async def test_what_stands_with_others_is_left_alone(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    await client.query(f"select 1; {seen()}")
    await client.query(f"/*+ Leading(a b) */ {seen()}")
    await client.query(f"/* pilotwire: off */ {seen()}")
    await client.query("select 1 from left_side")
    assert planner.asks == []


async def test_a_session_turns_it_off_and_on(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    await client.query("set pilotwire.mode = 'off'")
    text = seen()
    assert await client.value(text) == text
    assert await client.value("show pilotwire.mode") == "off"
    assert planner.asks == []
    await client.query("set pilotwire.mode to on")
    text = seen()
    assert await client.value(text) == MARK + text
    await client.query("begin; set local pilotwire.mode = off")
    await client.query("select 1")
    text = seen()
    assert await client.value(text) == text
    await client.query("commit")
    text = seen()
    assert await client.value(text) == MARK + text
    await client.query("select set_config('pilotwire.mode', 'off', false)")
    text = seen()
    assert await client.value(text) == text
    await client.query("reset pilotwire.mode")
    text = seen()
    assert await client.value(text) == MARK + text


async def test_shadow_asks_and_changes_nothing(client: WireClient, planner: ScriptedPlanner, steered: Proxy) -> None:
    planner.steer(MARK)
    planner.change("shadow")
    text = f"{seen()} and pg_sleep(0.03) is not null"  # else it is soon judged cheap
    assert await client.value(text) == text
    await eventually(lambda: len(planner.asks) == 1, what="the planner is asked")
    before = sample(steered, "steering_reasons_total", 'reason="shadow"')
    async with asyncio.timeout(10):
        while sample(steered, "steering_reasons_total", 'reason="shadow"') == before:
            assert await client.value(text) == text
    planner.change("observe")
    text = seen()
    assert await client.value(text) == text
    assert len(planner.asks) == 1
    await eventually(lambda: any(told.reason == "observe" for told in planner.observed), what="it is measured")


async def test_the_answer_may_be_for_the_template(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK, scope="template")
    text = seen()
    for number in range(3):
        assert await client.value(f"{text} and {number} < 5") == f"{MARK}{text} and {number} < 5"
    assert len(planner.asks) == 1
    planner.reset()
    planner.script = lambda ask: Answer(ask.number, reason="view", scope="template")
    text = seen()
    for number in range(3):
        assert await client.value(f"{text} and {number} < 5") == f"{text} and {number} < 5"
    assert len(planner.asks) == 1


async def test_pipelined_queries_wait_in_their_order(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK)
    planner.delay = 0.05
    texts = [seen() for _ in range(3)]
    client.send(b"".join(query("select 1") + query(text) for text in texts))
    answers = []
    for _ in range(6):
        answers += [body[6:].decode() for kind, body in await client.until_ready() if kind == b"D"]
    assert [answer for answer in answers if answer != "1"] == [MARK + text for text in texts]


async def test_clients_that_ask_the_same_share_the_answer(steered: Proxy, planner: ScriptedPlanner, shop: str) -> None:
    planner.steer(MARK)
    planner.delay = 0.2
    several = [await WireClient.connect(steered, shop) for _ in range(5)]
    text = seen()
    assert await asyncio.gather(*(one.value(text) for one in several)) == [MARK + text] * 5
    assert len(planner.asks) == 1
    for one in several:
        one.reset()


async def test_a_cancel_reaches_the_statement_that_waits(
    client: WireClient, planner: ScriptedPlanner, steered: Proxy
) -> None:
    planner.script = lambda ask: None
    text = joined("pg_sleep(20)", " limit 1")
    task = asyncio.create_task(error_of(client, text))
    await eventually(lambda: len(planner.asks) == 1, what="the planner is asked")
    await client.cancel(steered)
    assert (await task).sqlstate == "57014"


async def test_a_cancel_that_would_overtake_the_statement_that_waits(
    client: WireClient, planner: ScriptedPlanner, steered: Proxy
) -> None:
    """The server gets both at once; a request that finds its backend idle hits nothing."""
    backend = int(await client.value("select pg_backend_pid()") or 0)
    planner.script = lambda ask: None
    task = asyncio.create_task(error_of(client, joined("pg_sleep(20)", " limit 1")))
    await eventually(lambda: len(planner.asks) == 1, what="the planner is asked")
    os.kill(backend, signal.SIGSTOP)
    before = sample(steered, "cancels_forwarded_total")
    cancelling = asyncio.create_task(client.cancel(steered))
    try:
        await eventually(lambda: sample(steered, "cancels_forwarded_total") > before, what="the request is sent")
        await asyncio.sleep(0.01)
    finally:
        os.kill(backend, signal.SIGCONT)
    await cancelling
    assert (await task).sqlstate == "57014"


async def test_a_client_that_leaves_while_it_waits(steered: Proxy, planner: ScriptedPlanner, shop: str) -> None:
    planner.script = lambda ask: None
    leaving = await WireClient.connect(steered, shop)
    leaving.send(query(joined()))
    await eventually(lambda: len(planner.asks) == 1, what="the planner is asked")
    leaving.reset()
    await eventually(lambda: sample(steered, "clients_current") == 0, what="it is gone")
