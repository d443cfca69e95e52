"""The verified plan memory: what was measured of each query and template, and what to do with the next execution.

An index in memory, bounded, without any I/O. `decide` says what a statement is to run under: what a person prefers,
what was approved for it (replayed without asking a model), what was approved for its template, else the next arm worth
a trial; or it is left alone, and why. `observed` takes up what an execution took. `planner.memory.index` keeps the
entries and says what is to be written.

Thread-safe: one lock, held for some microseconds by `decide` and up to 0.3 ms where `observed` comes to a verdict;
models are asked outside of it.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import random
from statistics import median
from typing import Final

from planner.memory.arms import CUSTOM_PLAN
from planner.memory.breaker import Position
from planner.memory.entries import NO_ADVICE, ArmEntry, Candidate, Choice, Entry, Facts, Seen
from planner.memory.guard import BUDGET_MS, TRIAL_BUDGET, TRIAL_SHARE, WAITING, Pace, Policy, budget_ms, important
from planner.memory.index import Index
from planner.memory.judging import usual_ms
from planner.memory.keys import NO_CONDITIONS, same
from planner.memory.records import LedgerEntry, State, StoredAdvice
from planner.memory.states import SYSTEM

OWN_TRIAL_CALLS: Final = 2
"""A query that came so often is tried for itself; before that it counts among the values never seen."""
IMPROVE_EVERY: Final = 4
"""Executions under an arm in use before, and between, trials of further arms."""
MAX_OFFERS: Final = 12
"""A further arm that was offered so often, and never run, cannot be tried where this statement comes from."""
STALE_TRIAL_S: Final = 600.0
PACE_SECONDS: Final = 2.0
"""How often all budgets may be told anew, at most."""
UNTRIED: Final = frozenset({State.CANDIDATE, State.EXPIRED})
LEDGER_SAMPLE: Final = 100
"""Of steered executions, so many-th has a line in the ledger."""
UNSTOPPABLE: Final = (
    "not tried here: a run that cannot be stopped and repeated gets only what was approved by exploring or a person"
)
"""Why nothing comes of a candidate, for people who look."""
LOST_SIBLINGS: Final = 3
"""An arm that lost on so many queries of a template and won on none is not tried on its other queries."""


class Memory(Index):
    """``verify``: plans of arms are looked at before they are tried (`Choice.verify`, `verified`). ``dice`` gives
    numbers from 0 to 1."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        durable: bool = False,
        verify: bool = False,
        clock: Callable[[], float] = time.time,
        dice: Callable[[], float] = random,
    ) -> None:
        super().__init__(policy, durable=durable, clock=clock)
        self._dice = dice
        self._verify = verify
        self._trials: OrderedDict[str, float] = OrderedDict()
        self._steered = 0
        self._pace = Pace()
        self._paced = False
        self._paced_at = 0.0

    @property
    def breakers_open(self) -> tuple[str, ...]:
        """Models that are off, wholly or for trials, ``*`` for all steering."""
        with self._lock:
            found = self._judge.breakers.standing(self._clock())
        return tuple(dict.fromkeys(one.source for one in found if one.position is Position.OPEN))

    @property
    def trials_left_ms(self) -> float:
        """What trials may still cost; below 0 nothing new is tried."""
        return self._judge.spending.left

    # --- deciding --------------------------------------------------------------------------------------------------

    def decide(self, facts: Facts, candidates: Callable[[], Sequence[Candidate]]) -> Choice:
        """What the next executions of this statement run under. ``candidates`` is asked only for what has no approved
        arm and is worth steering; it may take milliseconds and may raise."""
        now = self._clock()
        with self._lock:
            entry, template = self._entries(facts, now)
            choice = self._settled(facts, entry, template, now)
        if choice is not None:
            return choice
        found = candidates()
        with self._lock:
            return self._chosen(facts, entry, template, found, now)

    def peek(self, key: str, template: str) -> Choice | None:
        """What a query runs under now, if anything is in use for it; changes nothing. For EXPLAIN."""
        with self._lock:
            entry, carried = self._queries.get(key), self._templates.get(template)
            if entry is None or entry.record.opted_out or (carried is not None and carried.record.opted_out):
                return None
            arm = entry.replayed()
            if arm is None or not self._allowed(arm, self._clock(), in_use=True):
                return None
            return Choice(arm=arm.record.arm, advice=arm.record.advice, model=arm.record.model, approved=True)

    def advice(self, key: str, arm: str) -> StoredAdvice:
        """What an arm of a query says; nothing when it is not known."""
        with self._lock:
            entry = self._queries.get(key)
            return entry.arms[arm].record.advice if entry is not None and arm in entry.arms else NO_ADVICE

    def _settled(self, facts: Facts, entry: Entry, template: Entry, now: float) -> Choice | None:
        for one in (entry, template):
            frozen = one.record.opted_out or any(arm.record.state is State.FROZEN for arm in one.arms.values())
            if frozen:
                return Choice("frozen")
            self._expire(one, facts, now)
        for one in (entry, template):
            arm = one.replayed()
            # A template has no advice of its own for an arm that a model makes for each value.
            if arm is not None and arm.record.state is State.PREFERRED and not (arm.per_values and one is template):
                return self._use(entry, arm, facts)
        if not self._judge.breakers.allows("", now):
            return Choice("breaker", once=True)
        arm = entry.replayed()
        if arm is not None:
            if not self._allowed(arm, now, in_use=True):
                return Choice("breaker", once=True)
            further = self._further(entry, arm, now)
            return self._use(entry, arm, facts) if further is None else self._improve(entry, further, facts, arm)
        arm = entry.unwritten()
        if arm is not None and self._allowed(arm, now):
            # As good as approved, but nobody would know after a restart: until then the trial goes on.
            return self._try(entry, entry, arm, facts, None)
        calls, typical = max(facts.calls, entry.record.calls), entry.typical_ms or facts.typical_ms
        why = important(calls, typical, self._policy)
        return Choice(why, once=why in WAITING) if why else None

    def _chosen(
        self, facts: Facts, entry: Entry, template: Entry, candidates: Sequence[Candidate], now: float
    ) -> Choice:
        for one in (entry, template):
            one.learn(candidates, facts.conditions)
            self._anew(one, candidates, now)
        for name in entry.order:
            carried = template.arms.get(name)
            own = entry.arms[name]
            if carried is not None and carried.replayed and own.open and self._allowed(own, now):
                return self._use(entry, own, facts, carried=carried)
        if not entry.order:
            return Choice("no_candidate", once=True)
        level = entry if entry.record.calls >= OWN_TRIAL_CALLS else template
        arm = self._next(level, entry, template, now)
        if arm is None:
            return Choice("nothing_left_to_try")
        if not self._judge.spending.allowed or not self._may_try(entry.record.key, now):
            return Choice("trials_limited", once=True)
        return self._try(level, entry, entry.arms[arm.record.arm], facts, None)

    def _use(self, entry: Entry, arm: ArmEntry, facts: Facts, *, carried: ArmEntry | None = None) -> Choice:
        """An approved arm, with its control group; an alarmed one is compared more."""
        policy = self._policy
        alarmed = arm.alarmed or (carried is not None and carried.alarmed)
        share = min(1 - policy.control_share, TRIAL_SHARE) if alarmed else 1 - policy.control_share
        return Choice(
            arm=arm.record.arm,
            advice=arm.record.advice,
            model=arm.record.model,
            share=share,
            approved=True,
            budget_ms=budget_ms(entry.baseline, facts.typical_ms, policy.budget) * self._pace.factor,
        )

    def _try(self, level: Entry, entry: Entry, arm: ArmEntry, facts: Facts, best: ArmEntry | None) -> Choice:
        """A trial: half of the runs, each stopped when it takes longer than it may, and than the ``best`` so far."""
        record = arm.record
        tried = level.arms[record.arm]
        if self._verify and not tried.verified and record.arm != CUSTOM_PLAN and record.state in UNTRIED:
            if best is not None:
                return self._with_verify(self._use(entry, best, facts), record.arm)
            return Choice("verifying", advice=record.advice, once=True, verify=record.arm)
        limits = best.pairs.steered if best is not None else entry.baseline
        # A statement that is hardly ever stopped teaches as much as one that runs for minutes.
        limit = (budget_ms(limits, facts.typical_ms, TRIAL_BUDGET) or facts.typical_ms + BUDGET_MS) * self._pace.factor
        return Choice(
            arm=record.arm,
            advice=record.advice,
            model=record.model,
            share=TRIAL_SHARE,
            approved=False,
            budget_ms=limit,
        )

    def _improve(self, entry: Entry, arm: ArmEntry, facts: Facts, best: ArmEntry) -> Choice:
        """A further arm is tried against the one in use: each execution is drawn here, and none of the two is given up
        for the sake of comparing."""
        choice = self._try(entry, entry, arm, facts, best)
        if choice.verify:
            return choice
        if self._dice() < TRIAL_SHARE:
            arm.offers += 1
            return replace(choice, share=1.0, once=True)
        return replace(self._use(entry, best, facts), once=True)

    def _with_verify(self, choice: Choice, arm: str) -> Choice:
        return Choice(
            arm=choice.arm, advice=choice.advice, model=choice.model, share=choice.share, approved=choice.approved,
            budget_ms=choice.budget_ms, once=True, verify=arm,
        )  # fmt: skip

    def _next(self, level: Entry, entry: Entry, template: Entry, now: float) -> ArmEntry | None:
        """The arm to try: the one under way, what was approved before its evidence expired, the rest in order."""
        names = sorted(level.order, key=lambda name: (name != level.trial, not _was_good(level.arms[name])))
        for name in names:
            arm, carried = level.arms[name], template.arms.get(name)
            lost = carried is not None and carried.lost >= LOST_SIBLINGS and not carried.won
            own = entry.arms.get(name)
            if arm.open and not lost and own is not None and own.open and self._allowed(arm, now):
                return arm
        return None

    def _further(self, entry: Entry, best: ArmEntry, now: float) -> ArmEntry | None:
        """Another arm to be tried on a query that has one in use: now and then, where there is much to win."""
        if best.alarmed or best.record.state is State.PREFERRED or best.used < IMPROVE_EVERY:
            return None
        if not best.pairs.steered or median(best.pairs.steered) < 2 * self._policy.min_ms:
            return None
        if not self._judge.spending.allowed or not self._may_try(entry.record.key, now):
            return None
        for name in sorted(entry.order, key=lambda name: name != entry.trial):
            arm = entry.arms[name]
            if arm.open and arm.offers < MAX_OFFERS and self._allowed(arm, now):
                return arm
        return None

    def _allowed(self, arm: ArmEntry, now: float, *, in_use: bool = False) -> bool:
        return self._judge.breakers.allows(arm.record.model, now, in_use=in_use)

    def _may_try(self, key: str, now: float) -> bool:
        """Only so many trials at a time; one that nothing was heard of for long is not under way."""
        if key in self._trials or len(self._trials) < self._policy.max_trials:
            self._trials[key] = now
            self._trials.move_to_end(key)
            return True
        oldest = next(iter(self._trials))
        if now - self._trials[oldest] < STALE_TRIAL_S:
            return False
        del self._trials[oldest]
        self._trials[key] = now
        return True

    def _expire(self, entry: Entry, facts: Facts, now: float) -> None:
        """Evidence gathered under other conditions, or long ago, is to be gathered again."""
        for arm in entry.arms.values():
            record = arm.record
            if record.state in (State.PREFERRED, State.FROZEN) or (
                record.state is State.REJECTED and record.actor != SYSTEM
            ):
                continue
            why = "" if facts.conditions == NO_CONDITIONS else same(arm.conditions, facts.conditions)
            if not why and arm.settled and now - record.updated > self._policy.max_age_s:
                why = "age"
            if not why:
                continue
            if arm.settled:
                self._judge.move(entry, arm, State.EXPIRED, _EXPIRY[why], now, self._changes)
            arm.restart(facts.conditions, now)
            if why != "age":
                entry.record.baseline = ()

    def _anew(self, entry: Entry, candidates: Sequence[Candidate], now: float) -> None:
        """What another model says is not what was rejected."""
        for candidate in candidates:
            arm = entry.arms.get(candidate.arm)
            if arm is None or not candidate.per_values or arm.record.model == candidate.model or arm.replayed:
                continue
            if arm.record.state is State.REJECTED:
                if arm.record.actor != SYSTEM:
                    continue
                self._judge.move(entry, arm, State.EXPIRED, "another model", now, self._changes)
            arm.restart(arm.conditions, now)
            arm.record.model = candidate.model
            arm.record.expected_gain = candidate.expected_gain
            if not (entry.is_template and candidate.per_values):
                arm.record.advice = candidate.advice

    # --- observing -------------------------------------------------------------------------------------------------

    def observed(self, seen: Seen) -> float:
        """One execution under an answer that named its query. Returns the milliseconds that advice in use saved it,
        below 0 for lost, 0.0 where there is nothing to say."""
        now = self._clock()
        with self._lock:
            self._judge.spending.took(seen.took_ms)
            entry = self._queries.get(seen.key)
            if entry is None:
                # Forgotten here, but not by the worker.
                self._changes.keys.add(seen.key)
                return 0.0
            typical = entry.typical_ms
            entry.ran(seen, now)
            if not seen.steered and not seen.failed:
                self._paced |= self._pace.took(seen.took_ms, typical)
            if self._paced and not 0 <= now - self._paced_at < PACE_SECONDS:
                self._paced, self._paced_at = False, now
                self._changes.everything = True  # budgets are others now
            self._dirty[seen.key] = entry
            arm = entry.arms.get(seen.arm)
            if seen.shadow and (meant := entry.replayed() or self._meant(entry)) is not None:
                self._sample(entry, meant, seen.took_ms, now, "shadow: left alone, would have run under it")
            if seen.unstoppable and (meant := self._meant(entry)) is not None and not meant.record.why:
                meant.record.why = UNSTOPPABLE
            if arm is None:
                if typical < self._policy.min_ms <= entry.typical_ms:
                    self._changes.keys.add(seen.key)  # it has become worth steering
                return 0.0
            replayed = arm.replayed
            saved = 0.0
            if not seen.control:
                cost = seen.took_ms + seen.stopped_ms
                usual = usual_ms(arm, typical) or (seen.took_ms if seen.stopped_ms else 0.0)
                saved = usual - cost if usual else 0.0
                if not replayed:
                    best = entry.replayed()
                    instead = median(best.pairs.steered) if best is not None and best.pairs.steered else usual
                    self._judge.spending.lost(cost - instead if instead else 0.0)
                self._sample(entry, arm, cost, now)
            self._run(entry, arm, seen, typical or seen.took_ms, now)
            due = replayed and seen.steered and arm.used % IMPROVE_EVERY == 0
            if due and any(entry.arms[name].open for name in entry.order):
                self._changes.keys.add(seen.key)  # time for another arm
            return saved if replayed else min(saved, 0.0)

    def _run(self, entry: Entry, arm: ArmEntry, seen: Seen, typical: float, now: float) -> None:
        before = arm.record.state
        self._changes.add(self._judge.ran(entry, arm, seen, typical, now))
        self._changes.add(self._judge.compared(entry, arm, seen, now))
        after = arm.record.state
        template = self._templates.get(entry.record.template)
        carried = template.arms.get(arm.record.arm) if template is not None else None
        if template is None or carried is None:
            return
        if after is not before and after in (State.APPROVED, State.REJECTED):
            self._trials.pop(entry.record.key, None)
            if after is State.APPROVED:
                carried.won += 1
            elif arm.beaten:
                carried.lost += 1
                if carried.record.state is State.APPROVED:
                    self._judge.reject(template, carried, "a query of the template lost", now, self._changes, bad=False)
                    self._outdated(template.record)
        # What has evidence of its own does not speak for values never seen.
        if before not in (State.APPROVED, State.REJECTED) and carried.counts_for(entry.record.key):
            state = carried.record.state
            self._dirty[template.record.key] = template
            self._changes.add(self._judge.ran(template, carried, seen, typical, now))
            if carried.record.state is not state:
                self._outdated(template.record)

    def _meant(self, entry: Entry) -> ArmEntry | None:
        """What a query would be tried under next."""
        return next((entry.arms[name] for name in entry.order if entry.arms[name].open), None)

    def _sample(self, entry: Entry, arm: ArmEntry, took_ms: float, now: float, why: str = "") -> None:
        self._steered += 1
        if self._steered % LEDGER_SAMPLE != 1:
            return
        record = arm.record
        self._changes.ledger.append(
            LedgerEntry(
                at=now,
                kind="execution",
                key=record.key,
                database=entry.record.database,
                fingerprint=entry.record.fingerprint,
                arm=record.arm,
                advice=record.advice,
                model=record.model,
                after=str(record.state),
                expected_gain=record.expected_gain,
                measured_gain=record.measured_gain,
                took_ms=took_ms,
                why=why or record.why,
                text=entry.record.text,
                scope=entry.record.scope,
            )
        )

    def verified(self, key: str, arm_name: str, outcome: str) -> None:
        """What the plan of an arm showed: ``honoured``, ``same_plan``, ``not_honoured``, or ``failed`` when it could
        not be had, which is no reason not to try."""
        now = self._clock()
        with self._lock:
            entry = self._queries.get(key)
            arm = entry.arms.get(arm_name) if entry is not None else None
            if entry is None or arm is None:
                return
            arm.verified = outcome
            template = self._templates.get(entry.record.template)
            if template is not None and arm_name in template.arms:
                template.arms[arm_name].verified = outcome
            why = _UNFIT.get(outcome)
            if why is not None and arm.record.state is State.APPROVED:
                self._judge.move(entry, arm, State.EXPIRED, why, now, self._changes)
                arm.restart(arm.conditions, now)
            elif why is not None and arm.open:
                self._judge.reject(entry, arm, why, now, self._changes, bad=False)
            self._changes.keys.add(key)


_EXPIRY: Final = {
    "schema": "the tables have changed",
    "server": "another version of the server",
    "data": "sizes or statistics of the tables have changed",
    "age": "the evidence is old",
}
_UNFIT: Final = {
    "same_plan": "its plan is the plan without it",
    "not_honoured": "the server did not follow it",
}


def _was_good(arm: ArmEntry) -> bool:
    return arm.record.state is State.EXPIRED and arm.record.measured_gain > 1
