"""What kinds of conditions filter a relation, as counts. Bounded: a condition of thousands of parts is cut off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from planner.graph import And, Call, Compare, Condition, Const, InList, Like, Not, NullTest, Or, Predicate, Truth

KINDS: Final = ("equality", "range", "inequality", "in_list", "in_length", "like", "or", "null", "other")
_PARTS: Final = 200


def counted(predicates: Sequence[Predicate]) -> list[float]:
    """How many conditions of each of `KINDS` there are; for ``in_length`` the sum of ln(1 + length)."""
    found = dict.fromkeys(KINDS, 0.0)
    pending: list[Condition] = [predicate.condition for predicate in predicates[:_PARTS]]
    looked_at = 0
    while pending and looked_at < _PARTS:
        condition = pending.pop()
        looked_at += 1
        if isinstance(condition, And | Or):
            found["or"] += isinstance(condition, Or)
            pending.extend(condition.children[:_PARTS])
        elif isinstance(condition, Not):
            pending.append(condition.child)
        elif isinstance(condition, InList):
            found["in_list"] += 1
            found["in_length"] += math.log1p(_length(condition))
        else:
            found[_kind(condition)] += 1
    return list(found.values())


def _kind(condition: Compare | Like | NullTest | Truth) -> str:
    if isinstance(condition, Like):
        return "like"
    if isinstance(condition, NullTest):
        return "null"
    if isinstance(condition, Truth) or isinstance(condition.left, Call):
        return "other"
    return {"=": "equality", "<>": "inequality"}.get(condition.operator, "range")


def _length(condition: InList) -> int:
    """An array that came as one value counts its elements."""
    if len(condition.values) == 1 and isinstance(value := condition.values[0], Const):
        return len(value.value) if isinstance(value.value, tuple) else 1
    return len(condition.values)
