"""Query graphs in a few short lines, so that a test can say what it expects of one."""

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
    JoinEdge,
    Like,
    Not,
    NullTest,
    Or,
    Param,
    Predicate,
    QueryBlock,
    QueryGraph,
    Relation,
    RelationKind,
    Truth,
    Unknown,
)


def describe(graph: QueryGraph) -> list[str]:
    """One line for each thing, with the block's number in front where there are several."""
    lines = []
    for block in graph.blocks:
        mark = f"{block.index}: " if len(graph.blocks) > 1 else ""
        lines += [mark + line for line in _block(block, graph)]
    return lines


def _block(block: QueryBlock, graph: QueryGraph) -> list[str]:
    lines = ["from " + ", ".join(_relation(relation) for relation in block.relations)] if block.relations else []
    if block.arms:
        lines.append(f"arms {' '.join(map(str, block.arms))}")
    if block.set_operation:
        lines.append(f"arm of {block.set_operation}")
    lines += [_edge(edge, block, graph) for edge in block.edges]
    lines += [_predicate(predicate, block) for predicate in block.predicates]
    lines += ["outer " + _predicate(predicate, block) for predicate in block.outer_predicates]
    if block.group_by:
        lines.append("group by " + ", ".join(expression(item, block) for item in block.group_by))
    if block.aggregates:
        lines.append("aggregates " + " ".join(block.aggregates))
    for name in ("distinct", "having", "order_by", "windows", "locking", "recursive"):
        if getattr(block, name):
            lines.append(name)
    if block.limit is not None:
        lines.append(f"limit {expression(block.limit, block)}")
    if block.offset is not None:
        lines.append(f"offset {expression(block.offset, block)}")
    return lines


def _relation(relation: Relation) -> str:
    name = relation.name if relation.schema is None else f"{relation.schema}.{relation.name}"
    text = relation.alias if name in (None, relation.alias) else f"{name} {relation.alias}"
    if relation.kind is not RelationKind.TABLE:
        text = f"{relation.kind.value}{'' if relation.block is None else relation.block} {text}"
    text = ("lateral " if relation.lateral else "") + text + (" sampled" if relation.sampled else "")
    return f"{text} @{relation.island}" if relation.island else text


def _edge(edge: JoinEdge, block: QueryBlock, graph: QueryGraph) -> str:
    right = block if edge.block is None else graph.blocks[edge.block]
    mark = "" if edge.block is None else f" in {edge.block}"
    return f"{edge.kind.value} {column(edge.left, block)} {edge.operator} {column(edge.right, right)}{mark}"


def _predicate(predicate: Predicate, block: QueryBlock) -> str:
    read = "+".join(relation.alias for relation in block.relations if predicate.relations & relation.bit) or "-"
    marks = (" outer" if predicate.outer else "") + (" opaque" if predicate.opaque else "")
    return f"[{read}{marks}] {condition(predicate.condition, block)}"


def column(found: Column, block: QueryBlock) -> str:
    assert 0 <= found.relation < len(block.relations)
    return f"{block.relations[found.relation].alias}.{found.name}"


def expression(found: Expression, block: QueryBlock) -> str:
    match found:
        case Const(value, type):
            return f"{value!r}{'' if type is None else '::' + type}"
        case Param(number, type):
            return f"${number}{'' if type is None else '::' + type}"
        case Column():
            return column(found, block)
        case Call(name, args):
            return f"{name}({', '.join(expression(argument, block) for argument in args)})"
        case Cast(operand, type):
            return f"{expression(operand, block)}::{type}"
        case Unknown(what):
            return f"<{what}>"


def condition(found: Condition, block: QueryBlock) -> str:
    match found:
        case Compare(operator, left, right):
            return f"{expression(left, block)} {operator} {expression(right, block)}"
        case InList(operand, values, negated):
            listed = ", ".join(expression(value, block) for value in values)
            return f"{expression(operand, block)} {'not ' if negated else ''}in ({listed})"
        case Like(operand, pattern, negated, ignore_case):
            word = ("not " if negated else "") + ("ilike" if ignore_case else "like")
            return f"{expression(operand, block)} {word} {expression(pattern, block)}"
        case NullTest(operand, negated):
            return f"{expression(operand, block)} is {'not ' if negated else ''}null"
        case Truth(operand):
            return expression(operand, block)
        case And(children):
            return "(" + " and ".join(condition(child, block) for child in children) + ")"
        case Or(children):
            return "(" + " or ".join(condition(child, block) for child in children) + ")"
        case Not(child):
            return f"not {condition(child, block)}"
