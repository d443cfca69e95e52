"""Reads a workload file: the statements a model learns from.

Two forms are understood. Plain SQL, statements divided by ``;``, as psql reads it. Or one statement a line behind its
number of rows, ``1234||SELECT ...``, the form in which cardinality benchmarks are published; those counts are not used,
since they hold for the database they were counted on. Statements that PostgreSQL's grammar refuses are left out and
named, so that a workload cut out of a log does not have to be clean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pglast.parser import ParseError, Token, parse_sql_json, scan

from training.errors import TrainingError

MAX_FILE_BYTES: Final = 64 << 20
MAX_STATEMENT_BYTES: Final = 64 << 10  # what the proxy looks into
EXCERPT: Final = 60
OWN: Final = "/* counted by pilotwire */"
"""Stands in the counts that labelling runs, so that they are not taken for the workload: logs have them too, and so has
pg_stat_statements."""
_END: Final = Token(-1, -1, "", "")
_COUNTED: Final = re.compile(r"\s*\d+(?:\.\d+)?(?:[eE]\+?\d+)?\|\|")
_BLANK: Final = re.compile(r"(?:\s|--[^\n]*(?:\n|\Z)|/\*.*?\*/)+", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Query:
    """One statement. ``line`` is where it begins in its file, from 1; 0: it comes from no file. ``generated``: it was
    made up."""

    line: int
    text: str
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A statement that is not learned from. The excerpt is its beginning, on one line."""

    line: int
    reason: str
    excerpt: str

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line else ""
        return f"{place}{self.reason}: {self.excerpt}"


@dataclass(frozen=True, slots=True)
class Workload:
    queries: tuple[Query, ...]
    skipped: tuple[Skipped, ...] = ()


def excerpt(text: str) -> str:
    """The beginning of a statement on one line, without the comments before it."""
    start = _blank_end(text, 0)
    line = " ".join(text[start : start + 4 * EXCERPT].split())
    return line if len(line) <= EXCERPT else line[: EXCERPT - 3] + "..."


def read_file(path: Path) -> Workload:
    """The statements of a file. Raises TrainingError when it cannot be read or holds no statement at all."""
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise TrainingError(f"{path} has {size >> 20} MB, more than the {MAX_FILE_BYTES >> 20} MB that are read")
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise TrainingError(f"{path} is not UTF-8 text: it must hold SQL statements") from None
    except OSError as error:
        raise TrainingError(f"{path} cannot be read: {error.strerror}") from None
    workload = read_text(text)
    if not workload.queries:
        first = f"; the first problem: {workload.skipped[0]}" if workload.skipped else ""
        raise TrainingError(f"{path} holds no statement that PostgreSQL understands{first}")
    return workload


def read_text(text: str) -> Workload:
    """The statements of a workload in either form; never raises."""
    queries: list[Query] = []
    skipped: list[Skipped] = []
    beginning = _blank_end(text, 0)
    pieces = _counted_lines(text) if _COUNTED.match(text, beginning) else _statements(text)
    for line, piece in pieces:
        reason = _problem(piece)
        if reason:
            skipped.append(Skipped(line, reason, excerpt(piece)))
        else:
            queries.append(Query(line, piece))
    return Workload(tuple(queries), tuple(skipped))


def _problem(statement: str) -> str:
    """Why a statement cannot be used, or nothing."""
    if "\0" in statement:
        return "it holds a NUL byte"
    if len(statement.encode()) > MAX_STATEMENT_BYTES:
        return f"longer than {MAX_STATEMENT_BYTES >> 10} kB"
    try:
        parse_sql_json(statement)
    except ParseError as error:
        return excerpt(str(error.args[0]))
    except RecursionError:
        return "nested too deeply"
    return ""


def _blank_end(text: str, start: int) -> int:
    """Where white space and comments that begin at ``start`` end."""
    blank = _BLANK.match(text, start)
    return blank.end() if blank else start


def _counted_lines(text: str) -> list[tuple[int, str]]:
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        if _blank_end(line, 0) == len(line):
            continue
        counted = _COUNTED.match(line)
        statement = line[counted.end() :] if counted else line
        found.append((number, statement.strip().removesuffix(";").rstrip()))
    return found


def _statements(text: str) -> list[tuple[int, str]]:
    """The statements of plain SQL, with the comments before them, and the lines they begin on. Where the scanner gives
    up (a quote that never ends), what comes before is divided without it and the rest is one piece, which the caller
    then refuses. pglast's own ``split`` is no help: it drops what does not begin with a keyword without a word."""
    try:
        tokens = scan(text) if text.strip() else ()
    except ParseError as error:
        broken = error.args[1] if len(error.args) > 1 and isinstance(error.args[1], int) else 0
        start = text.rfind(";", 0, broken) + 1
        if start == 0:
            return [(_line(text, _blank_end(text, 0)), text.strip())]
        rest = _blank_end(text, start)
        return [*_statements(text[:start]), (_line(text, rest), text[rest:].strip())]
    found = []
    line, counted = 1, 0
    start = first = -1
    for token in (*tokens, _END):
        if token is _END or token.name == "ASCII_59":
            if first >= 0:
                line += text.count("\n", counted, first)
                counted = first
                found.append((line, text[start : token.start if token is not _END else len(text)].strip()))
            start = first = -1
            continue
        start = token.start if start < 0 else start
        if first < 0 and token.name not in ("SQL_COMMENT", "C_COMMENT"):
            first = token.start
    return found


def _line(text: str, position: int) -> int:
    return text.count("\n", 0, position) + 1
