"""The regret budget with a real server: advice that makes a plan terrible costs at most its budget, the client sees one
answer, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil
import pytest

from planner.messages import Answer, Observed
from proxy.wire.messages import query
from tests.proxy.pooled_fixtures import sample
from tests.proxy.steering.planner import ScriptedPlanner
from tests.proxy.steering.statements import MARK, joined, seen
from tests.proxy.steering.test_delivery_extended import batch, errors, kinds, rows
from tests.proxy.wire.transcript import FLUSH, SYNC, bind, describe, execute, parse
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import ServerError, WireClient

# Nested loops over everything, some 20 seconds.
TERRIBLE = {"enable_hashjoin": "off", "enable_mergejoin": "off", "enable_material": "off", "enable_memoize": "off"}
BUDGET_MS = 60.0
WIDE = 20_000
_aliases = iter(range(1, 10_000))


@pytest.fixture(scope="module")
def wide(postgres: Postgres, shop: str) -> str:
    postgres.sql(f"create table wide as select i as k from generate_series(1, {WIDE}) i; analyze wide", shop)
    return shop


@pytest.fixture
def terrible(wide: str, planner: ScriptedPlanner) -> ScriptedPlanner:
    planner.steer(settings=TERRIBLE, budget_ms=BUDGET_MS, arm="terrible", query=b"k" * 16)
    return planner


def counting(rest: str = "", what: str = "count(*)") -> str:
    alias = f"w{next(_aliases)}"
    return f"select {what} from wide {alias} join wide x using (k){rest}"


def told_of(planner: ScriptedPlanner) -> list[Observed]:
    """Of this test's statements: a worker tells of the last test's up to half a second later."""
    asked = {ask.template for ask in planner.asks}
    return [told for told in planner.observed if told.template in asked]


async def observed(planner: ScriptedPlanner) -> Observed:
    await eventually(lambda: len(told_of(planner)) > 0, what="the planner is told")
    return told_of(planner)[-1]


def nothing_runs(postgres: Postgres, database: str) -> bool:
    running = postgres.sql(
        "select query from pg_stat_activity where state = 'active' and pid <> pg_backend_pid()"
        f" and datname = '{database}' and query like '%wide%'"
    )
    return running == ""


async def ask(client: WireClient, text: str, protocol: str) -> list[tuple[bytes, bytes]]:
    if protocol == "simple":
        client.send(query(text))
        return await client.until(b"Z")
    wanted = [describe("", b"P")] if protocol == "described" else []
    return await batch(client, parse("", text), bind(), *wanted, execute(), SYNC)


ANSWERS = {"simple": "TDCZ", "extended": "12DCZ", "described": "12TDCZ"}


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("protocol", ANSWERS)
async def test_a_terrible_plan_costs_its_budget(
    client: WireClient,
    terrible: ScriptedPlanner,
    steered: Proxy,
    postgres: Postgres,
    wide: str,
    protocol: str,
    inside: bool,
) -> None:
    before = sample(steered, "steering_stopped_total")
    if inside:
        await client.query("begin; create temp table mine (a int)")
    begun = time.monotonic()
    answer = await ask(client, counting(), protocol)
    took = time.monotonic() - begun
    assert kinds(answer) == ANSWERS[protocol]
    assert rows(answer) == [str(WIDE)]
    assert BUDGET_MS / 1000 < took < BUDGET_MS / 1000 + 1.0
    assert client.status == ("T" if inside else "I")
    assert nothing_runs(postgres, wide)
    assert sample(steered, "steering_stopped_total") == before + 1
    told = await observed(terrible)
    assert (told.steered, told.failed, told.control, told.rows) == (False, False, False, 1)
    assert (told.query, told.arm, told.reason) == (b"k" * 16, "terrible", "over_budget")
    assert BUDGET_MS <= told.stopped_ms < BUDGET_MS + 500
    assert told.took_ms < took * 1000 - BUDGET_MS + 1
    if inside:
        # What the transaction did before is still there, and no savepoint of ours is.
        assert await client.value("select count(*) from mine") == "0"
        client.send(query("rollback to pilotwire_budget"))
        (error,) = errors(await client.until(b"Z"))
        assert error["C"] == "3B001"
        await client.query("rollback")
    assert await client.value("show enable_hashjoin") == "on"


async def test_what_follows_waits_and_is_answered(client: WireClient, terrible: ScriptedPlanner) -> None:
    """Messages sent right behind a run with a budget come after it, whatever becomes of it."""
    client.send(query(counting()) + query("select 'behind'") + parse("", "select 'too'") + bind() + execute() + SYNC)
    first, second, third = [await client.until(b"Z") for _ in range(3)]
    assert (kinds(first), rows(first)) == ("TDCZ", [str(WIDE)])
    assert (kinds(second), rows(second)) == ("TDCZ", ["behind"])
    assert (kinds(third), rows(third)) == ("12DCZ", ["too"])


async def test_rows_that_the_server_had_ready(client: WireClient, terrible: ScriptedPlanner, wide: str) -> None:
    """The first rows stand in the server's buffer when the run is stopped; they must not be seen twice."""
    text = counting(" order by k + 0 limit 300", "k")
    client.send(query(counting(" limit 300", "k")))
    answer = await client.until(b"Z")
    assert kinds(answer) == "T" + "D" * 300 + "CZ"
    answer = await ask(client, text, "extended")
    assert rows(answer) == [str(number) for number in range(1, 301)]


