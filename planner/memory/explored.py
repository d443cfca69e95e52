"""What was explored, as records of the plan memory: each arm's verdict, its evidence, and the ledger's lines. Pure.

`planner.memory.evidence` judges an arm by the runs that took turns with the default's. Every arm that wins is approved,
with the gain that was measured: the largest is used, and the next one when that is withdrawn. An arm that a person
decided about keeps its state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from planner.explore.runner import ArmResults, ArmRuns, Timing
from planner.memory.convert import to_stored
from planner.memory.evidence import Finding, Rules, Verdict, judge
from planner.memory.keys import Conditions
from planner.memory.records import MAX_LATENCIES, ArmRecord, LedgerEntry, QueryRecord, State
from planner.memory.states import BY_EVIDENCE, SYSTEM, changed

UNTOLD: Final = frozenset({"not_expressible", "not_tried", "cheap"})
"""Outcomes that say nothing of an arm."""
_WHY: Final = {
    "same_plan": "explored: its plan is the plan without it",
    "not_honoured": "explored: the server did not obey it",
    "timed_out": "explored: stopped at its time limit, the best time so far",
}


@dataclass(frozen=True, slots=True)
class Decided:
    """One arm after exploring: ``finding`` is None where it was not run in turns with the default."""

    record: ArmRecord
    finding: Finding | None

    @property
    def saved_ms(self) -> float:
        return self.finding.saved_ms if self.finding is not None else 0.0


def decide(
    results: ArmResults,
    query: QueryRecord,
    known: Mapping[str, ArmRecord],
    conditions: Conditions,
    labels: Mapping[str, str],
    at: float,
    rules: Rules,
) -> tuple[list[Decided], list[LedgerEntry]]:
    """The arms' records and the ledger's lines on what changed. ``known`` are the records that there are, by arm;
    ``labels`` is the model (name-version) of each arm that comes from one; ``at`` in seconds since the epoch."""
    findings = {
        arm.name: judge(_ms(arm.runs), _ms(arm.baseline), rules)
        for arm in results.arms.values()
        if arm.runs and arm.outcome in ("", "behind")
    }
    decided: list[Decided] = []
    ledger: list[LedgerEntry] = []
    for arm in results.arms.values():
        twin = results.arms[arm.twin] if arm.twin else arm
        if arm.outcome in UNTOLD or twin.outcome in UNTOLD:
            continue
        finding = findings.get(arm.name)
        state, why = _verdict(arm, finding)
        record = _record(arm, query.key, known.get(arm.name), conditions, labels.get(arm.name, ""), finding, at)
        record, lines = _moved(record, state, why, at, query)
        decided.append(Decided(record, finding))
        ledger += lines
    return decided, ledger


def baseline(results: ArmResults, known: Sequence[float] = ()) -> tuple[float, ...]:
    """The latest unsteered latencies, with those that were known before."""
    return tuple([*known, *_ms(one for one in results.default.runs if one.completed)][-MAX_LATENCIES:])


def _verdict(arm: ArmRuns, finding: Finding | None) -> tuple[State, str]:
    if arm.outcome == "same_as":
        return State.REJECTED, f"explored: the same plan as {arm.twin}"
    if arm.outcome == "failed":
        return State.REJECTED, f"explored: it failed ({arm.error})"
    if finding is None:
        return State.REJECTED, _WHY.get(arm.outcome, f"explored: {arm.outcome}")
    if finding.verdict is Verdict.WINS:
        return State.APPROVED, f"explored: {finding.why}"
    if finding.verdict is Verdict.OPEN and arm.outcome != "behind":
        return State.TRIAL, f"explored, not decided: {finding.why}"
    return State.REJECTED, f"explored: {finding.why}"


def _record(
    arm: ArmRuns, key: str, known: ArmRecord | None, conditions: Conditions, model: str, finding: Finding | None,
    at: float,
) -> ArmRecord:  # fmt: skip
    """The evidence is replaced: what was measured before was measured under other conditions, or undecided."""
    runs = arm.runs or ([arm.first] if arm.first is not None and arm.first.timed_out else [])
    record = known or ArmRecord(key=key, arm=arm.name)
    return msgspec.structs.replace(
        record,
        advice=to_stored(arm.advice),
        dialect=arm.rendered.dialect,
        model=model,
        latencies=tuple(_ms(runs)[-MAX_LATENCIES:]),
        baseline=tuple(_ms(arm.baseline)[-MAX_LATENCIES:]),
        moments=(),
        since=at,
        runs=record.runs + len(runs),
        losses=record.losses + sum(not one.completed for one in runs),
        expected_gain=arm.expected_gain,
        measured_gain=finding.gain if finding is not None else 0.0,
        schema_hash=conditions.schema_hash,
        server_version=conditions.server_version,
        drift=conditions.drift,
    )


def _moved(
    record: ArmRecord, state: State, why: str, at: float, query: QueryRecord
) -> tuple[ArmRecord, list[LedgerEntry]]:
    """The record in its new state; through ``trial`` where that lies between."""
    if record.state in (State.PREFERRED, State.FROZEN) or record.actor != SYSTEM:
        return msgspec.structs.replace(record, updated=at), []
    if record.state is state:
        return msgspec.structs.replace(record, why=why, updated=at), []
    lines: list[LedgerEntry] = []
    for step in _way(record.state, state):
        record, line = changed(record, step, why, at, query=query)
        lines.append(line)
    return msgspec.structs.replace(record, why=why, updated=at), lines


def _way(before: State, after: State) -> tuple[State, ...]:
    """The fewest changes that the system may make by itself."""
    if after is State.TRIAL and before is State.APPROVED:
        return ()  # its evidence from serving stands
    ways: list[tuple[State, ...]] = [()]
    for way in ways:
        last = way[-1] if way else before
        if last is after:
            return way
        ways += [(*way, step) for step in sorted(BY_EVIDENCE[last]) if step not in (before, *way)]
    return ()


def _ms(timings: Iterable[Timing]) -> list[float]:
    return [one.ms for one in timings]
