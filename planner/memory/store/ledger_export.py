"""The ledger for others to read: JSON lines, or Parquet for whoever analyses it.

Both have one row for each line of the ledger, the oldest first, with the same columns: ``at`` as a time in UTC, gains
as factors (2.0: twice as fast) and null where they are not known, and the advice as its settings and rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

from planner.memory.records import LedgerEntry, StoredAdvice

_BATCH: Final = 5_000
_TEXTS: Final = (
    "kind", "scope", "key", "database", "fingerprint", "arm", "model", "before", "after", "actor", "why", "text",
)  # fmt: skip
_NUMBERS: Final = ("expected_gain", "measured_gain", "took_ms")


def as_json(entry: LedgerEntry) -> dict[str, Any]:
    """One line as plain data, in the order in which it reads best."""
    found = {"id": entry.id, "at": _moment(entry.at).isoformat(timespec="microseconds").replace("+00:00", "Z")}
    found |= {name: getattr(entry, name) for name in _TEXTS[:9]}
    found |= {name: getattr(entry, name) or None for name in _NUMBERS}
    found["advice"] = _advice(entry.advice)
    return found | {name: getattr(entry, name) for name in _TEXTS[9:]}


def json_lines(entries: Iterable[LedgerEntry]) -> Iterator[str]:
    for entry in entries:
        yield json.dumps(as_json(entry), ensure_ascii=False) + "\n"


def write_parquet(entries: Iterable[LedgerEntry], path: Path) -> int:
    """The number of rows written. Needs pyarrow (ImportError without); OSError when the file cannot be written."""
    import pyarrow
    from pyarrow import parquet

    fields = [("id", pyarrow.int64()), ("at", pyarrow.timestamp("us", tz="UTC"))]
    fields += [(name, pyarrow.string()) for name in _TEXTS]
    fields += [(name, pyarrow.float64()) for name in _NUMBERS]
    fields += [("advice", pyarrow.string())]
    schema = pyarrow.schema(fields)
    total = 0
    iterator = iter(entries)
    with parquet.ParquetWriter(path, schema, compression="zstd") as writer:
        while batch := list(islice(iterator, _BATCH)):
            rows = []
            for entry in batch:
                row = as_json(entry)
                row["at"] = _moment(entry.at)
                row["advice"] = json.dumps(row["advice"])
                rows.append(row)
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))
            total += len(rows)
    return total


def _moment(seconds: float) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        return datetime.fromtimestamp(0, UTC)


def _advice(advice: StoredAdvice) -> dict[str, Any]:
    return {
        "settings": dict(advice.settings),
        "rows": [{"aliases": list(aliases), "rows": rows} for aliases, rows in advice.rows],
    }
