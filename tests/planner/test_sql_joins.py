"""Outer joins as the server itself plans them: how many stay outer, and which relations inner joins alone connect."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest

from planner.graph import JoinKind
from planner.sql import read
from tests.support.postgres import Postgres

TABLES = "abcde"
QUERIES = 150


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    name = postgres.create_database()
    postgres.sql(
        "\n".join(
            f"CREATE TABLE {table} AS SELECT i % 7 AS x, i % 5 AS y, i AS z FROM generate_series(1, 50) i;"
            for table in TABLES
        ),
        name,
    )
    return name


class Queries:
    """Random trees of joins, each on one equality and perhaps something that is no edge; each table once."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def query(self) -> str:
        tables = self.random.sample(TABLES, self.random.randint(2, len(TABLES)))
        where = " AND ".join(self.filter(tables) for _ in range(self.random.randint(0, 2)))
        return f"SELECT * FROM {self.tree(tables)}" + (f" WHERE {where}" if where else "")

    def tree(self, tables: list[str]) -> str:
        if len(tables) == 1:
            return tables[0]
        cut = self.random.randint(1, len(tables) - 1)
        left, right = tables[:cut], tables[cut:]
        kind = self.random.choice(["JOIN", "LEFT JOIN", "LEFT JOIN", "RIGHT JOIN", "FULL JOIN"])
        one, other = self.random.choice(left), self.random.choice(right)
        condition = f"{one}.{self.letter()} = {other}.{self.letter()}"
        if kind != "FULL JOIN" and self.random.random() < 0.4:
            condition += f" AND {self.filter(tables)}"
        return f"({self.tree(left)} {kind} {self.tree(right)} ON {condition})"

    def letter(self) -> str:
        return self.random.choice("xyz")

    def filter(self, tables: list[str]) -> str:
        column = f"{self.random.choice(tables)}.{self.letter()}"
        other = f"{self.random.choice(tables)}.{self.letter()}"
        return self.random.choice(
            [
                f"{column} > 3",
                f"{column} IN (1, 2, 3)",
                f"{column} IS NOT NULL",
                f"coalesce({column}, 0) = 1",
                f"({column} < 4 OR {other} = 2)",
                f"({column} < 4 OR {other} IS NULL)",
                f"NOT {column} BETWEEN 2 AND 3",
                f"{column} + 1 < {other}",
                f"{column} IS DISTINCT FROM {other}",
            ]
        )


def joins(plan: dict[str, Any]) -> Counter[str]:
    found: Counter[str] = Counter()
    kind = plan.get("Join Type")
    if kind is not None:
        found[kind.removeprefix("Right ") if kind != "Right" else "Left"] += 1
    for child in plan.get("Plans", ()):
        found += joins(child)
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_as_many_outer_joins_stay_as_in_the_servers_plan(seed: int, postgres: Postgres, database: str) -> None:
    queries = Queries(seed)
    texts = [queries.query() for _ in range(QUERIES)]
    plans = postgres.sql("SET geqo = off;" + "".join(f"EXPLAIN (FORMAT JSON) {text};\n" for text in texts), database)
    kinds: Counter[str] = Counter()
    for text, plan in zip(texts, plans.split("\n]\n"), strict=True):
        found = joins(json.loads(plan.rstrip().removesuffix("]") + "]")[0]["Plan"])
        graph = read(text).graph
        assert graph is not None
        block = graph.blocks[0]
        edges = Counter(edge.kind for edge in block.edges)
        assert edges[JoinKind.LEFT] == found["Left"] + found["Anti"], text
        assert edges[JoinKind.FULL] == found["Full"], text
        kinds += found
        for edge in block.edges:
            one, other = (block.relations[side.relation].island for side in (edge.left, edge.right))
            assert (one == other) == (edge.kind is JoinKind.INNER), text
    assert min(kinds["Left"], kinds["Full"], kinds["Inner"]) > 20, kinds


def test_the_servers_filters_are_those_of_the_scan(postgres: Postgres, database: str) -> None:
    """A condition of ON on the nullable side alone, and a constant that goes through the join, filter its scan."""
    text = "SELECT * FROM a LEFT JOIN b ON a.x = b.x AND b.y = 2 AND a.z = 3 WHERE a.x = 1 AND b.z IS NULL"
    graph = read(text).graph
    assert graph is not None
    block = graph.blocks[0]
    assert len(block.filters(1)) == 1
    assert len(block.outer_predicates) == 2
    plan = postgres.sql(f"SET enable_hashjoin = off; EXPLAIN {text}", database)
    assert "((y = 2) AND (x = 1))" in plan
