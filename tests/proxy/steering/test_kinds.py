"""Every kind of statement that is steered, in both protocols and both pool modes, with the real pg_hint_plan: its plan
is the advised one, on the first run and later, and the client is told what the server would tell it."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import count

import pytest

from planner.messages import Answer
from proxy.wire.messages import query
from tests.conftest import StartProxy
from tests.proxy.steering.planner import ScriptedPlanner, scripted_planner
from tests.proxy.wire.transcript import SYNC, bind, close, describe, execute, parse
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import WireClient

Messages = list[tuple[bytes, bytes]]
SETTINGS = (
    "session_preload_libraries = auto_explain, pg_hint_plan",
    "auto_explain.log_min_duration = 0",
    "auto_explain.log_level = notice",
    "auto_explain.log_timing = off",
    "compute_query_id = on",
)
_serial = count(1)


@dataclass(frozen=True)
class Kind:
    """``text`` has the query at ``{}``; ``before`` and ``after`` go around it, by simple queries. ``values``: it may
    have parameters."""

    name: str
    text: str
    before: str = ""
    after: tuple[str, ...] = ()
    values: bool = True


KINDS = (
    Kind("select", "{}"),
    Kind("with", "with w as materialized (select 1 as one) {}"),
    Kind("explain", "explain (costs off) {}"),
    Kind("explain analyze", "explain (analyze, costs off, timing off, summary off, buffers off) {}"),
    Kind("declare", "declare c cursor for {}", "begin", ("fetch all c", "close c", "commit")),
    Kind("declare with hold", "declare c cursor with hold for {}", "", ("fetch all c", "close c")),
    Kind("copy", "copy ({}) to stdout", values=False),
    Kind("create table as", "create table made as {}", "", ("select n + 0 as n from made", "drop table made")),
    Kind("select into", "select * into made from ({}) s", "", ("select n + 0 as n from made", "drop table made")),
    Kind(
        "materialized view",
        "create materialized view seen as {}",
        "",
        ("select n + 0 as n from seen", "drop materialized view seen"),
        False,
    ),
    Kind("insert", "insert into kept {} returning *", "", ("delete from kept",)),
    Kind("prepare", "prepare p as {}", "", ("execute p", "execute p", "deallocate p"), False),
)


@pytest.fixture(scope="module")
def stock(hinted_postgres: Postgres) -> str:
    database = hinted_postgres.create_database()
    hinted_postgres.sql(
        "create table left_side as select i as a, i % 10 as b from generate_series(1, 200) i;"
        "create table right_side as select i as b, i * 2 as c from generate_series(1, 10) i;"
        "create table kept (n bigint); analyze;"
        + "".join(f"alter database {database} set {setting};" for setting in SETTINGS),
        database,
    )
    return database


@pytest.fixture(scope="module", params=["session", "transaction"])
def advised(
    request: pytest.FixtureRequest, module_proxy: StartProxy, hinted_postgres: Postgres
) -> Iterator[tuple[Proxy, ScriptedPlanner]]:
    with scripted_planner() as planner:
        started = module_proxy(
            hinted_postgres,
            pool_mode=request.param,
            planner_socket=str(planner.path),
            steer_deadline_ms=5000,
            steer_min_joins=2,
        )
        planner.wait_connected()
        yield started, planner


@pytest.fixture
async def clients(
    advised: tuple[Proxy, ScriptedPlanner], hinted_postgres: Postgres, stock: str
) -> AsyncIterator[tuple[WireClient, WireClient]]:
    """Through the proxy, and straight to the server."""
    proxied, direct = await WireClient.connect(advised[0], stock), await WireClient.connect(hinted_postgres, stock)
    yield proxied, direct
    proxied.reset()
    direct.reset()


def joins(answer: Messages) -> set[str]:
    """The join methods that EXPLAIN and auto_explain tell of."""
    told = " ".join(body.decode() for kind, body in answer if kind in b"ND")
    return {name for name in ("Nested Loop", "Hash Join", "Merge Join") if name in told}


async def said(client: WireClient, sent: bytes) -> Messages:
    client.send(sent)
    return await client.until(b"Z")


async def run(client: WireClient, kind: Kind, sent: bytes) -> Messages:
    """All that is answered to the statement and what goes around it."""
    answer: Messages = []
    for text in [kind.before] if kind.before else []:
        answer += await said(client, query(text))
    answer += await said(client, sent)
    for text in kind.after:
        answer += await said(client, query(text))
    return answer


def without_notices(answer: Messages) -> Messages:
    return [message for message in answer if message[0] != b"N"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_every_kind(
    clients: tuple[WireClient, WireClient], advised: tuple[Proxy, ScriptedPlanner], kind: Kind
) -> None:
    planner = advised[1]
    planner.reset()
    proxied = clients[0]
    for protocol in ("simple", "unnamed", "named", "values"):
        values = protocol == "values"
        if values and not kind.values:
            continue
        alias = f"a{next(_serial)}"
        planner.steer(f"/*+ MergeJoin({alias} x) */ ")
        planner.change()
        where = "x.c <> $1" if values else "x.c <> 7"
        text = kind.text.format(
            f"select sum({alias}.a) as n from left_side {alias} join right_side x using (b) where {where}"
        )
        rest = struct.pack("!hhi1sh", 0, 1, 1, b"7", 0) if values else b"\0\0\0\0\0\0"
        name = alias if protocol in ("named", "values") else ""
        for turn in range(3):
            sent = parse(name, text) if not (name and turn) else b""
            sent += bind(name, "", rest) + describe("", b"P") + execute() + SYNC
            got, wanted = [await run(client, kind, query(text) if protocol == "simple" else sent) for client in clients]
            assert (protocol, turn, joins(got)) == (protocol, turn, {"Merge Join"})
            assert joins(wanted) == {"Hash Join"}
            if kind.name.startswith("explain"):
                assert [what for what, _ in got if what != b"D"] == [what for what, _ in wanted if what != b"D"]
            else:
                assert without_notices(got) == without_notices(wanted)
                assert len(got) == len(wanted)
        if name:
            assert without_notices(await said(proxied, close(name) + SYNC))[0] == (b"3", b"")


async def test_prepare_and_declare_are_not_judged_by_their_own_time(
    clients: tuple[WireClient, WireClient], advised: tuple[Proxy, ScriptedPlanner]
) -> None:
    """They take no time themselves; the query in them does."""
    planner = advised[1]
    planner.reset()
    for kind in KINDS:
        if kind.name not in ("prepare", "declare"):
            continue
        alias = f"a{next(_serial)}"
        text = kind.text.format(f"select sum({alias}.a) as n from left_side {alias} join right_side x using (b)")
        planner.script = lambda ask: Answer(ask.number, reason="nothing", scope="once")
        for _ in range(2):
            await run(clients[0], kind, query(text))
        planner.steer(f"/*+ MergeJoin({alias} x) */ ")
        assert joins(await run(clients[0], kind, query(text))) == {"Merge Join"}


async def test_no_settings_around_prepare(
    clients: tuple[WireClient, WireClient], advised: tuple[Proxy, ScriptedPlanner]
) -> None:
    """The EXECUTE plans, when they are gone."""
    planner = advised[1]
    planner.reset()
    planner.steer(settings={"enable_hashjoin": "off"})
    proxied = clients[0]
    for begin, extended in (("begin", False), ("", False), ("", True)):
        alias = f"a{next(_serial)}"
        text = f"prepare p as select sum({alias}.a) as n from left_side {alias} join right_side x using (b)"
        kind = Kind("prepare", text, begin, ("execute p", "deallocate p", *(["commit"] if begin else [])))
        sent = parse("", text) + bind() + execute() + SYNC if extended else query(text)
        assert joins(await run(proxied, kind, sent)) == {"Hash Join"}
    asked = [ask.template for ask in planner.asks]

    def told() -> list[str]:
        return [seen.reason for seen in planner.observed if seen.template in asked]

    await eventually(lambda: len(told()) == 3, what="what was measured is told")
    assert told() == ["settings_not_possible_here"] * 3
