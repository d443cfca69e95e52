"""The store's tables, as SQLAlchemy Core sees them; the migrations create them.

One column for each field of the records in `planner.memory.records`, under the same name, so that moving between the
two is mechanical. Lists and advice are JSON text: the same in SQLite and PostgreSQL, and never searched in.
``revision`` counts the store's changes of queries, arms and guards: every transaction that changes any gets the next
number under a lock, so that numbers become visible in order and a reader that remembers one misses nothing.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text

METADATA: Final = MetaData()
# SQLite numbers rows by itself only where the type is exactly INTEGER.
_ID: Final = BigInteger().with_variant(Integer, "sqlite")


def _text(name: str, length: int | None = None) -> Column[str]:
    return Column(name, Text if length is None else String(length), nullable=False)


def _float(name: str) -> Column[float]:
    return Column(name, Float(53), nullable=False)


def _int(name: str) -> Column[int]:
    return Column(name, BigInteger, nullable=False)


def _bool(name: str) -> Column[bool]:
    return Column(name, Boolean(create_constraint=False), nullable=False)


QUERIES: Final = Table(
    "queries", METADATA,
    Column("key", String(64), primary_key=True), _text("template", 64), _text("database"), _text("search_path"),
    _text("fingerprint"), _text("text"), _text("params"), _float("first_seen"), _float("last_seen"), _int("calls"),
    _float("total_ms"), _text("baseline"), _bool("opted_out"), _text("actor"), _float("updated"), _text("shape"),
    _int("revision"), _bool("forgotten"),
    Index("queries_by_revision", "revision"), Index("queries_by_total", "total_ms"),
    Index("queries_by_template", "template"), Index("queries_by_last_seen", "last_seen"),
)  # fmt: skip
ARMS: Final = Table(
    "arms", METADATA,
    Column("key", String(64), primary_key=True), Column("arm", String(200), primary_key=True), _text("state", 20),
    _text("advice"), _text("dialect"), _text("model"), _text("latencies"), _text("baseline"), _int("runs"),
    _int("losses"), _float("expected_gain"), _float("measured_gain"), _text("schema_hash"), _int("server_version"),
    _text("drift"), _text("why"), _text("actor"), _float("updated"), _int("revision"), _text("moments"),
    _float("since"),
    Index("arms_by_revision", "revision"), Index("arms_by_state", "state"),
)  # fmt: skip
LEDGER: Final = Table(
    "ledger", METADATA,
    Column("id", _ID, primary_key=True, autoincrement=True), Column("uid", String(64), nullable=False, unique=True),
    _float("at"), _text("kind", 40), _text("key", 64), _text("database"), _text("fingerprint"), _text("arm"),
    _text("advice"), _text("model"), _text("before"), _text("after"), _float("expected_gain"),
    _float("measured_gain"), _float("took_ms"), _text("actor"), _text("why"), _text("text"), _text("scope", 20),
    Index("ledger_by_time", "at"), Index("ledger_by_key", "key", "id"), Index("ledger_by_kind", "kind", "id"),
    sqlite_autoincrement=True,
)  # fmt: skip
EXECUTIONS: Final = Table(
    "query_metrics", METADATA,
    Column("id", _ID, primary_key=True, autoincrement=True), Column("uid", String(64), nullable=False, unique=True),
    _float("at"), _text("database"), _text("user"), _text("application"), _text("search_path"), _text("fingerprint"),
    _text("key", 64), _float("took_ms"), _int("rows"), _float("estimated_cost"), _text("decision"), _text("arm"),
    _text("model"), _text("failed"), _text("text"), _text("params"),
    Index("query_metrics_by_time", "at"), Index("query_metrics_by_fingerprint", "fingerprint", "at"),
    sqlite_autoincrement=True,
)  # fmt: skip
HISTORY: Final = Table(
    "metric_history", METADATA,
    Column("at", Float(53), primary_key=True), Column("model", String(300), primary_key=True),
    Column("metric", String(100), primary_key=True), _float("seconds"), _int("count"), _float("p50"), _float("p95"),
    _float("p99"),
    Index("metric_history_by_metric", "metric", "at"),
)  # fmt: skip
GUARDS: Final = Table(
    "guards", METADATA,
    Column("name", String(400), primary_key=True), _text("content"), _float("updated"), _int("revision"),
    Index("guards_by_revision", "revision"),
)  # fmt: skip
INFO: Final = Table("store_info", METADATA, Column("name", String(40), primary_key=True), _text("value"))
"""``salt``: what literals are hashed with, so that equal ones are seen to be equal in this store only."""
REVISION: Final = Table(
    "store_revision", METADATA, Column("id", Integer, primary_key=True, autoincrement=False), _int("value")
)
"""One row, the revision given last; it begins at the clock's milliseconds, so that a store put in place of another one
is ahead of every revision of that."""
VERSION_TABLE: Final = "pilotwire_version"
"""Alembic's, under a name of its own: the database may be one that others migrate too."""
