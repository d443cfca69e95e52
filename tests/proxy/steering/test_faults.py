"""A planner that is late, silent, stopped, gone or mad: the client's bytes go on unchanged, it is counted, and steering
comes back by itself."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import psutil
import pytest

from planner.messages import Answer, Ask, encode
from tests.conftest import StartProxy
from tests.proxy.pooled_fixtures import sample
from tests.proxy.steering.planner import ScriptedPlanner, scripted_planner
from tests.proxy.steering.statements import MARK, seen
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import WireClient

DEADLINE = 0.05


@pytest.fixture(scope="module")
def planner_process() -> Iterator[ScriptedPlanner]:
    with scripted_planner() as planner:
        yield planner


@pytest.fixture(scope="module")
def impatient(module_proxy: StartProxy, planner_process: ScriptedPlanner) -> Proxy:
    """A proxy with the deadline that is usual."""
    started = module_proxy(planner_socket=str(planner_process.path), steer_deadline_ms=DEADLINE * 1000)
    planner_process.wait_connected()
    return started


@pytest.fixture
async def client(impatient: Proxy, planner: ScriptedPlanner) -> AsyncIterator[WireClient]:
    found = await WireClient.connect(impatient)
    yield found
    found.reset()
    planner.start()
    planner.reset()
    await steered_again(found_proxy=impatient, planner=planner)


async def steered_again(*, found_proxy: Proxy, planner: ScriptedPlanner) -> None:
    """Until a new statement is steered."""
    planner.steer(MARK)
    other = await WireClient.connect(found_proxy)
    until = time.monotonic() + 20
    while not (await other.value(seen()) or "").startswith(MARK):
        assert time.monotonic() < until, "nothing is steered any more"
        await asyncio.sleep(0.02)
    other.reset()


def reasons(proxy: Proxy, reason: str) -> float:
    return sample(proxy, "steering_reasons_total", f'reason="{reason}"')


async def test_late(client: WireClient, planner: ScriptedPlanner, impatient: Proxy) -> None:
    planner.steer(MARK, estimated_ms=1000.0)
    planner.delay = DEADLINE * 3
    before = reasons(impatient, "late"), sample(impatient, "steering_late_total")
    text = f"{seen()} and pg_sleep(0.03) is not null"  # else it is judged cheap
    began = time.monotonic()
    assert await client.value(text) == text
    assert time.monotonic() - began < DEADLINE * 2.5 + 0.03
    assert (reasons(impatient, "late"), sample(impatient, "steering_late_total")) == (before[0] + 1, before[1] + 1)
    # The answer is kept for the next time.
    await asyncio.sleep(DEADLINE * 3)
    assert await client.value(text) == MARK + text
    assert len(planner.asks) == 1


async def test_never(client: WireClient, planner: ScriptedPlanner, impatient: Proxy) -> None:
    """After three deadlines missed by a silent planner nobody waits any more."""
    planner.script = lambda ask: None
    before = sample(impatient, "steering_breaker_opened_total")
    took = []
    for _ in range(10):
        text = seen()
        began = time.monotonic()
        assert await client.value(text) == text
        took.append(time.monotonic() - began)
    assert sum(one > DEADLINE for one in took) <= 4, took
    assert sample(impatient, "steering_breaker_opened_total") == before + 1
    assert reasons(impatient, "planner_busy") >= 5


async def test_stopped(client: WireClient, planner: ScriptedPlanner, impatient: Proxy) -> None:
    """A planner that reads nothing makes the worker neither slow nor large."""
    planner.hear(False)
    worker = psutil.Process(impatient.workers()[0])
    memory = worker.memory_info().rss
    began = time.monotonic()
    for number in range(300):
        text = f"{seen()} and '{'x' * 20_000}' <> '{number}'"
        assert text.startswith(await client.value(text) or "nothing")  # the server keeps the first kilobyte
    assert time.monotonic() - began < 15
    assert worker.memory_info().rss - memory < 40 << 20


async def test_killed_and_started_again(client: WireClient, planner: ScriptedPlanner, impatient: Proxy) -> None:
    planner.stop()
    await eventually(lambda: sample(impatient, "planner_connected") == 0, what="the worker notices")
    text = seen()
    assert await client.value(text) == text
    assert reasons(impatient, "planner_away") >= 1
    planner.start()
    await steered_again(found_proxy=impatient, planner=planner)


async def test_killed_while_a_statement_waits(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.script = lambda ask: None
    text = seen()
    task = asyncio.create_task(client.value(text))
    await eventually(lambda: len(planner.asks) > 0 or task.done(), what="the planner is asked")
    await asyncio.to_thread(planner.stop)
    assert await task == text


@pytest.mark.parametrize(
    "garbage",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\xff\xff\xff\xff", b"\0\0\0\x04\xc1\xc1\xc1\xc1", b"\0\0\0\x03\x91\xa1x"],
)
async def test_garbage(client: WireClient, planner: ScriptedPlanner, impatient: Proxy, garbage: bytes) -> None:
    before = sample(impatient, "steering_planner_errors_total")
    await asyncio.to_thread(planner.say, garbage)
    text = seen()
    assert await client.value(text) == text
    await eventually(lambda: sample(impatient, "steering_planner_errors_total") > before, what="it is counted")


@pytest.mark.parametrize(
    "answer",
    [
        {"prefix": b"/* a \0 b */"},
        {"settings": ((b"role", b"postgres"),)},
        {"settings": ((b"enable_sort", b"off; drop table x"),)},
        {"settings": ((b"enable_sort = off; select 1; set local work_mem", b"1"),)},
        {"settings": ((b"enable_sort", b"off"),) * 100},
    ],
)
async def test_advice_that_cannot_be_used(
    client: WireClient, planner: ScriptedPlanner, impatient: Proxy, answer: dict[str, bytes]
) -> None:
    def script(ask: Ask) -> Answer:
        found = Answer(ask.number)
        for name, value in answer.items():
            setattr(found, name, value)
        return found

    planner.script = script
    before = reasons(impatient, "unusable_advice")
    text = seen()
    assert await client.value(text) == text
    assert reasons(impatient, "unusable_advice") == before + 1


async def test_answers_to_nothing_and_twice(client: WireClient, planner: ScriptedPlanner) -> None:
    planner.say(b"".join(encode(Answer(number, b"/* x */")) for number in (0, 10**6, -5)))
    planner.steer(MARK)
    text = seen()
    assert await client.value(text) == MARK + text
    planner.say(encode(Answer(planner.asks[-1].number, b"/* again */")))
    assert await client.value(text) == MARK + text


async def test_no_planner_at_the_start(proxy: StartProxy, postgres: Postgres) -> None:
    with scripted_planner(listening=False) as planner:
        started = proxy(planner_socket=str(planner.path))
        client = await WireClient.connect(started)
        text = seen()
        assert await client.value(text) == text
        planner.start()
        await steered_again(found_proxy=started, planner=planner)
        client.reset()


async def test_mode_off_asks_nobody(proxy: StartProxy) -> None:
    with scripted_planner() as planner:
        started = proxy(planner_socket=str(planner.path), mode="off")
        planner.wait_connected()
        client = await WireClient.connect(started)
        text = seen()
        assert await client.value(text) == text
        assert planner.asks == []
        client.reset()
