"""A person closes a circuit breaker in the store, and instances that run take it up."""

from __future__ import annotations

import time

import pytest

from planner.memory.breaker import Position
from planner.memory.store import open_store
from planner.memory.store.breakers import close, standing
from planner.memory.store.decisions import DecisionError
from tests.planner.test_remembering import Instance


def trip(instance: Instance) -> None:
    """A model loses until its trials are off."""
    judge = instance.memory._judge
    with instance.memory._lock:
        while judge.breakers.allows("m-1", time.time()):
            judge.breakers.count("m-1", time.time(), good=False, in_use=False)


def test_it_closes_in_every_instance_that_runs(url: str) -> None:
    first, second = Instance(url), Instance(url)
    trip(first)
    for one in (first, second):
        one.until(lambda one=one: one.memory.breakers_open == ("m-1",))  # type: ignore[misc]
    with open_store(url) as store:
        assert [one.remembering.breakers_open for one in (first, second)] == [1, 1]
        (_, off) = before = standing(store)
        assert (off.source, off.covers, off.position) == ("m-1", "trials", Position.OPEN)
        assert off.until > time.time()
        assert {one.position for one in before if one is not off} == {Position.CLOSED}
        assert close(store, "m-1", actor="ann", why="a wrong file, replaced") == [off]
        # The first has not heard of it yet, and writes what it believes.
        with first.memory._lock:
            first.memory._judge.breakers.count("m-1", time.time(), good=False, in_use=False)
        for one in (first, second):
            one.until(lambda one=one: not one.memory.breakers_open)  # type: ignore[misc]
            assert None in one.forgotten
        assert {one.position for one in standing(store)} == {Position.CLOSED}
        (line,) = store.ledger(kind="breaker", actor="ann")
        assert (line.model, line.before, line.after) == ("m-1", "open", "closed")
        assert line.why == "trials: a wrong file, replaced"
        with pytest.raises(DecisionError, match="all of them are closed"):
            close(store, "m-1", actor="ann")
    for one in (first, second):
        one.remembering.close()


def test_a_person_and_something_open_are_needed(url: str) -> None:
    with open_store(url) as store:
        assert [(one.source, one.position) for one in standing(store)] == [("*", Position.CLOSED)]
        for actor in ("", "system"):
            with pytest.raises(DecisionError, match="names the person"):
                close(store, "everything", actor=actor)
        with pytest.raises(DecisionError, match="no circuit breaker of everything is open") as caught:
            close(store, "everything", actor="ann")
        assert caught.value.missing
