"""Conditions of a query graph as short text for people. What was not understood shows as an ellipsis."""

from __future__ import annotations

from planner.graph import (
    And,
    Call,
    Cast,
    Column,
    Compare,
    Condition,
    Const,
    Expression,
    InList,
    Like,
    Not,
    NullTest,
    Or,
    Param,
    QueryBlock,
    Truth,
)

MOST_VALUES = 4


def condition(found: Condition, block: QueryBlock) -> str:
    """For instance ``region = 'north' and total > 100``; columns of the block's relations with their alias."""
    match found:
        case Compare(operator, left, right):
            return f"{expression(left, block)} {operator} {expression(right, block)}"
        case InList(operand, values, negated):
            shown = [expression(value, block) for value in values[:MOST_VALUES]]
            more = [f"... {len(values) - MOST_VALUES} more"] if len(values) > MOST_VALUES else []
            return f"{expression(operand, block)} {'not ' if negated else ''}in ({', '.join(shown + more)})"
        case Like(operand, pattern, negated, ignore_case):
            word = ("not " if negated else "") + ("ilike" if ignore_case else "like")
            return f"{expression(operand, block)} {word} {expression(pattern, block)}"
        case NullTest(operand, negated):
            return f"{expression(operand, block)} is {'not ' if negated else ''}null"
        case Truth(operand):
            return expression(operand, block)
        case And(children):
            return " and ".join(_inside(child, block) for child in children)
        case Or(children):
            return " or ".join(_inside(child, block) for child in children)
        case Not(child):
            return f"not {_inside(child, block)}"
    raise AssertionError(found)


def expression(found: Expression, block: QueryBlock) -> str:
    match found:
        case Const(None):
            return "null"
        case Const(value):
            text = f"'{value}'" if isinstance(value, str) else str(value)
            return text if len(text) <= 40 else f"{text[:36]}...'"
        case Param(number):
            return f"${number}"
        case Column(relation, name):
            return f"{block.relations[relation].alias}.{name}"
        case Call(name, args):
            inside = [expression(argument, block) for argument in args]
            if not name[:1].isalpha() and len(inside) == 2:
                return f"{inside[0]} {name} {inside[1]}"
            return f"{name}({', '.join(inside)})"
        case Cast(operand, type):
            return f"{expression(operand, block)}::{type}"
    return "..."


def _inside(found: Condition, block: QueryBlock) -> str:
    text = condition(found, block)
    return f"({text})" if isinstance(found, And | Or) else text
