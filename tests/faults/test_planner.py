"""The planner process, its models and its catalog break while clients work: nobody notices, and steering comes back."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from planner.features import flat
from tests.faults.conftest import StartProxy
from tests.faults.load import Load, Report
from tests.faults.state import becomes, watch
from tests.pilotwire.test_supervisor import assert_none_fell, counters
from tests.pilotwire.test_supervisor_planner import planners, ready
from tests.support.models import saboteur_model
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.scale import scale
from tests.support.shop import PAUSE, SCHEMA, constant_model
from tests.support.waiting import eventually, wait_until
from tests.support.wireclient import ServerError, WireClient

# Long enough on every machine to be asked about and for the answer to be waited for, and idle meanwhile.
STATEMENT = (
    "SELECT $n + 0 * count(*) + pause(0.2) FROM customers c JOIN orders o ON o.customer_id = c.id "
    "JOIN items i ON i.order_id = o.id WHERE c.tier = 1 AND o.total <> $n"
)
CLIENTS = 4


@pytest.fixture(scope="module")
def shop(hinted_postgres: Postgres) -> Iterator[str]:
    name = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, name)
    hinted_postgres.sql(PAUSE, name)
    yield name
    hinted_postgres.drop_database(name)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    folder.mkdir()
    constant_model(folder)
    return folder


@pytest.fixture
def steering(proxy: StartProxy, hinted_postgres: Postgres, shop: str, models: Path) -> Callable[..., Proxy]:
    """Starts a proxy that steers, and waits until its planner has a model."""

    def start(**settings: object) -> Proxy:
        values = {"upstream": hinted_postgres.dsn(shop), "models": str(models), "steer_min_joins": 1, **settings}
        target = proxy(hinted_postgres, **values)
        wait_until(lambda: able(target), 20)
        return target

    return start


def able(target: Proxy) -> bool:
    """Whether the planner process has a catalog, and the workers are connected to it."""
    metrics = target.metrics()
    workers = metrics["pilotwire_workers_ready"]
    return metrics["pilotwire_planner_catalog_age_seconds"] >= 0 and metrics["pilotwire_planner_connected"] == workers


def count(target: Proxy, name: str) -> float:
    return target.metrics().get(f"pilotwire_steering_{name}", 0)


def restarted(target: Proxy, times: int) -> bool:
    return target.metrics()["pilotwire_planner_restarts_total"] >= times


async def steers(target: Proxy, more: int = 5) -> None:
    """Waits until that many further statements were steered."""
    before = await asyncio.to_thread(count, target, "steered_total")
    try:
        await eventually(lambda: count(target, "steered_total") >= before + more, 40)
    except TimeoutError:
        found = await asyncio.to_thread(target.metrics)
        said = {name: value for name, value in found.items() if "steering_" in name or "planner_" in name if value}
        pytest.fail(f"statements are not steered: {said}")


@pytest.mark.parametrize("iterations", scale(2, 20))
async def test_kill_9(steering: Callable[..., Proxy], shop: str, iterations: int) -> None:
    target = steering(workers=2)
    report = Report("kill -9 of the planner process", least=2)
    async with Load(target, shop, clients=CLIENTS, statement=STATEMENT, transactions=True) as load:
        for restarts in range(iterations):
            await steers(target)
            before = await asyncio.to_thread(counters, target)
            report.hit(await load.busy(2))
            for pid in await asyncio.to_thread(planners, target):
                os.kill(pid, signal.SIGKILL)
            await load.all_answered(3)
            await eventually(partial(restarted, target, restarts + 1), 20)
            assert_none_fell(before, await asyncio.to_thread(counters, target))
        await steers(target)
        report.close(load.failures, load.answered)


async def test_stopped(steering: Callable[..., Proxy], shop: str) -> None:
    target = steering(workers=2)
    report = Report("SIGSTOP of the planner process", least=2)
    async with Load(target, shop, clients=CLIENTS, statement=STATEMENT, transactions=True) as load:
        await steers(target)
        (stopped,) = await asyncio.to_thread(planners, target)
        for client in load.clients:
            client.slowest = 0.0
        report.hit(await load.busy(2))
        os.kill(stopped, signal.SIGSTOP)
        await load.all_answered(10)
        # Some statements wait until the deadline; then none waits any more.
        assert count(target, "breaker_opened_total") > 0
        await eventually(lambda: planners(target) not in ([], [stopped]), 20)
        await steers(target)
        assert max(client.slowest for client in load.clients) < 5
        report.close(load.failures, load.answered)


async def test_a_model_that_answers_nonsense(steering: Callable[..., Proxy], shop: str, models: Path) -> None:
    target = steering()
    report = Report("a model that returns NaN", least=2)
    async with Load(target, shop, clients=CLIENTS, statement=STATEMENT) as load:
        await steers(target)
        report.hit(await load.busy(2))
        saboteur_model(models / "newer.onnx", "nan", features=flat.NAMES)
        failed = 'pilotwire_planner_decisions_total{reason="failed"}'
        await eventually(lambda: target.metrics().get(failed, 0) >= 5, 20)
        await load.all_answered(2)
        (models / "newer.onnx").unlink()
        await steers(target)
        report.close(load.failures, load.answered)


async def test_a_slow_model_is_not_waited_for_and_answers_for_the_next_time(
    steering: Callable[..., Proxy], shop: str, models: Path
) -> None:
    saboteur_model(models / "times-e2.onnx", "slow", features=flat.NAMES)
    target = steering(model_batch_ms=60_000.0, model_predict_ms=60_000.0, steer_deadline_ms=2.0)
    client = await WireClient.connect(target, shop)
    text = STATEMENT.replace("$n", "7")
    assert await client.query(text) == [("7",)]
    assert count(target, 'reasons_total{reason="late"}') + count(target, 'reasons_total{reason="not_waited"}') == 1
    await eventually(lambda: count(target, "answered_total") == 1)
    assert await client.query(text) == [("7",)]
    # The saboteur predicts no change: it is decided now, without another question.
    assert count(target, "asked_total") == 1
    await client.close()


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.tier = = 1",
        "SELECT c.nothing FROM customers c JOIN orders o ON o.customer_id = c.id",
        "SELECT 1 / (c.id - c.id) FROM customers c JOIN orders o ON o.customer_id = c.id",
        "SELECT * FROM nowhere n JOIN orders o ON o.customer_id = n.id",
        "SELECT * FROM customers c JOIN orders o ON " + "(" * 3000 + "c.id = o.id" + ")" * 3000,
        "SELECT " + "1 + " * 7000 + "1 FROM customers c JOIN orders o ON o.customer_id = c.id LIMIT 1",
        "SELECT * FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.region = '" + "x" * 100_000 + "'",
    ],
    ids=["syntax", "column", "division", "table", "deep", "long sum", "100 kB"],
)
async def test_odd_statements_end_as_they_would_without_us(
    odd: tuple[Proxy, str], hinted_postgres: Postgres, text: str
) -> None:
    """Errors with their positions too, also the second time, when the decision is there."""
    target, shop = odd
    direct = await WireClient.connect(hinted_postgres, shop)
    through = await WireClient.connect(target, shop)
    for _ in range(2):
        assert await _outcome(through, text) == await _outcome(direct, text)
    assert await through.query("SELECT 42") == [("42",)]
    await through.close()
    await direct.close()


@pytest.fixture(scope="module")
def odd(
    module_proxy: StartProxy, hinted_postgres: Postgres, shop: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Proxy, str]:
    folder = tmp_path_factory.mktemp("models")
    constant_model(folder)
    target = module_proxy(hinted_postgres, upstream=hinted_postgres.dsn(shop), models=str(folder), steer_min_joins=1)
    wait_until(lambda: able(target), 20)
    return target, shop


async def _outcome(client: WireClient, text: str) -> object:
    try:
        return len(await client.query(text))
    except ServerError as error:
        return error.sqlstate, error.text


async def test_a_catalog_that_cannot_be_read(
    proxy: StartProxy, hinted_postgres: Postgres, shop: str, models: Path
) -> None:
    """The planner's role may not connect to the database at first, and may later."""
    role = hinted_postgres.create_role("secret")
    hinted_postgres.sql(f"REVOKE CONNECT ON DATABASE {shop} FROM public")
    target = proxy(
        hinted_postgres,
        upstream=hinted_postgres.dsn(user=role).replace(f"{role}@", f"{role}:secret@"),
        models=str(models),
        steer_min_joins=1,
    )
    await eventually(lambda: ready(target), 20)
    async with Load(target, shop, clients=2, statement=STATEMENT) as load:
        reason = 'pilotwire_planner_decisions_total{reason="no_catalog"}'
        await eventually(lambda: target.metrics().get(reason, 0) > 0)
        await load.all_answered(2)
        hinted_postgres.sql(f"GRANT CONNECT ON DATABASE {shop} TO public")
        await steers(target)
        assert not load.failures
    await asyncio.to_thread(target.stop)
    watcher = await watch(hinted_postgres)

    async def gone() -> bool:
        return await watcher.value(f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'") == "0"

    await becomes(gone, "the planner's connections have ended")
    await watcher.close()


async def test_the_tables_change_under_it(steering: Callable[..., Proxy], shop: str, hinted_postgres: Postgres) -> None:
    """A table is dropped and made anew with other columns: at no time does a client see more than the server says."""
    target = steering()
    client = await WireClient.connect(target, shop)
    text = (
        "SELECT count(*) FROM customers c JOIN passing p ON p.customer_id = c.id JOIN orders o ON o.customer_id = c.id"
    )
    hinted_postgres.sql("CREATE TABLE passing AS SELECT id AS customer_id FROM customers", shop)
    assert await client.query(text) == [("10000",)]
    hinted_postgres.sql("DROP TABLE passing", shop)
    with pytest.raises(ServerError, match='relation "passing" does not exist'):
        await client.query(text)
    hinted_postgres.sql("CREATE TABLE passing (customer_id bigint, more text)", shop)
    assert await client.query(text) == [("0",)]
    await client.close()
