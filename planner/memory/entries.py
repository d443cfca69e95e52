"""One query or template in memory: its record, and for each arm the evidence with what is not worth storing.

What goes in and out (`Facts`, `Candidate`, `Choice`, `Seen`, `Changes`) is here too. Times are milliseconds, moments
seconds since the epoch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

import msgspec

from planner.memory.evidence import Finding, Pairs, pairs_of
from planner.memory.guard import RECENT, SUSPICIOUS
from planner.memory.keys import NO_CONDITIONS, Conditions
from planner.memory.records import (
    MAX_LATENCIES,
    REPLAYED,
    ArmRecord,
    GuardRecord,
    LedgerEntry,
    QueryRecord,
    State,
    StoredAdvice,
)

MAX_ARMS: Final = 16
"""Arms of one query; further candidates are not looked at."""
MAX_SIBLINGS: Final = 64
NO_ADVICE: Final = StoredAdvice()
RUNS_PER_SIBLING: Final = 4
"""Runs of one query that count for its template, so that a query that comes often does not speak for all."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A statement that is about to run. ``calls`` and ``typical_ms`` are what is known of its template: how often it
    was measured and what it takes unsteered; ``text`` and ``params`` are kept only where literals may be."""

    key: str
    template: str
    database: str
    search_path: str
    fingerprint: str
    conditions: Conditions = NO_CONDITIONS
    calls: int = 0
    typical_ms: float = 0.0
    text: str = ""
    params: str = ""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way of planning a statement, in the order in which they are to be tried. ``per_values``: the advice was made
    for these very values by a model, which decides anew for others."""

    arm: str
    advice: StoredAdvice
    model: str = ""
    expected_gain: float = 0.0
    per_values: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """``arm`` "": the statement is left alone, for ``reason``. ``once``: it is to be asked about again. ``verify``: the
    arm whose plan is to be looked at before it is tried."""

    reason: str = ""
    arm: str = ""
    advice: StoredAdvice = NO_ADVICE
    model: str = ""
    share: float = 1.0
    approved: bool = False
    budget_ms: float = 0.0
    once: bool = False
    verify: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """One execution under an answer that named ``key``; the fields are those of `planner.messages.Observed`.
    ``shadow``: it was left alone since only decisions are wanted. ``unstoppable``: it was left alone since what is on
    trial may only run where it can be stopped."""

    key: str
    took_ms: float
    arm: str = ""
    steered: bool = False
    control: bool = False
    failed: bool = False
    stopped_ms: float = 0.0
    shadow: bool = False
    unstoppable: bool = False


@dataclass(slots=True)
class Changes:
    """What came of something: records to be written, lines for the ledger, keys whose answers no longer hold.
    ``saved_ms`` is what a steered run took less than usual (below 0: more), ``withdrawn`` the arms in use that lost."""

    records: list[QueryRecord | ArmRecord] = field(default_factory=list)
    guards: list[GuardRecord] = field(default_factory=list)
    ledger: list[LedgerEntry] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    everything: bool = False
    saved_ms: float = 0.0
    withdrawn: int = 0
    approved: int = 0
    rejected: int = 0

    def add(self, other: Changes) -> None:
        self.records += other.records
        self.guards += other.guards
        self.ledger += other.ledger
        self.keys |= other.keys
        self.everything |= other.everything
        self.withdrawn += other.withdrawn
        self.approved += other.approved
        self.rejected += other.rejected


