"""A store with some queries in it, as weeks of steering would leave it."""

from __future__ import annotations

import time
from pathlib import Path

from planner.memory.breaker import OF_A_MODEL, Breakers
from planner.memory.records import (
    ArmRecord,
    Execution,
    HistoryPoint,
    LedgerEntry,
    QueryRecord,
    State,
    StoredAdvice,
    query_key,
    template_key,
)
from planner.memory.store import Store, open_store

ADVICE = StoredAdvice(settings=(("enable_hashjoin", "off"),))


def switch_off(store: Store, model: str, *, in_use: bool = False) -> None:
    """Opens a circuit breaker, as losses do: that of a model's trials, or of its use (and that over all steering)."""
    breakers = Breakers()
    for _ in range(OF_A_MODEL.bad):
        breakers.count(model, time.time(), good=False, in_use=in_use)
    store.save(guards=breakers.changed())


def remember(
    path: Path, statements: dict[str, tuple[State, float, float]], database: str, *, literals: bool = True
) -> dict[str, str]:
    """A SQLite store at ``path``; ``statements`` are texts with the state of their arm, the plain and the steered time.
    Their keys by text."""
    now = time.time()
    queries, arms, ledger, runs = [], [], [], []
    keys = {}
    for number, (text, (state, plain, steered)) in enumerate(statements.items()):
        fingerprint = f"{number + 1:016x}"
        key = keys[text] = query_key(database, "public", text)
        baseline = tuple(plain * (1 + step / 100) for step in range(10))
        latencies = tuple(steered * (1 + step / 100) for step in range(10))
        queries.append(
            QueryRecord(
                key=key, template=template_key(database, "public", fingerprint), database=database,
                search_path="public", fingerprint=fingerprint, text=text, first_seen=now - 9000,
                last_seen=now - number, calls=100 - number, total_ms=100 * plain, baseline=baseline,
                updated=now - number,
            )
        )  # fmt: skip
        arms.append(
            ArmRecord(
                key=key, arm="no_hashjoin", state=state, advice=ADVICE, latencies=latencies, baseline=baseline, runs=10,
                measured_gain=plain / steered, why="measured", updated=now - number,
            )
        )  # fmt: skip
        ledger.append(
            LedgerEntry(at=now - number, kind="state", key=key, database=database, fingerprint=fingerprint,
                        arm="no_hashjoin", before="trial", after=str(state), why="measured")
        )  # fmt: skip
        for step in range(6):
            steered_run = step % 2 == 0
            runs.append(
                Execution(at=now - 600 + step * 60, database=database, fingerprint=fingerprint, key=key,
                          took_ms=steered if steered_run else plain, decision="steered" if steered_run else "control",
                          arm="no_hashjoin" if steered_run else "", rows=1)
            )  # fmt: skip
    history = [
        HistoryPoint(at=now - 300 * step, model="cardinality-3", metric="statement_latency", seconds=300, count=50,
                     p50=40, p95=80 + step, p99=120)
        for step in range(1, 12)
    ]  # fmt: skip
    with open_store(str(path), literals=literals) as store:
        store.save(queries=queries, arms=arms, ledger=ledger, executions=runs, history=history)
    return keys
