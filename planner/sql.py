"""From SQL to a `QueryGraph`: pglast's JSON tree, read in one pass.

`read` parses a text and says what it asks for, or why it is left alone. `qualify` completes a graph once the catalog is
known: a bare column name of a block with several relations cannot be resolved before. Both are pure and never raise.

The parser is the server's own. Its JSON takes a tenth of the time of its Python objects; a five-table query is read in
about 140 us, a third of it in the parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from pglast.parser import ParseError, parse_sql_json, scan

from planner.graph import Command, QueryGraph
from planner.sql_blocks import Builder
from planner.sql_expressions import Node, TooDeep, kind_and_body
from planner.sql_scopes import ColumnsOf

__all__ = ["MAX_BYTES", "ColumnsOf", "Reading", "qualify", "read"]

MAX_BYTES: Final = 64 * 1024

_OPT_OUT: Final = re.compile(r"/\*\s*pilotwire\s*:\s*off\s*\*/", re.IGNORECASE)
_DECODER: Final = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class Reading:
    """What a text turned out to be. Without a graph the statement is to be left alone, for ``reason``:

    ``empty``, ``syntax``, ``several_statements``, ``hinted`` (a hint of its own, in a comment), ``opted_out``,
    ``too_large``, ``too_deep``, ``not_a_query`` (UPDATE, DELETE, MERGE, INSERT of plain values), ``utility``
    (everything else), ``not_understood`` (a tree of unexpected shape).

    ``query_at`` is the byte offset where the statement begins, behind blanks and comments.
    """

    graph: QueryGraph | None
    reason: str = ""
    query_at: int = 0


def read(text: str) -> Reading:
    """Reads one statement. Never raises."""
    refusal = _refusal(text)
    if refusal:
        return Reading(None, refusal)
    statements = _parse(text)
    if isinstance(statements, str):
        return Reading(None, statements)
    if len(statements) != 1:
        return Reading(None, "several_statements" if statements else "empty")
    query_at = statements[0].get("stmt_location", 0)
    found = _build(text, statements[0]["stmt"], None)
    if isinstance(found, str):
        return Reading(None, found, query_at)
    return Reading(found, "", query_at)


def qualify(graph: QueryGraph, columns_of: ColumnsOf) -> QueryGraph:
    """The graph with every column's relation, as far as ``columns_of`` knows the tables. What stays open is `Unknown`
    in its predicate. Costs nothing if nothing was open, else as much as `read`: a graph keeps its text, since a parse
    tree takes a hundred times the memory. Never raises (if ``columns_of`` does not)."""
    if graph.draft is None:
        return graph
    statements = _parse(graph.draft)
    found = statements if isinstance(statements, str) else _build(graph.draft, statements[0]["stmt"], columns_of)
    return graph if isinstance(found, str) else found


def _parse(text: str) -> list[Any] | str:
    """The statements of a text, or the reason why there are none."""
    try:
        statements: list[Any] = _DECODER.decode(parse_sql_json(text))["stmts"]
    except (ParseError, UnicodeError):
        return "syntax"
    except RecursionError:
        return "too_deep"
    except Exception:  # the parser's own errors have no common class
        return "not_understood"
    return statements


def _refusal(text: str) -> str:
    """A reason not even to parse, or ""."""
    if len(text) > MAX_BYTES or (not text.isascii() and len(text.encode(errors="replace")) > MAX_BYTES):
        return "too_large"
    if "\0" in text:
        return "syntax"  # the parser would stop there
    if "/*" not in text:
        return ""
    hinted = "/*+" in text
    opted_out = _OPT_OUT.search(text) is not None
    if not hinted and not opted_out:
        return ""
    try:
        comments = [text[token.start : token.end + 1] for token in scan(text) if token.name in _COMMENTS]
    except (ParseError, UnicodeError):
        return "syntax"
    if hinted and any("/*+" in comment for comment in comments):
        return "hinted"
    if opted_out and any(_OPT_OUT.search(comment) for comment in comments):
        return "opted_out"
    return ""


_COMMENTS: Final = {"C_COMMENT", "SQL_COMMENT"}


# ---------------------------------------------------------------------- statements


@dataclass(slots=True)
class _Statement:
    """``query`` is the node of the SELECT; ``extras`` are parts beside it that may call functions."""

    command: Command
    query: Node
    read_only: bool
    extras: list[Any]


def _build(text: str, statement: Any, columns_of: ColumnsOf | None) -> QueryGraph | str:
    """The statement's graph, or the reason why it has none."""
    try:
        found = _query(statement)
        if isinstance(found, str):
            return found
        builder = Builder(columns_of)
        builder.read_only = found.read_only
        builder.select(found.query, None, wanted=False)
        pending = builder.pending
        builder.walk(found.extras)  # in the scope of no block: columns there are the target's
    except (TooDeep, RecursionError):
        return "too_deep"
    except (LookupError, AttributeError, TypeError, ValueError):
        return "not_understood"
    return QueryGraph(
        command=found.command,
        blocks=tuple(builder.blocks),
        parameters=builder.parameters,
        functions=frozenset(builder.functions),
        read_only=builder.read_only,
        draft=text if pending and columns_of is None else None,
    )


def _query(statement: Node) -> _Statement | str:
    """The SELECT of a statement, or the reason why there is none."""
    kind, body = kind_and_body(statement)
    if kind == "SelectStmt":
        into = "intoClause" in body
        return _Statement(Command.CREATE_TABLE_AS if into else Command.SELECT, statement, not into, [])
    if kind == "InsertStmt":
        return _insert(body)
    if kind in _CHANGES:
        return "not_a_query"
    command = _WRAPPERS.get(kind)
    if command is None or "query" not in body:
        return "utility"
    found = _query(body["query"])
    if not isinstance(found, str):
        found.command = command
        found.read_only = found.read_only and command is not Command.CREATE_TABLE_AS
    return found


_CHANGES: Final = {"UpdateStmt", "DeleteStmt", "MergeStmt"}
_WRAPPERS: Final = {
    "ExplainStmt": Command.EXPLAIN,
    "DeclareCursorStmt": Command.DECLARE,
    "CopyStmt": Command.COPY,
    "CreateTableAsStmt": Command.CREATE_TABLE_AS,
    "PrepareStmt": Command.PREPARE,
}


def _insert(body: Node) -> _Statement | str:
    query = body.get("selectStmt", {})
    select = query.get("SelectStmt")
    if select is None or "valuesLists" in select:
        return "not_a_query"
    if "withClause" in body:
        # The CTEs around the INSERT are seen by its SELECT as if they were its own.
        own, around = select.get("withClause", {}), body["withClause"]
        both = {"ctes": [*around.get("ctes", ()), *own.get("ctes", ())]}
        both["recursive"] = around.get("recursive", False) or own.get("recursive", False)
        query = {"SelectStmt": {**select, "withClause": both}}
    extras = [body.get(key) for key in ("onConflictClause", "returningClause", "returningList")]
    return _Statement(Command.INSERT, query, False, extras)
