"""What follows from an OR and is not written: conditions that all of its arms share, and filters of single relations.

``(a.x = b.x AND a.y = 1) OR (a.x = b.x AND a.y = 2)`` joins by ``a.x = b.x`` (process_duplicate_ors, prepqual.c), and
whatever the arms say of b, ``a.y = 1 OR a.y = 2`` filters a before it is joined (orclauses.c).
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from planner.graph import And, Condition, Or, relations_of
from planner.sql_expressions import Node, kind_and_body


def common_to_all(arms: list[Node]) -> tuple[list[Node], list[Node]]:
    """``OR`` of the arms as conjuncts: those that all arms have, and what is left, none or one OR. Nothing in the first
    list: the OR is to be read as it is. A few microseconds per
    condition."""
    if not any("BoolExpr" in arm for arm in arms):
        return [], []  # most are lists of different conditions
    parts = [{_key(one): one for one in _conjuncts(arm)} for arm in arms]
    common = set(parts[0]).intersection(*parts[1:])
    if not common:
        return [], []
    rest = [[one for key, one in part.items() if key not in common] for part in parts]
    shared = [one for key, one in parts[0].items() if key in common]
    if not all(rest):
        return shared, []  # an arm that asks for nothing else makes the rest of the others superfluous
    return shared, [_joined("OR_EXPR", [_joined("AND_EXPR", part) for part in rest])]


def _conjuncts(arm: Node) -> list[Node]:
    kind, body = kind_and_body(arm)
    return body["args"] if kind == "BoolExpr" and body.get("boolop") == "AND_EXPR" else [arm]


def _joined(operation: str, parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else {"BoolExpr": {"boolop": operation, "args": parts}}


def _key(node: Node) -> bytes | object:
    """Equal for two parse trees that differ in nothing but where they stand in the text. Sub-queries are never the
    same: in an OR the server makes no joins of them."""
    encoded = _ENCODER.encode(node)
    # A quotation mark inside a literal has a backslash before it, so that neither is ever found there.
    return object() if b'"SubLink":' in encoded else _LOCATION.sub(b"", encoded)


_ENCODER: Final = msgspec.json.Encoder()
_LOCATION: Final = re.compile(rb'"location":\d+,?')


def restriction(condition: Condition, relations: int) -> Condition | None:
    """What an OR over several relations says of the one relation in the set ``relations`` alone
    (extract_restriction_or_clauses); None if it says nothing of it."""
    if not isinstance(condition, Or):
        return None
    arms: list[Condition] = []
    for arm in condition.children:
        found: list[Condition] = []
        for part in arm.children if isinstance(arm, And) else (arm,):
            inner = part if relations_of(part) == relations else restriction(part, relations)
            if inner is not None:
                found.append(inner)
        if not found:
            return None
        arms.append(found[0] if len(found) == 1 else And(tuple(found)))
    return Or(tuple(arms))
