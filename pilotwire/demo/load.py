"""Putting the demo's rows into a database: COPY while the next chunk is made, then keys, indexes, statistics.

A marker in the database's comment says what is in it, written last: a load that was interrupted is done again, one that
finished is kept for the next start.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Final

import asyncpg
import numpy as np

from pilotwire.demo import schema
from pilotwire.demo.data import Array, Columns
from pilotwire.demo.sales import generate

FORMAT: Final = 1
"""Grows when the generator or the schema changes, so that an older database is made anew."""
CHUNK: Final = 20_000
MONEY: Final = frozenset({"price", "cost", "total", "unit_price", "discount", "amount", "refund"})

Progress = Callable[[str, float], None]
"""Told what is being done and which share of all the work is done, from 0 to 1."""


def marker(seed: int, scale: float) -> str:
    """What the database's comment says when it holds this very data."""
    return f"pilotwire demo, format {FORMAT}, seed {seed}, scale {scale:g}"


def copy_text(columns: Columns, chunk: int = CHUNK) -> Iterator[bytes]:
    """The rows in COPY's text format, some thousand at a time. About a microsecond a row."""
    texts = [_as_texts(name, values) for name, values in columns.items()]
    size = len(texts[0][1])
    line = "\t".join(form for form, _ in texts) + "\n"
    for start in range(0, size, chunk):
        rows = zip(*(values[start : start + chunk].tolist() for _, values in texts), strict=True)
        yield "".join(map(line.__mod__, rows)).encode()


def _as_texts(name: str, values: Array) -> tuple[str, Array]:
    r"""A % format and the values for it; ``\N`` stands for NULL."""
    if values.dtype.kind == "M":
        null = np.isnat(values)
        text = np.datetime_as_string(values, unit="D" if name.endswith("_on") else "s")
        return "%s", np.where(null, "\\N", text) if null.any() else text
    if values.dtype.kind == "f":
        if name in MONEY:
            return "%.2f", values
        null = np.isnan(values)
        return "%s", np.where(null, "\\N", np.char.mod("%.1f", values))
    if values.dtype.kind == "i" and (values < 0).any():
        return "%s", np.where(values < 0, "\\N", values.astype(np.str_))
    return ("%d" if values.dtype.kind == "i" else "%s"), values


async def is_loaded(dsn: str, seed: int, scale: float) -> bool:
    """Whether the database at `dsn` holds this very data, finished."""
    connection = await asyncpg.connect(dsn, ssl=False)
    try:
        comment = await connection.fetchval(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()"
        )
        return bool(comment == marker(seed, scale))
    finally:
        await connection.close()


async def load(dsn: str, seed: int, scale: float, progress: Progress) -> int:
    """Replace the demo's tables in the database at `dsn`; returns the number of rows. asyncpg's errors pass through."""
    progress("drawing the rows", 0.0)
    tables = await asyncio.to_thread(generate, seed, scale)
    total = sum(len(columns["id"] if "id" in columns else columns["order_id"]) for columns in tables.values())
    connection, second = await asyncpg.connect(dsn, ssl=False), await asyncpg.connect(dsn, ssl=False)
    try:
        for each in (connection, second):
            await each.execute("SET client_min_messages = warning; SET maintenance_work_mem = '128MB'")
            await each.execute("SET synchronous_commit = off")
        await connection.execute(f"COMMENT ON DATABASE {await _database(connection)} IS NULL")
        for table in reversed(tables):
            await connection.execute(f"DROP TABLE IF EXISTS {table} CASCADE")
        await connection.execute(schema.TABLES)
        await _fill(connection, second, tables, total, progress)
        progress("checking foreign keys", 0.82)
        for statement in schema.references():
            await connection.execute(statement)
        progress("gathering statistics", 0.93)
        await connection.execute("VACUUM (ANALYZE)")
        await connection.execute(f"COMMENT ON DATABASE {await _database(connection)} IS '{marker(seed, scale)}'")
        progress("loaded", 1.0)
    finally:
        await connection.close()
        await second.close()
    return total


async def _fill(
    connection: asyncpg.Connection,
    second: asyncpg.Connection,
    tables: Mapping[str, Columns],
    total: int,
    progress: Progress,
) -> None:
    """COPY one table after the other; the second connection builds a table's indexes while the next one is copied."""
    done = 0
    indexing: asyncio.Task[None] | None = None
    for table, columns in tables.items():

        async def chunks(columns: Columns = columns, table: str = table) -> AsyncIterator[bytes]:
            nonlocal done
            for chunk in copy_text(columns):
                yield chunk
                done += chunk.count(b"\n")
                progress(f"copying {table}", 0.1 + 0.65 * done / total)

        await connection.copy_to_table(table, source=chunks(), columns=list(columns))
        if indexing is not None:
            await indexing
        indexing = asyncio.ensure_future(_finish(second, table))
    progress("building indexes", 0.76)
    if indexing is not None:
        await indexing


async def _finish(connection: asyncpg.Connection, table: str) -> None:
    for statement in schema.finishing(table):
        await connection.execute(statement)


async def _database(connection: asyncpg.Connection) -> Any:
    return await connection.fetchval("SELECT quote_ident(current_database())")
