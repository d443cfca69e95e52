"""With the real pg_hint_plan: hints are obeyed, and none leaks into a statement it is not for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from planner.messages import Answer
from tests.conftest import StartProxy
from tests.proxy.steering.planner import ScriptedPlanner, scripted_planner
from tests.proxy.steering.statements import explain, joined
from tests.proxy.steering.test_delivery_extended import batch, errors, rows
from tests.proxy.wire.transcript import SYNC, bind, execute, parse
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.wireclient import WireClient

LOADED = (
    "load 'auto_explain'; set auto_explain.log_min_duration = 0; set auto_explain.log_level = notice;"
    "set auto_explain.log_timing = off; set client_min_messages = notice; set compute_query_id = on"
)


@pytest.fixture(scope="module")
def advised(module_proxy: StartProxy, hinted_postgres: Postgres) -> Iterator[tuple[Proxy, ScriptedPlanner]]:
    with scripted_planner() as planner:
        started = module_proxy(
            hinted_postgres, planner_socket=str(planner.path), steer_deadline_ms=5000, steer_min_joins=2
        )
        planner.wait_connected()
        yield started, planner


def plans(answer: list[tuple[bytes, bytes]]) -> list[str]:
    """The join methods that auto_explain tells of, in order."""
    texts = [body.decode() for kind, body in answer if kind == b"N"]
    return [
        next((name for name in ("Nested Loop", "Hash Join", "Merge Join") if name in text), "none")
        for text in texts
        if "plan:" in text
    ]


async def test_explain_shows_the_plan(advised: tuple[Proxy, ScriptedPlanner], shop: str) -> None:
    proxy, planner = advised
    planner.reset()
    client = await WireClient.connect(proxy, shop)
    for method, plan in (("MergeJoin", "Merge Join"), ("NestLoop", "Nested Loop"), ("HashJoin", "Hash Join")):
        text = explain()
        alias = text.partition("left_side ")[2].split()[0]
        planner.steer(f"/*+ {method}({alias} x) */ ")
        planner.change()
        assert plan in str(await client.query(text))
        assert plan in str(rows(await batch(client, parse("", text), bind(), execute(), SYNC)))
    client.reset()


@pytest.mark.parametrize("failing", [False, True])
async def test_no_hint_leaks(advised: tuple[Proxy, ScriptedPlanner], shop: str, failing: bool) -> None:
    proxy, planner = advised
    planner.reset()
    client = await WireClient.connect(proxy, shop)
    await client.query(LOADED)
    steered, plain = joined("x.c", " where x.b <> $1"), joined("x.c", " where x.b > $1")
    # The same aliases, so that a hint would fit.
    alias, other = (text.partition("left_side ")[2].split()[0] for text in (steered, plain))
    plain = plain.replace(other, alias)
    good, bad = (b"\0\0\0\1\0\0\0\1" + value + b"\0\0" for value in (b"3", b"z"))
    usual = plans(await batch(client, parse("plain", plain), bind("plain", "", good), execute(), SYNC))
    planner.change()
    planner.steer(f"/*+ MergeJoin({alias} x) */ ")
    advice = planner.script
    planner.script = lambda ask: (
        advice(ask) if ask.text.decode() == steered else Answer(ask.number, reason="nothing", scope="once")
    )
    answer = await batch(client, parse("s", steered), bind("s", "", bad if failing else good), execute(), SYNC)
    assert bool(errors(answer)) is failing
    if not failing:
        assert plans(answer) == ["Merge Join"]
    for _ in range(2):
        assert plans(await batch(client, bind("plain", "", good), execute(), SYNC)) == usual
    # Bound one after the other in one batch, before either runs.
    answer = await batch(client, bind("s", "p1", good), bind("plain", "p2", good), execute("p1"), execute("p2"), SYNC)
    assert sorted(plans(answer)) == sorted(["Merge Join", *usual])  # they end when the batch does, in any order
    client.reset()
