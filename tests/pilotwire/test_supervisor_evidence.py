"""Evidence over the whole way, with no model at all: a real proxy, trials, approval, and a planner killed."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from planner.memory.records import ArmRecord, State
from planner.memory.store import open_store
from tests.conftest import StartProxy
from tests.pilotwire.test_supervisor_planner import planners, ready
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

# PostgreSQL thinks that one row is left of the first table, and looks into the second's index 150 times.
SCHEMA = """
CREATE TABLE few AS SELECT g AS id, g % 20 AS kind FROM generate_series(1, 150) g;
CREATE TABLE many AS SELECT g AS id, g % 20 AS kind FROM generate_series(1, 20000) g;
CREATE INDEX ON many (kind);
VACUUM ANALYZE few, many;
"""
QUERY = """SELECT count(*) FROM few f JOIN many m ON m.kind = f.kind AND m.id = f.id
    WHERE f.kind * 0 = 0 AND f.id * 0 = 0 AND f.kind - f.kind = 0"""
ROUNDS = 120


@pytest.fixture(scope="module")
def shop(postgres: Postgres) -> Iterator[str]:
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS evidence")
        connection.execute("CREATE DATABASE evidence")
    with psycopg.connect(postgres.dsn("evidence"), autocommit=True) as connection:
        for statement in SCHEMA.strip().split(";\n"):
            connection.execute(statement.rstrip(";"))
    yield postgres.dsn("evidence")
    with psycopg.connect(postgres.dsn(), autocommit=True) as connection:
        connection.execute("DROP DATABASE evidence WITH (FORCE)")


def run(target: Proxy, until: Callable[[], bool], rounds: int = ROUNDS, pause: float = 0.0) -> list[float]:
    """The milliseconds of each execution until something has happened."""
    took = []
    with psycopg.connect(target.dsn("evidence"), autocommit=True) as connection:
        for _ in range(rounds):
            begun = time.perf_counter()
            assert connection.execute(QUERY).fetchone() == (150,)
            took.append((time.perf_counter() - begun) * 1000)
            if until():
                break
            time.sleep(pause)
    return took


def approved(store: str) -> list[ArmRecord]:
    with open_store(store) as opened:
        return opened.arms(state=State.APPROVED)


def test_an_arm_is_tried_approved_and_replayed_after_a_kill(proxy: StartProxy, shop: str, tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/store.db"
    target = proxy(upstream=shop, evidence="measured", store=store, steer_min_calls=2, steer_min_joins=1)
    wait_until(lambda: ready(target), 20)
    unsteered = run(target, lambda: False, rounds=3)
    run(target, lambda: bool(approved(store)), pause=0.02)
    arms = approved(store)
    assert arms, target.log_text()
    best = max(arms, key=lambda arm: arm.measured_gain)
    assert best.measured_gain > 1.2
    assert best.advice.settings
    with open_store(store) as opened:
        lines = [line for line in opened.ledger(key=best.key) if line.kind == "state" and line.arm == best.arm]
        assert [line.after for line in lines] == ["approved", "trial"]
    time.sleep(1.0)
    (victim,) = planners(target)
    os.kill(victim, signal.SIGKILL)
    wait_until(lambda: planners(target) not in ([], [victim]) and ready(target), 20)
    run(target, lambda: False, rounds=5, pause=0.3)
    steered = run(target, lambda: False, rounds=15)
    assert statistics.median(steered) < statistics.median(unsteered) / 1.2
