"""The planner process under its supervisor's watch: real processes, a real server, real models."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from pilotwire.planner_process import PlannerProcess
from planner.features import flat
from planner.messages import Changed, Observed, Refused
from proxy.admin.source import PlannerUnavailableError
from proxy.logs import Log
from proxy.metrics import MergedCounters
from proxy.settings import ProxySettings
from tests.support.models import saboteur_model
from tests.support.planner_client import PlannerClient
from tests.support.postgres import Postgres
from tests.support.shop import QUERY, SCHEMA, WITH_PARAMETER, constant_model
from tests.support.waiting import eventually


class Planner:
    """One planner process with its counters, and a folder of models for it."""

    def __init__(self, process: PlannerProcess, merged: MergedCounters, models: Path, settings: ProxySettings) -> None:
        self.process = process
        self.models = models
        self.settings = settings
        self._merged = merged

    async def ready(self) -> None:
        await eventually(lambda: self.process.status().ready, 20)

    async def client(self) -> PlannerClient:
        await self.ready()
        return await PlannerClient.connect(self.process.socket)

    async def counted(self, key: str) -> float:
        await self.process.refresh(5)
        return self._merged.totals().get(key, 0)


Start = Callable[..., Awaitable[Planner]]
# One event loop, so that most tests share one process: each takes a second to start.
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def shop(hinted_postgres: Postgres) -> str:
    name = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, name)
    return name


async def _processes(server: Postgres, folder: Path) -> AsyncIterator[Start]:
    started: list[PlannerProcess] = []

    async def begin(**settings: Any) -> Planner:
        models = folder / f"models{len(started)}"
        models.mkdir()
        constant_model(models)
        alone = {"evidence": "none", "store": "none"}  # the model by itself
        values = {"upstream": server.dsn(), "auth": "trust", "models": str(models), **alone, **settings}
        made = ProxySettings.model_validate(values)
        merged = MergedCounters()
        process = PlannerProcess(made, Log("test"), merged)
        started.append(process)
        process.apply(made)
        return Planner(process, merged, models, made)

    yield begin
    for process in started:
        place = Path(process.socket).parent
        await process.stop()
        assert not place.exists()


@pytest_asyncio.fixture(loop_scope="module")
async def start(hinted_postgres: Postgres, tmp_path: Path) -> AsyncIterator[Start]:
    """Starts planner processes and ends them after the test."""
    async for begin in _processes(hinted_postgres, tmp_path):
        yield begin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def planner(hinted_postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Planner]:
    """The one that most tests share."""
    async for begin in _processes(hinted_postgres, tmp_path_factory.mktemp("planner")):
        yield await begin(steer_off_users=["ann"])


@pytest_asyncio.fixture(loop_scope="module")
async def client(planner: Planner) -> AsyncIterator[PlannerClient]:
    async with await planner.client() as client:
        yield client


async def test_it_answers_with_advice_and_says_from_which_model(
    planner: Planner, client: PlannerClient, shop: str
) -> None:
    assert stat.S_IMODE(os.stat(Path(planner.process.socket).parent).st_mode) == 0o700
    answer = await client.known(shop, QUERY)
    assert (answer.reason, answer.model, answer.dialect) == ("", "times-e2-1.0.0", "hint_plan")
    assert answer.prefix.startswith(b'/*+ Rows("c" "o" #')
    assert answer.estimated_ms > 1
    hits, steered = await planner.counted("planner_cache_hits"), await planner.counted("planner_decisions{steered}")
    again = await client.ask(shop, QUERY)
    assert again.prefix == answer.prefix
    assert await planner.counted("planner_cache_hits") == hits + 1
    assert await planner.counted("planner_decisions{steered}") == steered
    assert len(client.changes) >= 1
    status = planner.process.status()
    assert status.databases >= 1
    assert status.catalog_age_s >= 0
    assert [(model.name, model.state) for model in status.models] == [("times-e2", "active")]


@pytest.mark.parametrize(
    ("text", "reason", "scope"),
    [
        ("SELECT 1", "no_join", "template"),
        ("VACUUM", "utility", "template"),
        ("SELEC 1", "syntax", "values"),
        ("SELECT 1; SELECT 2", "several_statements", "values"),
        ("SELECT * FROM big_orders b JOIN customers c ON c.id = b.customer_id", "view", "template"),
        (QUERY.replace("FROM customers", "FROM /*+ SeqScan(c) */ customers"), "hinted", "values"),
        (QUERY.replace("items i", "nothing i"), "unknown_table", "template"),
        (QUERY + " AND c.id = 7", "cheap", "template"),
    ],
)
async def test_reasons(client: PlannerClient, shop: str, text: str, reason: str, scope: str) -> None:
    answer = await client.known(shop, text)
    assert (answer.reason, answer.scope, answer.prefix) == (reason, scope, b"")


async def test_an_opted_out_user_and_a_refused_statement_are_left_alone(client: PlannerClient, shop: str) -> None:
    text = QUERY + " AND 1 = 1"
    assert (await client.known(shop, text)).reason == ""
    assert (await client.ask(shop, text, user="ann")).reason == "opted_out"
    client.tell(Refused(shop, b"t", text.encode(), "XX000", "no"))
    assert (await client.ask(shop, text)).reason == "refused"
    assert (await client.ask(shop, QUERY)).reason == ""


async def test_a_template_measured_to_be_quick_is_cheap(client: PlannerClient, shop: str) -> None:
    assert (await client.known(shop, QUERY)).reason == ""
    for _ in range(5):
        client.tell(Observed(shop, b"quick", 0.3, steered=False))
        client.tell(Observed(shop, b"slow", 30.0, steered=False))
    answer = await client.ask(shop, QUERY + " AND 2 = 2", template=b"quick")
    assert (answer.reason, answer.scope) == ("cheap", "template")
    assert answer.estimated_ms == pytest.approx(0.3)
    # Estimated to be quick, and measured not to be.
    answer = await client.ask(shop, QUERY + " AND c.id = 8", template=b"slow")
    assert answer.reason == ""
    assert answer.estimated_ms == pytest.approx(30.0)


async def test_parameters_come_from_bind(client: PlannerClient, shop: str) -> None:
    bind = b"\0\0" + b"\0\1" + (5).to_bytes(4, "big") + b"north" + b"\0\0"
    with_value = await client.known(shop, WITH_PARAMETER, bind=bind, types=(25,))
    literal = await client.ask(shop, QUERY)
    assert with_value.prefix == literal.prefix != b""


async def test_an_unreachable_catalog_is_one_reason(planner: Planner, client: PlannerClient) -> None:
    assert (await client.ask("no_such_database", QUERY)).reason == "no_catalog"
    await eventually(lambda: planner.counted("planner_catalog_loads{failed}"), 10)
    answer = await client.ask("no_such_database", QUERY)
    assert (answer.reason, answer.scope) == ("no_catalog", "once")


async def test_a_peer_that_talks_nonsense_loses_its_connection_only(
    planner: Planner, client: PlannerClient, shop: str
) -> None:
    reader, writer = await asyncio.open_unix_connection(planner.process.socket)
    writer.write(b"\xff" * 100)
    with suppress(ConnectionError):
        while await reader.read(4096):
            pass
    writer.close()
    assert (await client.known(shop, QUERY)).reason == ""
    assert isinstance(client.changes[0], Changed)


async def test_models_are_swapped_and_reloaded_while_it_serves(
    planner: Planner, client: PlannerClient, shop: str
) -> None:
    first = await client.known(shop, QUERY)
    generation = client.changes[-1].generation
    constant_model(planner.models, version="1.1.0", log_ratio=3.0)
    found = await planner.process.reload()
    assert {model.version: model.state for model in found} == {"1.1.0": "active", "1.0.0": "kept"}
    second = await client.ask(shop, QUERY)
    assert (second.model, second.prefix != first.prefix) == ("times-e2-1.1.0", True)
    assert client.changes[-1].generation > generation
    (planner.models / "broken.onnx").write_bytes(b"nonsense")
    os.kill(planner.process.pid, signal.SIGHUP)
    await eventually(lambda: "broken.onnx" in {model.file for model in planner.process.status().models}, 10)
    assert (await client.ask(shop, QUERY)).model == "times-e2-1.1.0"


async def test_a_killed_one_is_replaced_and_counters_do_not_fall(start: Start, shop: str) -> None:
    planner = await start()
    async with await planner.client() as client:
        await client.known(shop, QUERY)
    before = await planner.counted("planner_decisions{steered}")
    assert before == 1
    os.kill(planner.process.pid, signal.SIGKILL)
    await eventually(lambda: not planner.process.status().ready)
    with pytest.raises(PlannerUnavailableError):
        await planner.process.reload()
    async with await planner.client() as client:
        assert (await client.known(shop, QUERY)).reason == ""
    assert await planner.counted("planner_decisions{steered}") == 2
    assert await planner.counted("planner_restarts") == 1


async def test_a_statement_that_ends_two_processes_is_not_looked_at_again(start: Start, shop: str) -> None:
    planner = await start(model_batch_ms=60_000.0, model_predict_ms=60_000.0)
    saboteur_model(planner.models / "times-e2.onnx", "slow", features=flat.NAMES)
    deadly = QUERY + " AND 3 = 3"
    for _ in range(2):
        async with await planner.client() as client:
            await client.known(shop, "SELECT 1")
            client.send(shop, deadly)
            # The model takes a while for it.
            await eventually(lambda: any(planner.process._blackbox._memory[:]))
            os.kill(planner.process.pid, signal.SIGKILL)
            await eventually(lambda: not planner.process.status().ready)
    async with await planner.client() as client:
        assert (await client.known(shop, deadly)).reason == "quarantined"
        assert (await client.ask(shop, QUERY)).reason != "quarantined"


async def test_a_stopped_one_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pilotwire.planner_process.SILENT_SECONDS", 2.0)
    planner = await start()
    await planner.ready()
    stopped = planner.process.pid
    os.kill(stopped, signal.SIGSTOP)
    await eventually(lambda: planner.process.pid not in (0, stopped), 15)
    await planner.ready()


async def test_one_that_grows_too_large_is_replaced(start: Start) -> None:
    planner = await start(planner_memory=128 << 20)
    await planner.ready()
    first = planner.process.pid
    planner.process.apply(planner.settings.model_copy(update={"planner_memory": 1 << 20}))
    await planner.process.reload()
    await eventually(lambda: planner.process.pid not in (0, first), 15)


async def test_switched_off_and_on_again(start: Start) -> None:
    planner = await start()
    await planner.ready()
    child = psutil.Process(planner.process.pid)
    planner.process.apply(planner.settings.model_copy(update={"mode": "off"}))
    await eventually(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    assert Path(planner.process.socket).parent.is_dir(), "it was ended by its supervisor, not orphaned"
    planner.process.apply(planner.settings)
    await eventually(lambda: planner.process.pid not in (0, child.pid))
    await planner.ready()
