"""The arithmetic of the demo and of the steering benchmark, and turns taken on a real connection."""

from __future__ import annotations

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotwire.demo.measure import interleave
from tests.support.postgres import Postgres
from training.evaluate.measure import percentile, summarise

times = st.floats(0.01, 1e5)


def test_what_many_statements_come_to() -> None:
    found = summarise([(100.0, 50.0), (1000.0, 500.0), (10.0, 22.0), (4.0, 4.9), (2000.0, 2000.0)], timeouts=1)
    assert (found.plain_ms, found.statements, found.timeouts) == (3114.0, 5, 1)
    assert found.total == pytest.approx(3114 / 2576.9)
    assert found.total_without_two == pytest.approx(114 / 76.9)
    assert found.geometric_mean == pytest.approx((2 * 2 * 10 / 22 * 4 / 4.9) ** 0.2)
    # 4 ms to 4.9 ms is within what is not counted.
    assert (found.over_1_1, found.over_2, found.worst) == (1, 1, 2.2)
    assert found.percentiles["p50"] == (100.0, 50.0)


@given(st.lists(st.tuples(times, times), min_size=1, max_size=60))
def test_summaries_agree_with_themselves(pairs: list[tuple[float, float]]) -> None:
    found, turned = summarise(pairs), summarise([(after, before) for before, after in pairs])
    assert found.geometric_mean * turned.geometric_mean == pytest.approx(1)
    assert found.total * turned.total == pytest.approx(1)
    assert found.worst >= 1
    assert found.over_2 <= found.over_1_1 <= len(pairs)
    assert min(pair[0] for pair in pairs) <= found.percentiles["p95"][0] <= max(pair[0] for pair in pairs)


@given(st.lists(times, min_size=1, max_size=50), st.floats(0, 100))
def test_percentiles_are_those_of_numpy(values: list[float], at: float) -> None:
    import numpy as np

    assert percentile(values, at) == pytest.approx(float(np.percentile(values, at)))


async def test_kinds_take_turns_and_a_time_limit_counts_as_the_limit(postgres: Postgres) -> None:
    connection = await asyncpg.connect(postgres.dsn(), ssl=False)
    try:
        await connection.execute(
            "SET statement_timeout = 100; CREATE TEMP SEQUENCE turn; CREATE TEMP TABLE log (n text)"
        )

        def noting(kind: str) -> str:
            return f"INSERT INTO log SELECT '{kind}' || nextval('turn')"

        kinds = {
            "one": (connection, noting("one")),
            "two": (connection, noting("two")),
            "slow": (connection, "SELECT pg_sleep(5)"),
        }
        found = await interleave(kinds, 2, 100.0)
        order = [row[0][:3] for row in await connection.fetch("SELECT n FROM log ORDER BY substr(n, 4)::int")]
    finally:
        await connection.close()
    assert order == ["one", "two", "one", "two", "two", "one"]
    assert found["one"].tag == "INSERT 0 1"
    assert len(found["one"].times) == 2
    assert found["slow"].times == [100.0, 100.0]
    assert (found["slow"].timeouts, found["slow"].tag) == (2, "")
    assert found["one"].timeouts == 0
