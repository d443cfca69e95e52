"""Records to rows and back.

What comes from clients may hold anything: lone surrogates, zero bytes, numbers that are none. Whatever a database would
refuse is made into something that it takes, so that one odd statement never keeps a whole batch from being written.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from sqlalchemy import String, Table

from planner.memory.records import (
    MAX_LATENCIES,
    ArmRecord,
    Execution,
    GuardRecord,
    HistoryPoint,
    LedgerEntry,
    QueryRecord,
    State,
    StoredAdvice,
)
from planner.memory.store.tables import ARMS, EXECUTIONS, GUARDS, HISTORY, LEDGER, QUERIES

Record = QueryRecord | ArmRecord | LedgerEntry | Execution | HistoryPoint | GuardRecord
R = TypeVar("R", QueryRecord, ArmRecord, LedgerEntry, Execution, HistoryPoint, GuardRecord)
TABLES: Final[Mapping[type, Table]] = {
    QueryRecord: QUERIES, ArmRecord: ARMS, LedgerEntry: LEDGER, Execution: EXECUTIONS, HistoryPoint: HISTORY,
    GuardRecord: GUARDS,
}  # fmt: skip
LONGEST_TEXT: Final = 65_536
"""Characters of a statement or its values; a longer one could not be run again from the store, and is left out."""
_LONGEST_WORD: Final = 1_000
_LARGEST: Final = 2**63 - 1
_LISTS: Final = frozenset({"latencies", "baseline", "moments"})
_LONG: Final = frozenset({"text", "params", "shape", "search_path", "why", "content"})
_LENGTHS: Final = {
    (table, column.name): column.type.length
    for table in TABLES.values()
    for column in table.columns
    if isinstance(column.type, String) and column.type.length
}
_NUMBERS: Final = msgspec.json.Decoder(tuple[float, ...])
_ADVICE: Final = msgspec.json.Decoder(StoredAdvice)


def to_row(record: Record) -> dict[str, Any]:
    """The values of one row; without ``id``, which the store gives."""
    table = TABLES[type(record)]
    row: dict[str, Any] = {}
    for name in record.__struct_fields__:
        if name != "id":
            row[name] = _value(table, name, getattr(record, name))
    if row.get("uid") == "":
        row["uid"] = secrets.token_hex(12)
    return row


def from_row(kind: type[R], row: Mapping[Any, Any]) -> R:
    """The record of one row. What somebody else put into JSON columns and cannot be read counts as empty."""
    values = {name: row[name] for name in kind.__struct_fields__}
    for name in _LISTS & values.keys():
        values[name] = _read(_NUMBERS, values[name], ())
    if "advice" in values:
        values["advice"] = _read(_ADVICE, values["advice"], StoredAdvice())
    if "state" in values:
        values["state"] = State(values["state"]) if values["state"] in _STATES else State.EXPIRED
    for name in ("opted_out", "forgotten"):
        if name in values:
            values[name] = bool(values[name])
    return kind(**values)


_STATES: Final = frozenset(State)


def from_rows(kind: type[R], rows: Iterable[Mapping[Any, Any]]) -> list[R]:
    return [from_row(kind, row) for row in rows]


def _read(decoder: msgspec.json.Decoder[Any], text: str, otherwise: Any) -> Any:
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeError):
        return otherwise


def _value(table: Table, name: str, value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text(table, name, value)
    if isinstance(value, int):
        return max(-_LARGEST, min(value, _LARGEST))
    if isinstance(value, float):
        return value if math.isfinite(value) else 0.0
    if name in _LISTS:
        return msgspec.json.encode([item for item in value if math.isfinite(item)][-MAX_LATENCIES:]).decode()
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        # Advice about names that are no text could not be given to any server.
        return msgspec.json.encode(StoredAdvice()).decode()


def _text(table: Table, name: str, value: str) -> str:
    if not value.isprintable():
        value = value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
    longest = _LENGTHS.get((table, name)) or (LONGEST_TEXT if name in _LONG else _LONGEST_WORD)
    if len(value) <= longest:
        return value
    return "" if name in ("text", "params") and table is not LEDGER else value[:longest]
