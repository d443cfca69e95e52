"""Which statement a planner process was working on when it died, so that no statement can keep killing it.

A few bytes of memory shared with the supervisor: before a computation its statement's digest is written there, and
zeros after it (both are plain stores into a mapping, under a microsecond). When the process dies the supervisor reads
what was left. A statement found twice is quarantined: the next process leaves it alone without looking at it. Once is
not enough, since whoever kills the process from outside may hit an innocent statement.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections import OrderedDict
from typing import Final

LANES: Final = 2
DIGEST: Final = 16
_NOTHING: Final = bytes(DIGEST)
STRIKES: Final = 2
MAX_SUSPECTS: Final = 1000


def digest(database: str, text: bytes) -> bytes:
    """What stands for a statement; cost about 1 us per kB."""
    return hashlib.blake2b(text, digest_size=DIGEST, key=database.encode()[:64]).digest()


class Recorder:
    """The planner process's end, over the descriptor it inherited; without one it records nothing."""

    __slots__ = ("_memory",)

    def __init__(self, fd: int) -> None:
        self._memory: mmap.mmap | bytearray = bytearray(LANES * DIGEST) if fd < 0 else mmap.mmap(fd, LANES * DIGEST)

    def begin(self, lane: int, digest: bytes) -> None:
        self._memory[lane * DIGEST : (lane + 1) * DIGEST] = digest

    def end(self, lane: int) -> None:
        self._memory[lane * DIGEST : (lane + 1) * DIGEST] = _NOTHING


class BlackBox:
    """The supervisor's end: one for all incarnations of the planner process."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("planner-statements")
        os.ftruncate(self.fd, LANES * DIGEST)
        self._memory = mmap.mmap(self.fd, LANES * DIGEST)
        self._strikes: OrderedDict[bytes, int] = OrderedDict()

    def inquest(self) -> list[bytes]:
        """Takes what a dead process was working on; returns the statements that are quarantined because of it."""
        condemned = []
        for lane in range(LANES):
            found = bytes(self._memory[lane * DIGEST : (lane + 1) * DIGEST])
            self._memory[lane * DIGEST : (lane + 1) * DIGEST] = _NOTHING
            if found != _NOTHING:
                self._strikes[found] = self._strikes.get(found, 0) + 1
                self._strikes.move_to_end(found)
                if self._strikes[found] == STRIKES:
                    condemned.append(found)
        while len(self._strikes) > MAX_SUSPECTS:
            self._strikes.popitem(last=False)
        return condemned

    @property
    def quarantine(self) -> tuple[bytes, ...]:
        return tuple(found for found, strikes in self._strikes.items() if strikes >= STRIKES)

    def close(self) -> None:
        """Gives the memory back; may be called twice."""
        if self.fd >= 0:
            self._memory.close()
            os.close(self.fd)
            self.fd = -1
