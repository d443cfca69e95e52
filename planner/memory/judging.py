"""What one run changes: an arm on trial is approved or rejected, an arm in use is withdrawn or looked at more closely.

Works on the entries that `planner.memory.memory.Memory` holds, under its lock. The rules in short:

- On trial, half of the runs are steered; the others are left alone, or run under the arm that is in use already. The
  verdict is `planner.memory.evidence.judge`'s; a run that had to be stopped and was clearly faster without, or two more
  failures than the unsteered runs had, end a trial at once.
- In use, the permanent control group makes pairs with the steered runs next to them in time. What is slower with
  confidence is withdrawn, and so is what had to be stopped or failed three times of late. Steered runs that look slower
  than unsteered ones were raise an alarm: half of the runs are then left alone until it is clear which of arm and
  server has become slower. An arm that has no advantage any more is verified again.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Final

from planner.memory.breaker import EVERYTHING, Breakers, Position, Trip
from planner.memory.entries import ArmEntry, Changes, Entry, Seen
from planner.memory.evidence import FAILED_FACTOR, MIN_MS, Finding, Rules, Verdict, judge, slower
from planner.memory.guard import MAX_STOPS, SUSPICIOUS, UNCONFIRMED, Policy, Spending, suspicious
from planner.memory.records import MAX_LATENCIES, REPLAYED, LedgerEntry, State
from planner.memory.states import changed

MAX_TRIAL_LOSSES: Final = 2
CLEAR_LOSS: Final = 1.15
"""How many times as long as its second try a stopped run must have taken to end a trial by itself."""
SLOW_SERVER: Final = 1.5
"""A stopped run says nothing when its second try, as the client sent it, took so many times as long as usual."""
CLEARING_PAIRS: Final = 5
"""Pairs after an alarm that show whether there was reason for it."""
BETTER: Final = 1.1
"""How many times as fast as the arm in use a further one must be."""
MOST_GAIN: Final = 1000.0
FADED_PAIRS: Final = 12
FADED_GAIN: Final = 1.05
"""An arm in use that gains less than this over so many pairs is verified again."""
TEMPLATE_SIBLINGS: Final = 3
"""Queries of a template that its evidence must come from."""


class Judge:
    """``durable``: an approved arm is used only once its state has been written (`Memory.committed`)."""

    def __init__(self, policy: Policy, *, durable: bool) -> None:
        self.breakers = Breakers()
        self.spending = Spending(policy.trial_share)
        self.durable = durable
        self.policy = policy

    def configure(self, policy: Policy) -> None:
        self.policy = policy
        self.spending.configure(policy.trial_share)

    def rules(self, entry: Entry, arm: ArmEntry) -> Rules:
        """For a template: more pairs, and for an arm that is carried over from other values a larger gain."""
        own = self.policy.rules
        if not entry.is_template:
            return own
        gain = own.min_gain if arm.per_values else max(self.policy.template_gain, own.min_gain)
        return Rules(gain, own.min_ms, own.alpha / 2, own.min_pairs + 3, MAX_LATENCIES, early=False, heavy=math.inf)

    # --- states ----------------------------------------------------------------------------------------------------

    def move(self, entry: Entry, arm: ArmEntry, after: State, why: str, now: float, changes: Changes) -> None:
        """Changes a state and notes what is to be written."""
        arm.record, line = changed(arm.record, after, why, now, query=entry.record)
        arm.committed = not self.durable or after not in REPLAYED
        arm.asked_at = now
        if entry.trial == arm.record.arm and after is not State.TRIAL:
            entry.trial = ""
        entry.stored = True
        changes.records.append(arm.copied())
        changes.ledger.append(line)
        changes.keys.add(entry.record.key)
        changes.approved += after is State.APPROVED
        changes.rejected += after is State.REJECTED

    def approve(self, entry: Entry, arm: ArmEntry, why: str, now: float, changes: Changes) -> None:
        arm.alarmed = False
        arm.latest.clear()
        arm.losses.clear()
        arm.pairs.fresh = 0
        arm.confirmed = False
        self.move(entry, arm, State.APPROVED, why, now, changes)
        self._count(entry, arm, now, changes, good=True, in_use=False)

    def reject(self, entry: Entry, arm: ArmEntry, why: str, now: float, changes: Changes, *, bad: bool) -> None:
        """``bad``: it lost, and did not only gain too little."""
        in_use = arm.record.state in REPLAYED
        arm.beaten = bad
        self.move(entry, arm, State.REJECTED, ("withdrawn: " if in_use else "") + why, now, changes)
        changes.withdrawn += in_use and bad
        if bad:
            self._count(entry, arm, now, changes, good=False, in_use=in_use)

    def _count(self, entry: Entry, arm: ArmEntry, now: float, changes: Changes, *, good: bool, in_use: bool) -> None:
        if entry.is_template and not in_use:
            return  # its queries' outcomes count already
        for trip in self.breakers.count(arm.record.model, now, good=good, in_use=in_use):
            changes.ledger.append(breaker_line(trip, now))
            # Every answer may hold advice of what has just been turned off.
            changes.everything = True

    # --- runs ------------------------------------------------------------------------------------------------------

    def ran(self, entry: Entry, arm: ArmEntry, seen: Seen, typical_ms: float, now: float) -> Changes:
        """One run under an answer that named this arm, steered or left alone for comparison. ``typical_ms`` is what the
        statement takes unsteered."""
        changes = Changes()
        if arm.record.state in (State.CANDIDATE, State.EXPIRED):
            self.move(entry, arm, State.TRIAL, "tried on real executions", now, changes)
            entry.trial = arm.record.arm
        at = max(now, arm.record.since)
        if seen.stopped_ms > 0:
            lost = self._stopped(entry, arm, seen, typical_ms, at)
        elif seen.steered:
            lost = seen.failed
            took = _counted(seen, typical_ms)
            arm.pairs.add_steered(took, at)
            arm.latest.append(took)
        elif seen.control:
            arm.pairs.add_plain(_counted(seen, typical_ms), at)
            arm.plain_losses.append(seen.failed)
            lost = False
        else:
            return changes
        if not seen.control:
            arm.record.runs += 1
            arm.record.losses += lost
            arm.losses.append(lost)
            arm.used += 1
            arm.offers = 0
        if arm.record.state is State.TRIAL:
            self._try(entry, arm, seen.stopped_ms / max(seen.took_ms, MIN_MS) if lost else 0.0, now, changes)
        elif arm.record.state is State.APPROVED:
            self._watch(entry, arm, now, changes)
        else:
            arm.found(judge(arm.pairs.steered, arm.pairs.baseline, self.policy.rules))
        return changes

    def compared(self, entry: Entry, arm: ArmEntry, seen: Seen, now: float) -> Changes:
        """A run under the arm in use is what a further arm is compared with. It is written down as what the statement
        would have taken unsteered, by what the arm in use gains."""
        changes = Changes()
        trial = entry.arms.get(entry.trial)
        if trial is None or trial is arm or not seen.steered or entry.replayed() is not arm:
            return changes
        if trial.record.state is State.TRIAL:
            took = _counted(seen, seen.took_ms) * _gain(arm)
            if trial.pairs.add_plain(took, max(now, trial.record.since)):
                self._try(entry, trial, 0.0, now, changes)
        return changes

    def _stopped(self, entry: Entry, arm: ArmEntry, seen: Seen, typical_ms: float, at: float) -> bool:
        """Whether the run was stopped because of the arm."""
        if typical_ms and seen.took_ms > SLOW_SERVER * typical_ms:
            return False
        if _improving(entry, arm):
            # The limit was that of the arm in use.
            return True
        if seen.stopped_ms <= seen.took_ms:
            # It takes longer without, too: the limit was that of other values.
            return False
        if arm.record.state is not State.TRIAL:
            arm.pairs.add(seen.stopped_ms + seen.took_ms, seen.took_ms, at)
        return True

    def _try(self, entry: Entry, arm: ArmEntry, stopped: float, now: float, changes: Changes) -> None:
        """``stopped``: how many times as long as its second try the run took that was stopped just now; 0.0: it was
        not."""
        finding = judge(arm.pairs.steered, arm.pairs.baseline, self.rules(entry, arm))
        arm.found(finding)
        losses = arm.losses.count(True)
        best = entry.replayed() if not entry.is_template else None
        improving, against = best is not None and best is not arm, ""
        if best is not None and improving:
            finding = self._better(arm, best)
            best.used = 0
            against = f"against {best.record.arm}: "
        # A run over the limit, which is near what the arm in use takes, shows that there is no advantage over that.
        clear = stopped > CLEAR_LOSS or (improving and stopped > 0)
        if clear or losses >= MAX_TRIAL_LOSSES + arm.plain_losses.count(True):
            why = f"{losses} of {arm.record.runs} runs stopped or failed"
            self.reject(entry, arm, why, now, changes, bad=not (stopped and improving))
        elif finding.verdict is Verdict.WINS:
            if not entry.is_template:
                self.approve(entry, arm, against + finding.why, now, changes)
            elif arm.lost:
                self.reject(entry, arm, f"{arm.lost} queries of the template lost", now, changes, bad=False)
            elif len(arm.siblings) >= TEMPLATE_SIBLINGS:
                self.approve(entry, arm, f"{finding.why}, {len(arm.siblings)} queries", now, changes)
        elif finding.verdict is not Verdict.OPEN:
            bad = finding.verdict is Verdict.LOSES and not improving
            self.reject(entry, arm, ("lost: " if bad else "no gain: ") + against + finding.why, now, changes, bad=bad)

    def _better(self, arm: ArmEntry, best: ArmEntry) -> Finding:
        """Whether an arm is faster than the one in use."""
        gain, own = _gain(best), self.policy.rules
        rules = Rules(BETTER, own.min_ms, own.alpha, own.min_pairs, own.max_pairs, heavy=math.inf)
        return judge(arm.pairs.steered, [took / gain for took in arm.pairs.baseline], rules)

    def _watch(self, entry: Entry, arm: ArmEntry, now: float, changes: Changes) -> None:
        steered, baseline = arm.pairs.steered, arm.pairs.baseline
        lost = slower(steered, baseline)
        if lost is not None:
            arm.found(lost)
            self.reject(entry, arm, f"slower than unsteered: {lost.why}", now, changes, bad=True)
            return
        losses = arm.losses.count(True)
        if losses >= MAX_STOPS + arm.plain_losses.count(True):
            why = f"{losses} of the latest {len(arm.losses)} runs were stopped or failed"
            self.reject(entry, arm, why, now, changes, bad=True)
            return
        recent = judge(steered[-FADED_PAIRS:], baseline[-FADED_PAIRS:], self.policy.rules)
        if recent.pairs >= FADED_PAIRS and recent.gain < FADED_GAIN:
            self.move(entry, arm, State.EXPIRED, f"no advantage any more: {recent.why}", now, changes)
            arm.restart(arm.conditions, now)
            return
        arm.found(recent)
        if recent.verdict is Verdict.WINS and arm.pairs.fresh >= FADED_PAIRS and not arm.alarmed:
            arm.record.updated = now  # the evidence is as young as this
            arm.pairs.fresh = 0
            self._count(entry, arm, now, changes, good=True, in_use=True)
        arm.confirmed = arm.confirmed or arm.pairs.fresh >= CLEARING_PAIRS
        self._alarm(entry, arm, changes)

    def _alarm(self, entry: Entry, arm: ArmEntry, changes: Changes) -> None:
        if arm.alarmed:
            if arm.pairs.fresh < CLEARING_PAIRS:
                return
            finding = judge(
                arm.pairs.steered[-CLEARING_PAIRS:], arm.pairs.baseline[-CLEARING_PAIRS:], self.policy.rules
            )
            if finding.gain <= 1.0:
                return
            arm.alarmed = False
            # What was unsteered then is no measure for now.
            arm.latest.clear()
        else:
            runs = SUSPICIOUS if arm.confirmed else UNCONFIRMED
            lost = bool(arm.losses) and arm.losses[-1]
            if not lost and not suspicious(tuple(arm.latest), arm.pairs.baseline[-CLEARING_PAIRS:], runs):
                return
            arm.alarmed = True
            arm.pairs.fresh = 0
        changes.keys.add(entry.record.key)


def _improving(entry: Entry, arm: ArmEntry) -> bool:
    """Whether the arm is tried against another one that is in use."""
    best = entry.replayed()
    return best is not None and best is not arm


def _gain(best: ArmEntry) -> float:
    return min(max(best.record.measured_gain, 1.0), MOST_GAIN)


def _counted(seen: Seen, typical_ms: float) -> float:
    return FAILED_FACTOR * max(seen.took_ms, typical_ms) if seen.failed else seen.took_ms


def breaker_line(trip: Trip, now: float) -> LedgerEntry:
    """The ledger's line on a breaker."""
    before = Position.CLOSED if trip.position is Position.OPEN else Position.HALF_OPEN
    model = "" if trip.source == EVERYTHING else trip.source
    return LedgerEntry(
        at=now, kind="breaker", model=model, before=str(before), after=str(trip.position),
        why=f"{trip.source}: {trip.why}",
    )  # fmt: skip


def usual_ms(arm: ArmEntry, typical_ms: float) -> float:
    """What a run takes unsteered, by the runs that the arm was last compared with."""
    baseline = arm.pairs.baseline[-CLEARING_PAIRS:]
    return median(baseline) if baseline else typical_ms
