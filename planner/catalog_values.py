"""What the catalog's text means: values of statistics, extended statistics, rows of unseen tables. No I/O.

pg_stats gives common values and histograms as arrays of text; here they become Python's own, by the column's type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

_BLOCK: Final = 8192
_PAGE_HEADER: Final = 24
_TUPLE_OVERHEAD: Final = 28  # a tuple's header, aligned, and its line pointer


def _timestamp(text: str) -> object:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text  # infinity, before Christ, beyond the year 9999


def _date(text: str) -> object:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return text


_CONVERT: Final[Mapping[str, Callable[[str], object]]] = {
    **dict.fromkeys(("smallint", "integer", "bigint", "oid"), int),
    "numeric": Decimal,
    **dict.fromkeys(("real", "double precision"), float),
    "character": lambda text: text.rstrip(" "),  # trailing blanks mean nothing in that type
    "boolean": lambda text: text in {"t", "true"},
    "date": _date,
    **dict.fromkeys(("timestamp without time zone", "timestamp with time zone"), _timestamp),
}


def values(texts: Sequence[str | None] | None, type_name: str) -> tuple[object, ...]:
    """Values as pg_stats writes them (ISO dates) as Python's own; text where the type is not understood."""
    convert = _CONVERT.get(type_name)
    if not texts:
        return ()
    if convert is None:
        return tuple(texts)
    try:
        return tuple(None if text is None else convert(text) for text in texts)
    except (ValueError, InvalidOperation):
        return tuple(texts)


def present_rows(tuples: float, pages: int, now_pages: int, width: int, fill: int, *, has_children: bool) -> float:
    """estimate_rel_size (plancat.c, tableam.c): the rows that the last ANALYZE or VACUUM saw, scaled to the present
    number of pages; for a table never seen, what fits into them. ``fill`` is the fillfactor in percent."""
    if now_pages < 10 and tuples < 0 and not has_children:
        now_pages = 10
    if now_pages == 0:
        return 0.0
    if tuples >= 0 and pages > 0:
        density = tuples / pages
    else:
        density = max(1.0, round((_BLOCK - _PAGE_HEADER) * fill / 100 / (width + _TUPLE_OVERHEAD)))
    return float(round(density * now_pages))


_OLD_DISTINCT: Final = re.compile(r'"([\d, -]+)": (\d+)')
_OLD_DEPENDENCY: Final = re.compile(r'"([\d, -]+) => (-?\d+)": ([\d.]+)')

NDistinct = dict[frozenset[str], float]
Dependencies = dict[tuple[frozenset[str], str], float]


def _names(numbers: Sequence[int], columns: Mapping[int, str]) -> frozenset[str] | None:
    """None where one is an expression (a negative number) or unknown."""
    names = [columns.get(number) for number in numbers]
    return None if None in names else frozenset(name for name in names if name is not None)


def n_distinct(text: str | None, columns: Mapping[int, str]) -> NDistinct:
    """pg_ndistinct in either of its text forms (``{"1, 2": 5}``, or a list of objects), by column names."""
    found: NDistinct = {}
    for numbers, count in _ndistinct_items(text or ""):
        if names := _names(numbers, columns):
            found[names] = count
    return found


def _ndistinct_items(text: str) -> list[tuple[list[int], float]]:
    if text.startswith("["):
        return [(item["attributes"], float(item["ndistinct"])) for item in _items(text, "ndistinct")]
    return [(_integers(match[1]), float(match[2])) for match in _OLD_DISTINCT.finditer(text)]


def dependencies(text: str | None, columns: Mapping[int, str]) -> Dependencies:
    """pg_dependencies in either of its text forms (``{"1 => 2": 0.9}``, or a list of objects), by column names."""
    found: Dependencies = {}
    for numbers, target, degree in _dependency_items(text or ""):
        names, implied = _names(numbers, columns), columns.get(target)
        if names and implied is not None:
            found[names, implied] = degree
    return found


def _dependency_items(text: str) -> list[tuple[list[int], int, float]]:
    if text.startswith("["):
        return [(item["attributes"], int(item["dependency"]), float(item["degree"])) for item in _items(text, "degree")]
    return [(_integers(match[1]), int(match[2]), float(match[3])) for match in _OLD_DEPENDENCY.finditer(text)]


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _items(text: str, wanted: str) -> list[dict[str, Any]]:
    try:
        items = json.loads(text)
    except ValueError:
        return []
    return [item for item in items if isinstance(item, dict) and wanted in item and "attributes" in item]
