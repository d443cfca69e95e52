"""The queue of replies that are owed, beside a deque."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.owed import Owed

_ENTRIES = st.integers(1, 0x7FFF)
_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), _ENTRIES),
        st.tuples(st.just("appendleft"), _ENTRIES),
        st.tuples(st.just("popleft"), st.just(0)),
        st.tuples(st.just("first"), _ENTRIES),
        st.tuples(st.just("last"), _ENTRIES),
        st.tuples(st.just("many"), st.integers(1, 600)),
        st.tuples(st.just("drain"), st.integers(1, 600)),
        st.tuples(st.just("again"), st.just(0)),
    ),
    max_size=60,
)


def _check(owed: Owed, model: deque[int]) -> None:
    assert owed.entries() == list(owed) == list(model)
    assert list(owed.backwards()) == list(reversed(model))
    assert len(owed) == len(model)
    assert bool(owed) == bool(model)
    assert all(entry in owed for entry in model)
    assert 0 not in owed
    assert owed.first == (model[0] if model else 0)
    assert owed.last == (model[-1] if model else 0)


@settings(deadline=None)
@given(_STEPS)
def test_it_does_what_a_deque_does(steps: list[tuple[str, int]]) -> None:
    owed, model = Owed(), deque[int]()
    for step, number in steps:
        if step == "append":
            owed.append(number)
            model.append(number)
        elif step == "appendleft":
            owed.appendleft(number)
            model.appendleft(number)
        elif step == "many":
            for entry in range(1, number + 1):
                owed.append(entry)
                model.append(entry)
        elif step == "drain":
            for _ in range(min(number, len(model))):
                assert owed.popleft() == model.popleft()
        elif step == "again":
            owed.replace(owed.entries())
        elif not model:
            if step == "popleft":
                with pytest.raises(IndexError):
                    owed.popleft()
        elif step == "popleft":
            assert owed.popleft() == model.popleft()
        elif step == "first":
            owed.first = model[0] = number
        else:
            owed.last = model[-1] = number
        _check(owed, model)


def test_a_queue_that_is_never_empty_does_not_grow() -> None:
    owed = Owed()
    owed.append(1)
    for entry in range(1, 20_000):
        owed.append(entry)
        owed.popleft()
    assert len(owed) == 1
    assert len(owed._later) < 1000


def test_what_is_put_back_takes_its_place_again() -> None:
    owed = Owed()
    for entry in range(1, 20_000):
        owed.append(entry)
    for entry in range(1, 20_000):
        assert owed.popleft() == entry
        owed.appendleft(entry)
        assert owed.popleft() == entry
    assert not owed.first
