"""What the supervisor's side answers, over a made-up instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from proxy.admin.source import Client, ModelStatus, PlannerStatus, RefusedError, Reloaded
from proxy.console_db.answering import PAGE, answer
from proxy.console_db.commands import SHOWN
from proxy.console_db.replies import data_rows, row_description
from proxy.console_db.tables import Cell, DatabaseStats, Paused
from proxy.database_counters import TOLD
from proxy.metrics import Counters
from tests.proxy.admin.instance import Instance, latency

CLIENT = Client("0.1", "app", "shop", "psql", "10.0.0.1", True, False, datetime(2026, 1, 2, tzinfo=UTC), "idle", 0, 0)


FIGURES = dict.fromkeys(TOLD, 20.0) | {"database_statement_seconds": 0.25}


class Source(Instance):
    """A ``ConsoleSource``. ``running`` are the transactions that run, one of which ends whenever they are counted."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.paused = Paused()
        self.running = 0
        self.did: list[tuple[str, ...]] = []

    async def pause(self, database: str, actor: str) -> None:
        self.did.append(("pause", database, actor))

    async def resume(self, database: str, actor: str) -> None:
        self.did.append(("resume", database, actor))
        if database and self.paused.all:
            raise RefusedError("all databases are paused")

    async def busy(self, database: str) -> int:
        self.running -= 1
        return self.running

    async def stats(self) -> Sequence[DatabaseStats]:
        return [DatabaseStats("shop", FIGURES, {name: value / 2 for name, value in FIGURES.items()}, 5.0)]

    async def servers(self) -> Sequence[Mapping[str, Cell]]:
        return [{"database": "shop", "pid": 7, "state": "idle", "addr": "::1:5432", "client": "0.1"}]

    async def set(self, name: str, value: str, actor: str) -> None:
        self.did.append(("set", name, value, actor))


async def ask(source: Source, verb: str, name: str = "", value: str = "", after: str = "") -> dict[str, Any]:
    request = {"verb": verb, "name": name, "value": value, "after": after, "actor": "dba"}
    return await answer(source, request, "1.2")


async def shown(source: Source, what: str) -> list[dict[str, Cell]]:
    table = (await ask(source, "SHOW", what))["table"]
    names = [name for name, _ in table["columns"]]
    return [dict(zip(names, row, strict=True)) for row in table["rows"]]


@pytest.mark.parametrize("what", SHOWN)
async def test_each_table_can_be_sent(what: str) -> None:
    source = Source()
    source.connected = [CLIENT]
    source.planner = PlannerStatus(models=(ModelStatus("m.onnx", "cardinality", "m", "1", "active"),))
    source.latest = replace(source.latest, latest=(latency("m-1"), latency("none", "unsteered_latency")))
    table = (await ask(source, "SHOW", what))["table"]
    assert table["rows"]
    assert row_description(table["columns"])[:1] == b"T"
    assert data_rows(table["rows"]).startswith(b"D")


async def test_what_the_tables_say() -> None:
    source = Source()
    source.paused = Paused(databases=frozenset({"shop", "quiet"}))
    counters = Counters()
    counters.steering_steered = 5
    counters.steering_reasons["cheap"] += 9
    source.totals = counters.snapshot()
    assert await shown(source, "decisions") == [
        {"decision": "cheap", "statements": 9},
        {"decision": "steered", "statements": 5},
    ]
    databases = {row["name"]: row for row in await shown(source, "databases")}
    assert databases["shop"]["current_client_connections"] == 3
    assert (databases["shop"]["host"], databases["shop"]["port"]) == ("127.0.0.1", 5432)
    assert databases["quiet"]["paused"] == 1
    assert [row["saved_ms"] for row in await shown(source, "memory")] == [50.0]
    assert await shown(source, "mode") == [{"mode": "on"}]


async def test_columns_are_those_of_pgbouncer() -> None:
    """What is called as there means the same; what means something else has another name."""
    source = Source()
    source.connected = [CLIENT, replace(CLIENT, id="0.2", peer="")]
    stats = (await shown(source, "stats"))[0]
    assert stats["database"] == "shop"
    assert (stats["total_query_count"], stats["total_query_time"]) == (20, 250_000)
    assert (stats["avg_query_count"], stats["avg_query_time"]) == (2, 12_500)
    pool = (await shown(source, "pools"))[0]
    assert pool["cl_active"] == 3, "clients that do nothing are active ones there"
    assert {"sv_active", "sv_idle", "sv_login", "maxwait", "maxwait_us", "pool_mode"} <= pool.keys()
    assert [row["addr"] for row in await shown(source, "clients")] == ["10.0.0.1", "unix"]
    server = (await shown(source, "servers"))[0]
    assert (server["addr"], server["port"], server["remote_pid"], server["link"]) == ("::1", 5432, 7, "0.1")
    assert {row["changeable"] for row in await shown(source, "config")} == {"yes", "no"}


async def test_clients_come_in_pages() -> None:
    source = Source()
    source.connected = [replace(CLIENT, id=f"0.{number}") for number in range(1, PAGE + 2)]
    first = (await ask(source, "SHOW", "clients"))["table"]
    second = (await ask(source, "SHOW", "clients", after=first["next"]))["table"]
    assert (len(first["rows"]), len(second["rows"]), second["next"]) == (PAGE, 1, "")


async def test_pause_says_how_many_transactions_still_run() -> None:
    source = Source(pool_mode="transaction")
    source.running = 3
    assert (await ask(source, "PAUSE", "shop"))["busy"] == 2
    assert (await ask(source, "PAUSE", "shop", after="busy"))["busy"] == 1
    assert source.did == [("pause", "shop", "dba")]
    assert (await ask(source, "PAUSE", "pilotwire"))["failure"][0] == "42501"


async def test_what_cannot_be_done_has_a_state_of_its_own() -> None:
    source = Source()
    source.reloaded = Reloaded(refused="pool_size is no number")
    source.paused = Paused(all=True)
    source.memory.away = "The store cannot be read."
    for asked, state, words in [
        (("SHOW", "weather"), "42704", "weather"),
        (("SHOW", "memory"), "55000", "store"),
        (("RELOAD",), "F0000", "no number"),
        (("RESUME", "shop"), "22023", "all databases"),
        (("KILL", "all"), "22023", "no id"),
        (("KILL", "0.99"), "42704", "no client"),
        (("SET", "weather", "fine"), "42704", "weather"),
    ]:
        failure = (await ask(source, *asked))["failure"]
        assert failure[0] == state
        assert words in failure[1]


async def test_settings_are_set_in_the_name_of_who_asked() -> None:
    source = Source()
    assert await ask(source, "SET", "mode", "off") == {"tag": "SET"}
    assert source.settings.mode == "off"
    await ask(source, "SET", "log_slow_ms", "5")
    assert source.did == [("set", "log_slow_ms", "5", "dba")]
