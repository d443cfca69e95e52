"""What is known, as rows. Pure.

Columns have the names of PgBouncer's console where they mean the same. A cell is None, a text, a number, a truth value
or a moment; a table is sent over the control channel by `to_wire`, in which moments are ISO texts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from proxy.admin.source import Client, Latency, ModelStatus, Pool, Query, Status
from proxy.console_db.commands import CHANGES, SHOWN
from proxy.metrics import LATENCY_SUM, labelled
from proxy.settings import ProxySettings

Kind = Literal["text", "int", "float", "bool", "time"]
Cell = str | int | float | bool | None
MAX_TEXT: Final = 200
"""Characters of a statement that are shown."""


@dataclass(frozen=True, slots=True)
class Table:
    """``next``: what to ask for to get the rows after these, "" at the end."""

    columns: tuple[tuple[str, Kind], ...]
    rows: list[tuple[Cell, ...]] = field(default_factory=list)
    next: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {"columns": self.columns, "rows": self.rows, "next": self.next}


def _table(columns: Mapping[str, Kind], rows: Iterable[Sequence[Cell | datetime]], after: str = "") -> Table:
    made = [tuple(_cell(value) for value in row) for row in rows]
    return Table(tuple(columns.items()), made, after)


def _cell(value: Cell | datetime) -> Cell:
    return value.isoformat(" ", "milliseconds") if isinstance(value, datetime) else value


def help_table() -> Table:
    shows = [(f"SHOW {name.upper()}", words) for name, words in SHOWN.items()]
    return _table({"command": "text", "what": "text"}, [*shows, *CHANGES.items()])


def version(text: str) -> Table:
    return _table({"version": "text"}, [(f"pilotwire {text}",)])


def stats(status: Status, latencies: Sequence[Latency], now: float) -> Table:
    """One row over all databases; times are microseconds where PgBouncer's are, quantiles milliseconds."""
    totals = status.totals

    def total(name: str) -> int:
        return int(totals.get(name, 0))

    plain = next((row for row in latencies if row.metric == "unsteered_latency"), None)
    wait = int(totals.get("pool_wait_seconds_sum", 0) * 1e6)
    row: dict[str, tuple[Kind, Cell]] = {
        "uptime_s": ("int", int(now - status.start_time)),
        "total_xact_count": ("int", total("transactions")),
        "total_query_count": ("int", total("statements")),
        "total_received": ("int", total("bytes_from_client")),
        "total_sent": ("int", total("bytes_to_client")),
        "total_query_time": ("int", int(totals.get(LATENCY_SUM, 0) * 1e6)),
        "total_wait_time": ("int", wait),
        "total_client_count": ("int", total("clients_total")),
        "total_login_failures": ("int", total("logins_failed")),
        "steered": ("int", total("steering_steered")),
        "left_alone": ("int", total("steering_left_alone")),
        "unsteered_p50_ms": ("float", round(plain.p50, 3) if plain else None),
        "unsteered_p95_ms": ("float", round(plain.p95, 3) if plain else None),
    }
    return _table({name: kind for name, (kind, _) in row.items()}, [[value for _, value in row.values()]])


def pools(found: Sequence[Pool], paused: Paused) -> Table:
    columns: dict[str, Kind] = {
        "database": "text", "user": "text", "clients": "int", "cl_active": "int", "cl_waiting": "int",
        "sv_active": "int", "sv_idle": "int", "sv_opening": "int", "sv_limit": "int", "maxwait_ms": "float",
        "pool_mode": "text", "paused": "bool",
    }  # fmt: skip
    rows = [
        (
            pool.database, pool.user, pool.clients, pool.active, pool.waiting, pool.servers - pool.idle_servers,
            pool.idle_servers, pool.opening, pool.limit, pool.longest_wait_ms, pool.mode,
            paused.holds(pool.database),
        )
        for pool in found
    ]  # fmt: skip
    return _table(columns, rows)


