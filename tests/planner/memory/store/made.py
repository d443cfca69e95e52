"""Records with something in every field."""

from __future__ import annotations

from planner.memory.records import (
    ArmRecord,
    Execution,
    GuardRecord,
    HistoryPoint,
    LedgerEntry,
    QueryRecord,
    State,
    StoredAdvice,
    query_key,
    template_key,
)

NOW = 1_700_000_000.0
ADVICE = StoredAdvice(rows=((("c", "o"), 12.5),), settings=(("enable_hashjoin", "off"),), relations=2, join_pairs=1.0)
TEMPLATE = template_key("shop", "public", "f1")


def key(number: int) -> str:
    return query_key("shop", "public", f"SELECT {number}")


def query(number: int = 1, **fields: object) -> QueryRecord:
    values: dict[str, object] = {
        "key": key(number), "template": TEMPLATE, "database": "shop", "search_path": "public", "fingerprint": "f1",
        "text": f"SELECT * FROM orders WHERE id = {number}", "params": '["7"]', "first_seen": NOW, "last_seen": NOW,
        "calls": 3, "total_ms": 30.0 * number, "baseline": (9.0, 10.0, 11.0), "updated": NOW,
    }  # fmt: skip
    return QueryRecord(**{**values, **fields})  # type: ignore[arg-type]


def arm(number: int = 1, name: str = "no_hashjoin", **fields: object) -> ArmRecord:
    values: dict[str, object] = {
        "key": key(number), "arm": name, "state": State.TRIAL, "advice": ADVICE, "dialect": "pg_hint_plan",
        "model": "shop-1.0.0", "latencies": (4.0, 5.0), "baseline": (9.0, 10.0), "runs": 2, "losses": 1,
        "expected_gain": 2.5, "measured_gain": 2.0, "schema_hash": "ab", "server_version": 180001, "drift": "cd",
        "why": "because", "updated": NOW, "moments": (NOW - 2.0, NOW - 1.0), "since": NOW - 60.0,
    }  # fmt: skip
    return ArmRecord(**{**values, **fields})  # type: ignore[arg-type]


def line(number: int = 1, **fields: object) -> LedgerEntry:
    values: dict[str, object] = {
        "at": NOW + number, "kind": "state", "key": key(number), "database": "shop", "fingerprint": "f1",
        "arm": "no_hashjoin", "advice": ADVICE, "model": "shop-1.0.0", "before": "candidate", "after": "trial",
        "expected_gain": 2.5, "measured_gain": 2.0, "took_ms": 4.5, "why": "because", "text": f"SELECT {number}",
        "scope": "query",
    }  # fmt: skip
    return LedgerEntry(**{**values, **fields})  # type: ignore[arg-type]


def execution(number: int = 1, **fields: object) -> Execution:
    values: dict[str, object] = {
        "at": NOW + number, "database": "shop", "user": "app", "application": "psql", "search_path": "public",
        "fingerprint": "f1", "key": key(number), "took_ms": 4.5, "rows": 7, "estimated_cost": 3.5,
        "decision": "steered",
        "arm": "no_hashjoin", "model": "shop-1.0.0", "failed": "57014", "text": f"SELECT {number}", "params": '["7"]',
    }  # fmt: skip
    return Execution(**{**values, **fields})  # type: ignore[arg-type]


def point(number: int = 1, **fields: object) -> HistoryPoint:
    values: dict[str, object] = {
        "at": NOW + number, "model": "shop-1.0.0", "metric": "statement_latency", "seconds": 300.0, "count": 5,
        "p50": 1.0, "p95": 2.0, "p99": 3.0,
    }  # fmt: skip
    return HistoryPoint(**{**values, **fields})  # type: ignore[arg-type]


def guard(number: int = 1, **fields: object) -> GuardRecord:
    values: dict[str, object] = {"name": f"breaker trials m-{number}", "content": "{}", "updated": NOW}
    return GuardRecord(**{**values, **fields})  # type: ignore[arg-type]
