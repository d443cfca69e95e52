"""Where a workload comes from: a file of SQL, pg_stat_statements, PostgreSQL's log, or what the proxy saw.

Each source gives `Told`: statements with their values, plans that were run where the source has them, and what was
left out and why. `worth` decides for all of them what is of use: statements that join tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.sql import read
from training.queries import MAX_STATEMENT_BYTES, OWN, Skipped, excerpt
from training.training_set import Statement
from training.words import in_words

__all__ = ["Plan", "Told", "take"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A plan that was run, of a statement that is among the told: the object under ``Plan`` of EXPLAIN's JSON."""

    text: str
    root: Mapping[str, Any]


@dataclass(slots=True)
class Told:
    """``left_out`` counts statements by the reason why they are of no use, ``skipped`` names some of them."""

    statements: list[Statement] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def leave_out(self, text: str, reason: str, line: int = 0) -> None:
        self.left_out[reason] += 1
        if len(self.skipped) < MOST_NAMED:
            self.skipped.append(Skipped(line, reason, excerpt(text)))


MOST_NAMED = 100


def take(told: Told, statement: Statement) -> bool:
    """Take a statement in if it joins tables; says so."""
    text = statement.text
    if OWN in text:
        told.left_out["counted by pilotwire itself"] += 1
        return False
    if "\0" in text or len(text.encode(errors="replace")) > MAX_STATEMENT_BYTES:
        told.leave_out(text, "too long", statement.line)
        return False
    if excerpt(text)[:7].lower() == "explain":
        # Its reader sees the statement inside, whose EXPLAIN is no part of a workload.
        told.left_out["it is an EXPLAIN"] += 1
        return False
    reading = read(text)
    if reading.graph is None:
        told.leave_out(text, in_words(reading.reason), statement.line)
        return False
    if reading.graph.joined < 2:
        told.leave_out(text, "no join of tables", statement.line)
        return False
    if reading.graph.parameters:
        told.leave_out(text, "it has parameters without values", statement.line)
        return False
    told.statements.append(statement)
    return True
