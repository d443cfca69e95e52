"""Hand-overs to new processes while long connections and many short ones are served."""

from __future__ import annotations

import asyncio
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from proxy.wire.messages import query
from tests.faults.conftest import StartProxy
from tests.faults.load import Load, Report
from tests.faults.state import becomes, nothing_left, watch
from tests.pilotwire.test_handover import take_over
from tests.pilotwire.test_supervisor import assert_none_fell, counters
from tests.support.postgres import Postgres
from tests.support.proxy import AnyProcess, Proxy
from tests.support.scale import scale
from tests.support.shop import PAUSE, SCHEMA, constant_model
from tests.support.wireclient import ServerError, WireClient


def pgbench(target: Proxy, database: str, script: Path, output: Path) -> subprocess.Popen[bytes]:
    """`pgbench -C`, which makes a connection for each transaction; ended by SIGINT."""
    script.write_text("select 1;\n")
    with output.open("wb") as log:
        return subprocess.Popen(
            [
                str(target.postgres.bin("pgbench")),
                *("-n", "-C", "-c", "4", "-T", "3600", "-f", str(script)),
                *("-h", target.host, "-p", str(target.port), "-U", target.postgres.user, database),
            ],
            stdout=log,
            stderr=log,
        )


async def cancel_while_draining(target: Proxy, clients: list[WireClient], watcher: WireClient, database: str) -> None:
    """A cancel of what runs in a process that drains gets there through the new one, and ends nothing else."""
    for client in clients:
        client.send(query("select pg_sleep(600)"))

    async def sleeping() -> bool:
        running = (
            f"select count(*) from pg_stat_activity where datname = '{database}' and query ~ '600' and state = 'active'"
        )
        return await watcher.value(running) == str(len(clients))

    await becomes(sleeping, "the queries to be cancelled run")
    for client in clients:
        await client.cancel(target)
        async with asyncio.timeout(20):
            with pytest.raises(ServerError, match="57014"):
                await client.until_ready()
        assert await client.value("select 1") == "1"


@pytest.mark.parametrize("hand_overs", scale(2, 20))
async def test_no_client_sees_a_hand_over(
    proxy: StartProxy, postgres: Postgres, database: str, mode: str, tmp_path: Path, hand_overs: int
) -> None:
    target = proxy(
        control_socket=str(tmp_path / "control"), pool_mode=mode, workers=2, drain_timeout=3600, log_connections=False
    )
    watcher = await watch(postgres)
    report = Report(f"hand-over, {mode} mode", least=4)
    old: list[AnyProcess] = []
    output = tmp_path / "pgbench.log"
    bench = await asyncio.to_thread(pgbench, target, database, tmp_path / "script.sql", output)
    try:
        async with Load(target, database, clients=8, transactions=True, reconnect=False) as load:
            patient = [await WireClient.connect(target, database) for _ in range(2)]
            for turn in range(hand_overs):
                before = await asyncio.to_thread(counters, target)
                report.hit(await load.busy(4))
                old.append(await asyncio.to_thread(take_over, target))
                assert_none_fell(before, await asyncio.to_thread(counters, target))
                assert bench.poll() is None, output.read_text()
                # One that comes now is served by the new process, and stays there.
                load.add(1)
                await load.all_answered(2)
                if turn in (0, hand_overs - 1):
                    await cancel_while_draining(target, patient, watcher, database)
            transactions = (await asyncio.to_thread(counters, target))["pilotwire_clients_accepted_total"]
            bench.send_signal(signal.SIGINT)
            await asyncio.to_thread(bench.wait, 30)
        for client in patient:
            await client.close()
    finally:
        if bench.poll() is None:
            bench.kill()
            bench.wait()
    said = output.read_text().lower()
    assert "error" not in said, said
    assert "fatal" not in said, said
    assert "lost" not in said, said
    report.notes.append(f"connections served {transactions:g}")
    # Everybody has left: each process that was taken over from ends by itself.
    for process in old:
        assert await asyncio.to_thread(process.wait, 30) == 0
    await asyncio.to_thread(target.stop)
    await nothing_left(watcher, database)
    report.close(load.failures, load.answered)
    assert transactions > 20 * hand_overs, "pgbench had too few connections to notice anything"


