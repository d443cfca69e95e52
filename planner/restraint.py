"""Where a model's number is known to mislead PostgreSQL more than its own estimate does, however right it is.

Two cases, both about raising an estimate; lowering one is never held back here.

An empty relation. Where a table is small enough to be known row by row and none of its rows passes the filters, all
joins with it are empty, and a model that learned from joins with rows says too much of each. The executor stops at the
first empty input, so that what is cheapest is to begin there; a larger estimate moves the emptiness to the end.

A LIMIT that has to sort or group. The server takes the rows that it wants to be spread evenly over those that it
expects. As soon as it expects more than the limit it hopes to stop early and may choose a plan that reads in the wanted
order, which is far slower when the hope fails. Where its own estimate is not above the limit, no more than the limit is
told of the whole join. Without an order to keep any row will do, and the hope is justified.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.estimates import BlockEstimates
from planner.features.keys import WHOLE
from planner.graph import NO_PARAMETERS, Const, Param, Parameters, QueryBlock


def most_rows(estimates: BlockEstimates, masks: Sequence[int], params: Parameters = NO_PARAMETERS) -> dict[int, float]:
    """The most rows that may be told of each set of relations that is restrained; never less than the native estimate.
    A microsecond for each relation: the sample was looked at for the features."""
    block = estimates.block
    empty = sum(relation.bit for relation in block.relations if _empty(estimates, relation.index))
    found = {mask: estimates.rows(mask) for mask in masks if mask & empty}
    whole = block.everything
    if whole in masks and whole not in found and _ordered_limit(block):
        limit = _limit(block, params)
        if estimates.rows(whole) <= limit:
            found[whole] = limit
    return found


def _empty(estimates: BlockEstimates, relation: int) -> bool:
    table = estimates.tables[relation]
    if table is None or table.sample is None or table.sample.fraction < WHOLE or not estimates.conditions(relation):
        return False
    matches = estimates.sample_matches(relation)
    return matches is not None and not matches.any()


def _ordered_limit(block: QueryBlock) -> bool:
    """Whether the block's own joins are all there is below a LIMIT that must sort or group before it."""
    if block.limit is None or any(edge.block is not None for edge in block.edges):
        return False
    return bool(block.order_by or block.group_by or block.distinct)


def _limit(block: QueryBlock, params: Parameters) -> float:
    """The rows of LIMIT and OFFSET, 0.0 where they are not known."""
    total = 0.0
    for given in (block.limit, block.offset):
        value = params.get(given.number) if isinstance(given, Param) else given
        if isinstance(value, Const) and isinstance(value.value, int):
            total += float(value.value)
    return total
