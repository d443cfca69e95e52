"""A whole store as JSON lines, and back: backups, and moving from SQLite to PostgreSQL.

The first line says what it is, then comes one line for each record under the name of its kind, and the last line
counts them, so that a file that was cut off is noticed. An import is one transaction: all of it or nothing. It may be
repeated, and into a store that holds something it merges: of a query, an arm or a point of history the later one
stands, ledger lines and samples that are there already are left out. Nothing is held in memory as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, select, tuple_, update

from planner.memory.records import ArmRecord, Execution, GuardRecord, HistoryPoint, LedgerEntry, QueryRecord
from planner.memory.store.errors import StoreError
from planner.memory.store.rows import TABLES, Record, from_row, to_row
from planner.memory.store.saving import upsert
from planner.memory.store.schema import HEAD
from planner.memory.store.store import Store
from planner.memory.store.tables import ARMS, GUARDS, INFO, QUERIES

FORMAT: Final = 1
NAMES: Final[dict[str, type[Any]]] = {
    "query": QueryRecord, "arm": ArmRecord, "ledger": LedgerEntry, "execution": Execution, "history": HistoryPoint,
    "guard": GuardRecord,
}  # fmt: skip
LONGEST_LINE: Final = 4 << 20
_BATCH: Final = 1_000
_NOT_EXPORTED: Final = ("id", "revision")
_LATER: Final = {QUERIES: "updated", ARMS: "updated", GUARDS: "updated"}

Progress = Callable[[int], None]


def export_lines(store: Store, progress: Progress | None = None) -> Iterator[bytes]:
    """The lines of an export, each with its line end, of one state of the store. Raises StoreError."""
    counts = dict.fromkeys(NAMES, 0)
    yield _line({"pilotwire_store": FORMAT, "schema": HEAD, "at": time.time()})
    for name, record in _records(store):
        counts[name] += 1
        values = msgspec.structs.asdict(record)
        for field in _NOT_EXPORTED:
            values.pop(field, None)
        yield _line({name: values})
        if progress is not None:
            progress(1)
    yield _line({"end": counts})


def import_lines(store: Store, lines: Iterable[bytes], progress: Progress | None = None) -> dict[str, int]:
    """Reads the lines of an export into ``store``; the number of records read, by kind. Raises StoreError: with kind
    ``rejected`` for what is no export, or not a whole one."""
    return _import(store, _parse(lines), progress)


def copy(source: Store, target: Store, progress: Progress | None = None) -> dict[str, int]:
    """All of ``source`` into ``target``. An empty target also gets the source's salt, so that hashes of literals stay
    comparable. Raises StoreError."""
    fresh = not any(rows for table, rows in target.counts().items() if table != GUARDS.name)
    counts = _import(target, _records(source), progress)
    if fresh:
        salt = source.salt
        with target.connector.writing() as connection:
            connection.execute(update(INFO).where(INFO.c.name == "salt").values(value=salt))
    return counts


def _records(store: Store) -> Iterator[tuple[str, Record]]:
    with store.connector.reading(snapshot=True) as connection:
        for name, kind in NAMES.items():
            table = TABLES[kind]
            chosen = select(table).order_by(*table.primary_key)
            for row in connection.execution_options(yield_per=_BATCH).execute(chosen).mappings():
                yield name, from_row(kind, row)


def _import(store: Store, records: Iterable[tuple[str, Record]], progress: Progress | None) -> dict[str, int]:
    counts = dict.fromkeys(NAMES, 0)
    iterator = iter(records)
    with store.connector.writing(statement_ms=0) as connection:
        revision = store.next_revision(connection)
        while batch := list(islice(iterator, _BATCH)):
            by_name: dict[str, list[Record]] = {}
            for name, record in batch:
                by_name.setdefault(name, []).append(record)
                counts[name] += 1
            for name, group in by_name.items():
                _write(connection, NAMES[name], group, revision)
            if progress is not None:
                progress(len(batch))
    return counts


def _write(connection: Connection, kind: type[Any], records: list[Any], revision: int) -> None:
    table = TABLES[kind]
    if table in _LATER:
        keys = list(table.primary_key)
        wanted = [tuple(getattr(record, column.name) for column in keys) for record in records]
        there: dict[tuple[Any, ...], float] = {}
        for start in range(0, len(wanted), 300):
            chosen = select(*keys, table.c.updated).where(tuple_(*keys).in_(wanted[start : start + 300]))
            there.update({tuple(row[:-1]): row[-1] for row in connection.execute(chosen)})
        records = [
            msgspec.structs.replace(record, revision=revision)
            for record, key in zip(records, wanted, strict=True)
            if record.updated >= there.get(key, record.updated)
        ]
    upsert(connection, table, [to_row(record) for record in records], keep=kind in (LedgerEntry, Execution))


def _line(value: Any) -> bytes:
    return msgspec.json.encode(value) + b"\n"


def _parse(lines: Iterable[bytes]) -> Iterator[tuple[str, Record]]:
    header = msgspec.json.Decoder(dict[str, Any])
    counts = dict.fromkeys(NAMES, 0)
    ended = False
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            if len(line) > LONGEST_LINE or ended:
                raise ValueError
            found = header.decode(line)
            if number == 1:
                _check_header(found)
                continue
            [(name, value)] = found.items()
            if name == "end":
                # What an older program wrote knows fewer kinds.
                if dict.fromkeys(NAMES, 0) | value != counts:
                    raise ValueError
                ended = True
                continue
            record = msgspec.convert(value, NAMES[name])
        except (msgspec.MsgspecError, ValueError, KeyError, UnicodeError):
            raise StoreError("rejected", f"line {number} is not of a store's export: nothing was imported") from None
        counts[name] += 1
        yield name, record
    if not ended:
        raise StoreError("rejected", "the export is not whole, its last line is missing: nothing was imported")


def _check_header(found: dict[str, Any]) -> None:
    if "pilotwire_store" not in found:
        raise ValueError
    if found["pilotwire_store"] != FORMAT:
        raise StoreError(
            "newer",
            f"the export is of format {str(found['pilotwire_store'])[:20]}, this program reads {FORMAT}: "
            "update pilotwire",
        )
