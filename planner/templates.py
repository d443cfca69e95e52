"""Join templates: a query block's tables and join edges, without values and aliases.

Training tells by them which queries are the same but for their values, and a model's manifest names those that it was
trained on, so that serving can tell them from joins that are new.
"""

from __future__ import annotations

import hashlib

from planner.graph import Column, JoinEdge
from planner.resolve import ResolvedBlock


def template(block: ResolvedBlock) -> str:
    """``schema.table, ...: schema.table.column = schema.table.column, ...``, sorted. About 1 us per relation."""
    tables = sorted(f"{table.schema}.{table.name}" if table else "?" for table in block.tables)
    return f"{', '.join(tables)}: {', '.join(sorted(edge_names(block)))}"


def digest(template: str) -> str:
    """A template's name in a manifest: 16 hexadecimal digits."""
    return hashlib.blake2b(template.encode(), digest_size=8).hexdigest()


def edge_names(block: ResolvedBlock) -> list[str]:
    """The inner and outer joins of the block's relations, each with its sides sorted."""
    return [name for edge in block.block.edges if edge.block is None and (name := _edge_name(block, edge))]


def _edge_name(block: ResolvedBlock, edge: JoinEdge) -> str:
    sides = sorted(filter(None, (_column_name(block, edge.left), _column_name(block, edge.right))))
    return f" {edge.operator} ".join(sides) if len(sides) == 2 else ""


def _column_name(block: ResolvedBlock, column: Column) -> str:
    table = block.tables[column.relation]
    return f"{table.schema}.{table.name}.{column.name}" if table else ""
