"""Statements from PostgreSQL's own log: stderr text, csvlog and jsonlog, told apart by their first line.

What is understood: ``log_min_duration_statement`` and ``log_duration`` (time, statement, and for prepared ones their
values in DETAIL), ``log_statement``, and auto_explain in its text and JSON formats; with ``log_analyze`` the JSON plans
tell true rows besides. A log is read line by line, so its size costs time and not memory; the statements kept are
bounded, those that took longest stay.
"""

from __future__ import annotations

import csv
import heapq
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from training.errors import TrainingError
from training.labels import SESSION
from training.sources import Plan, Told, take
from training.sources.parameters import bound
from training.training_set import Statement

LOG: Final = "log"
MOST_STATEMENTS: Final = 10_000
MOST_PLANS: Final = 2_000
MOST_CHARACTERS: Final = 4 << 20
"""Of one entry; a longer one is cut, and then not understood."""
_ENTRY: Final = re.compile(
    r"^(?P<prefix>.{0,400}?)\b(?P<level>LOG|DETAIL|STATEMENT|ERROR|FATAL|PANIC|WARNING|NOTICE|INFO|HINT|CONTEXT|QUERY"
    r"|LOCATION|DEBUG[1-5]?):  (?P<text>.*)$"
)
_STATEMENT: Final = re.compile(
    r"(?:duration: (?P<ms>[\d.]+) ms  )?(?:statement|execute [^\n:]{0,200}): (?P<text>.*)", re.DOTALL
)
_PLAN: Final = re.compile(r"duration: (?P<ms>[\d.]+) ms  plan:\s*(?P<plan>.*)", re.DOTALL)
_QUERY_TEXT: Final = re.compile(
    r"Query Text: (?P<text>.*?)(?:\nQuery Parameters: (?P<values>[^\n]*))?\n[^\n]*\(cost=", re.DOTALL
)
_DETAIL: Final = re.compile(r"[Pp]arameters: (?P<values>.*)", re.DOTALL)
_VALUE: Final = re.compile(r"\$(\d{1,5}) = (NULL|'(?:[^']|'')*')")
_CSV_MESSAGE, _CSV_DETAIL, _CSV_LEVEL, _CSV_APPLICATION, _CSV_COLUMNS = 13, 14, 11, 22, 23


@dataclass(slots=True)
class _Entry:
    """One message with its detail; ``line`` is where it begins."""

    line: int
    message: str
    detail: str = ""


def read_log(path: Path, database: str | None = None) -> Told:
    """The statements of a log file. ``database`` leaves out those that a jsonlog or csvlog says are another's. Raises
    TrainingError when the file cannot be read."""
    told = Told()
    kept: dict[str, Statement] = {}
    try:
        # What is not UTF-8 spoils its own statement only.
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            for entry in _entries(file, database):
                _take_entry(entry, told, kept)
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
    longest = heapq.nlargest(MOST_STATEMENTS, kept.values(), key=lambda one: one.total_ms)
    for statement in sorted(longest, key=lambda one: one.line):
        take(told, statement)
    if len(kept) > len(longest):
        told.left_out["more statements than are kept"] += len(kept) - len(longest)
    return told


def _entries(file: IO[str], database: str | None) -> Iterator[_Entry]:
    first = ""
    for first in file:
        if first.strip():
            break
    file.seek(0)
    if first.lstrip().startswith("{"):
        return _json_entries(file, database)
    if re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)? [^\s,]+,", first):
        return _csv_entries(file, database)
    return _text_entries(file)


def _json_entries(file: Iterable[str], database: str | None) -> Iterator[_Entry]:
    for number, line in enumerate(file, 1):
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if not isinstance(found, dict) or found.get("error_severity") != "LOG":
            continue
        if _ours(found.get("dbname"), database, found.get("application_name")):
            yield _Entry(number, str(found.get("message", "")), str(found.get("detail", "")))


