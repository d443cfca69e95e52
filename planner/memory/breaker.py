"""A circuit breaker for advice: too much that lost, and its source is off for a while; then it is tried again.

Two breakers for each model, and one over everything. Closed: outcomes are counted in a sliding window. Open: nothing is
used of that source. Half-open, after a pause: a few outcomes decide whether it closes, or opens for twice as long.

Its state is kept in the store (`Breakers.changed`, `Breakers.load`), so that a restart gives no model another chance.
Instances that share a store share it too: the state that changed last stands. A person who closes one leaves a record
of its own (`closing`), which no instance that has not seen it yet can write over.

An *outcome* is good (an arm was approved or confirmed) or bad (a trial lost, or an arm in use was withdrawn). A trial
that only showed no gain is neither: most trials do, and nobody was hurt.
"""

from __future__ import annotations

import enum
import math
from collections import OrderedDict, deque
from dataclasses import dataclass
from typing import Final

import msgspec

from planner.memory.records import GuardRecord

WINDOW: Final = 40
MAX_BREAKERS: Final = 64
HALF_OPEN_OUTCOMES: Final = 4
HALF_OPEN_BAD: Final = 2
FIRST_PAUSE_S: Final = 600.0
MOST_PAUSE_S: Final = 86_400.0
NAME: Final = "breaker "
CLOSING: Final = "closed "
"""Before the name of a breaker that a person closed."""
EVERYTHING: Final = "*"
"""The breaker over all steering, counting only withdrawals of what was in use."""


class Position(enum.StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class Trip:
    """A breaker changed its position."""

    source: str
    position: Position
    why: str


@dataclass(frozen=True, slots=True)
class Standing:
    """A breaker at one moment, for a person. ``covers`` is ``everything``, ``trials`` or ``use`` (of one model);
    ``until`` is when an open one is tried again, seconds since the epoch, else 0.0; ``bad`` of ``outcomes``, those
    counted since its position changed last."""

    source: str
    covers: str
    position: Position
    until: float
    bad: int
    outcomes: int


@dataclass(frozen=True, slots=True)
class Limit:
    """Opens at ``bad`` bad outcomes of the latest `WINDOW` if they are at least ``share`` of them."""

    bad: int
    share: float


OF_A_MODEL: Final = Limit(8, 0.6)
OF_EVERYTHING: Final = Limit(8, 0.5)


class _Kept(msgspec.Struct):
    """What the store holds of a breaker."""

    position: Position = Position.CLOSED
    opened: float = 0.0
    pause: float = FIRST_PAUSE_S
    outcomes: tuple[bool, ...] = ()


_KEPT: Final = msgspec.json.Decoder(_Kept)


class Breaker:
    """Times are seconds since the epoch; ``changed`` is when something was counted, or what was loaded is of."""

    __slots__ = ("_closed", "_limit", "_opened", "_outcomes", "_pause", "changed", "position", "source")

    def __init__(self, source: str, limit: Limit) -> None:
        self.source = source
        self.position = Position.CLOSED
        self._limit = limit
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)
        self._opened = 0.0
        self._pause = FIRST_PAUSE_S
        self._closed = 0.0
        self.changed = 0.0

    def kept(self) -> str:
        """Its state, for `take`."""
        kept = _Kept(self.position, self._opened, self._pause, tuple(self._outcomes))
        return msgspec.json.encode(kept).decode()

    def take(self, content: str, at: float) -> bool:
        """Takes a state that was kept at that time, unless its own is later; whether its position changed."""
        if at <= self.changed:
            return False
        try:
            kept = _KEPT.decode(content)
        except msgspec.MsgspecError:
            return False
        before, self.position = self.position, kept.position
        self._opened = kept.opened
        self._pause = min(max(kept.pause, FIRST_PAUSE_S), MOST_PAUSE_S)
        self._outcomes = deque(kept.outcomes, WINDOW)
        self.changed = at
        self._let_go()
        return before is not self.position

    def close(self, at: float) -> bool:
        """A person closed it at that time: what had opened it before counts no more, nor does a state of then that is
        taken later. Whether its position changed."""
        self._closed = max(self._closed, at)
        return self._let_go()

    def _let_go(self) -> bool:
        if self.position is Position.CLOSED or self._opened > self._closed:
            return False
        self.position, self._pause = Position.CLOSED, FIRST_PAUSE_S
        self._outcomes.clear()
        return True

    def standing(self, covers: str, now: float) -> Standing:
        self.allows(now)
        until = self._opened + self._pause if self.position is Position.OPEN else 0.0
        return Standing(self.source, covers, self.position, until, self._outcomes.count(False), len(self._outcomes))

    def allows(self, now: float) -> bool:
        """Whether its source may be used; an open one turns half-open when its pause is over."""
        if self.position is Position.OPEN and now - self._opened >= self._pause:
            self.position = Position.HALF_OPEN
            self._outcomes.clear()
        return self.position is not Position.OPEN

    def count(self, *, good: bool, now: float) -> Trip | None:
        """One outcome; what it changed."""
        self.changed = now
        self._outcomes.append(good)
        bad = self._outcomes.count(False)
        size = len(self._outcomes)
        match self.position:
            case Position.CLOSED if bad >= self._limit.bad and bad >= self._limit.share * size:
                return self._open(f"{bad} of the latest {size} outcomes were bad", now, FIRST_PAUSE_S)
            case Position.HALF_OPEN if bad >= HALF_OPEN_BAD:
                return self._open(f"{bad} bad outcomes on trial", now, min(self._pause * 2, MOST_PAUSE_S))
            case Position.HALF_OPEN if size >= HALF_OPEN_OUTCOMES:
                self.position = Position.CLOSED
                return Trip(self.source, Position.CLOSED, f"{size - bad} of {size} outcomes on trial were good")
        return None

    def _open(self, why: str, now: float, pause: float) -> Trip:
        # After what a person closed, although that clock may be ahead of this one.
        self.position, self._opened, self._pause = (
            Position.OPEN,
            max(now, math.nextafter(self._closed, math.inf)),
            pause,
        )
        self._outcomes.clear()
        return Trip(self.source, Position.OPEN, f"{why}; off for {pause:.0f} s")


