"""Clients that send what nobody should, while well-behaved ones work beside them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
import struct
import time

import pytest

from proxy.wire.messages import TERMINATE, message, query, startup_message
from tests.faults.conftest import StartProxy
from tests.faults.neighbour import Neighbours
from tests.faults.state import becomes, metric, settled, watch
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.scale import scale
from tests.support.tls import TlsFiles
from tests.support.wireclient import ANSWER_SECONDS, ServerError, WireClient

SSL_REQUEST = struct.pack("!II", 8, 80877103)
STARTUP = startup_message({"user": "postgres", "database": "postgres"})
SYNC = message(b"S", b"")
SYNC_ANSWER = b"Z\0\0\0\5I"
AT_ONCE = 5.0
"""Seconds within which a connection that broke the protocol must be closed."""


def framed(kind: bytes, length: int, body: bytes = b"") -> bytes:
    """A message whose length is whatever one likes."""
    return kind + struct.pack("!i", length) + body


@pytest.fixture(scope="module")
def module_proxy_of(module_proxy: StartProxy) -> dict[str, Proxy]:
    """One proxy of each mode for most tests here."""
    limits = {"max_prepared_bytes": 1 << 20, "max_prepared_bytes_backend": 2 << 20}
    return {
        mode: module_proxy(pool_mode=mode, workers=1, login_timeout=1.5, log_connections=False, **limits)
        for mode in ("session", "transaction")
    }


async def last_words(server: Proxy | Postgres, data: bytes) -> tuple[str, str, str]:
    """Severity, SQLSTATE and text of the error that a logged-in client gets for `data`, after which it is closed."""
    client = await WireClient.connect(server)
    client.send(data)
    errors = [ServerError(body) for kind, body in await client.until_closed(AT_ONCE) if kind == b"E"]
    client.reset()
    assert len(errors) == 1, errors
    return errors[0].fields["S"], errors[0].sqlstate, errors[0].text


UNKNOWN = {
    "unknown type": framed(b"z", 4),
    "unknown type 0": framed(b"\0", 4),
    "unknown type 255": framed(b"\xff", 100),
    "a backend's type": framed(b"T", 4),
    "password after login": framed(b"p", 8, b"abc\0"),
}
LENGTHS = {
    "length 3": framed(b"Q", 3),
    "length 0": framed(b"Q", 0),
    "negative length": framed(b"Q", -1),
    "most negative length": framed(b"P", -(1 << 31)),
    "length of 1 GB": framed(b"Q", 0x40000000),
    "greatest length": framed(b"B", 0x7FFFFFFF),
    "long Sync": framed(b"S", 10_001),
    "long Terminate": framed(b"X", 0x7FFFFFFF),
    "long Execute": framed(b"E", 20_000),
}


@pytest.mark.parametrize("data", UNKNOWN.values(), ids=UNKNOWN.keys())
async def test_an_unknown_message_is_answered_as_the_server_does(
    module_proxy_of: dict[str, Proxy], postgres: Postgres, data: bytes, mode: str
) -> None:
    """The same severity, SQLSTATE and words as without a proxy, also behind a query that was in order."""
    target = module_proxy_of[mode]
    said = await last_words(target, data)
    assert said == await last_words(postgres, data)
    assert said[1] == "08P01"
    assert await last_words(target, query("select 1") + data) == said


@pytest.mark.parametrize("data", LENGTHS.values(), ids=LENGTHS.keys())
async def test_a_length_that_cannot_be_ends_the_connection(
    module_proxy_of: dict[str, Proxy], data: bytes, mode: str
) -> None:
    """The server writes these words to its log only; a client of the proxy sees them too."""
    target = module_proxy_of[mode]
    assert await last_words(target, data) == ("FATAL", "08P01", "invalid message length")
    assert await last_words(target, query("select 1") + data) == ("FATAL", "08P01", "invalid message length")


BATCH = message(b"P", b"\0select generate_series(1, 3)\0\0\0") + message(b"B", bytes(8)) + message(b"E", bytes(5))
FAILING = BATCH + message(b"P", b"\0select nothing_there\0\0\0")
IN_FRONT = {
    "nothing": [],
    "a query": [query("select 1 as a")],
    "queries": [query("select 1 as a; select 2"), query("select 1/0")],
    "a query that runs": [query("select pg_sleep(0.2)"), b""],
    "an open transaction": [query("begin; create temp table t (a int)"), b""],
    "a batch without Sync": [BATCH],
    "a batch that runs": [BATCH + SYNC + BATCH, b""],
    "a batch that fails": [FAILING + query("select 1")],
    "a batch that failed": [FAILING, b"", SYNC],
    "a great row": [query("select repeat('x', 10000000)")],
    "a COPY": [query("copy (select generate_series(1, 3)) to stdout")],
}


@pytest.mark.parametrize("in_front", IN_FRONT.values(), ids=IN_FRONT.keys())
async def test_what_stands_in_front_of_an_unknown_message_is_answered(
    module_proxy_of: dict[str, Proxy], postgres: Postgres, in_front: list[bytes], mode: str
) -> None:
    """As the server does it, in one segment with it or while it runs, and no more than that."""

    async def heard(server: Proxy | Postgres) -> list[tuple[bytes, bytes]]:
        client = await WireClient.connect(server)
        for part in in_front[:-1]:
            client.send(part)
            await asyncio.sleep(0.05)
        client.send(b"".join(in_front[-1:]) + UNKNOWN["unknown type"] + query("create table never (a int)"))
        said = await client.until_closed(AT_ONCE)
        client.reset()
        # Where in the server's source an error comes from is told by the server alone.
        return [(kind, repr(ServerError(body)).encode() if kind == b"E" else body) for kind, body in said]

    answers = await heard(module_proxy_of[mode])
    assert answers == await heard(postgres)
    assert b"08P01" in answers[-1][1]
    assert (len(answers) > 1) is bool(in_front)
    client = await WireClient.connect(postgres)
    assert await client.value("select count(*) from pg_class where relname = 'never'") == "0"
    client.reset()


BODIES = {
    "Sync with a body": framed(b"S", 9, b"hello"),
    "Query without its zero": message(b"Q", b"select 1"),
    "Query with two zeros": message(b"Q", b"select 1\0\0"),
    "empty Query": framed(b"Q", 4),
    "Parse cut short": message(b"P", b"name\0select 1\0\0"),
    "Parse that promises types": message(b"P", b"\0select 1\0\0\x09"),
    "Parse with negative types": message(b"P", b"\0select 1\0\xff\xff"),
    "Parse without zeros": message(b"P", b"name"),
    "Bind cut short": message(b"B", b"\0\0\0\1\0"),
    "Bind with a lying parameter": message(b"P", b"\0select $1::text\0\0\0")
    + message(b"B", b"\0\0\0\0\0\1\x7f\xff\xff\xffabc\0\0"),
    "Bind of nothing": message(b"B", b""),
    "Describe of an unknown kind": message(b"D", b"?name\0"),
    "empty Describe": message(b"D", b""),
    "Close of an unknown kind": message(b"C", b"?name\0"),
    "empty Close": message(b"C", b""),
    "Execute cut short": message(b"E", b"\0\0"),
    "function call cut short": message(b"F", b"\0\0"),
    "copy data outside COPY": message(b"d", b"abc"),
    "copy fail without a zero": message(b"f", b"abc"),
    "not UTF-8": message(b"Q", b"select '\xff\xfe'\0"),
}


@pytest.mark.parametrize("data", BODIES.values(), ids=BODIES.keys())
async def test_a_broken_body_is_answered_as_the_server_does(
    module_proxy_of: dict[str, Proxy], postgres: Postgres, data: bytes, mode: str
) -> None:
    """What the server makes of it, error or not, with a query behind it: the same messages as without a proxy."""

    async def answers(server: Proxy | Postgres) -> list[tuple[bytes, str]]:
        client = await WireClient.connect(server)
        client.send(data + SYNC + query("select 'next'") + TERMINATE)
        seen = []
        for kind, body in await client.until_closed(AT_ONCE):
            text = f"{ServerError(body)}" if kind == b"E" else body.hex() if kind in b"DCZ" else ""
            seen.append((kind, text))
        client.reset()
        return seen

    assert await answers(module_proxy_of[mode]) == await answers(postgres)


async def send_and_wait(target: Proxy, data: bytes, *, finish: bool = True) -> bytes:
    """Sends raw bytes, says no more, and reads to the end: what came back. Fails when it stays open."""
    client = await WireClient.open(target)
    try:
        client.send(data)
        await client.writer.drain()
        if finish:
            client.writer.write_eof()
        async with asyncio.timeout(ANSWER_SECONDS):
            return await client.reader.read(-1)
    except TimeoutError:
        pytest.fail(f"left open after {data[:80]!r}")
    except OSError:
        return b""  # closed while we were still sending
    finally:
        client.reset()


@pytest.mark.parametrize("count", scale(150, 10_000))
async def test_random_bytes(proxy: StartProxy, postgres: Postgres, database: str, mode: str, count: int) -> None:
    """As a start-up packet, as messages after login, and as a real conversation with some bytes changed."""
    target = proxy(pool_mode=mode, workers=1)
    watcher = await watch(postgres)
    dice = random.Random(4711)
    startup = startup_message({"user": "postgres", "database": database})
    conversation = (
        query("select 1")
        + message(b"P", b"s\0select $1::int\0\0\0")
        + message(b"B", b"\0s\0\0\0\0\1\0\0\0\0011\0\0")
        + message(b"D", b"P\0")
        + message(b"E", b"\0\0\0\0\0")
        + SYNC
        + query("begin; commit")
    )
    async with Neighbours(target, database):
        for turn in range(count):
            if turn % 3 == 0:
                data = dice.randbytes(dice.randrange(1, 400))
            elif turn % 3 == 1:
                data = startup + dice.randbytes(dice.randrange(1, 4000))
            else:
                broken = bytearray(conversation)
                for _ in range(dice.randrange(1, 6)):
                    broken[dice.randrange(len(broken))] = dice.randrange(256)
                data = startup + bytes(broken[: dice.randrange(1, len(broken))])
            await send_and_wait(target, data)
    await settled(target, watcher, database, idle=20)
    assert "internal_error" not in target.log_text()


@pytest.mark.parametrize("count", scale(400, 10_000))
async def test_half_open_connections(proxy: StartProxy, mode: str, count: int) -> None:
    """Connections that say nothing, or only half of what they should, and stay."""
    target = proxy(pool_mode=mode, workers=1, login_timeout=2 if count < 1000 else 15)
    beginnings = [b"", b"\0", STARTUP[:4], STARTUP[:-1], SSL_REQUEST[:7], SSL_REQUEST]
    hostile: list[WireClient] = []
    # 10,000 of them hold about 2 kB each.
    async with Neighbours(target, growth=(8 << 20) + count * 3000):
        for number in range(count):
            client = await WireClient.open(target)
            client.send(beginnings[number % len(beginnings)])
            hostile.append(client)
        # Each is closed when login_timeout has passed, and not one earlier than that.
        for client in hostile:
            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(60):
                    await client.reader.read(-1)
            client.reset()
    assert await metric(target, "pilotwire_clients_current") == 0
    print(f"half-open connections: {count}")


async def test_a_login_byte_by_byte(module_proxy_of: dict[str, Proxy], mode: str) -> None:
    """Each byte comes in time, but the whole does not: login_timeout counts from the beginning."""
    target = module_proxy_of[mode]
    async with Neighbours(target):
        # Each one's time begins before it connects, so that the proxy's clock for it cannot be ahead of ours.
        slow = [(time.monotonic(), await WireClient.open(target)) for _ in range(20)]

        async def drip(started: float, client: WireClient) -> float:
            with contextlib.suppress(ConnectionError):
                for position in range(len(STARTUP) - 1):
                    client.send(STARTUP[position : position + 1])
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.25):
                            if not await client.reader.read(1):
                                break
            return time.monotonic() - started

        lasted = await asyncio.gather(*(drip(started, client) for started, client in slow))
    assert min(lasted) > 1.4
    assert max(lasted) < 4
    # One that is merely slow gets in.
    client = await WireClient.open(target)
    for position in range(len(STARTUP)):
        client.send(STARTUP[position : position + 1])
        await client.writer.drain()
    await client.until_ready()
    assert await client.value("select 1") == "1"


async def test_a_password_exchange_that_never_ends(proxy: StartProxy, postgres: Postgres) -> None:
    """SASL messages are of strangers: their length is bounded, and login_timeout holds there too."""
    target = proxy(auth="scram-sha-256", env={"PILOTWIRE_UPSTREAM_PASSWORD": "secret"}, workers=1, login_timeout=1.5)
    (worker,) = target.workers()
    started = time.monotonic()
    client = await WireClient.open(target)
    client.send(STARTUP)
    await client.until(b"R")
    await client.until_closed()
    assert 1 < time.monotonic() - started < 6
    for length in (0x7FFFFFFF, 0x40000000, 100_000, 3, -1):
        client = await WireClient.open(target)
        client.send(STARTUP)
        await client.until(b"R")
        client.send(framed(b"p", length, b"SCRAM-SHA-256\0" + b"n,,n=,r=" * 1000))
        errors = [body for kind, body in await client.until_closed(AT_ONCE) if kind == b"E"]
        assert [ServerError(body).sqlstate for body in errors] in (["08P01"], ["28P01"], []), length
    assert target.workers() == [worker]


@pytest.mark.parametrize("tls", [False, True])
async def test_clear_text_behind_an_ssl_request(proxy: StartProxy, tls_files: TlsFiles, tls: bool) -> None:
    """What stands in clear behind an SSLRequest must not count as said inside TLS: the connection is dropped."""
    certificate = {"client_tls_cert": str(tls_files.server_cert), "client_tls_key": str(tls_files.server_key)}
    target = proxy(workers=1, **(certificate if tls else {}))
    answer = await send_and_wait(target, SSL_REQUEST + STARTUP + query("select 1"), finish=False)
    assert not answer.startswith(b"R")
    assert b"R\0\0\0\x08\0\0\0\0" not in answer
    assert b"Z\0\0\0\5I" not in answer
    if tls:
        context = ssl.create_default_context(cafile=str(tls_files.ca))
        reader, writer = await asyncio.open_connection(target.host, target.port)
        writer.write(SSL_REQUEST)
        assert await reader.readexactly(1) == b"S"
        await writer.start_tls(context, server_hostname="localhost")
        client = WireClient(reader, writer)
        client.send(STARTUP)
        await client.until_ready()
        assert await client.value("select 1") == "1"


@pytest.mark.parametrize("count", scale(4_000, 300_000))
async def test_endless_parse_of_new_names(
    module_proxy_of: dict[str, Proxy], postgres: Postgres, database: str, mode: str, count: int
) -> None:
    """4 kB of text under a new name each time: what is remembered is bounded by bytes, whoever pays for the rest."""
    target = module_proxy_of[mode]
    filler = b"-" * 4000
    async with Neighbours(target, database, growth=16 << 20):
        client = await WireClient.connect(target, database)
        try:
            for first in range(0, count, 100):
                for number in range(first, first + 100):
                    client.send(message(b"P", b"n%d\0select %d --%s\0\0\0" % (number, number, filler)))
                client.send(SYNC)
                await client.until_ready()
                await client.writer.drain()
        finally:
            client.reset()


@pytest.mark.parametrize("megabytes", scale(150, 5_000))
async def test_a_client_that_never_reads(
    proxy: StartProxy, postgres: Postgres, database: str, mode: str, megabytes: int
) -> None:
    target = proxy(pool_mode=mode, workers=1)
    watcher = await watch(postgres)
    async with Neighbours(target, database):
        deaf = await WireClient.connect(target, database)
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        deaf.send(query(f"select repeat('x', 1048576) from generate_series(1, {megabytes})"))
        # What it sends on top is held back too, once the server has had enough.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                for _ in range(megabytes):
                    deaf.send(query("select 1 --" + "y" * 1_000_000))
                    await deaf.writer.drain()
        waiting = f"select count(*) from pg_stat_activity where datname = '{database}' and wait_event = 'ClientWrite'"
        assert await watcher.value(waiting) == "1", "the server is held back as without a proxy"
        deaf.reset()

        async def gone() -> bool:
            return await watcher.value(waiting) == "0"

        await becomes(gone, "the backend of the client that went away has ended")
    await settled(target, watcher, database, idle=20)


async def test_flooding_with_small_messages(module_proxy_of: dict[str, Proxy], database: str, mode: str) -> None:
    """A million empty Syncs and Flushes in few packets: the worker's turn for others comes all the same, and comes as
    soon when the flood is longer."""
    target = module_proxy_of[mode]
    async with Neighbours(target, database):
        client = await WireClient.connect(target, database)
        reading = asyncio.create_task(_swallow(client))
        for _ in range(60):
            client.send(SYNC * 10_000 + message(b"H", b"") * 10_000)
            await client.writer.drain()
        client.send(TERMINATE)
        assert await reading == 600_001


async def _swallow(client: WireClient) -> int:
    """The number of ReadyForQuery messages up to the end of the connection, that of the login among them."""
    received = bytearray(SYNC_ANSWER)
    async with asyncio.timeout(60):
        while data := await client.reader.read(1 << 16):
            received += data
    return received.count(SYNC_ANSWER)
