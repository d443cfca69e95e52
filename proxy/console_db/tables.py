"""What is known, as rows. Pure.

Columns have the names of PgBouncer's console where they mean the same. A cell is None, a text, a number, a truth value
or a moment; a table is sent over the control channel by `to_wire`, in which moments are ISO texts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

from proxy.admin.source import Client, Latency, ModelStatus, Pool, Query
from proxy.console_db.commands import CHANGES, SHOWN
from proxy.metrics import labelled
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


@dataclass(frozen=True, slots=True)
class DatabaseStats:
    """One database's figures, as `proxy.database_counters.TOLD` names them: since the start, and what was added in the
    last ``seconds``."""

    database: str
    totals: Mapping[str, float]
    lately: Mapping[str, float]
    seconds: float


def help_table() -> Table:
    shows = [(f"SHOW {name.upper()}", words) for name, words in SHOWN.items()]
    return _table({"command": "text", "what": "text"}, [*shows, *CHANGES.items()])


def version(text: str) -> Table:
    return _table({"version": "text"}, [(f"pilotwire {text}",)])


def stats(databases: Sequence[DatabaseStats]) -> Table:
    """One row for each database, as PgBouncer's: totals since the start, and averages of the last minute or so (counts
    and bytes a second; times for one transaction, statement or wait). Times are microseconds."""
    columns: dict[str, Kind] = {
        "database": "text", "total_xact_count": "int", "total_query_count": "int", "total_received": "int",
        "total_sent": "int", "total_xact_time": "int", "total_query_time": "int", "total_wait_time": "int",
        "total_server_parse_count": "int", "avg_xact_count": "int", "avg_query_count": "int", "avg_recv": "int",
        "avg_sent": "int", "avg_xact_time": "int", "avg_query_time": "int", "avg_wait_time": "int",
    }  # fmt: skip
    return _table(columns, [_stats_row(one) for one in databases])


def _stats_row(one: DatabaseStats) -> list[Cell]:
    total, lately, seconds = one.totals, one.lately, max(one.seconds, 1e-3)

    def number(figures: Mapping[str, float], name: str) -> float:
        return figures.get(f"database_{name}", 0.0)

    def each(time_of: str, count_of: str) -> int:
        return int(number(lately, time_of) * 1e6 / max(number(lately, count_of), 1.0))

    return [
        one.database,
        int(number(total, "transactions")),
        int(number(total, "statements")),
        int(number(total, "received_bytes")),
        int(number(total, "sent_bytes")),
        int(number(total, "transaction_seconds") * 1e6),
        int(number(total, "statement_seconds") * 1e6),
        int(number(total, "pool_wait_seconds") * 1e6),
        int(number(total, "statements_reprepared")),
        int(number(lately, "transactions") / seconds),
        int(number(lately, "statements") / seconds),
        int(number(lately, "received_bytes") / seconds),
        int(number(lately, "sent_bytes") / seconds),
        each("transaction_seconds", "transactions"),
        each("statement_seconds", "statements"),
        # As PgBouncer's: what was waited in one second.
        int(number(lately, "pool_wait_seconds") * 1e6 / seconds),
    ]


def pools(found: Sequence[Pool], paused: Paused) -> Table:
    """As PgBouncer's: ``cl_active`` counts all clients that do not wait, those that do nothing included."""
    columns: dict[str, Kind] = {
        "database": "text", "user": "text", "cl_active": "int", "cl_waiting": "int", "sv_active": "int",
        "sv_idle": "int", "sv_login": "int", "maxwait": "int", "maxwait_us": "int", "pool_mode": "text",
        "sv_limit": "int", "paused": "int",
    }  # fmt: skip
    rows = []
    for pool in found:
        seconds, rest = divmod(int(pool.longest_wait_ms * 1000), 1_000_000)
        active, sv_active = pool.clients - pool.waiting, pool.servers - pool.idle_servers
        rows.append((
            pool.database, pool.user, active, pool.waiting, sv_active, pool.idle_servers, pool.opening, seconds, rest,
            pool.mode, pool.limit, int(paused.holds(pool.database)),
        ))  # fmt: skip
    return _table(columns, rows)


def clients(found: Sequence[Client], limit: int) -> Table:
    columns: dict[str, Kind] = {
        "id": "text", "user": "text", "database": "text", "state": "text", "application_name": "text", "addr": "text",
        "tls": "bool", "read_only": "bool", "connect_time": "time", "running_ms": "float",
        "remote_pid": "int", "log_id": "text",
    }  # fmt: skip
    rows = [
        (
            client.id, client.user, client.database, client.state, client.application, client.peer or "unix",
            client.tls, client.read_only, client.connected, client.running_ms, client.server_pid or None,
            client.log_id,
        )
        for client in found
    ]  # fmt: skip
    return _table(columns, rows, found[-1].id if len(found) >= limit else "")


def _address(text: str) -> tuple[str, int | None]:
    """Host and port; a Unix socket is a path, and has none."""
    host, separator, port = text.rpartition(":")
    return (host, int(port)) if separator and port.isdigit() else (text, None)


SERVER_COLUMNS: Final[dict[str, Kind]] = {
    "database": "text", "user": "text", "state": "text", "addr": "text", "port": "int", "remote_pid": "int",
    "tls": "bool", "connected_s": "float", "idle_s": "float", "link": "text", "worker": "int",
}  # fmt: skip


def servers(found: Iterable[Mapping[str, Cell]]) -> Table:
    """From rows as `proxy.console_db.servers` describes them; ``link`` is the client that has the connection."""
    rows = []
    for row in found:
        host, port = _address(str(row.get("addr") or ""))
        shown = {**row, "addr": host, "port": port, "remote_pid": row.get("pid"), "link": row.get("client")}
        rows.append([shown.get(name) for name in SERVER_COLUMNS])
    return _table(SERVER_COLUMNS, rows)


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
        "name": "text", "host": "text", "port": "int", "database": "text", "pool_size": "int", "pool_mode": "text",
        "current_connections": "int", "current_client_connections": "int", "cl_waiting": "int", "paused": "int",
    }  # fmt: skip
    names = dict.fromkeys([pool.database for pool in found])
    own = settings.dsn.database or settings.dsn.user or ""
    names |= dict.fromkeys([own] if own else []) | dict.fromkeys(sorted(paused.databases))
    hosts = [host.host for host in settings.dsn.hosts]
    size = settings.pool_size + settings.pool_overflow
    rows = []
    for name in names:
        of_it = [pool for pool in found if pool.database == name]
        rows.append((
            name, ",".join(hosts), settings.dsn.hosts[0].port, name,
            size if settings.pool_mode == "transaction" else None, settings.pool_mode,
            sum(pool.servers for pool in of_it), sum(pool.clients for pool in of_it),
            sum(pool.waiting for pool in of_it), int(paused.holds(name)),
        ))  # fmt: skip
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
    made = [(name, value, default, "yes" if changeable else "no") for name, value, default, changeable in rows]
    return _table({"key": "text", "value": "text", "default": "text", "changeable": "text"}, made)


def setting(name: str, value: str) -> Table:
    return _table({name: "text"}, [(value,)])
