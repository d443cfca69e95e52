"""Circuit breakers: open on losses, half-open after a pause, closed by good outcomes, one source apart from another."""

from __future__ import annotations

import pytest

from planner.memory.breaker import (
    EVERYTHING,
    FIRST_PAUSE_S,
    MAX_BREAKERS,
    OF_A_MODEL,
    Breaker,
    Breakers,
    Position,
    closing,
)
from planner.memory.records import GuardRecord


def lose(breakers: Breakers, model: str, times: int, now: float = 0.0, *, in_use: bool = False) -> list[str]:
    trips = [trip for _ in range(times) for trip in breakers.count(model, now, good=False, in_use=in_use)]
    return [trip.source for trip in trips]


def test_a_model_that_loses_is_off_and_comes_back_on_trial() -> None:
    breakers = Breakers()
    assert lose(breakers, "bad-1", OF_A_MODEL.bad - 1) == []
    assert breakers.allows("bad-1", 0.0)
    assert lose(breakers, "bad-1", 1) == ["bad-1"]
    assert not breakers.allows("bad-1", FIRST_PAUSE_S - 1)
    assert breakers.allows("good-1", 0.0)
    assert breakers.allows("", 0.0)
    assert breakers.open == ("bad-1",)
    # What was verified of it goes on.
    assert breakers.allows("bad-1", 0.0, in_use=True)
    assert breakers.allows("bad-1", FIRST_PAUSE_S)
    # Still bad: off for twice as long.
    assert lose(breakers, "bad-1", 2, FIRST_PAUSE_S) == ["bad-1"]
    assert not breakers.allows("bad-1", 3 * FIRST_PAUSE_S - 1)
    assert breakers.allows("bad-1", 3 * FIRST_PAUSE_S)
    closed = [
        trip.position for _ in range(4) for trip in breakers.count("bad-1", 3 * FIRST_PAUSE_S, good=True, in_use=False)
    ]
    assert closed == [Position.CLOSED]


def test_a_model_that_is_mostly_right_stays_on() -> None:
    breaker = Breaker("fair-1", OF_A_MODEL)
    for _ in range(50):
        assert breaker.count(good=False, now=0.0) is None
        assert breaker.count(good=True, now=0.0) is None
    assert breaker.position is Position.CLOSED


def test_withdrawals_turn_everything_off() -> None:
    breakers = Breakers()
    lost = [source for number in range(8) for source in lose(breakers, f"m-{number}", 1, in_use=True)]
    assert lost == [EVERYTHING]
    assert EVERYTHING in breakers.open
    assert not breakers.allows("", 1.0)
    assert not breakers.allows("m-0", 1.0)


def test_a_restart_gives_no_other_chance() -> None:
    before, after = Breakers(), Breakers()
    lose(before, "bad-1", OF_A_MODEL.bad - 1, 5.0)
    (kept,) = before.changed()
    assert before.changed() == []
    assert not after.load(kept)
    # One more, and it is off there; which is told here, where less was known.
    assert lose(after, "bad-1", 1, 6.0) == ["bad-1"]
    (tripped,) = after.changed()
    assert before.load(tripped)
    assert not before.load(kept)
    for one in (before, after):
        assert not one.allows("bad-1", 7.0)
        assert one.allows("bad-1", 7.0, in_use=True)
        assert one.allows("bad-1", 6.0 + FIRST_PAUSE_S)
        assert lose(one, "bad-1", 2, 6.0 + FIRST_PAUSE_S) == ["bad-1"]
        assert not one.allows("bad-1", 6.0 + 2 * FIRST_PAUSE_S)
    lose(before, "good-1", 8, 7.0, in_use=True)
    for record in before.changed():
        after.load(record)
    assert EVERYTHING in after.open


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"position":"half"}', '{"pause":-1,"outcomes":[2]}'])
def test_what_somebody_else_wrote_there_is_survived(content: str) -> None:
    breakers = Breakers()
    for name in ("breaker *", "breaker trials m", "breaker use", "breaker nothing m", "else"):
        breakers.load(GuardRecord(name=name, content=content, updated=1.0))
    assert breakers.open == ()


def test_models_are_bounded() -> None:
    breakers = Breakers()
    for number in range(MAX_BREAKERS * 2):
        lose(breakers, f"m-{number}", OF_A_MODEL.bad)
    assert len(breakers.open) == MAX_BREAKERS


def test_what_a_person_closed_stays_closed_whoever_tells_it_first() -> None:
    tripped = Breakers()
    lose(tripped, "bad-1", OF_A_MODEL.bad, 100.0, in_use=True)
    kept = tripped.changed()
    (off,) = [one for one in tripped.standing(101.0) if one.source == "bad-1"]
    assert (off.covers, off.until) == ("use", 100.0 + FIRST_PAUSE_S)
    closings = [closing(one, 200.0) for one in tripped.standing(101.0) if one.position is Position.OPEN]
    assert len(closings) == 2
    for order in (kept + closings, closings + kept):
        taken = Breakers()
        for record in order:
            taken.load(record)
        assert taken.open == ()
        assert taken.allows("bad-1", 201.0, in_use=True)
    # An instance that has lost more meanwhile, but did not open it anew, does not bring it back.
    lose(tripped, "bad-1", 1, 300.0, in_use=True)
    for record in tripped.changed():
        assert not taken.load(record)
    assert taken.open == ()
    # By a clock that is behind the one it was closed by, too.
    lose(taken, "bad-1", OF_A_MODEL.bad, 150.0, in_use=True)
    after = Breakers()
    for record in [*closings, *taken.changed()]:
        after.load(record)
    assert set(after.open) == {"bad-1", EVERYTHING}
