"""Statements from pg_stat_statements: those that take the most time in all, with likely values in place of ``$1``.

The extension keeps no values. Each statement is taken a few times with different ones; see
`training.sources.parameters`.
"""

from __future__ import annotations

from typing import Any, Final

import asyncpg

from planner.snapshot import Snapshot
from training.errors import TrainingError
from training.queries import OWN
from training.sources import Told, take
from training.sources.parameters import variants
from training.training_set import Statement

PG_STAT_STATEMENTS: Final = "pg_stat_statements"
_WHERE: Final = """
SELECT quote_ident(n.nspname) FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'pg_stat_statements'"""
_MOST: Final = """
SELECT query, sum(calls)::bigint AS calls, sum(total_exec_time)::float8 AS total_ms, sum(rows)::float8 AS rows
FROM {schema}.pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query IS NOT NULL
GROUP BY query ORDER BY total_ms DESC, query LIMIT $1"""


async def read_statements(
    connection: asyncpg.Connection[asyncpg.Record],
    snapshot: Snapshot,
    search_path: tuple[str, ...],
    *,
    limit: int,
    seed: int = 0,
) -> Told:
    """The ``limit`` statements with the most time. Raises TrainingError when the extension is not there."""
    try:
        schema = await connection.fetchval(_WHERE)
        if schema is None:
            raise TrainingError(
                "pg_stat_statements is not installed in this database: CREATE EXTENSION pg_stat_statements, or name a "
                "file of queries"
            )
        rows: list[Any] = await connection.fetch(_MOST.format(schema=schema), limit)
    except asyncpg.PostgresError as error:
        raise TrainingError(f"pg_stat_statements cannot be read: {' '.join(str(error).split())}") from None
    told = Told()
    for row in rows:
        text = row["query"]
        if text == "<insufficient privilege>":
            told.leave_out(text, "the user may not see it (grant pg_read_all_stats)")
            continue
        if OWN in text:
            told.left_out["counted by pilotwire itself"] += 1
            continue
        calls = max(int(row["calls"]), 1)
        texts, reason = variants(text, snapshot, search_path, seed=seed)
        if not texts:
            told.leave_out(text, reason)
        for filled in texts:
            statement = Statement(
                filled, PG_STAT_STATEMENTS, calls=calls, total_ms=row["total_ms"], rows=row["rows"] / calls
            )
            if not take(told, statement):
                break
    return told
