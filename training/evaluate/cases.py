"""The statements that are evaluated, and which of them the training knew.

A *template* is what a statement joins: its tables and join conditions, whatever values and filters it has. What a model
learned of a template is worth little on another one, so every figure says which of three kinds of statement it is of:
the very statement was trained on, its template was, or not even that.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from pglast.parser import ParseError, scan

from planner.graph import QueryGraph
from planner.resolve import resolve
from planner.snapshot import Snapshot
from planner.sql import read
from planner.templates import template
from training.queries import Query, Skipped, Workload, excerpt
from training.sources.parameters import with_likely_values

_COMMENTS: Final = ("SQL_COMMENT", "C_COMMENT")
_NAME: Final = re.compile(r"\s*(?:/\*(?P<block>[\w .:#-]{1,40})\*/|--(?P<line>[\w .:#-]{1,40})\n)")


class Seen(enum.StrEnum):
    """What the training knew of a statement; ``unknown`` when nobody says what it was trained on."""

    REPEATED = "repeated"
    NEW_VALUES = "new_values"
    NEW_TEMPLATE = "new_template"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Case:
    """One statement. ``relations`` is the most that one of its blocks joins; ``template`` is "" without joins;
    ``reason`` is why the planner cannot read it, "" when it can: such a statement is run all the same and left alone.
    ``name`` is what a comment in front of it says, or its number."""

    name: str
    line: int
    sql: str
    template: str
    relations: int
    reason: str
    seen: Seen = Seen.UNKNOWN


def read_cases(workload: Workload, snapshot: Snapshot, search_path: Sequence[str]) -> tuple[list[Case], list[Skipped]]:
    """The statements that can be run, each once, and why the others cannot. Those with parameters get likely values,
    the first ones that training would give them. Only what reads is run: the sessions are read-only anyhow, and what
    writes would fail there."""
    cases: list[Case] = []
    workload, _ = with_likely_values(workload, snapshot, tuple(search_path), count=1)
    skipped = list(workload.skipped)
    known: set[str] = set()
    names: set[str] = set()
    for query in workload.queries:
        text = normal(query.text)
        if text in known:
            skipped.append(_skip(query, "the same statement again"))
            continue
        known.add(text)
        reading = read(query.text)
        graph = reading.graph
        if graph is None and reading.reason in ("not_a_query", "utility", "several_statements", "empty", "syntax"):
            skipped.append(_skip(query, "it is no query that only reads"))
        elif graph is not None and not graph.read_only:
            skipped.append(_skip(query, "it writes or locks"))
        else:
            found = _template(graph, snapshot, search_path) if graph is not None else ""
            relations = graph.joined if graph is not None else 0
            name = _named(query.text)
            if not name or name in names:
                name = f"q{len(cases) + 1}"
            names.add(name)
            cases.append(Case(name, query.line, query.text, found, relations, reading.reason))
    return cases, skipped


def with_training(cases: Iterable[Case], trained: Sequence[Case]) -> list[Case]:
    """The same cases with what a training on those statements knew of them."""
    texts = {normal(case.sql) for case in trained}
    templates = {case.template for case in trained}

    def seen(case: Case) -> Seen:
        if normal(case.sql) in texts:
            return Seen.REPEATED
        return Seen.NEW_VALUES if case.template in templates else Seen.NEW_TEMPLATE

    return [
        Case(case.name, case.line, case.sql, case.template, case.relations, case.reason, seen(case)) for case in cases
    ]


def normal(sql: str) -> str:
    """What makes two texts the same statement: white space and comments do not count."""
    try:
        tokens = scan(sql)
    except ParseError:
        return " ".join(sql.split())
    kept = [sql[token.start : token.end + 1] for token in tokens if token.name not in _COMMENTS]
    return " ".join(kept).rstrip("; ")


def _named(sql: str) -> str:
    """The words of a comment that begins the text, if they are few."""
    found = _NAME.match(sql)
    return " ".join((found["block"] or found["line"]).split()) if found else ""


def _template(graph: QueryGraph, snapshot: Snapshot, search_path: Sequence[str]) -> str:
    resolved = resolve(graph, snapshot, tuple(search_path))
    return " + ".join(sorted(template(block) for block in resolved.blocks if len(block.block.relations) > 1))


def _skip(query: Query, reason: str) -> Skipped:
    return Skipped(query.line, reason, excerpt(query.text))
