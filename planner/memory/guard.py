"""What steering may risk: which statements are worth it, how many of their runs are left alone, what a run may cost.

Pure numbers. `Policy` holds what an operator sets. `Spending` bounds what trials cost all together: so many percent of
the time that statements take anyway, whatever a model proposes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Final

import msgspec

from planner.memory.evidence import MIN_MS, Rules
from planner.memory.records import GuardRecord

FEW_CALLS: Final = "few_calls"
TOO_FAST: Final = "too_fast"
LITTLE_TIME: Final = "little_time"
WAITING: Final = frozenset({FEW_CALLS, LITTLE_TIME})
"""Reasons that go away by themselves when a statement comes more often."""
TRIAL_SHARE: Final = 0.5
"""Of the runs in a trial that are steered; the others are what they are compared with."""
TRIAL_BUDGET: Final = 1.2
"""A run in a trial is stopped after this many times the unsteered time: an arm that needs longer has nothing to win."""
BUDGET_MS: Final = 5.0
"""No budget is smaller: below it the clock, not the plan, would decide."""
MOST: Final = 0.85
MOST_SLACK: Final = 1.1
FEW: Final = 5
SUSPICIOUS: Final = 6
"""Latest runs of an arm in use of which the median is looked at."""
UNCONFIRMED: Final = 3
"""The same for an arm whose approval has not been confirmed in use: it may have been verified elsewhere, with other
pages in memory."""
MAX_STOPS: Final = 3
"""Losses among the latest `RECENT` steered runs that withdraw an arm in use whatever the pairs say."""
RECENT: Final = 20
PACE_WEIGHT: Final = 0.05
PACE_STEP: Final = math.log(1.35)
MOST_PACE: Final = math.log(20.0)
FIRST_SPENDING_MS: Final = 20_000.0
"""What trials may cost before anything has been earned."""
MOST_SPENDING_MS: Final = 600_000.0
SPENDING: Final = "spending"
SPENDING_STEP: Final = 0.01
"""What is left is written down when it has changed by this share, and by a millisecond."""


@dataclass(frozen=True, slots=True)
class Policy:
    """``min_calls``, ``min_ms`` for a run and ``min_total_ms`` for all runs so far: what makes a statement important.
    ``control_share`` of the runs of an approved arm are left alone for ever. ``budget`` is how many times the unsteered
    time an approved run may take where it can be stopped; 0: no limit. ``template_gain`` is what carries an arm to
    values that it was never tried on. ``max_age_s``: evidence older than that is verified again. ``trial_share``: part
    of all time that trials may lose."""

    rules: Rules = field(default_factory=Rules)
    template_gain: float = 2.0
    min_calls: int = 5
    min_ms: float = 6.0
    min_total_ms: float = 100.0
    control_share: float = 0.05
    canary_share: float = 0.1
    budget: float = 2.0
    trial_share: float = 0.05
    max_age_s: float = 7 * 86400.0
    max_trials: int = 100


def important(calls: int, typical_ms: float, policy: Policy) -> str:
    """Empty for a statement worth steering, else why it is not."""
    if calls < policy.min_calls:
        return FEW_CALLS
    if typical_ms < policy.min_ms:
        return TOO_FAST
    return "" if calls * typical_ms >= policy.min_total_ms else LITTLE_TIME


def budget_ms(unsteered: Sequence[float], expected_ms: float, factor: float) -> float:
    """How long a steered run may take before it is stopped and run again as the client sent it; 0: no limit, where
    ``factor`` is 0. ``expected_ms`` stands in where ``unsteered`` runs of the very query are not known. A statement
    whose unsteered runs differ much is given the time that most of them take."""
    typical = median(unsteered) if unsteered else expected_ms
    if factor <= 0 or typical <= 0:
        return 0.0
    slow = sorted(unsteered)[int(len(unsteered) * MOST)] if len(unsteered) >= FEW else 0.0
    return max(typical * factor, typical + BUDGET_MS, slow * MOST_SLACK)


def suspicious(latest: Sequence[float], unsteered: Sequence[float], runs: int = SUSPICIOUS) -> bool:
    """Whether an arm in use may have become slower than the statement without it, by so many ``runs``. Only a reason to
    compare more, since a server that slows down looks the same."""
    return len(latest) >= runs and bool(unsteered) and median(latest[-runs:]) > median(unsteered)


class Pace:
    """How slow the server is now, against what its statements usually take: a moving mean of logarithms over unsteered
    runs of all statements. ``factor`` goes in steps, since budgets are told to the workers and kept there."""

    __slots__ = ("_log", "factor")

    def __init__(self) -> None:
        self._log = 0.0
        self.factor = 1.0

    def took(self, took_ms: float, typical_ms: float) -> bool:
        """An unsteered run; whether ``factor`` changed."""
        if took_ms < MIN_MS or typical_ms < MIN_MS:
            return False
        seen = min(max(math.log(took_ms / typical_ms), -PACE_STEP), MOST_PACE)
        self._log += PACE_WEIGHT * (seen - self._log)
        step = math.log(self.factor)
        # With some slack, so that it does not go up and down all the time.
        if abs(self._log - step) < 0.75 * PACE_STEP:
            return False
        self.factor = math.exp(max(round(self._log / PACE_STEP) * PACE_STEP, 0.0))
        return self.factor != math.exp(step)


class Spending:
    """What trials may still cost, in milliseconds: earned by all time that statements take, spent by steered runs that
    were slower than usual."""

    __slots__ = ("_share", "_told", "left")

    def __init__(self, share: float) -> None:
        self._share = share
        self.left = self._told = FIRST_SPENDING_MS

    def changed(self, now: float) -> list[GuardRecord]:
        """For the store; nothing when it is about what it was at the last call."""
        if abs(self.left - self._told) < max(1.0, SPENDING_STEP * abs(self._told)):
            return []
        self._told = self.left
        return [GuardRecord(name=SPENDING, content=f'{{"left_ms":{self.left:.1f}}}', updated=now)]

    def load(self, record: GuardRecord) -> None:
        """What was left before a restart, and what has been earned and lost since."""
        try:
            left = _LEFT.decode(record.content).left_ms
        except msgspec.MsgspecError:
            return
        self.left = max(min(left + self.left - FIRST_SPENDING_MS, MOST_SPENDING_MS), -MOST_SPENDING_MS)

    def configure(self, share: float) -> None:
        self._share = share

    def took(self, took_ms: float) -> None:
        """Any statement ran."""
        self.left = min(self.left + took_ms * self._share, MOST_SPENDING_MS)

    def lost(self, lost_ms: float) -> None:
        """A trial cost a statement so much."""
        self.left -= max(lost_ms, 0.0)

    @property
    def allowed(self) -> bool:
        return self.left > 0


class _Left(msgspec.Struct):
    left_ms: float


_LEFT: Final = msgspec.json.Decoder(_Left)