async def test_a_run_within_its_budget(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK, budget_ms=5000.0, query=b"k" * 16)
    for protocol in ("simple", "extended"):
        for begin in ("", "begin"):
            await client.query(begin)
            text = seen()
            assert rows(await ask(client, text, protocol)) == [MARK + text]
            if begin:
                await client.query("commit")
    assert await client.value("select count(*) from pg_prepared_statements where name like 'pilotwire%'") == "0"
    told = await observed(planner)
    assert (told.steered, told.stopped_ms, told.reason) == (True, 0.0, "")


async def test_the_clients_own_cancel_wins(client: WireClient, terrible: ScriptedPlanner, steered: Proxy) -> None:
    """Before our own, in the same moment, and after it: a statement that the client has cancelled ends in 57014, or it
    was over already; it is never run for long, and the next one is never hit."""
    ended = []
    for moment in range(30):
        text = counting()
        client.send(query(text))
        await asyncio.sleep((BUDGET_MS + (moment - 15) * 0.5) / 1000)
        await client.cancel(steered)
        answer = await client.until(b"Z")
        ended.append(kinds(answer))
        assert ended[-1] in ("EZ", "TEZ", "TDCZ")  # the server may tell the columns before the error
        if "E" in ended[-1]:
            assert errors(answer)[0]["C"] == "57014"
        assert await client.value("select 'untouched'") == "untouched"
    assert any("E" in kinds for kinds in ended)


async def test_cancelled_by_the_client_inside_a_transaction(
    client: WireClient, terrible: ScriptedPlanner, steered: Proxy
) -> None:
    for protocol in ("simple", "extended"):
        for wait in (0.02, BUDGET_MS / 1000, BUDGET_MS / 1000 + 0.001):
            await client.query("begin")
            task = asyncio.create_task(ask(client, counting(), protocol))
            await asyncio.sleep(wait)
            await client.cancel(steered)
            answer = await task
            assert client.status == ("E" if errors(answer) else "T")
            await client.query("rollback")
            assert await client.value("select 1") == "1"


@pytest.mark.parametrize("timeout", [20, 40])
async def test_statement_timeout_is_the_clients(client: WireClient, terrible: ScriptedPlanner, timeout: int) -> None:
    await client.query(f"set statement_timeout = {timeout}")
    client.send(query(counting()))
    (error,) = errors(await client.until(b"Z"))
    assert error["C"] == "57014"
    assert "statement timeout" in error["M"]
    await client.query("set statement_timeout = 0")


@pytest.mark.parametrize("approved", [False, True])
async def test_only_approved_advice_where_no_run_can_be_stopped(
    client: WireClient, planner: ScriptedPlanner, approved: bool
) -> None:
    planner.steer(MARK, budget_ms=5000.0, approved=approved)
    # The Sync is not there yet.
    text = seen()
    client.send(parse("", text) + bind() + execute() + FLUSH)
    answer = await client.until(b"C")
    client.send(SYNC)
    await client.until(b"Z")
    assert rows(answer) == [MARK + text if approved else text]
    # Another statement is in the batch.
    text = seen()
    answer = await batch(client, parse("", text), bind(), execute(), parse("", "select 1"), bind(), execute(), SYNC)
    assert rows(answer) == [MARK + text if approved else text, "1"]
    await eventually(
        lambda: approved or any(told.reason == "no_budget_possible_here" for told in told_of(planner)),
        what="it is told",
    )


