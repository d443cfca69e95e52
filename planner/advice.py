"""What to tell PostgreSQL's planner, free of syntax: rows of joins, a join order, settings.

`planner.dialects` renders it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class RowsAdvice:
    """How many rows the inner join of these relations (aliases, at least two) produces."""

    aliases: tuple[str, ...]
    rows: float  # at least 1


@dataclass(frozen=True, slots=True)
class Advice:
    """``settings`` are planner settings for this statement alone, name to value. ``relations`` is the largest number of
    relations that one block joins, for GEQO and the collapse limits, and ``join_pairs`` about how many pairs of
    sub-plans an exhaustive search of it weighs (`planner.subplans.join_pairs`; 0: not counted). ``leading`` is a join
    order as nested pairs of aliases, or None."""

    rows: tuple[RowsAdvice, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    leading: JoinTree | None = None
    relations: int = 0
    join_pairs: float = 0.0

    @property
    def empty(self) -> bool:
        return not self.rows and not self.settings and self.leading is None


JoinTree = str | tuple["JoinTree", "JoinTree"]
"""An alias, or an outer and an inner join tree."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """Advice as one dialect delivers it: ``prefix`` goes in front of the statement's text; ``settings`` are put in
    place for the statement and back afterwards. Both may be empty. ``notes`` says what of the advice the dialect could
    not express, as short stable labels."""

    prefix: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    dialect: str = ""
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        return not self.prefix and not self.settings
