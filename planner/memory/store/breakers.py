"""Circuit breakers as they stand in the store, for people, and a person's closing one before its pause is over.

Running instances take the closing up as they take up what others write, within a second or so; it holds for all that
share the store.
"""

from __future__ import annotations

import time

from planner.memory.breaker import EVERYTHING, Breakers, Position, Standing, closing
from planner.memory.records import LedgerEntry
from planner.memory.store.decisions import DecisionError
from planner.memory.store.saving import SYSTEM
from planner.memory.store.store import Store

EVERYTHING_WORD = "everything"
"""How people call the breaker over all steering."""


def standing(store: Store, now: float | None = None) -> list[Standing]:
    """As they are, that over all steering first, then by model."""
    breakers = Breakers()
    for record in store.guards():
        breakers.load(record)
    return breakers.standing(time.time() if now is None else now)


def close(store: Store, source: str, covers: str = "", *, actor: str, why: str = "") -> list[Standing]:
    """Closes the breakers of ``source`` (`EVERYTHING_WORD`, or a model and version) that are open or half-open, with
    ``covers`` only that of trials or of use; a line in the ledger for each. They as they stood before. Raises
    DecisionError and StoreError."""
    if not actor or actor == SYSTEM:
        raise DecisionError("a decision names the person who takes it")
    wanted = EVERYTHING if source == EVERYTHING_WORD else source
    now = time.time()
    known = standing(store, now)
    off = [one for one in known if one.position is not Position.CLOSED]
    found = [one for one in off if one.source == wanted and covers in ("", one.covers)]
    if not found:
        names = ", ".join(dict.fromkeys(called(one) for one in off))
        hint = f"those that are not closed: {names}" if names else "all of them are closed"
        raise DecisionError(f"no circuit breaker of {source[:100]} is open; {hint}", missing=True)
    lines = [
        LedgerEntry(
            at=now,
            kind="breaker",
            model="" if one.source == EVERYTHING else one.source,
            before=str(one.position),
            after=str(Position.CLOSED),
            actor=actor,
            why=f"{one.covers}: {why or 'closed by hand'}",
        )
        for one in found
    ]
    store.save(guards=[closing(one, now) for one in found], ledger=lines)
    return found


def called(one: Standing) -> str:
    """What `close` is to be given as ``source``."""
    return EVERYTHING_WORD if one.source == EVERYTHING else one.source
