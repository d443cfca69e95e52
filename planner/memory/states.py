"""The states of an arm, who may change them, and the line of the ledger that each change writes.

::

    candidate ──▶ trial ──▶ approved ──▶ rejected (withdrawn: slower than unsteered)
        │           └─────▶ rejected (lost, or no gain worth having)
        └─────────▶ rejected (its plan is the plan without it)
    approved, rejected ──▶ expired ──▶ trial (schema, statistics, server or age changed: verified again)
    preferred, frozen: set and taken back by a person alone
"""

from __future__ import annotations

from typing import Final

import msgspec

from planner.memory.records import ArmRecord, LedgerEntry, QueryRecord, State

SYSTEM: Final = "system"
BY_EVIDENCE: Final = {
    State.CANDIDATE: frozenset({State.TRIAL, State.REJECTED}),
    State.TRIAL: frozenset({State.APPROVED, State.REJECTED, State.EXPIRED}),
    State.APPROVED: frozenset({State.REJECTED, State.EXPIRED}),
    State.REJECTED: frozenset({State.EXPIRED}),
    State.EXPIRED: frozenset({State.TRIAL, State.REJECTED}),
    State.PREFERRED: frozenset[State](),
    State.FROZEN: frozenset[State](),
}
"""What the system may do by itself; a person may do anything."""


class TransitionError(ValueError):
    """The system may not change that state."""


def changed(
    arm: ArmRecord,
    after: State,
    why: str,
    at: float,
    *,
    query: QueryRecord | None = None,
    actor: str = SYSTEM,
) -> tuple[ArmRecord, LedgerEntry]:
    """The arm in its new state and the ledger's line on it. Raises TransitionError."""
    if actor == SYSTEM and after not in BY_EVIDENCE[arm.state]:
        raise TransitionError(f"{arm.state} -> {after}")
    entry = LedgerEntry(
        at=at,
        kind="state" if actor == SYSTEM else "person",
        key=arm.key,
        database=query.database if query is not None else "",
        fingerprint=query.fingerprint if query is not None else "",
        arm=arm.arm,
        advice=arm.advice,
        model=arm.model,
        before=str(arm.state),
        after=str(after),
        expected_gain=arm.expected_gain,
        measured_gain=arm.measured_gain,
        actor=actor,
        why=why,
        text=query.text if query is not None else "",
        scope=query.scope if query is not None else "",
    )
    return msgspec.structs.replace(arm, state=after, why=why, actor=actor, updated=at), entry