def _csv_entries(file: Iterable[str], database: str | None) -> Iterator[_Entry]:
    csv.field_size_limit(MOST_CHARACTERS)
    reader = csv.reader(file)
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            continue
        if len(row) >= _CSV_COLUMNS and row[_CSV_LEVEL] == "LOG" and _ours(row[2], database, row[_CSV_APPLICATION]):
            yield _Entry(line, row[_CSV_MESSAGE], row[_CSV_DETAIL])


def _ours(name: object, database: str | None, application: object) -> bool:
    """Of that database, and not from a training of ours."""
    return (database is None or not name or name == database) and application != SESSION["application_name"]


def _text_entries(file: Iterable[str]) -> Iterator[_Entry]:
    """Lines that begin with a tab go on with the message before; a DETAIL belongs to the LOG right before it."""
    entry: _Entry | None = None
    to = ""
    parts: list[str] = []
    size = 0

    def finish() -> None:
        if entry is not None and to == "LOG":
            entry.message = "\n".join(parts)
        elif entry is not None and to == "DETAIL":
            entry.detail = "\n".join(parts)

    for number, raw in enumerate(file, 1):
        line = raw.rstrip("\r\n")
        begun = None if line.startswith("\t") else _ENTRY.match(line)
        if begun is None:
            size += len(line)
            if size <= MOST_CHARACTERS:
                parts.append(line.removeprefix("\t"))
            continue
        finish()
        level, text = begun["level"], begun["text"]
        if level == "LOG":
            if entry is not None:
                yield entry
            entry = _Entry(number, "")
        to = level if level in ("LOG", "DETAIL") else ""
        parts, size = [text], len(text)
    finish()
    if entry is not None:
        yield entry


def _take_entry(entry: _Entry, told: Told, kept: dict[str, Statement]) -> None:
    plan = _PLAN.match(entry.message)
    if plan is not None:
        text, root = _planned(plan["plan"])
        ms = float(plan["ms"])
    else:
        found = _STATEMENT.match(entry.message)
        if found is None:
            return
        text, root, ms = found["text"].strip(), None, float(found["ms"] or 0)
        detail = _DETAIL.search(entry.detail)
        if detail is not None and text:
            text = bound(text, _values(detail["values"])) or text
    if not text:
        told.leave_out(entry.message, "the entry cannot be understood", entry.line)
        return
    statement = Statement(text, LOG, line=entry.line, total_ms=ms)
    known = kept.get(statement.key)
    if known is None and len(kept) < 4 * MOST_STATEMENTS:
        kept[statement.key] = statement
    elif known is not None:
        kept[statement.key] = replace(known, calls=known.calls + 1, total_ms=known.total_ms + ms)
    if root is not None and "Actual Rows" in root and len(told.plans) < MOST_PLANS:
        told.plans.append(Plan(text, root))


def _planned(plan: str) -> tuple[str, dict[str, Any] | None]:
    """The statement, with its values, and the plan if it came as JSON, of an entry of auto_explain."""
    if plan.startswith("{"):
        try:
            found = json.loads(plan)
        except ValueError:
            return "", None
        text, root = str(found.get("Query Text", "")).strip(), found.get("Plan")
        values = str(found.get("Query Parameters", ""))
    else:
        shown = _QUERY_TEXT.match(plan)
        if shown is None:
            return "", None
        text, values, root = shown["text"].strip(), shown["values"] or "", None
    if values:
        text = bound(text, _values(values)) or text
    return text, root if isinstance(root, dict) else None


def _values(written: str) -> dict[int, str | None]:
    """``$1 = 'a', $2 = NULL``. A value that was cut off by log_parameter_max_length ends in ``...`` and is not used."""
    return {
        int(number): None if value == "NULL" else value[1:-1].replace("''", "'")
        for number, value in _VALUE.findall(written)
        if not value.endswith("...'")
    }
