"""Which blocks of a statement the server plans together, as its own error of an ambiguous name tells."""

from __future__ import annotations

import pytest

from planner.levels import levels
from planner.sql import read
from tests.support.postgres import Postgres

PAIR = "SELECT a.x FROM a JOIN b ON b.x = a.x"
QUERIES = [
    # Both of a level: the name b is ambiguous.
    (f"SELECT 1 FROM ({PAIR}) s JOIN b ON b.x = s.x", True),
    (f"WITH s AS ({PAIR}) SELECT 1 FROM s JOIN b ON b.x = s.x", True),
    (f"SELECT 1 FROM b JOIN c ON c.x = b.x WHERE EXISTS ({PAIR} WHERE a.y = c.y)", True),
    (f"SELECT 1 FROM b JOIN c ON c.x = b.x WHERE c.y IN ({PAIR})", True),
    (f"SELECT 1 FROM (SELECT * FROM ({PAIR}) t) s JOIN b ON b.x = s.x", True),
    # Of two levels.
    (f"SELECT 1 FROM ({PAIR} LIMIT 5) s JOIN b ON b.x = s.x", False),
    (f"SELECT 1 FROM ({PAIR} GROUP BY 1) s JOIN b ON b.x = s.x", False),
    ("SELECT 1 FROM (SELECT DISTINCT a.x FROM a JOIN b ON b.x = a.x) s JOIN b ON b.x = s.x", False),
    (f"SELECT ({PAIR} WHERE a.y = c.y LIMIT 1) FROM b JOIN c ON c.x = b.x", False),
    ("SELECT (SELECT max(a.x) FROM a JOIN b ON b.x = a.x) FROM b JOIN c ON c.x = b.x", False),
    (f"WITH s AS ({PAIR}) SELECT 1 FROM s, s t, b WHERE b.x = s.x AND t.x = b.x", False),
]


@pytest.fixture(scope="module")
def database(hinted_postgres: Postgres) -> str:
    name = hinted_postgres.create_database()
    hinted_postgres.sql("".join(f"CREATE TABLE {table} (x int, y int); " for table in "abc"), name)
    return name


@pytest.mark.parametrize(("query", "together"), QUERIES)
def test_blocks_of_one_level(query: str, together: bool, hinted_postgres: Postgres, database: str) -> None:
    graph = read(query).graph
    assert graph is not None
    found = levels(graph)
    of_b = [found[block.index] for block in graph.blocks for one in block.relations if one.alias == "b"]
    assert len(of_b) == 2
    assert (of_b[0] == of_b[1]) is together
    # pg_hint_plan drops hints with a name that is ambiguous in the level that it plans.
    plan = hinted_postgres.sql(
        "SET enable_hashjoin = off; SET enable_mergejoin = off; "
        f'/*+ Rows("b" "a" #777) Rows("b" "c" #777) */ EXPLAIN {query}',
        database,
    )
    assert ("rows=777" not in plan) is together
