"""What the proxy kept of the statements it saw."""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.memory.records import Execution
from planner.memory.store import open_store
from training.errors import TrainingError
from training.sources.proxy import read_store

JOINED = "SELECT count(*) FROM customers c JOIN orders o ON c.id = o.customer_id"


def seen(text: str, params: str = "", **more: object) -> Execution:
    values: dict[str, object] = {
        "at": 100.0,
        "database": "shop",
        "took_ms": 5.0,
        "rows": 1,
        "key": text + params,
        **more,
    }
    return Execution(text=text, params=params, **values)  # type: ignore[arg-type]


def test_statements_with_their_values(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    parameterised = f"{JOINED} WHERE o.status = $1 AND c.age > $2"
    with open_store(url, literals=True) as store:
        store.save(
            executions=[
                seen(JOINED, estimated_cost=12.0, decision="steered", model="shop-1.0.0"),
                seen(JOINED, took_ms=7.0, at=200.0),
                seen(parameterised, '["it\'s", null]'),
                seen(parameterised, "not json"),
                seen(parameterised, '["one"]'),
                seen("", at=150.0),
                seen(f"{JOINED} WHERE c.age = 1", failed="22012"),
                seen(f"{JOINED} WHERE c.age = 2", at=1.0),
                seen(f"{JOINED} WHERE c.age = 3", database="other"),
                seen("SELECT 1"),
            ]
        )
    told = read_store(url, "shop", since=50.0)
    first, second = sorted(told.statements, key=lambda one: -one.calls)
    assert (first.text, first.calls, first.total_ms, first.rows, first.seen) == (JOINED, 2, 12.0, 1.0, 200.0)
    assert second.text == f"{JOINED} WHERE o.status = 'it''s' AND c.age > NULL"
    assert told.left_out == {
        "its text is not kept (store_literals is off)": 1,
        "its values cannot be read": 2,
        "no join of tables": 1,
    }


def test_a_store_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="what the proxy saw cannot be read"):
        read_store(f"sqlite:///{tmp_path / 'none' / 'store.db'}", "shop")
    with pytest.raises(TrainingError, match="what the proxy saw cannot be read"):
        read_store("nonsense", "shop")
