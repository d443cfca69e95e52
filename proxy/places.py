"""How many clients the workers of one process have between them: two numbers for each in memory that they share.

One is of the clients that have said who they are, for the limit on all of them. The other is of all connections, for
sharing them out: which of the workers that wait at one socket takes a connection is the kernel's choice, and it has
favourites.

The supervisor makes the memory and passes its descriptor on. What a worker that died had taken is given back by the
supervisor, which alone knows of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from collections.abc import Iterator
from typing import Final

SLOTS: Final = 256
"""Worker ids are below this."""
SLACK: Final = 4
"""Connections that a worker may have more than another before it leaves new ones to that one."""
_BYTES: Final = 2 * SLOTS * 8
_TRIES: Final = 100


def _halves(memory: mmap.mmap) -> tuple[memoryview, memoryview]:
    numbers = memoryview(memory).cast("q")
    return numbers[:SLOTS], numbers[SLOTS:]


class SharedCounts:
    """The memory, in the process that made it."""

    def __init__(self) -> None:
        self.fd: Final = os.memfd_create("pilotwire-places", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _BYTES)
        self._memory = mmap.mmap(self.fd, _BYTES)
        self._clients, self._doors = _halves(self._memory)

    def clear(self, slot: int) -> None:
        """The worker of this id is gone, with its clients."""
        self._clients[slot] = self._doors[slot] = 0

    def close(self) -> None:
        self._clients.release()
        self._doors.release()
        self._memory.close()
        os.close(self.fd)


class Places:
    """One worker's view. Without a descriptor it is alone. Some microseconds for each client that comes or goes."""

    __slots__ = ("_arriving", "_clients", "_doors", "_fd", "_memory", "_open", "_slot", "admitted")

    def __init__(self, fd: int | None = None, slot: int = 0) -> None:
        self._fd = fd
        self._slot = slot
        self._memory = mmap.mmap(-1 if fd is None else fd, _BYTES)
        # A door is 0 while its worker accepts nobody, else one more than the connections behind it.
        self._clients, self._doors = _halves(self._memory)
        self._open = False
        self._arriving = 0
        self.admitted = 0  # of this worker's, those that are logging in
        self._clients[slot] = self._doors[slot] = 0

    @property
    def taken(self) -> int:
        """By the clients of all workers."""
        return sum(self._clients)

    @property
    def crowded(self) -> bool:
        """Whether another worker that accepts has clearly fewer connections than this one."""
        mine: int = self._doors[self._slot]
        return mine > SLACK + 1 and mine - SLACK > min(filter(None, self._doors), default=mine)

    def admit(self, most: int) -> bool:
        """Takes a place for a client that wants to log in, if there is one left."""
        with self._alone():
            if self.taken >= most:
                return False
            self._clients[self._slot] += 1
        return True

    def put_lobby(self, arriving: int, admitted: int, sessions: int) -> None:
        """So many of this worker's connections have said nothing yet, so many are logging in, so many are served."""
        self._arriving, self.admitted = arriving, admitted
        self.put_sessions(sessions)

    def put_sessions(self, sessions: int) -> None:
        """So many clients of this worker have logged in."""
        self._clients[self._slot] = self.admitted + sessions
        self._show_door()

    def open_door(self, *, accepting: bool) -> None:
        """This worker begins or ceases to accept connections."""
        self._open = accepting
        self._show_door()

    def _show_door(self) -> None:
        self._doors[self._slot] = self._arriving + self._clients[self._slot] + 1 if self._open else 0

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps two workers from taking the last place at once. One that is stopped while it counts holds nobody up:
        the others go on without."""
        locked = False
        if self._fd is not None:
            for _ in range(_TRIES):
                with contextlib.suppress(OSError):
                    fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    locked = True
                    break
        try:
            yield
        finally:
            if locked and self._fd is not None:
                fcntl.lockf(self._fd, fcntl.LOCK_UN)
