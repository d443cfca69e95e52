"""Why a statement is not learned from, in words: labels of the planner's as a person reads them in a report."""

from __future__ import annotations

from typing import Final

_WORDS: Final[dict[str, str]] = {
    "not_a_query": "it is not a query",
    "utility": "it is a utility statement",
    "several_statements": "several statements in one",
    "hinted": "it has a hint of its own",
    "opted_out": "it has opted out",
    "too_large": "it is longer than 64 kB",
    "too_deep": "it is nested too deeply",
    "not_understood": "its parse tree has a shape that is not known",
    "unknown_table": "it joins a table that is not in the database, or not on the search path",
    "view": "it joins a view",
    "foreign_table": "it joins a foreign table",
    "system_table": "it joins tables of the system catalog",
    "row_security": "it joins a table with row-level security",
    "temporary": "it joins a temporary table",
    "tablesample": "it joins a sample of a table",
    "cte": "it joins a CTE only, whose rows cannot be told",
    "subquery": "it joins a sub-query only, whose rows cannot be told",
    "function": "it joins a function only, whose rows cannot be told",
    "values": "it joins VALUES only",
}


def in_words(label: str) -> str:
    """A reason of `planner.sql.Reading` or `planner.resolve.ResolvedBlock` for people."""
    return _WORDS.get(label, label.replace("_", " "))
