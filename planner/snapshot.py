"""What the planner knows of a database at one moment: tables, columns, indexes, statistics, samples. Plain data.

`planner.catalog` reads it from the server; `planner.estimates` computes with it. A snapshot never changes: a refresh
makes a new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ColumnStatistics:
    """One row of pg_stats. Values are Python's own (int, float, Decimal, str, bool, date, datetime, ...) as the
    column's type asks; values of a type that is not understood stay text."""

    null_frac: float
    n_distinct: float  # as in pg_stats: above 0 a count, below 0 minus the fraction of the rows
    common_values: tuple[object, ...] = ()
    common_freqs: tuple[float, ...] = ()
    histogram: tuple[object, ...] = ()
    correlation: float = 0.0
    width: int = 0


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    name: str
    type: str  # format_type without modifiers: integer, text, timestamp with time zone ...
    number: int
    not_null: bool = False
    statistics: ColumnStatistics | None = None
    least: object = None  # the present smallest and largest value where an index tells them, else None
    greatest: object = None


@dataclass(frozen=True, slots=True)
class IndexInfo:
    name: str
    columns: tuple[str, ...]  # "" for an expression
    unique: bool = False
    partial: bool = False


@dataclass(frozen=True, slots=True)
class CommonCombinations:
    """Frequent combinations of values: ``values`` has each column's, one for each combination; ``base_freqs`` are the
    frequencies if the columns were independent."""

    values: Mapping[str, tuple[object, ...]]
    freqs: tuple[float, ...]
    base_freqs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class ExtendedStatistics:
    """``n_distinct`` maps sets of columns to counts (negative as in pg_stats), ``dependencies`` maps (columns, column)
    to degrees from 0 to 1."""

    columns: tuple[str, ...]
    n_distinct: Mapping[frozenset[str], float] = field(default_factory=dict)
    dependencies: Mapping[tuple[frozenset[str], str], float] = field(default_factory=dict)
    common: CommonCombinations | None = None


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """``columns`` reference ``target_columns`` of the table ``target`` (schema, name), one for one."""

    columns: tuple[str, ...]
    target: tuple[str, str]
    target_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of a table, column by column, for predicates that statistics cannot judge. All columns have ``size``
    values. ``fraction`` is the share of the table that they are."""

    size: int
    columns: Mapping[str, tuple[object, ...]]
    fraction: float = 0.0


@dataclass(frozen=True, slots=True)
class TableInfo:
    oid: int
    schema: str
    name: str
    kind: str  # pg_class.relkind: r, p, v, m, f
    rows: float  # reltuples, scaled to the present number of pages as the server does
    pages: int
    columns: Mapping[str, ColumnInfo] = field(default_factory=dict)
    indexes: tuple[IndexInfo, ...] = ()
    extended: tuple[ExtendedStatistics, ...] = ()
    row_security: bool = False
    temporary: bool = False
    sample: Sample | None = None
    foreign_keys: tuple[ForeignKey, ...] = ()

    @property
    def steerable(self) -> bool:
        """An ordinary, partitioned or materialised table whose rows everybody sees alike."""
        return self.kind in "rpm" and not self.row_security and not self.temporary


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``tables`` by (schema, name); views are among them, to be told apart. ``schema_hash`` covers names and types of
    tables and columns. ``capabilities``: ``hint_plan`` (pg_hint_plan is loaded in client sessions), ``plan_advice``.
    ``derived`` keeps what is computed from the snapshot alone, for all queries to share; it says nothing new."""

    database: str
    server_version: int
    tables: Mapping[tuple[str, str], TableInfo]
    schema_hash: str = ""
    taken_at: float = 0.0
    generation: int = 0
    capabilities: frozenset[str] = frozenset()
    default_search_path: tuple[str, ...] = ("public",)
    volatile_functions: frozenset[str] = frozenset()  # names of functions not known to be immutable or stable
    derived: dict[object, object] = field(default_factory=dict, compare=False, repr=False)

    def find(self, name: str, schema: str | None, search_path: tuple[str, ...]) -> TableInfo | None:
        """The table that a name means under a search path; pg_catalog is looked in first, as the server does."""
        if schema is not None:
            return self.tables.get((schema, name))
        for place in ("pg_catalog", *search_path):
            table = self.tables.get((place, name))
            if table is not None:
                return table
        return None
