"""Which statements a retraining learns from, and which it is judged by."""

from __future__ import annotations

import json

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.records import Execution
from training.queries import Query
from training.trainer.workload import MOST, divide, statements, with_values


def seen(text: str, params: str = "", failed: str = "") -> Execution:
    return Execution(at=0.0, database="shop", text=text, params=params, failed=failed)


def test_statements_are_those_that_succeeded_each_once_in_order() -> None:
    found = statements(
        [
            seen("SELECT 1"),
            seen("SELECT  1;"),
            seen(""),
            seen("SELECT bad", failed="42703"),
            seen("SELECT $1", '["7"]'),
            seen("SELECT $2", '["7"]'),
            seen("SELECT 2"),
        ]
    )
    assert found == ["SELECT 1", "SELECT '7'", "SELECT 2"]
    assert statements(seen(f"SELECT {number}") for number in range(MOST + 10))[0] == "SELECT 10"


@pytest.mark.parametrize(
    ("text", "params", "expected"),
    [
        ("SELECT $1::int + $2", '["1", "2"]', "SELECT '1'::int + '2'"),
        ("SELECT $1, '$1', $10", json.dumps([str(n) for n in range(1, 11)]), "SELECT '1', '$1', '10'"),
        ("SELECT $1", "[null]", "SELECT NULL"),
        ("SELECT 'é', $1", '["ü"]', "SELECT 'é', 'ü'"),
        ("SELECT $$a$$, $1", '["x"]', "SELECT $$a$$, 'x'"),
        ("SELECT $1", "", ""),
        ("SELECT $1", "{}", ""),
        ("SELECT $1", "[", ""),
        ("SELECT 'open $1", '["1"]', ""),
        ("SELECT 1", "", "SELECT 1"),
    ],
)
def test_values_take_the_place_of_parameters(text: str, params: str, expected: str) -> None:
    assert with_values(text, params) == expected


async def test_literals_mean_the_value_whatever_is_in_it(shop_dsn: str) -> None:
    values = ["it's", "back\\slash \\n", "$1", "'; DROP TABLE orders; --", "zwölf", "", " "]
    connection = await asyncpg.connect(shop_dsn)
    try:
        for value in values:
            text = with_values("SELECT $1::text", json.dumps([value]))
            assert await connection.fetchval(text) == value
    finally:
        await connection.close()


@given(st.lists(st.integers(0, 500), unique=True, max_size=60), st.lists(st.integers(400, 900), max_size=60))
def test_the_latest_are_held_out_and_nothing_is_in_both(recent: list[int], filed: list[int]) -> None:
    texts = [f"SELECT {number}" for number in recent]
    found = divide(texts, [Query(1, f"SELECT {number}") for number in filed], 0.25)
    trained = [query.text for query in found.train.queries]
    held = [query.text for query in found.held_out.queries]
    assert not set(trained) & set(held)
    assert set(trained) | set(held) == set(texts) | {f"SELECT {number}" for number in filed}
    assert len(trained) + len(held) == len(set(recent) | set(filed))
    assert held[: found.recent] == texts[len(texts) - found.recent :]
    assert abs(found.recent - len(texts) / 4) <= 0.5


def test_of_a_file_the_same_statements_are_held_out_each_time() -> None:
    filed = [Query(number, f"SELECT {number}") for number in range(400)]
    first = divide([], filed, 0.25).held_out.queries
    second = divide([], filed[::-1], 0.25).held_out.queries
    assert {query.text for query in first} == {query.text for query in second}
    assert 60 < len(first) < 140
