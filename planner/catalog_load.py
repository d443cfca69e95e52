"""Reads what the planner must know of a database over an asyncpg connection: `load` makes a `Snapshot`.

A few set-based queries in one read-only transaction read definitions and statistics; then each table of some size gives
a sample of its rows, and each indexed column its present least and greatest value (the server looks at those too when
it estimates). Every statement has a time limit, every part a bound, and a table that cannot be read only lacks its
sample. The work between the answers is done in steps of about a millisecond, so that whoever shares the event loop is
not kept waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

import asyncpg
from pydantic import BaseModel, ConfigDict, Field

from planner import catalog_queries as queries
from planner.catalog_values import dependencies, n_distinct, present_rows, values
from planner.selectivity_values import Family, family
from planner.snapshot import (
    ColumnInfo,
    ColumnStatistics,
    CommonCombinations,
    ExtendedStatistics,
    ForeignKey,
    IndexInfo,
    Sample,
    Snapshot,
    TableInfo,
)

logger = logging.getLogger(__name__)

Connection: TypeAlias = Any
"""An asyncpg connection: the library has no types of its own."""
Row: TypeAlias = Any

_STEP_SECONDS: Final = 0.001
_WHOLE: Final = 1.5
"""A table of at most this many times the sample's rows is kept whole."""
_SCATTER: Final = 20
"""How many times the pages needed are visited in large tables: rows of one page resemble each other."""
_SCANNED_PAGES: Final = 4096
"""Up to this size (32 MB) every row has the same chance, above it only some pages are read."""
_LEAST_ROWS: Final = 200
_VALUE_OVERHEAD: Final = 24


class CatalogSettings(BaseModel):
    """How much is read of a database, and how often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample_rows: int = Field(default=2000, ge=0, le=100_000, description="rows kept in memory per table; 0: none")
    sample_bytes: int = Field(default=128 << 20, ge=0, description="memory for all samples together, roughly")
    value_characters: int = Field(default=256, ge=16, description="longer text is cut in samples")
    tables: int = Field(default=5000, ge=1, description="the largest tables that are known")
    statement_timeout: float = Field(default=10.0, gt=0, description="seconds for each statement")
    interval: float = Field(default=600.0, gt=0, description="seconds between refreshes")
    poll: float = Field(default=10.0, gt=0, description="seconds between looks at whether the schema changed")
    pause: float = Field(
        default=30.0, ge=0, description="least seconds between refreshes that no changed schema asks for"
    )
    changed_share: float = Field(default=0.1, gt=0, description="a refresh when this share of all rows was written")


class _Steps:
    """Hands the event loop over whenever a step has lasted long enough."""

    __slots__ = ("_since",)

    def __init__(self) -> None:
        self._since = time.perf_counter()

    async def pause(self) -> None:
        if time.perf_counter() - self._since > _STEP_SECONDS:
            await asyncio.sleep(0)
            self._since = time.perf_counter()


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def load(
    connection: Connection,
    *,
    sample_rows: int | None = None,
    settings: CatalogSettings | None = None,
    generation: int = 0,
    known: Snapshot | None = None,
) -> Snapshot:
    """The database as it is now. ``connection`` is an open asyncpg connection outside a transaction and nobody else's;
    whether pg_hint_plan is loaded is seen only by one that loaded nothing itself. ``sample_rows`` overrides the
    settings. ``known`` is an earlier snapshot of the same database, whose samples serve for tables that cannot be read
    in time. Raises asyncpg's errors and OSError when the definitions cannot be read."""
    settings = settings or CatalogSettings()
    if sample_rows is not None:
        settings = settings.model_copy(update={"sample_rows": sample_rows})
    timeout = f"{int(settings.statement_timeout * 1000)}ms"
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        await connection.fetch(queries.SETTINGS, timeout)
        answers = await _read(connection, settings)
    snapshot = await _assemble(answers, generation)
    return await _sampled(connection, snapshot, answers, settings, known)


async def _read(connection: Connection, settings: CatalogSettings) -> dict[str, list[Row]]:
    answers: dict[str, list[Row]] = {"database": await connection.fetch(queries.DATABASE)}
    relations = await connection.fetch(queries.RELATIONS, settings.tables)
    oids = [relation["oid"] for relation in relations]
    answers["relations"] = relations
    answers["system"] = await connection.fetch(queries.SYSTEM_RELATIONS)
    for name, text in (
        ("columns", queries.COLUMNS),
        ("indexes", queries.INDEXES),
        ("foreign_keys", queries.FOREIGN_KEYS),
        ("extended", queries.EXTENDED),
    ):
        answers[name] = await connection.fetch(text, oids)
    answers["inheritance"] = await connection.fetch(queries.INHERITANCE)
    answers["volatile"] = await connection.fetch(queries.VOLATILE)
    # Over a cursor: with a high statistics target these are many megabytes of text.
    schemas = sorted({relation["schema"] for relation in relations})
    tables = sorted({relation["name"] for relation in relations})
    answers["statistics"] = [row async for row in connection.cursor(queries.STATISTICS, schemas, tables, prefetch=50)]
    return answers


