"""The worker's connection to the planner process: asking, waiting, and doing without.

The planner may be slow, stopped, killed or replaced at any moment, and none of that may hold a client up or make this
process grow: questions that are open and bytes that are not read are bounded, a waiter is told at its deadline, and
after some deadlines missed in a row a breaker keeps further statements from waiting at all. It closes by itself: after
a pause one question is asked as a trial, and an answer in time closes it, or any answer where there had been silence.
A connection that is lost is opened again with pauses that grow.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, cast

from planner.messages import Answer, Ask, Changed, FrameError, Observed, Reader, Refused, encode
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.steering import Decision

MAX_OPEN: Final = 256
"""Questions without an answer yet, the late ones included."""
MAX_UNSENT: Final = 256 * 1024
"""Bytes that may wait for a planner that does not read; beyond, nothing is said to it."""
MAX_OBSERVED: Final = 2000
"""Observations kept until the next batch."""
BATCH_SECONDS: Final = 0.2
FORGET_SECONDS: Final = 10.0
"""After this long a question is given up for good."""
SILENT_MISSES: Final = 3
LATE_MISSES: Final = 8
"""Deadlines missed in a row that open the breaker: by a planner that said nothing, and by one that is only slow."""
MIN_PAUSE: Final = 0.5
MAX_PAUSE: Final = 8.0
RECONNECT_SECONDS: Final = (0.05, 2.0)
_COST_WEIGHT: Final = 0.1
COST_FADES_SECONDS: Final = 5.0
"""While no answer comes, what answers are thought to take is halved as often as this."""


class Waiter:
    """Somebody who waits for an answer. ``told`` is called once: with the decision, or with None when the deadline has
    passed or the planner is gone."""

    __slots__ = ("_timer", "_told", "asked", "missed")

    def __init__(
        self, seconds: float, told: Callable[[Decision | None], None], missed: Callable[[Waiter], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        self.asked = loop.time()
        self.missed = missed
        self._told: Callable[[Decision | None], None] | None = told
        self._timer = loop.call_later(seconds, missed, self)

    def tell(self, decision: Decision | None) -> None:
        """Nothing happens the second time."""
        self._timer.cancel()
        told, self._told = self._told, None
        if told is not None:
            told(decision)

    def leave(self) -> None:
        """It does not wait any more, and is not told."""
        self._timer.cancel()
        self._told = None

    @property
    def waiting(self) -> bool:
        return self._told is not None


class Question:
    """One statement the planner is asked about. ``keep`` is called with the answer, whenever it comes, and makes a
    decision of it; None instead when there will be none."""

    __slots__ = ("asked", "keep", "number", "waiters")

    def __init__(self, number: int, asked: float, keep: Callable[[Answer | None], Decision | None]) -> None:
        self.number = number
        self.asked = asked
        self.keep = keep
        self.waiters: list[Waiter] = []

    def end(self, answer: Answer | None) -> None:
        decision = self.keep(answer)
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            waiter.tell(decision)


class PlannerClient(asyncio.Protocol):
    """The connection of one worker, and the questions that are open on it."""

    def __init__(self, path: str, counters: Counters, log: Log, changed: Callable[[Changed], None]) -> None:
        self._path = path
        self._counters = counters
        self._log = log
        self._changed = changed
        self._transport: asyncio.Transport | None = None
        self._reader = Reader()
        self._open: dict[int, Question] = {}
        self._number = 0
        self._observed: list[bytes] = []
        self._batch: asyncio.TimerHandle | None = None
        self._heard = 0.0  # when the planner said anything last
        self._misses = 0
        self._pause = MIN_PAUSE
        self._silent = False  # the breaker is open since nothing was heard, not since answers came late
        self._opens_at = 0.0  # the breaker keeps statements from waiting until then
        self._closed = False
        self._retry = RECONNECT_SECONDS[0]
        self._lost = asyncio.Event()  # the connection is gone
        self._complained = False
        self._cost_ms = 1.0
        self._cost_at = 0.0  # when the last answer came

    @property
    def cost_ms(self) -> float:
        """What an answer takes, as a moving average over those that came. It fades while none comes: what a slow hour
        made too cheap to be asked about would never be asked about again."""
        if not self._cost_at:
            return self._cost_ms
        idle = asyncio.get_running_loop().time() - self._cost_at
        return self._cost_ms if idle < COST_FADES_SECONDS else self._cost_ms * 0.5 ** (idle / COST_FADES_SECONDS)

    @property
    def connected(self) -> bool:
        return self._transport is not None

    @property
    def breaker_open(self) -> bool:
        return self._opens_at > 0.0

    async def run(self) -> None:
        """Keeps the connection until cancelled."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                self._lost.clear()
                try:
                    await loop.create_unix_connection(lambda: self, self._path)
                except OSError as error:
                    # A planner process takes some seconds to start; only after those is its absence worth a word.
                    if not self._complained and self._retry >= RECONNECT_SECONDS[1]:
                        self._complained = True
                        self._log.event("planner_unreachable", level="warning", error=str(error))
                else:
                    await self._lost.wait()
                # Only an answer shows that it was worth while.
                self._retry = min(self._retry * 2, RECONNECT_SECONDS[1])
                await asyncio.sleep(self._retry)
        finally:
            self.close()

    def close(self) -> None:
        self._closed = True
        if self._transport is not None:
            self._transport.abort()
        if self._batch is not None:
            self._batch.cancel()
        self._end_all()

    # ------------------------------------------------------------------ asking

    def may_ask(self) -> bool:
        """Whether a question would be heard; an open breaker lets one through when its pause is over."""
        if self._transport is None:
            return False
        if self._opens_at and asyncio.get_running_loop().time() < self._opens_at:
            return False
        return len(self._open) < MAX_OPEN or self._give_up_old()

    def ask(self, ask: Ask, keep: Callable[[Answer | None], Decision | None]) -> Question | None:
        """Sends a question, whose number is set here; None when it cannot be sent. `may_ask` comes first."""
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > MAX_UNSENT:
            return None
        self._number += 1
        ask.number = self._number
        question = Question(self._number, asyncio.get_running_loop().time(), keep)
        self._open[self._number] = question
        if self._opens_at:
            # A trial: the next one comes later, unless this one is answered.
            self._open_breaker(question.asked, min(self._pause * 2, MAX_PAUSE))
        self._counters.steering_asked += 1
        transport.write(encode(ask))
        return question

    def wait(self, question: Question, seconds: float, told: Callable[[Decision | None], None]) -> Waiter:
        """Has ``told`` called with the decision, or with None after so many seconds."""
        waiter = Waiter(seconds, told, self._missed)
        question.waiters.append(waiter)
        return waiter

    def _missed(self, waiter: Waiter) -> None:
        self._counters.steering_late += 1
        self._misses += 1
        silent = self._heard <= waiter.asked
        if not self._opens_at and self._misses >= (SILENT_MISSES if silent else LATE_MISSES):
            self._silent = silent
            self._open_breaker(asyncio.get_running_loop().time(), MIN_PAUSE)
            self._counters.steering_breaker_opened += 1
        waiter.tell(None)

    def _open_breaker(self, now: float, pause: float) -> None:
        self._pause = pause
        self._opens_at = now + pause

    def _give_up_old(self) -> bool:
        """Makes room among the open questions. They are in the order of their asking."""
        limit = asyncio.get_running_loop().time() - FORGET_SECONDS
        for number, question in [*self._open.items()]:
            if question.asked > limit:
                break
            del self._open[number]
            question.end(None)
        return len(self._open) < MAX_OPEN

    # ------------------------------------------------------------------ telling

    def observe(self, observed: Observed) -> None:
        """Adds to the next batch; dropped and counted when there are too many."""
        if len(self._observed) >= MAX_OBSERVED or self._transport is None:
            self._counters.steering_observations_dropped += 1
            return
        self._observed.append(encode(observed))
        if self._batch is None:
            self._batch = asyncio.get_running_loop().call_later(BATCH_SECONDS, self._send_batch)

    def refused(self, refused: Refused) -> None:
        transport = self._transport
        if transport is not None and transport.get_write_buffer_size() <= MAX_UNSENT:
            transport.write(encode(refused))

    def _send_batch(self) -> None:
        self._batch = None
        batch, self._observed = self._observed, []
        transport = self._transport
        if transport is None or transport.get_write_buffer_size() > MAX_UNSENT:
            self._counters.steering_observations_dropped += len(batch)
            return
        transport.write(b"".join(batch))

    # ------------------------------------------------------------------ asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)
        if self._closed:
            self._transport.abort()
            return
        self._reader = Reader()
        self._close_breaker()
        self._complained = False
        self._counters.planner_connected = 1
        self._log.event("planner_connected")

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._lost.set()
        self._counters.planner_connected = 0
        if not self._closed:
            self._log.event("planner_lost", level="warning", error=str(exc) if exc else None)
        self._end_all()

    def data_received(self, data: bytes) -> None:
        self._heard = asyncio.get_running_loop().time()
        try:
            for message in self._reader.feed(data):
                if isinstance(message, Answer):
                    self._answered(message)
                elif isinstance(message, Changed):
                    self._changed(message)
        except FrameError as error:
            self._counters.steering_planner_errors += 1
            self._log.event("planner_garbage", level="error", error=str(error))
            if self._transport is not None:
                self._transport.abort()

    def _answered(self, answer: Answer) -> None:
        question = self._open.pop(answer.number, None)
        if question is None:
            return
        self._counters.steering_answered += 1
        took = (self._heard - question.asked) * 1000
        self._cost_ms += (took - self._cost_ms) * _COST_WEIGHT
        self._cost_at = self._heard
        self._retry = RECONNECT_SECONDS[0]
        if (self._opens_at and self._silent) or any(waiter.waiting for waiter in question.waiters):
            self._close_breaker()
        question.end(answer)

    def _close_breaker(self) -> None:
        self._misses = 0
        self._opens_at = 0.0
        self._pause = MIN_PAUSE

    def _end_all(self) -> None:
        """Nobody will answer any more: those who wait go on."""
        questions, self._open = self._open, {}
        for question in questions.values():
            question.end(None)
