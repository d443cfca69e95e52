"""What a person decides about a query, one transaction each: read, judge, write, with a line in the ledger.

``approve``  the arm is replayed; the regression watch may withdraw it.
``reject``   the arm is not used or tried until something changes.
``prefer``   the arm is replayed whatever the evidence, and never withdrawn by itself; one arm of a query at most.
``freeze``   the query (or, for a template's key, all of its queries) is left alone; ``unfreeze`` ends that.
``opt_out``  the same for the template that a query belongs to; ``opt_in`` ends that.
``release``  takes back what people decided: their arms are verified again, the query is no longer frozen.
``forget``   removes all that is known of the query.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

from planner.memory.arms import CUSTOM_PLAN, CUSTOM_PLAN_SETTINGS, PORTFOLIO
from planner.memory.records import ArmRecord, LedgerEntry, QueryRecord, State, StoredAdvice
from planner.memory.store.saving import SYSTEM
from planner.memory.store.store import Change, Saved, Store

ACTIONS: Final = ("approve", "reject", "prefer", "freeze", "unfreeze", "opt_out", "opt_in", "release", "forget")
_STATES: Final = {"approve": State.APPROVED, "reject": State.REJECTED, "prefer": State.PREFERRED}
_LIKELY: Final = 5


class DecisionError(Exception):
    """It cannot be decided so; ``str()`` is one sentence. ``missing``: there is no such query or arm."""

    def __init__(self, sentence: str, *, missing: bool = False) -> None:
        super().__init__(sentence)
        self.missing = missing


class _Case(NamedTuple):
    query: QueryRecord
    arms: Sequence[ArmRecord]
    actor: str
    why: str
    now: float

    def line(self, arm: ArmRecord | None, before: str, after: str) -> LedgerEntry:
        return LedgerEntry(
            at=self.now,
            kind="person",
            key=self.query.key,
            database=self.query.database,
            fingerprint=self.query.fingerprint,
            arm=arm.arm if arm else "",
            advice=arm.advice if arm else StoredAdvice(),
            model=arm.model if arm else "",
            before=before,
            after=after,
            expected_gain=arm.expected_gain if arm else 0.0,
            measured_gain=arm.measured_gain if arm else 0.0,
            actor=self.actor,
            why=self.why,
            text=self.query.text or self.query.shape,
            scope=self.query.scope,
        )


def decide(store: Store, key: str, action: str, arm: str = "", *, actor: str, why: str = "") -> Saved:
    """What stands in the store afterwards. ``actor`` names the person. Raises DecisionError and StoreError."""
    if action not in ACTIONS:
        raise DecisionError(f"there is no decision {action[:40]!r}; there are {', '.join(ACTIONS)}")
    if not actor or actor == SYSTEM:
        raise DecisionError("a decision names the person who takes it")
    if action == "forget":
        if not store.forget(key, actor=actor, why=why):
            raise _missing(key)
        return Saved(store.revision(), [], [])
    if action in ("opt_out", "opt_in"):
        return _decide_template(store, key, action, actor, why)

    def judge(query: QueryRecord | None, arms: list[ArmRecord]) -> Change:
        if query is None and not arms:
            raise _missing(key)
        known = query or QueryRecord(key=key, template=key, database="", search_path="", fingerprint="")
        case = _Case(known, arms, actor, why, time.time())
        if action in _STATES:
            return _judge_arm(case, _STATES[action], arm)
        if action == "release":
            return _release(case)
        return _freeze(case, action == "freeze")

    return store.change(key, judge)


def find_key(store: Store, prefix: str) -> str:
    """The whole key that begins with ``prefix``. Raises DecisionError when there is none, or more than one."""
    wanted = prefix.strip().lower()
    if len(wanted) < 4 or not set(wanted) <= set("0123456789abcdef"):
        raise DecisionError(f"{prefix[:80]!r} is no key: give at least its first four hexadecimal digits")
    found = [record.key for record in store.queries(key_prefix=wanted, limit=_LIKELY, order="key")]
    if not found:
        raise _missing(prefix)
    if len(found) > 1:
        raise DecisionError(f"several queries' keys begin with {wanted}: {', '.join(found)}")
    return found[0]


def _missing(key: str) -> DecisionError:
    return DecisionError(f"no query {key[:64]} is remembered: `pilotwire memory list` shows them", missing=True)


def _judge_arm(case: _Case, state: State, name: str) -> Change:
    arm = _arm(case, name)
    change = Change([], [], [])
    if state is State.PREFERRED:
        for other in case.arms:
            if other.arm != arm.arm and other.state is State.PREFERRED:
                _set(change, case, other, State.EXPIRED, f"{arm.arm} is preferred now")
    _set(change, case, arm, state, case.why)
    return change


def _arm(case: _Case, name: str) -> ArmRecord:
    if name:
        for arm in case.arms:
            if arm.arm == name:
                return arm
        settings = CUSTOM_PLAN_SETTINGS if name == CUSTOM_PLAN else PORTFOLIO.get(name)
        if settings is not None:
            # Nobody has tried it yet: a person may know.
            return ArmRecord(key=case.query.key, arm=name, advice=StoredAdvice(settings=tuple(settings.items())))
        known = ", ".join(sorted({arm.arm for arm in case.arms} | set(PORTFOLIO)))
        raise DecisionError(f"the query has no arm {name[:100]!r}; there are {known}", missing=True)
    if len(case.arms) != 1:
        known = ", ".join(arm.arm for arm in case.arms) or "none has been tried, the shipped ones are " + ", ".join(
            PORTFOLIO
        )
        raise DecisionError(f"name the arm: {known}")
    return case.arms[0]


def _set(change: Change, case: _Case, arm: ArmRecord, state: State, why: str) -> None:
    change.arms.append(msgspec.structs.replace(arm, state=state, actor=case.actor, why=why, updated=case.now))
    known = any(other.arm == arm.arm for other in case.arms)
    change.ledger.append(case.line(arm, arm.state if known else "", state))


def _freeze(case: _Case, frozen: bool) -> Change:
    made = msgspec.structs.replace(case.query, opted_out=frozen, actor=case.actor, updated=case.now)
    before = State.FROZEN if case.query.opted_out else ""
    return Change([made], [], [case.line(None, before, State.FROZEN if frozen else "")])


def _release(case: _Case) -> Change:
    change = _freeze(case, frozen=False) if case.query.opted_out else Change([], [], [])
    for arm in case.arms:
        if arm.actor != SYSTEM and arm.state is not State.EXPIRED:
            _set(change, case, arm, State.EXPIRED, case.why)
    # From here on the system decides again.
    arms = [msgspec.structs.replace(arm, actor=SYSTEM) for arm in change.arms]
    queries = [msgspec.structs.replace(query, actor=SYSTEM) for query in change.queries]
    if not change.ledger:
        raise DecisionError("nobody has decided anything about this query")
    return Change(queries, arms, change.ledger)


def _decide_template(store: Store, key: str, action: str, actor: str, why: str) -> Saved:
    query = store.query(key)
    if query is None:
        raise _missing(key)

    def judge(template: QueryRecord | None, arms: list[ArmRecord]) -> Change:
        known = template or QueryRecord(
            key=query.template, template=query.template, database=query.database, search_path=query.search_path,
            fingerprint=query.fingerprint, shape=query.shape, first_seen=time.time(),
        )  # fmt: skip
        return _freeze(_Case(known, arms, actor, why, time.time()), action == "opt_out")

    return store.change(query.template, judge)