class Breakers:
    """One over everything, and for each model seen lately one for its trials and one for what is in use of it: a model
    that mostly loses is not tried any more, but what was verified of it goes on."""

    __slots__ = ("_changed", "_everything", "_models")

    def __init__(self) -> None:
        self._changed: dict[str, Breaker] = {}
        self._everything = Breaker(EVERYTHING, OF_EVERYTHING)
        self._models: OrderedDict[tuple[str, bool], Breaker] = OrderedDict()

    def allows(self, model: str, now: float, *, in_use: bool = False) -> bool:
        """Whether advice of ``model`` ("" for the portfolio's) may be tried, or go on being used where it was
        approved."""
        if not self._everything.allows(now):
            return False
        kinds = (True,) if in_use else (True, False)
        return all(found.allows(now) for kind in kinds if (found := self._models.get((model, kind))) is not None)

    @property
    def open(self) -> tuple[str, ...]:
        """The sources that are off, wholly or for trials."""
        every = (self._everything, *self._models.values())
        return tuple(dict.fromkeys(one.source for one in every if one.position is Position.OPEN))

    def standing(self, now: float) -> list[Standing]:
        """All of them, that over everything first."""
        models = sorted(self._models.items())
        found = [one.standing(_KINDS[in_use], now) for (_, in_use), one in models]
        return [self._everything.standing("everything", now), *found]

    def count(self, model: str, now: float, *, good: bool, in_use: bool) -> list[Trip]:
        """One outcome; ``in_use``: of an arm that was approved, which counts for everything too."""
        trips = []
        if in_use:
            trips.append(self._everything.count(good=good, now=now))
            self._changed[NAME + EVERYTHING] = self._everything
        if model:
            breaker = self._of(model, in_use=in_use)
            trips.append(breaker.count(good=good, now=now))
            self._changed[_name(model, in_use=in_use)] = breaker
        return [trip for trip in trips if trip is not None]

    def _of(self, model: str, *, in_use: bool) -> Breaker:
        key = (model, in_use)
        breaker = self._models.setdefault(key, Breaker(model, OF_A_MODEL))
        self._models.move_to_end(key)
        if len(self._models) > MAX_BREAKERS:
            self._models.popitem(last=False)
        return breaker

    # --- the store -------------------------------------------------------------------------------------------------

    def changed(self) -> list[GuardRecord]:
        """The state of those that counted something since the last call."""
        changed, self._changed = self._changed, {}
        return [GuardRecord(name=name, content=one.kept(), updated=one.changed) for name, one in changed.items()]

    def load(self, record: GuardRecord) -> bool:
        """What the store holds, or another instance or a person wrote; whether a position changed."""
        closing = record.name.startswith(CLOSING)
        name = record.name.removeprefix(CLOSING)
        if not name.startswith(NAME):
            return False
        kind, _, model = name.removeprefix(NAME).partition(" ")
        if kind == EVERYTHING:
            breaker = self._everything
        elif kind in _KINDS and model:
            breaker = self._of(model, in_use=kind == _KINDS[True])
        else:
            return False
        return breaker.close(record.updated) if closing else breaker.take(record.content, record.updated)


_KINDS: Final = ("trials", "use")


def closing(one: Standing, now: float) -> GuardRecord:
    """What has every instance close this breaker."""
    name = NAME + EVERYTHING if one.source == EVERYTHING else f"{NAME}{one.covers} {one.source}"
    return GuardRecord(name=CLOSING + name, updated=now)


def _name(model: str, *, in_use: bool) -> str:
    return f"{NAME}{_KINDS[in_use]} {model}"
