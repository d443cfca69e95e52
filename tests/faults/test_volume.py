"""Large amounts of data in both directions: memory stays what it is, and others are served meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from proxy.wire.messages import message, query
from tests.faults.conftest import StartProxy
from tests.faults.neighbour import Neighbours
from tests.support.proxy import Proxy
from tests.support.scale import scale
from tests.support.wireclient import WireClient

MEGABYTE = 1 << 20


@pytest.fixture(scope="module")
def module_proxy_of(module_proxy: StartProxy) -> dict[str, Proxy]:
    return {mode: module_proxy(pool_mode=mode, workers=1, log_slow_ms=-1) for mode in ("session", "transaction")}


async def drain(client: WireClient, pause: float) -> int:
    """Reads to the ReadyForQuery that must end it; the number of bytes. ``pause`` makes a slow reader."""
    total = 0
    last = b""
    async with asyncio.timeout(1700):
        while data := await client.reader.read(MEGABYTE):
            total += len(data)
            last = (last + data)[-6:]
            if last == b"Z\0\0\0\5I":
                return total
            if pause:
                await asyncio.sleep(pause)
    raise AssertionError(f"the connection ended after {total} bytes")


@pytest.mark.parametrize("megabytes", scale(200, 5_000))
@pytest.mark.parametrize("rows", ["many", "huge"])
async def test_a_large_result(
    module_proxy_of: dict[str, Proxy], database: str, mode: str, rows: str, megabytes: int
) -> None:
    """As rows of 100 bytes, or as rows of 32 MB each; read by a client that is slower than the server."""
    target = module_proxy_of[mode]
    size, count = (100, megabytes * MEGABYTE // 100) if rows == "many" else (32 * MEGABYTE, megabytes // 32)
    async with Neighbours(target, database):
        client = await WireClient.connect(target, database)
        client.send(query(f"copy (select repeat('x', {size}) from generate_series(1, {count})) to stdout"))
        read = await drain(client, 0.002 if megabytes < 1000 else 0)
        assert read >= size * count
        await client.close()
    print(f"a result of {megabytes} MB in {count} rows, {mode} mode")


@pytest.mark.parametrize("megabytes", scale(100, 2_000))
async def test_a_large_copy_in(module_proxy_of: dict[str, Proxy], database: str, mode: str, megabytes: int) -> None:
    target = module_proxy_of[mode]
    line = b"y" * 1023 + b"\n"
    block = message(b"d", line * 64) * 16
    async with Neighbours(target, database):
        client = await WireClient.connect(target, database)
        await client.query("create table copied (t text)")
        # Read, checked and counted by the server, which is what is slow about it; its disk is spared.
        client.send(query("copy copied from stdin where false"))
        await client.until(b"G")
        for _ in range(megabytes):
            client.send(block)
            await client.writer.drain()
        client.send(message(b"c", b""))
        async with asyncio.timeout(1700):
            answer = await client.until_ready()
        assert (b"C", b"COPY 0\0") in answer
        await client.close()
    print(f"COPY of {megabytes} MB, {mode} mode")
