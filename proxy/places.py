"""How many clients the workers of one process have between them: a number for each worker in memory that they share.

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
_BYTES: Final = SLOTS * 8
_TRIES: Final = 100


class SharedCounts:
    """The memory, in the process that made it."""

    def __init__(self) -> None:
        self.fd: Final = os.memfd_create("pilotwire-places", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, _BYTES)
        self._memory = mmap.mmap(self.fd, _BYTES)
        self._counts = memoryview(self._memory).cast("q")

    def clear(self, slot: int) -> None:
        """The worker of this id is gone, with its clients."""
        self._counts[slot] = 0

    def close(self) -> None:
        self._counts.release()
        self._memory.close()
        os.close(self.fd)


class Places:
    """One worker's view. Without a descriptor it is alone. Some microseconds for each client that comes or goes."""

    __slots__ = ("_counts", "_fd", "_memory", "_slot", "admitted")

    def __init__(self, fd: int | None = None, slot: int = 0) -> None:
        self._fd = fd
        self._slot = slot
        self._memory = mmap.mmap(-1 if fd is None else fd, _BYTES)
        self._counts = memoryview(self._memory).cast("q")
        self.admitted = 0  # of this worker's, those that are logging in
        self._counts[slot] = 0

    @property
    def taken(self) -> int:
        """By the clients of all workers."""
        return sum(self._counts)

    def admit(self, most: int) -> bool:
        """Takes a place for a client that wants to log in, if there is one left."""
        with self._alone():
            if self.taken >= most:
                return False
            self._counts[self._slot] += 1
        return True

    def put(self, admitted: int, sessions: int) -> None:
        """So many clients of this worker are logging in, and so many have done so."""
        self.admitted = admitted
        self._counts[self._slot] = admitted + sessions

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
