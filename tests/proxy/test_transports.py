"""Great reads in portions: all bytes, in their order, and a turn for the others in between."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import pytest

from proxy.transports import FULL_READ, GREAT_READ, LEAST_PORTION, Portions


class Transport:
    """What `Portions` uses of one."""

    def __init__(self) -> None:
        self.reading = True
        self.closing = False

    def is_reading(self) -> bool:
        return self.reading

    def pause_reading(self) -> None:
        self.reading = False

    def is_closing(self) -> bool:
        return self.closing

    def abort(self) -> None:
        self.closing = True


class Peer:
    """Handles portions, each in so many seconds; counts the turns of an innocent neighbour."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.transport = Transport()
        self.seconds = seconds
        self.portions: list[bytes] = []
        self.full = False
        self.resumed = 0
        self.taken = Portions(cast("asyncio.Transport", self.transport), self.handle, self.read_on, lambda: self.full)

    def handle(self, data: bytes) -> None:
        self.portions.append(data)
        if self.seconds:
            time.sleep(self.seconds)

    def read_on(self) -> None:
        self.resumed += 1
        self.transport.reading = True

    async def done(self) -> int:
        """Waits for the last portion; the turns that others had meanwhile."""
        turns = 0
        async with asyncio.timeout(20):
            while self.taken.rest or not self.transport.reading:
                await asyncio.sleep(0)
                turns += 1
        return turns


def some(size: int) -> bytes:
    return bytes(range(256)) * (size // 256)


async def test_what_is_quick_is_handled_at_once_and_whole() -> None:
    peer = Peer()
    data = some(GREAT_READ)
    assert peer.taken.begin(data)
    assert len(peer.portions) == 1
    assert peer.portions[0] is data, "not even copied"
    assert peer.transport.reading, "there is no more to be read, or others have their turn anyway"
    assert not peer.taken.rest


async def test_behind_a_full_read_others_have_their_turn() -> None:
    peer = Peer()
    assert peer.taken.begin(some(FULL_READ))
    assert len(peer.portions) == 1
    assert not peer.transport.reading
    assert await peer.done() >= 1
    assert peer.resumed == 1


async def test_what_is_slow_comes_in_portions_and_in_its_order() -> None:
    peer = Peer(seconds=0.015)
    reads = [some(FULL_READ)[number:] + bytes([number]) * number for number in range(3)]
    turns = 0
    for data in reads:
        assert peer.taken.begin(data)
        turns += await peer.done()
    assert b"".join(peer.portions) == b"".join(reads)
    sizes = [len(portion) for portion in peer.portions]
    assert sizes[0] == FULL_READ, "it was not known yet"
    assert sizes[1] <= FULL_READ // 2
    assert sizes.count(LEAST_PORTION) > 20, "and no smaller, but for the ends"
    assert turns >= len(sizes) - 1
    assert peer.resumed == 3


async def test_portions_grow_again() -> None:
    peer = Peer(seconds=0.015)
    for _ in range(3):
        peer.taken.begin(some(FULL_READ))
        await peer.done()
    peer.seconds = 0.0
    for _ in range(8):
        peer.taken.begin(some(FULL_READ))
        await peer.done()
    assert len(peer.portions[-1]) == FULL_READ


async def test_what_is_older_than_the_rest_does_not_wait_behind_it() -> None:
    peer = Peer(seconds=0.015)
    peer.taken.begin(some(FULL_READ))
    await peer.done()
    assert peer.taken.begin(some(FULL_READ))
    assert peer.taken.rest
    assert not peer.taken.begin(some(GREAT_READ)), "whoever asks handles it now"
    rest = peer.taken.rest
    peer.taken.flush()
    assert peer.portions[-1] == rest
    assert not peer.taken.rest


async def test_nothing_is_handled_while_it_is_full_behind() -> None:
    peer = Peer()
    peer.full = True
    assert peer.taken.begin(some(GREAT_READ))
    await asyncio.sleep(0.05)
    assert not peer.portions
    assert not peer.transport.reading
    peer.full = False
    await peer.done()
    assert peer.portions == [some(GREAT_READ)]
    assert peer.resumed == 1


async def test_a_transport_that_others_have_paused_stays_so() -> None:
    peer = Peer()
    peer.transport.reading = False
    assert peer.taken.begin(some(FULL_READ))
    await asyncio.sleep(0.01)
    assert peer.portions
    assert not peer.resumed


async def test_the_rest_goes_with_its_connection() -> None:
    peer = Peer(seconds=0.015)
    peer.taken.begin(some(FULL_READ))
    await peer.done()
    peer.taken.begin(some(FULL_READ))
    peer.transport.closing = True
    handled = len(peer.portions)
    await asyncio.sleep(0.05)
    assert not peer.taken.rest
    assert len(peer.portions) == handled


async def test_a_fault_in_handling_ends_the_connection() -> None:
    transport = Transport()

    def fault(_: bytes) -> None:
        raise ZeroDivisionError

    taken = Portions(cast("asyncio.Transport", transport), fault, lambda: None)
    with pytest.raises(ZeroDivisionError):
        taken.begin(some(FULL_READ))
    assert transport.closing
    assert not taken.rest