# ---------------------------------------------------------------------- definitions and statistics

_ByTable = dict[int, list[Row]]


def _grouped(rows: Iterable[Row]) -> _ByTable:
    groups: _ByTable = {}
    for row in rows:
        groups.setdefault(row["oid"], []).append(row)
    return groups


async def _assemble(answers: Mapping[str, list[Row]], generation: int) -> Snapshot:
    steps = _Steps()
    statistics: dict[tuple[str, str, str, bool], Row] = {}
    for row in answers["statistics"]:
        statistics[row["schema"], row["table"], row["column"], row["inherited"]] = row
    columns, indexes = _grouped(answers["columns"]), _grouped(answers["indexes"])
    foreign_keys, extended = _grouped(answers["foreign_keys"]), _grouped(answers["extended"])
    places = {row["oid"]: (row["schema"], row["name"]) for row in answers["relations"]}
    names = {oid: {row["number"]: row["name"] for row in rows} for oid, rows in columns.items()}
    rows_of, pages_of = _sizes(answers, columns)
    tables: dict[tuple[str, str], TableInfo] = {
        ("pg_catalog", row["name"]): TableInfo(row["oid"], "pg_catalog", row["name"], row["kind"], 0.0, 0)
        for row in answers["system"]
    }
    for relation in answers["relations"]:
        oid, place = relation["oid"], (relation["schema"], relation["name"])
        infos: dict[str, ColumnInfo] = {}
        inherited = relation["kind"] == "p" or relation["has_children"]
        for row in columns.get(oid, ()):
            found = statistics.get((*place, row["name"], inherited)) or statistics.get((*place, row["name"], False))
            infos[row["name"]] = ColumnInfo(
                row["name"], row["type"], row["number"], row["not_null"], _statistics(found, row["type"])
            )
            await steps.pause()
        tables[place] = TableInfo(
            oid,
            *place,
            kind=relation["kind"],
            rows=rows_of.get(oid, 0.0),
            pages=pages_of.get(oid, 0),
            columns=infos,
            indexes=tuple(_index(row, names.get(oid, {})) for row in indexes.get(oid, ())),
            extended=tuple(_extended(row, infos, names.get(oid, {})) for row in extended.get(oid, ())),
            row_security=relation["row_security"],
            temporary=relation["shadowed"],
            foreign_keys=tuple(
                key for row in foreign_keys.get(oid, ()) if (key := _foreign_key(row, places, names)) is not None
            ),
        )
    database = answers["database"][0]
    capabilities = {name for name in ("hint_plan", "plan_advice") if database[name]}
    return Snapshot(
        database=database["name"],
        server_version=database["version"],
        tables=tables,
        schema_hash=schema_hash(tables.values()),
        taken_at=time.time(),
        generation=generation,
        capabilities=frozenset(capabilities),
        default_search_path=tuple(database["path"]),
        volatile_functions=frozenset(row["name"] for row in answers["volatile"]),
    )


