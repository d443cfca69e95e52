"""One session's wait for advice: its conversation has stopped at a statement, and goes on with a decision or without.

The conversation says that it is suspended, the session's `Wait` asks, and at the answer or the deadline it calls
``go_on``, which may suspend the conversation again at a later statement.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from proxy.steering import Decision
from proxy.steering.client import Waiter
from proxy.steering.steerer import SessionSteering
from proxy.wire.conversation import Conversation

_now: Final = time.monotonic


class Wait:
    """``go_on`` brings a decision to the conversation and sends what comes out."""

    __slots__ = ("_asked", "_go_on", "_steering", "_talk", "_waiter")

    def __init__(self, talk: Conversation, steering: SessionSteering, go_on: Callable[[Decision], None]) -> None:
        self._talk = talk
        self._steering = steering
        self._go_on = go_on
        self._waiter: Waiter | None = None
        self._asked = 0.0

    def begin(self) -> None:
        """Asks, unless that has been done; what cannot be asked goes on at once."""
        while self._talk.suspended and not self._talk.budget_ms and self._waiter is None:
            self._asked = _now()
            self._waiter = self._steering.wait(self._told)
            if self._waiter is None:
                self._go_on(self._steering.unasked())

    def _told(self, decision: Decision | None) -> None:
        self._waiter = None
        self._go_on(self._steering.waited_for(_now() - self._asked, decision))
        self.begin()

    def end(self) -> bool:
        """Goes on at once, without advice; whether it waited."""
        if self._waiter is None:
            return False
        self._waiter.leave()
        self._told(None)
        return True

    def abandon(self) -> None:
        """The session is over: nobody goes on."""
        if self._waiter is not None:
            self._waiter.leave()
            self._waiter = None