async def test_a_drain_after_a_hand_over_ends_in_time(
    proxy: StartProxy, postgres: Postgres, database: str, mode: str, tmp_path: Path
) -> None:
    """drain_timeout of the old process: its clients get 57P01 outside a transaction, those of the new one nothing."""
    target = proxy(control_socket=str(tmp_path / "control"), pool_mode=mode, workers=2, drain_timeout=1.5)
    report = Report(f"the drain after a hand-over, {mode} mode", least=4)
    async with Load(target, database, clients=8, transactions=True, reconnect=False) as load:
        report.hit(await load.busy(4))
        old = await asyncio.to_thread(take_over, target)
        load.add(2)
        await load.all_answered(1)
        assert not load.failures
        assert await asyncio.to_thread(old.wait, 15) == 0
        assert {failure.client for failure in load.failures} == set(range(8))
        assert {failure.sqlstate for failure in load.failures} == {"57P01"}, load.failures
        assert "transaction" not in {failure.where for failure in load.failures}
        await load.all_answered(3, but=frozenset(range(8)))
    report.close(load.failures, load.answered, 8)


# Long enough on every machine to be asked about and for the answer to be waited for, and idle meanwhile.
STEERED = (
    "select $n + 0 * count(*) + pause(0.2) from customers c join orders o on o.customer_id = c.id "
    "join items i on i.order_id = o.id where c.tier = 1 and c.id <> $n"
)
WRITTEN = "insert into done values ($n) returning n"
STEERED_TOTAL = "pilotwire_steering_steered_total"


async def steers_on(target: Proxy, before: dict[str, float]) -> bool:
    return (await asyncio.to_thread(counters, target))[STEERED_TOTAL] > before[STEERED_TOTAL]


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_rolling_restarts_while_statements_are_steered(
    proxy: StartProxy, hinted_postgres: Postgres, database: str, mode: str, tmp_path: Path
) -> None:
    """Twenty times: nobody sees an error within drain_timeout, every answer is right, every commit is there, and
    statements are steered on."""
    models = tmp_path / "models"
    models.mkdir()
    constant_model(models)
    hinted_postgres.sql(SCHEMA, database)
    hinted_postgres.sql(PAUSE, database)
    hinted_postgres.sql("create table done (n int primary key)", database)
    target = proxy(
        hinted_postgres,
        upstream=hinted_postgres.dsn(database),
        control_socket=str(tmp_path / "control"),
        pool_mode=mode,
        workers=2,
        drain_timeout=3600,
        models=str(models),
        store="none",
        log_connections=False,
    )
    watcher = await watch(hinted_postgres)
    report = Report(f"rolling restart with steering on, {mode} mode", least=2)
    old: list[AnyProcess] = []
    # Each process that drains keeps a planner process of its own: the clients leave them some time.
    always: dict[str, Any] = {"transactions": True, "reconnect": False, "pause": 0.1, "patience": 60.0}
    steered = Load(target, database, clients=6, statement=STEERED, **always)
    written = Load(target, database, clients=3, statement=WRITTEN, **always)
    async with steered, written:
        for _ in range(20):
            before = await asyncio.to_thread(counters, target)
            report.hit(await steered.busy(2))
            old.append(await asyncio.to_thread(take_over, target))
            assert_none_fell(before, await asyncio.to_thread(counters, target))
            steered.add(1)
            written.add(1)
            await steered.all_answered(2)
            await written.all_answered(2)
            await becomes(lambda before=before: steers_on(target, before), "the new process steers")  # type: ignore[misc]
    rows = await WireClient.connect(hinted_postgres, database)
    kept = {int(row[0] or 0) for row in await rows.query("select n from done")}
    await rows.close()
    committed, refused = written.outcomes
    assert committed
    assert committed == kept, f"lost {sorted(committed - kept)[:5]}, too many {sorted(kept - committed)[:5]}"
    assert not refused
    report.notes.append(f"rows committed {len(committed)}")
    report.notes.append(f"steered {(await asyncio.to_thread(counters, target))[STEERED_TOTAL]:g}")
    for process in old:
        assert await asyncio.to_thread(process.wait, 30) == 0
    await asyncio.to_thread(target.stop)
    await nothing_left(watcher, database)
    report.close([*steered.failures, *written.failures], steered.answered + written.answered)
