"""Statements for tests: each of a kind of its own, so that nothing is remembered of it from another test."""

from __future__ import annotations

from itertools import count

MARK = "/* advised */ "
_serial = count(1)


def seen() -> str:
    """A statement that returns the text by which the server knows it."""
    alias = f"a{next(_serial)}"
    return (
        f"select {alias}.query from pg_stat_activity {alias} join pg_class c on c.oid = 'pg_class'::regclass"
        f" join pg_namespace n on n.oid = c.relnamespace where {alias}.pid = pg_backend_pid()"
    )


def setting(name: str) -> str:
    """A statement that returns the value that a setting has while it is planned."""
    return joined(f"planned_with('{name}')", " limit 1")


def explain() -> str:
    return f"explain (costs off) {joined()}"


def joined(expression: str = "count(*)", rest: str = "") -> str:
    alias = f"a{next(_serial)}"
    return f"select {expression} from left_side {alias} join right_side x using (b){rest}"
