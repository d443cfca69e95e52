"""What a query is remembered under, and under which conditions its evidence was gathered.

The same statement with the same values must have one key whether it comes through a driver that binds in binary, one
that binds text, or the explorer: values are brought to the text that PostgreSQL would read. A search_path is reduced to
the schemas that hold tables, since ``"$user"`` would make one query as many as there are users.

Conditions tell when evidence no longer holds. Sizes and statistics are compared with a tolerance (`same`), not by a
hash: a table that grows by a few rows, an ANALYZE that samples others, must not expire anything.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from functools import lru_cache
from typing import Final

from planner import values
from planner.catalog_load import schema_hash
from planner.snapshot import Snapshot, TableInfo

GROWTH: Final = 1.5
"""By which factor a table may grow or shrink before what was measured on it is to be verified again."""
SMALL_ROWS: Final = 1000.0
"""Tables below this count as this large: what happens among a few pages changes no plan worth steering."""
SPREAD: Final = 0.15
"""By which share the summary of a table's statistics may change."""
MAX_TABLES: Final = 40


@dataclass(frozen=True, slots=True)
class Conditions:
    """As stored in `planner.memory.records.ArmRecord`. ``drift`` holds one part for each table, by name:
    ``hash:rows:spread``, so that stored and present ones can be compared with a tolerance."""

    schema_hash: str = ""
    server_version: int = 0
    drift: str = ""


NO_CONDITIONS: Final = Conditions()


def canonical_path(snapshot: Snapshot, path: Sequence[str] = ()) -> str:
    """The schemas of a search_path that hold tables, in order; ``path`` as `planner.search_path.parse` gives it, empty:
    the database's default."""
    holding = snapshot.derived.get("schemas")
    if not isinstance(holding, frozenset):
        holding = snapshot.derived["schemas"] = frozenset(schema for schema, _ in snapshot.tables)
    return ", ".join(dict.fromkeys(name for name in path or snapshot.default_search_path if name in holding))


def canonical_params(bind: bytes | None, types: Sequence[int] = ()) -> str:
    """The values of a Bind message (from the count of format codes on) as a JSON list of texts, null for NULL; "" when
    there are none. A value that is not understood is given by its bytes. Never raises; 2 us for each value."""
    if not bind:
        return ""
    known = values.parameters(bind, types)
    found: list[str | None] = []
    try:
        (formats,) = struct.unpack_from("!H", bind, 0)
        at = 2 + 2 * formats
        (count,) = struct.unpack_from("!H", bind, at)
        at += 2
        for number in range(1, count + 1):
            (length,) = struct.unpack_from("!i", bind, at)
            at += 4
            if length < 0:
                found.append(None)
                continue
            const = known.get(number)
            text = None if const is None else value_text(const.value)
            found.append(_raw(bind[at : at + length]) if text is None else text)
            at += length
    except struct.error:
        pass
    return json.dumps(found, ensure_ascii=False) if found else ""


def params_of(given: Sequence[object]) -> str:
    """The same from Python's values, in the order of their numbers."""
    if not given:
        return ""
    found = [None if value is None else _or_text(value) for value in given]
    return json.dumps(found, ensure_ascii=False)


def value_text(value: object) -> str | None:
    """A value as PostgreSQL reads it; None for one of a type that is not understood."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | str():
            return str(value)
        case float():
            return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
        case Decimal():
            return format(value.normalize() if value else Decimal(0), "f")
        case datetime():
            return value.isoformat(" ")
        case date() | time():
            return value.isoformat()
        case tuple() | list():
            return "{" + ",".join("NULL" if one is None else _element(_or_text(one)) for one in value) + "}"
    return str(value) if type(value).__name__ == "UUID" else None


def conditions(snapshot: Snapshot, tables: Iterable[TableInfo | None]) -> Conditions:
    """What evidence on these tables holds under. Some microseconds; each table is summed up once per snapshot."""
    known = {(table.schema, table.name): table for table in tables if table is not None}
    used = [known[name] for name in sorted(known)][:MAX_TABLES]
    schema = hashlib.blake2b(digest_size=16)
    parts = []
    for table in used:
        shape, part = _summary(snapshot, table)
        schema.update(shape)
        parts.append(part)
    return Conditions(schema.hexdigest(), snapshot.server_version, " ".join(parts))


def same(stored: Conditions, now: Conditions) -> str:
    """Empty when evidence still holds, else what has changed: ``schema``, ``server`` or ``data``. What is not recorded
    counts as unchanged. A minor release of the server changes no plan."""
    if stored in (now, NO_CONDITIONS):
        return ""
    if stored.schema_hash and stored.schema_hash != now.schema_hash:
        return "schema"
    if stored.server_version and stored.server_version // 10_000 != now.server_version // 10_000:
        return "server"
    return "data" if stored.drift and _drifted(stored.drift, now.drift) else ""


same_conditions: Final = same


def _element(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _or_text(value: object) -> str:
    text = value_text(value)
    return str(value) if text is None else text


def _raw(data: bytes) -> str:
    try:
        text = data.decode()
        if text.isprintable():
            return text
    except UnicodeDecodeError:
        pass
    # By its digest where it is long: a document bound as a parameter is not to be kept.
    return "\\x" + (data.hex() if len(data) <= 64 else hashlib.blake2b(data, digest_size=32).hexdigest())


def _summary(snapshot: Snapshot, table: TableInfo) -> tuple[bytes, str]:
    key = ("summary", table.schema, table.name)
    found = snapshot.derived.get(key)
    if isinstance(found, tuple):
        return found
    indexes = sorted(f"{index.columns}{index.unique}{index.partial}" for index in table.indexes)
    shape = f"{schema_hash([table])}{indexes}".encode()
    name = hashlib.blake2b(f"{table.schema}.{table.name}".encode(), digest_size=3).hexdigest()
    part = f"{name}:{table.rows:.4g}:{_spread(table):.4g}"
    snapshot.derived[key] = (shape, part)
    return shape, part


def _spread(table: TableInfo) -> float:
    """One number for the statistics of all columns: how many values there are and how unevenly they are distributed."""
    total = 0.0
    for column in table.columns.values():
        statistics = column.statistics
        if statistics is None:
            continue
        distinct = statistics.n_distinct if statistics.n_distinct >= 0 else -statistics.n_distinct * table.rows
        total += math.log1p(max(distinct, 0.0)) + sum(statistics.common_freqs[:3]) + statistics.null_frac
    return total


@lru_cache(maxsize=1024)
def _drifted(stored: str, now: str) -> bool:
    before, after = _tables(stored), _tables(now)
    if before.keys() != after.keys():
        return True
    for name, (rows, spread) in before.items():
        rows_now, spread_now = after[name]
        ratio = max(rows_now, SMALL_ROWS) / max(rows, SMALL_ROWS)
        if not 1 / GROWTH <= ratio <= GROWTH or abs(spread_now - spread) > SPREAD * max(spread, spread_now, 1.0):
            return True
    return False


def _tables(drift: str) -> dict[str, tuple[float, float]]:
    found = {}
    for part in drift.split():
        name, _, rest = part.partition(":")
        rows, _, spread = rest.partition(":")
        try:
            found[name] = (float(rows), float(spread))
        except ValueError:
            found[name] = (0.0, 0.0)
    return found