def clients(found: Sequence[Client], limit: int) -> Table:
    columns: dict[str, Kind] = {
        "id": "text", "user": "text", "database": "text", "state": "text", "application_name": "text", "addr": "text",
        "tls": "bool", "read_only": "bool", "connect_time": "time", "running_ms": "float", "server_pid": "int",
        "log_id": "text",
    }  # fmt: skip
    rows = [
        (
            client.id, client.user, client.database, client.state, client.application, client.peer, client.tls,
            client.read_only, client.connected, client.running_ms, client.server_pid or None, client.log_id,
        )
        for client in found
    ]  # fmt: skip
    return _table(columns, rows, found[-1].id if len(found) >= limit else "")


SERVER_COLUMNS: Final[dict[str, Kind]] = {
    "database": "text", "user": "text", "state": "text", "addr": "text", "pid": "int", "tls": "bool",
    "connected_s": "float", "idle_s": "float", "client": "text", "worker": "int",
}  # fmt: skip


def servers(found: Iterable[Mapping[str, Cell]]) -> Table:
    """From rows as `proxy.console_db.servers` describes them."""
    return _table(SERVER_COLUMNS, ([row.get(name) for name in SERVER_COLUMNS] for row in found))


@dataclass(frozen=True, slots=True)
class Paused:
    """Which databases are: all, or those named."""

    all: bool = False
    databases: Collection[str] = ()

    def holds(self, database: str) -> bool:
        return self.all or database in self.databases


def databases(settings: ProxySettings, found: Sequence[Pool], paused: Paused) -> Table:
    """Those in use, the DSN's own, and those that are paused."""
    columns: dict[str, Kind] = {
        "name": "text", "host": "text", "pool_mode": "text", "clients": "int", "cl_waiting": "int", "servers": "int",
        "paused": "bool",
    }  # fmt: skip
    names = dict.fromkeys([pool.database for pool in found])
    own = settings.dsn.database or settings.dsn.user or ""
    names |= dict.fromkeys([own] if own else []) | dict.fromkeys(sorted(paused.databases))
    hosts = ",".join(str(host) for host in settings.dsn.hosts)
    rows = []
    for name in names:
        of_it = [pool for pool in found if pool.database == name]
        sums = (sum(pool.clients for pool in of_it), sum(pool.waiting for pool in of_it))
        servers_now = sum(pool.servers for pool in of_it)
        rows.append((name, hosts, settings.pool_mode, *sums, servers_now, paused.holds(name)))
    return _table(columns, rows)


def models(found: Sequence[ModelStatus], latencies: Sequence[Latency]) -> Table:
    columns: dict[str, Kind] = {
        "file": "text", "kind": "text", "name": "text", "version": "text", "state": "text", "p50_ms": "float",
        "p95_ms": "float", "detail": "text",
    }  # fmt: skip
    took = {row.model: row for row in latencies if row.metric == "statement_latency"}
    rows: list[list[Cell]] = []
    for model in found:
        last = took.get(f"{model.name}-{model.version}") if model.state == "active" else None
        times = (round(last.p50, 3), round(last.p95, 3)) if last else (None, None)
        rows.append([model.file, model.kind, model.name, model.version, model.state, *times, model.detail])
    return _table(columns, rows)


def decisions(totals: Mapping[str, float]) -> Table:
    """The most frequent first. Statements that join nothing are not among them: nobody decides about those."""
    counts = {"steered": totals.get("steering_steered", 0), **dict(labelled(totals, "steering_reasons"))}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return _table({"decision": "text", "statements": "int"}, [(name, int(count)) for name, count in ordered])


def memory(found: Sequence[Query]) -> Table:
    columns: dict[str, Kind] = {
        "key": "text", "database": "text", "state": "text", "arm": "text", "calls": "int", "plain_ms": "float",
        "steered_ms": "float", "saved_ms": "float", "last_seen": "time", "query": "text",
    }  # fmt: skip
    rows = [
        (
            query.key, query.database, query.state, query.arm, query.calls, _rounded(query.plain_ms),
            _rounded(query.steered_ms), _rounded(query.saved_ms), query.last_seen, query.text[:MAX_TEXT],
        )
        for query in found
    ]  # fmt: skip
    return _table(columns, rows)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def config(rows: Iterable[tuple[str, str, str, bool]]) -> Table:
    """From name, value, default and whether it follows a reload; values as they may be shown."""
    return _table({"key": "text", "value": "text", "default": "text", "changeable": "bool"}, rows)


def setting(name: str, value: str) -> Table:
    return _table({name: "text"}, [(value,)])
