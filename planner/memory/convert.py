"""Advice as it is stored, and back. What has been read from a store is checked when it is rendered, not here."""

from __future__ import annotations

from planner.advice import Advice, RowsAdvice
from planner.memory.records import StoredAdvice


def to_stored(advice: Advice) -> StoredAdvice:
    """A forced join order is not stored: no arm has one."""
    return StoredAdvice(
        rows=tuple((one.aliases, one.rows) for one in advice.rows),
        settings=tuple(sorted(advice.settings.items())),
        relations=advice.relations,
        join_pairs=advice.join_pairs,
    )


def to_advice(stored: StoredAdvice) -> Advice:
    return Advice(
        rows=tuple(RowsAdvice(aliases, rows) for aliases, rows in stored.rows),
        settings=dict(stored.settings),
        relations=stored.relations,
        join_pairs=stored.join_pairs,
    )
