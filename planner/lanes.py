"""The planner process's work: a bounded queue and two threads, so that one slow statement does not hold up the rest.

Short texts go through the quick lane, long ones (which may take milliseconds to parse) through the slow one. In each,
requests are served in the order of arrival, except that one older than ``stale`` seconds, whose asker has stopped
waiting, gives way to those that somebody still waits for; it is computed later, for the asker's cache. The threads
share one interpreter, so two lanes are no more work done: parsing and inference let go of the interpreter's lock, and
the rest takes turns every millisecond.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from planner.blackbox import LANES

QUICK, SLOW = range(LANES)
SLOW_BYTES: Final = 4096
"""A text longer than this takes the slow lane."""
MAX_QUEUED: Final = 256
MAX_STALE: Final = 256
STALE_SECONDS: Final = 0.02


@dataclass(slots=True)
class Job:
    """``run`` computes in the lane's thread, ``done`` is called there with its result, or with None when it raised."""

    run: Callable[[int], Any]
    done: Callable[[Any, BaseException | None], None]
    came: float = field(default_factory=time.monotonic)


class Lane:
    """One thread with its queue. ``busy_since`` is when the job under way began, 0.0 when there is none."""

    def __init__(self, number: int, stale_seconds: float = STALE_SECONDS) -> None:
        self.busy_since = 0.0
        self._number = number
        self._stale_seconds = stale_seconds
        self._fresh: deque[Job] = deque()
        self._stale: deque[Job] = deque()
        self._wake = threading.Condition()
        self._ended = False
        self._thread = threading.Thread(target=self._work, name=f"lane-{number}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, job: Job) -> bool:
        """False when too many wait already."""
        with self._wake:
            if len(self._fresh) >= MAX_QUEUED or self._ended:
                return False
            self._fresh.append(job)
            self._wake.notify()
        return True

    @property
    def waiting(self) -> int:
        return len(self._fresh) + len(self._stale)

    def stop(self) -> None:
        """Finishes the job under way and drops the others."""
        with self._wake:
            self._ended = True
            self._wake.notify()

    def _next(self) -> Job | None:
        with self._wake:
            while not self._fresh and not self._stale and not self._ended:
                self._wake.wait()
            if self._ended:
                return None
            limit = time.monotonic() - self._stale_seconds
            while self._fresh:
                job = self._fresh.popleft()
                if job.came >= limit:
                    return job
                self._stale.append(job)
                if len(self._stale) > MAX_STALE:
                    break
            return self._stale.popleft()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            self.busy_since = time.monotonic()
            result, error = None, None
            try:
                result = job.run(self._number)
            except Exception as raised:
                error = raised
            self.busy_since = 0.0
            job.done(result, error)


class Lanes:
    """Both lanes together."""

    def __init__(self) -> None:
        self._lanes = tuple(Lane(number) for number in range(LANES))

    def start(self) -> None:
        for lane in self._lanes:
            lane.start()

    def put(self, job: Job, size: int) -> bool:
        """``size`` is the length of the statement's text; False when too many wait in its lane."""
        return self._lanes[SLOW if size > SLOW_BYTES else QUICK].put(job)

    def stop(self) -> None:
        for lane in self._lanes:
            lane.stop()

    @property
    def waiting(self) -> int:
        return sum(lane.waiting for lane in self._lanes)

    @property
    def stuck_seconds(self) -> float:
        """How long the oldest job under way has taken."""
        begun = [since for lane in self._lanes if (since := lane.busy_since)]
        return time.monotonic() - min(begun) if begun else 0.0