class ArmEntry:
    """One arm. ``committed``: its state is in the store, so that it may be replayed. ``asked_at``: when that was last
    asked for. ``alarmed``: it may have become slower, and half of the runs are left alone until that is known."""

    __slots__ = (
        "alarmed",
        "asked_at",
        "beaten",
        "committed",
        "confirmed",
        "latest",
        "losses",
        "lost",
        "offers",
        "pairs",
        "per_values",
        "plain_losses",
        "record",
        "siblings",
        "stored_losses",
        "stored_runs",
        "used",
        "verified",
        "won",
    )

    def __init__(self, record: ArmRecord, *, committed: bool = False, per_values: bool = False) -> None:
        self.record = record
        self.committed = committed
        self.asked_at = 0.0
        self.pairs = Pairs(pairs_of(record))
        #: Of the runs and losses in the record, those that the store knows: what came since is ours alone.
        self.stored_runs = record.runs if committed else 0
        self.stored_losses = record.losses if committed else 0
        self.latest: deque[float] = deque(maxlen=SUSPICIOUS)
        self.losses: deque[bool] = deque(maxlen=RECENT)
        self.plain_losses: deque[bool] = deque(maxlen=RECENT)
        self.alarmed = False
        #: Whether it was compared in use since it was approved.
        self.confirmed = False
        #: Whether it was rejected since it lost, not only since it gained too little.
        self.beaten = record.state is State.REJECTED and 0 < record.measured_gain < 1
        self.verified = ""
        self.per_values = per_values
        #: Steered runs in use since a further arm was last tried, and how often this one was offered without a run.
        self.used = 0
        self.offers = 0
        #: Of a template's arm: runs that each query gave, and queries of which it won and lost.
        self.siblings: dict[str, int] = {}
        self.won = 0
        self.lost = 0

    @property
    def replayed(self) -> bool:
        return self.committed and self.record.state in REPLAYED

    @property
    def open(self) -> bool:
        """Whether it can be tried; what is approved and not written yet goes on being tried."""
        state = self.record.state
        return state in (State.CANDIDATE, State.TRIAL, State.EXPIRED) or (state in REPLAYED and not self.committed)

    @property
    def settled(self) -> bool:
        return self.record.state in (State.APPROVED, State.REJECTED)

    @property
    def touched(self) -> bool:
        """Whether there is anything to be remembered of it."""
        return self.record.runs > 0 or self.record.state is not State.CANDIDATE or bool(self.record.why)

    def restart(self, conditions: Conditions, now: float) -> None:
        """Evidence from now on only."""
        self.record.since = now
        self.pairs.clear()
        self.latest.clear()
        self.losses.clear()
        self.plain_losses.clear()
        self.siblings.clear()
        self.alarmed = False
        self.verified = ""
        self.won = self.lost = 0
        self.record.schema_hash = conditions.schema_hash
        self.record.server_version = conditions.server_version
        self.record.drift = conditions.drift

    def found(self, finding: Finding) -> None:
        """Notes the evidence in the record."""
        self.note_pairs()
        self.record.measured_gain = round(finding.gain, 4)

    def note_pairs(self) -> None:
        record, pairs = self.record, self.pairs
        record.latencies, record.baseline, record.moments = pairs.steered, pairs.baseline, pairs.moments

    def join(self, record: ArmRecord, *, ours: bool) -> None:
        """Takes up what the store holds under the same state: another instance's pairs and runs beside our own.
        ``ours``: it was we who wrote it, so that our runs until then are among its. 3 us where it holds nothing new."""
        own = self.record
        own.revision = max(own.revision, record.revision)
        if record.since > own.since or not set(record.moments).issubset(self.pairs.moments) or not record.moments:
            own.since = max(own.since, record.since)
            self.pairs.join(pairs_of(record), own.since)
            self.note_pairs()
        if ours:
            own.runs, own.losses = max(own.runs, record.runs), max(own.losses, record.losses)
        else:
            own.runs = record.runs + max(own.runs - self.stored_runs, 0)
            own.losses = record.losses + max(own.losses - self.stored_losses, 0)
        self.stored_runs, self.stored_losses = record.runs, record.losses

    def counts_for(self, key: str) -> bool:
        """Of a template's arm: whether one more run of this query counts."""
        runs = self.siblings.get(key, 0)
        if runs >= RUNS_PER_SIBLING or (not runs and len(self.siblings) >= MAX_SIBLINGS):
            return False
        self.siblings[key] = runs + 1
        return True

    @property
    def conditions(self) -> Conditions:
        return Conditions(self.record.schema_hash, self.record.server_version, self.record.drift)

    def copied(self) -> ArmRecord:
        """The record as it is now; the original goes on changing."""
        return msgspec.structs.replace(self.record)


class Entry:
    """One query, or one template (``record.key == record.template``). ``order`` holds the names of its arms as they are
    to be tried."""

    __slots__ = ("arms", "order", "record", "stored", "trial")

    def __init__(self, record: QueryRecord) -> None:
        self.record = record
        self.arms: dict[str, ArmEntry] = {}
        self.order: list[str] = []
        self.trial = ""
        self.stored = False

    @property
    def is_template(self) -> bool:
        return self.record.key == self.record.template

    @property
    def baseline(self) -> tuple[float, ...]:
        return self.record.baseline

    @property
    def typical_ms(self) -> float:
        """The median unsteered time; 0.0 when it was never measured."""
        return median(self.record.baseline) if self.record.baseline else 0.0

    def ran(self, seen: Seen, now: float) -> None:
        """Counts one execution. Of a stopped run the second try is an unsteered one."""
        record = self.record
        record.calls += 1
        record.total_ms += seen.took_ms + seen.stopped_ms
        record.last_seen = record.updated = now
        if not seen.steered and not seen.failed:
            record.baseline = (*record.baseline[-MAX_LATENCIES + 1 :], seen.took_ms)

    def replayed(self) -> ArmEntry | None:
        """The arm in use: what a person prefers, else the approved one that gained most."""
        found = [arm for arm in self.arms.values() if arm.replayed]
        return max(found, key=_rank, default=None)

    def unwritten(self) -> ArmEntry | None:
        """An arm that was approved and is not known to be written."""
        waiting = (arm for arm in self.arms.values() if arm.record.state in REPLAYED and not arm.committed)
        return next(waiting, None)

    def learn(self, candidates: Sequence[Candidate], conditions: Conditions) -> None:
        """Takes up candidates not known yet; another model's advice is tried anew."""
        for candidate in candidates:
            known = self.arms.get(candidate.arm)
            if known is None:
                if len(self.arms) >= MAX_ARMS:
                    return
                record = ArmRecord(
                    key=self.record.key,
                    arm=candidate.arm,
                    advice=NO_ADVICE if self.is_template and candidate.per_values else candidate.advice,
                    model=candidate.model,
                    expected_gain=candidate.expected_gain,
                    schema_hash=conditions.schema_hash,
                    server_version=conditions.server_version,
                    drift=conditions.drift,
                )
                self.arms[candidate.arm] = ArmEntry(record, per_values=candidate.per_values)
            known = self.arms[candidate.arm]
            known.per_values = candidate.per_values
        self.order = [candidate.arm for candidate in candidates if candidate.arm in self.arms]


def _rank(arm: ArmEntry) -> tuple[bool, float]:
    return arm.record.state is State.PREFERRED, arm.record.measured_gain
