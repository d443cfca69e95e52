"""The count of clients that workers share."""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator

import pytest

from proxy.places import SLACK, Places, SharedCounts


@pytest.fixture
def shared() -> Iterator[SharedCounts]:
    counts = SharedCounts()
    yield counts
    counts.close()


def test_a_worker_alone() -> None:
    places = Places()
    assert [places.admit(2) for _ in range(3)] == [True, True, False]
    places.put_lobby(0, 0, 1)
    assert places.taken == 1
    assert places.admit(2)


def test_workers_share_the_places(shared: SharedCounts) -> None:
    one, other = Places(shared.fd, 0), Places(shared.fd, 255)
    assert [one.admit(3), other.admit(3), one.admit(3), other.admit(3), one.admit(3)] == [
        True,
        True,
        True,
        False,
        False,
    ]
    assert one.taken == other.taken == 3
    one.put_lobby(0, 1, 0)
    assert other.admit(3)
    shared.clear(0)  # that worker has died
    assert other.taken == 2


def test_a_new_worker_begins_with_none(shared: SharedCounts) -> None:
    Places(shared.fd, 3).put_lobby(0, 2, 5)
    assert Places(shared.fd, 3).taken == 0


def test_processes_take_turns_and_never_too_many(shared: SharedCounts) -> None:
    """Many at once, in processes of their own, want what there is: all of it is taken, and no more."""
    children = []
    for slot in range(4):
        child = os.fork()
        if not child:
            places = Places(shared.fd, slot)
            os._exit(sum(places.admit(100) for _ in range(50)))
        children.append(child)
    admitted = sum(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children)
    assert admitted == Places(shared.fd, 9).taken == 100


def test_one_that_is_stopped_while_it_counts_holds_nobody_up(shared: SharedCounts) -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        fcntl.lockf(shared.fd, fcntl.LOCK_EX)
        os.write(writing, b"x")
        signal.pause()
    os.read(reading, 1)
    try:
        assert Places(shared.fd, 0).admit(1)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_who_has_clearly_more_leaves_new_ones_to_the_others(shared: SharedCounts) -> None:
    one, other, shut = (Places(shared.fd, slot) for slot in range(3))
    one.put_lobby(2, 1, SLACK)
    assert not one.crowded, "nobody accepts yet"
    one.open_door(accepting=True)
    assert not one.crowded, "it is the only one that accepts"
    other.open_door(accepting=True)
    assert one.crowded
    assert not other.crowded
    other.put_lobby(3, 0, 0)
    assert not one.crowded, "who has said nothing counts"
    other.put_lobby(0, 2, 0)
    assert one.crowded
    one.put_sessions(SLACK - 1)
    assert not one.crowded
    one.put_sessions(SLACK)
    other.open_door(accepting=False)
    assert not one.crowded, "that one is draining"
    shut.open_door(accepting=True)
    assert one.crowded
    shared.clear(2)
    assert not one.crowded, "that one has died"
