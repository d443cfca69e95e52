"""Which type the server will give a parameter that a client sent without one.

Many drivers leave the types of parameters to the server and send values in binary, which cannot be read without their
type. PostgreSQL gives an untyped parameter the type of what it is compared with; that is repeated here for the cases
that conditions mostly have: a column on the other side, a cast, a list, LIKE. Others stay unknown.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from planner.graph import (
    And,
    Call,
    Cast,
    Column,
    Compare,
    Condition,
    Expression,
    InList,
    Like,
    Not,
    NullTest,
    Or,
    Param,
    Truth,
)
from planner.resolve import Resolved, ResolvedBlock

OIDS: Final[dict[str, int]] = {
    "bool": 16, "boolean": 16, "int8": 20, "bigint": 20, "int2": 21, "smallint": 21, "int4": 23, "integer": 23,
    "text": 25, "float4": 700, "real": 700, "float8": 701, "double precision": 701, "bpchar": 1042, "character": 1042,
    # A varying character column is compared as text, and both have the same binary form.
    "varchar": 25, "character varying": 25, "name": 19, "oid": 26, "date": 1082,
    "time": 1083, "time without time zone": 1083, "timestamp": 1114, "timestamp without time zone": 1114,
    "timestamptz": 1184, "timestamp with time zone": 1184, "numeric": 1700, "decimal": 1700, "uuid": 2950,
}  # fmt: skip
ARRAYS: Final[dict[int, int]] = {
    16: 1000, 19: 1003, 20: 1016, 21: 1005, 23: 1007, 25: 1009, 26: 1028, 700: 1021, 701: 1022, 1042: 1014,
    1082: 1182, 1083: 1183, 1114: 1115, 1184: 1185, 1700: 1231, 2950: 2951,
}  # fmt: skip
TEXT: Final = OIDS["text"]


def infer(resolved: Resolved) -> dict[int, int]:
    """The type OIDs of parameters by number, as far as they show; about 1 us per condition."""
    found: dict[int, int] = {}
    for block in resolved.blocks:
        for predicate in (*block.block.predicates, *block.block.outer_predicates):
            for number, oid in _condition(predicate.condition, block):
                found.setdefault(number, oid)
    return found


def completed(given: tuple[int, ...], inferred: dict[int, int]) -> tuple[int, ...]:
    """The types that a client gave, with the inferred ones where it gave none."""
    if not inferred or (given and all(given) and len(given) >= max(inferred)):
        return given
    count = max(len(given), *inferred)
    padded = (*given, *(0,) * (count - len(given)))
    return tuple(oid or inferred.get(number, 0) for number, oid in enumerate(padded, 1))


def _condition(condition: Condition, block: ResolvedBlock) -> Iterator[tuple[int, int]]:
    match condition:
        case Compare(_, left, right):
            yield from _same(left, right, block)
            yield from _same(right, left, block)
            yield from _inside(left)
            yield from _inside(right)
        case InList(operand, values):
            oid = _type(operand, block)
            for value in values:
                yield from _inside(value)
                if isinstance(value, Param) and value.type is None and oid:
                    # A single value in place of a list is an array.
                    wanted = ARRAYS.get(oid, 0) if len(values) == 1 else oid
                    if wanted:
                        yield value.number, wanted
        case Like(operand, pattern):
            for side in (operand, pattern):
                if isinstance(side, Param):
                    yield side.number, TEXT
        case And(children) | Or(children):
            for child in children:
                yield from _condition(child, block)
        case Not(child):
            yield from _condition(child, block)
        case NullTest(operand) | Truth(operand):
            yield from _inside(operand)


def _same(side: Expression, other: Expression, block: ResolvedBlock) -> Iterator[tuple[int, int]]:
    if isinstance(side, Param):
        oid = OIDS.get(side.type or "") or _type(other, block)
        if oid:
            yield side.number, oid


def _inside(expression: Expression) -> Iterator[tuple[int, int]]:
    """Parameters that are cast where they stand."""
    match expression:
        case Param(number, type) if type is not None:
            element = OIDS.get(type.removesuffix("[]"), 0)
            oid = ARRAYS.get(element, 0) if type.endswith("[]") else element
            if oid:
                yield number, oid
        case Cast(Param(number), type) if type in OIDS:
            yield number, OIDS[type]
        case Call(_, args):
            for argument in args:
                yield from _inside(argument)


def _type(expression: Expression, block: ResolvedBlock) -> int:
    """The type of a column or cast; 0 where it is not known."""
    match expression:
        case Column(relation, name):
            table = block.tables[relation]
            column = table.columns.get(name) if table is not None else None
            return OIDS.get(column.type, 0) if column is not None else 0
        case Cast(_, type):
            return OIDS.get(type, 0)
    return 0
