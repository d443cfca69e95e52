"""When to train: the schedule has come, enough new statements were seen, the estimates drifted, the schema changed.

Pure, but for the clock that the caller brings. Each event is told once: its mark moves on when the job is made, not
when it succeeds, so that a job that keeps failing is not made anew all the time.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from training.errors import TrainingError

MOST_KEYS: Final = 200_000
"""Statements that are told apart; with more, all further ones count as known."""


class Marks(msgspec.Struct, kw_only=True):
    """What the trainer knew when it last made a job; kept in a file. ``scheduled`` is when the schedule was last looked
    at, ``seen`` the last execution that was read, ``schema`` the digest of the schema, ``drifted`` when the estimates
    were last found to have drifted, ``drift_checked`` when that was last looked at. ``error`` is the mean error of the
    model ``error_of`` (natural logarithms) when it was first looked at, ``error_now`` at the last look."""

    scheduled: float = 0.0
    seen: int = 0
    schema: str = ""
    drifted: float = 0.0
    drift_checked: float = 0.0
    error_of: str = ""
    error: float = 0.0
    error_now: float = 0.0


def check_schedule(expression: str) -> None:
    """Raises TrainingError for what is no cron expression, or where croniter is missing."""
    croniter = _croniter()
    if not croniter.is_valid(expression):
        raise TrainingError(f"{expression!r} is no schedule: five fields as in cron, for instance '0 3 * * *'")


def next_time(expression: str, after: float) -> float:
    """The first moment of the schedule (UTC) after that one."""
    found = _croniter()(expression, datetime.fromtimestamp(after, UTC)).get_next(datetime)
    return float(found.timestamp())


def _croniter() -> Any:
    try:
        return importlib.import_module("croniter").croniter
    except ImportError:
        raise TrainingError("a schedule needs croniter: pip install 'pilotwire[train]'") from None


class NewStatements:
    """Counts statements that were not there when the mark was made. ``note`` is told of every execution in order."""

    def __init__(self, mark: int) -> None:
        self._mark = mark
        self._known: set[str] = set()
        self._new: set[str] = set()
        self.last = 0

    def note(self, number: int, key: str) -> None:
        self.last = max(self.last, number)
        if not key or key in self._known:
            return
        if number <= self._mark:
            self._known.add(key)
        elif len(self._known) + len(self._new) < MOST_KEYS:
            self._new.add(key)

    @property
    def count(self) -> int:
        return len(self._new)

    def settle(self) -> int:
        """All are known from now on; the mark to keep."""
        self._known |= self._new
        self._new.clear()
        self._mark = self.last
        return self._mark


def mean_error(estimates: Iterable[tuple[float, float]]) -> float | None:
    """The mean of |ln(estimate / true)| over pairs of at least one row each; None for none."""
    errors = [abs(math.log(max(estimate, 1.0) / max(true, 1.0))) for estimate, true in estimates]
    return math.fsum(errors) / len(errors) if errors else None


def drifted(then: float, now: float, factor: float) -> bool:
    """Whether the typical q-error, exp(mean error), has grown by that factor."""
    return now - then > math.log(factor)


def schedule_due(expression: str, last: float, now: float) -> bool:
    return bool(expression) and last > 0 and next_time(expression, last) <= now
