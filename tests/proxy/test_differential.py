"""Random pipelines are answered by the proxy as by the server itself, in both pool modes, steered and not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest

from tests.conformance.steering import steered, wait_until_steering
from tests.conftest import StartProxy
from tests.proxy import pipelines
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.wireclient import WireClient

# Of the few that found something, and some more.
QUICK = (1008, 1490, 1613, 1893, 7006, 40_862, *range(7000, 7006))
LONG = range(20_000, 21_500)
POOL = {"pool_size": 2, "pool_overflow": 0, "workers": 1}


@pytest.fixture(scope="module")
def advised(module_proxy: StartProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Proxy]]:
    """By pool mode, proxies that put a comment in front of every statement that joins something."""
    with steered("comments", tmp_path_factory.mktemp("models")) as settings:
        proxies = {
            mode: module_proxy(pool_mode=mode, wait=False, **POOL, **settings) for mode in ("session", "transaction")
        }
        for proxy in proxies.values():
            proxy.wait_ready()
            wait_until_steering(proxy, "comments")
        yield proxies


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    name = postgres.create_database()
    postgres.sql(pipelines.TABLES, name)
    return name


async def compare(postgres: Postgres, database: str, proxies: dict[str, Proxy], seeds: Iterable[int]) -> None:
    """Plays each seed's pipeline at the server and at every proxy."""
    cleaner = await WireClient.connect(postgres, database)
    neighbours = {mode: await WireClient.connect(proxy, database) for mode, proxy in proxies.items()}
    try:
        for seed in seeds:
            batches = pipelines.pipeline(seed)
            # Waits for whatever the last client has left open, too.
            await cleaner.query(pipelines.CLEAN)
            direct = await pipelines.play(postgres, database, batches)
            for mode, proxy in proxies.items():
                await cleaner.query(pipelines.CLEAN)
                neighbour = neighbours[mode] if mode == "transaction" else None
                proxied = await pipelines.play(proxy, database, batches, neighbour)
                at = pipelines.first_difference(direct, proxied, pooled=mode == "transaction")
                if at >= 0:
                    assert proxied[at] == direct[at], f"seed {seed}, {mode}:\n{pipelines.told(batches[: at + 1])}"
    finally:
        for client in (cleaner, *neighbours.values()):
            client.reset()


async def test_pipelines_are_answered_as_by_the_server(
    postgres: Postgres, database: str, advised: dict[str, Proxy]
) -> None:
    await compare(postgres, database, advised, QUICK)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_many_pipelines_are_answered_as_by_the_server(
    postgres: Postgres, database: str, advised: dict[str, Proxy], module_proxy: StartProxy
) -> None:
    plain = {mode: module_proxy(pool_mode=mode, **POOL) for mode in ("session", "transaction")}
    await compare(postgres, database, plain, LONG)
    await compare(postgres, database, advised, LONG)