def schema_hash(tables: Iterable[TableInfo]) -> str:
    """SHA-256 over the sorted names and types of all columns of tables that are not the system's: the same wherever
    the same schema is, whatever its oids."""
    lines = sorted(
        "\t".join((table.schema, table.name, column.name, column.type))
        for table in tables
        if table.schema != "pg_catalog"
        for column in table.columns.values()
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _sizes(answers: Mapping[str, list[Row]], columns: _ByTable) -> tuple[dict[int, float], dict[int, int]]:
    """Rows and pages of each table now; those of a table with children or partitions are their sum."""
    own_rows: dict[int, float] = {}
    own_pages: dict[int, int] = {}
    for row in answers["relations"]:
        width = sum(column["width"] for column in columns.get(row["oid"], ()))
        pages = int(row["now_pages"])
        own_pages[row["oid"]] = pages
        if row["kind"] == "f":
            own_rows[row["oid"]] = max(row["reltuples"], 0.0)
        elif row["kind"] in {"r", "m"}:
            own_rows[row["oid"]] = present_rows(
                row["reltuples"], row["relpages"], pages, width, row["fill"], has_children=row["has_children"]
            )
    children: dict[int, list[int]] = {}
    for row in answers["inheritance"]:
        children.setdefault(row["parent"], []).append(row["child"])
    rows, pages_of = dict(own_rows), dict(own_pages)
    for parent, nearest in children.items():
        below, seen = list(nearest), {parent}
        while below:
            child = below.pop()
            if child in seen:
                continue
            seen.add(child)
            rows[parent] = rows.get(parent, 0.0) + own_rows.get(child, 0.0)
            pages_of[parent] = pages_of.get(parent, 0) + own_pages.get(child, 0)
            below += children.get(child, ())
    return rows, pages_of


def _statistics(row: Row | None, type_name: str) -> ColumnStatistics | None:
    if row is None:
        return None
    return ColumnStatistics(
        null_frac=row["null_frac"],
        n_distinct=row["n_distinct"],
        common_values=values(row["common"], type_name),
        common_freqs=tuple(row["frequencies"] or ()) if row["common"] else (),
        histogram=values(row["histogram"], type_name),
        correlation=row["correlation"] or 0.0,
        width=row["avg_width"],
    )


def _index(row: Row, names: Mapping[int, str]) -> IndexInfo:
    columns = tuple(names.get(number, "") for number in row["keys"])
    return IndexInfo(row["name"], columns, row["unique"], row["partial"])


def _extended(row: Row, columns: Mapping[str, ColumnInfo], names: Mapping[int, str]) -> ExtendedStatistics:
    own = tuple(names[number] for number in row["keys"] if number in names)
    common = None
    # With an expression among them the values come in an order that no column numbers tell.
    if row["common"] and not row["expressions"] and len(own) == len(row["keys"]):
        by_column = zip(own, zip(*row["common"], strict=True), strict=True)
        common = CommonCombinations(
            {name: values(texts, columns[name].type) for name, texts in by_column},
            tuple(row["frequencies"]),
            tuple(row["base_frequencies"]),
        )
    return ExtendedStatistics(
        own, n_distinct(row["n_distinct"], names), dependencies(row["dependencies"], names), common
    )


def _foreign_key(
    row: Row, places: Mapping[int, tuple[str, str]], names: Mapping[int, Mapping[int, str]]
) -> ForeignKey | None:
    target = places.get(row["target"])
    if target is None:
        return None
    own, other = names.get(row["oid"], {}), names.get(row["target"], {})
    return ForeignKey(
        tuple(own.get(number, "") for number in row["keys"]),
        target,
        tuple(other.get(number, "") for number in row["target_keys"]),
    )


# ---------------------------------------------------------------------- samples and present ends


async def _sampled(
    connection: Connection,
    snapshot: Snapshot,
    answers: Mapping[str, list[Row]],
    settings: CatalogSettings,
    known: Snapshot | None,
) -> Snapshot:
    readable = {row["oid"] for row in answers["relations"] if row["readable"]}
    sorted_columns: dict[int, set[int]] = {}
    for row in answers["indexes"]:
        if row["sorted"] and not row["partial"] and row["keys"]:
            sorted_columns.setdefault(row["oid"], set()).add(row["keys"][0])
    wanted = [table for table in snapshot.tables.values() if table.oid in readable and table.columns]
    rows = _rows_each(wanted, settings)
    left = settings.sample_bytes
    tables = dict(snapshot.tables)
    for table in wanted:
        take = rows if left > 0 else 0
        try:
            ends, sample = await _looked_at(connection, table, sorted_columns.get(table.oid, set()), take, settings)
        except (asyncpg.PostgresError, ValueError, OverflowError) as error:
            # Dropped meanwhile, locked, too slow, not ours to read.
            logger.info("no sample of a table: %s", type(error).__name__)
            before = known.tables.get((table.schema, table.name)) if known is not None else None
            if before is not None and before.sample is not None and before.columns.keys() == table.columns.keys():
                tables[table.schema, table.name] = replace(table, sample=before.sample)
            continue
        if sample is not None:
            left -= sample.size * sum(_width(table.columns[name], settings) for name in sample.columns)
        columns = {
            name: replace(column, least=ends[name][0], greatest=ends[name][1]) if name in ends else column
            for name, column in table.columns.items()
        }
        tables[table.schema, table.name] = replace(table, columns=columns, sample=sample)
    return replace(snapshot, tables=tables, derived={})


_Ends = dict[str, tuple[object, object]]


async def _looked_at(
    connection: Connection, table: TableInfo, numbers: set[int], rows: int, settings: CatalogSettings
) -> tuple[_Ends, Sample | None]:
    """Present ends and sample of one table, in a transaction of their own."""
    timeout = f"{int(settings.statement_timeout * 1000)}ms"
    for as_text in (False, True):
        try:
            async with connection.transaction(readonly=True):
                await connection.fetch(queries.SETTINGS, timeout)
                ends = await _present_ends(connection, table, numbers)
                return ends, await _sample(connection, table, rows, settings, as_text=as_text) if rows else None
        except OverflowError:
            if as_text:  # the first time round a date that Python has not
                raise
    raise AssertionError


def _width(column: ColumnInfo, settings: CatalogSettings) -> int:
    """About how many bytes a value takes here."""
    width = column.statistics.width if column.statistics is not None else 16
    return _VALUE_OVERHEAD + min(width, settings.value_characters)


def _judged(table: TableInfo, settings: CatalogSettings) -> list[ColumnInfo]:
    """The columns that conditions can be evaluated on: known types, and no documents."""
    return [
        column
        for column in table.columns.values()
        if family(column.type) is not Family.OTHER
        and (column.statistics is None or column.statistics.width <= 2 * settings.value_characters)
    ]


def _rows_each(tables: Sequence[TableInfo], settings: CatalogSettings) -> int:
    """How many rows each table may give so that all fit into the memory meant for them."""
    rows = settings.sample_rows
    if not rows:
        return 0
    needed = sum(
        min(table.rows, rows) * sum(_width(column, settings) for column in _judged(table, settings)) for table in tables
    )
    return rows if needed <= settings.sample_bytes else max(_LEAST_ROWS, int(rows * settings.sample_bytes / needed))


async def _present_ends(connection: Connection, table: TableInfo, numbers: set[int]) -> _Ends:
    """The least and greatest value of each column that leads an index (get_actual_variable_range, selfuncs.c)."""
    names = [
        column.name
        for column in table.columns.values()
        if column.number in numbers and column.statistics is not None and column.statistics.histogram
    ][:16]
    if not names or table.kind != "r":
        return {}
    place = f"{_quote(table.schema)}.{_quote(table.name)}"
    parts = ", ".join(f"min({_quote(name)})::text, max({_quote(name)})::text" for name in names)
    row = await connection.fetchrow(f"SELECT {parts} FROM ONLY {place}")  # noqa: S608 - names are quoted
    return {
        name: (least, greatest)
        for place_in_row, name in enumerate(names)
        for least, greatest in [values(row[2 * place_in_row : 2 * place_in_row + 2], table.columns[name].type)]
    }


def _sample_query(
    table: TableInfo, columns: Sequence[ColumnInfo], rows: int, settings: CatalogSettings, *, as_text: bool
) -> str:
    parts = []
    for column in columns:
        name, kind = _quote(column.name), family(column.type)
        if kind is Family.TEXT:
            name = f"left({name}::text, {settings.value_characters})"
        elif kind is Family.TIME and as_text:
            name = f"{name}::text"
        parts.append(name)
    text = f"SELECT {', '.join(parts)} FROM {_quote(table.schema)}.{_quote(table.name)}"  # noqa: S608
    if table.rows > rows * _WHOLE:
        percent = 100.0 * rows / table.rows
        if table.pages <= _SCANNED_PAGES or percent * _SCATTER >= 100:
            text += f" TABLESAMPLE BERNOULLI ({percent:.6f}) REPEATABLE (1)"
        else:
            text += f" TABLESAMPLE SYSTEM ({percent * _SCATTER:.6f}) REPEATABLE (1) WHERE random() < {1 / _SCATTER}"
    return f"{text} LIMIT {int(rows * _WHOLE)}"


async def _sample(
    connection: Connection, table: TableInfo, rows: int, settings: CatalogSettings, *, as_text: bool
) -> Sample | None:
    columns = _judged(table, settings)
    if not columns or table.rows <= 0:
        return None
    await connection.fetchval("SELECT setseed(0.5)")  # the same sample again while the table is the same
    found = await connection.fetch(_sample_query(table, columns, rows, settings, as_text=as_text))
    steps = _Steps()
    kept: dict[str, tuple[object, ...]] = {}
    for place, column in enumerate(columns):
        same: dict[object, object] = {}  # equal values share one object
        kept[column.name] = tuple(same.setdefault(value, value) for value in (row[place] for row in found))
        await steps.pause()
    return Sample(len(found), kept, min(1.0, len(found) / table.rows))