async def test_statements_that_change_something_have_no_budget(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK, budget_ms=5000.0)
    text = seen().replace("select ", "select nextval('numbers'), ", 1)
    await client.query("create sequence if not exists numbers")
    assert (await client.query(text))[0][1] == text
    await eventually(lambda: any(told.reason == "not_repeatable" for told in told_of(planner)), what="it is told")
    await client.query("drop sequence numbers")


async def test_refused_inside_a_transaction_under_a_savepoint(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer("nonsense ", budget_ms=5000.0)
    for protocol in ("simple", "extended"):
        planner.change()
        await client.query("begin")
        text = seen()
        assert rows(await ask(client, text, protocol)) == [text]
        assert client.status == "T"
        await client.query("commit")


async def test_errors_are_the_clients(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.steer(MARK, budget_ms=5000.0)
    for protocol in ("simple", "extended"):
        text = joined("1 / (b - b)")
        await client.query("begin")
        (error,) = errors(await ask(client, text, protocol))
        assert error["C"] == "22012"
        assert client.status == "E"
        await client.query("rollback")
        assert await client.value("select 1") == "1"


async def test_the_control_group(client: WireClient, planner: ScriptedPlanner, steered: Proxy) -> None:
    planner.steer(MARK, share=0.5, query=b"k" * 16, arm="marked")
    # Too slow to be judged cheap.
    text = seen().replace(" where ", " cross join (select count(*) from generate_series(1, 250000)) z where ")
    found = [await client.value(text) for _ in range(40)]
    assert 5 < found.count(MARK + text) < 35
    await eventually(lambda: len(told_of(planner)) >= 40, what="all are told of")
    assert sum(told.control for told in told_of(planner)) == found.count(text)
    for told in told_of(planner):
        assert told.steered is not told.control
        assert (told.arm, told.rows, told.database) == ("marked", 1, planner.asks[0].database)
        assert told.reason == ("control" if told.control else "")
        assert (told.user, told.application) == ("postgres", "")
    sampled = [told for told in told_of(planner) if told.text]
    assert 0 < len(sampled) <= 40
    assert all(told.text.decode() == text for told in sampled)


async def test_errors_are_told_of(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.script = lambda ask: Answer(ask.number, reason="nothing", query=b"k" * 16)
    with pytest.raises(ServerError, match="22012"):
        await client.query(joined("1 / (b - b)"))
    told = await observed(planner)
    assert (told.failed, told.sqlstate, told.rows, told.reason) == (True, "22012", -1, "nothing")


async def test_a_half_closed_client_gets_its_answer(wide: str, terrible: ScriptedPlanner, steered: Proxy) -> None:
    client = await WireClient.connect(steered, wide)
    # In transaction mode an end while it waits for a server connection counts as leaving: now one is there.
    assert await client.value("select 1") == "1"
    client.send(query(counting()))
    client.writer.write_eof()
    answer = await client.until(b"Z")
    assert rows(answer) == [str(WIDE)]
    client.reset()


async def test_a_client_that_leaves_meanwhile(
    wide: str, terrible: ScriptedPlanner, steered: Proxy, postgres: Postgres
) -> None:
    """Nor does its statement go on without it."""
    for wait in (0.01, BUDGET_MS / 1000, BUDGET_MS / 1000 + 0.002):
        client = await WireClient.connect(steered, wide)
        client.send(query(counting()))
        await asyncio.sleep(wait)
        client.reset()
    await eventually(lambda: nothing_runs(postgres, wide), what="nothing runs any more")


async def test_a_client_that_leaves_before_the_server_has_begun(
    wide: str, terrible: ScriptedPlanner, steered: Proxy, postgres: Postgres
) -> None:
    """A cancel request that finds the server idle hits nothing."""
    client = await WireClient.connect(steered, wide)
    # In transaction mode the backend that was given back last is the next one.
    backend = int(await client.value("select pg_backend_pid()") or 0)
    cancels = sample(steered, "cancels_forwarded_total")
    os.kill(backend, signal.SIGSTOP)
    try:
        client.send(query(counting()))
        await eventually(lambda: sample(steered, "cancels_forwarded_total") > cancels, what="it is over its budget")
        cancels = sample(steered, "cancels_forwarded_total")
        client.reset()
        await eventually(lambda: sample(steered, "cancels_forwarded_total") > cancels, what="it is cancelled")
        await asyncio.sleep(0.05)  # what was counted is sent behind that
    finally:
        os.kill(backend, signal.SIGCONT)
    await eventually(lambda: not psutil.pid_exists(backend), what="the statement has ended")
