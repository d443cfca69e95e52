"""The wire side of steering: what is asked for each statement before it goes on.

A `Steering` sees every statement's text as the client sent it, and for the extended protocol the Bind message with its
parameters, and answers what to do. `LeaveAlone` is the answer for every statement while no planner is connected.
"""

from __future__ import annotations

from typing import Final, Protocol


class Decision:
    """What to do with one statement; instances are compared by identity."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"<Decision {self.name}>"


LEAVE_ALONE: Final = Decision("leave alone")


class Steering(Protocol):
    """Asked on the hot path: an answer must be there at once."""

    def query(self, text: bytes) -> Decision:
        """A statement of the simple protocol, without its terminating zero."""
        ...

    def bind(self, text: bytes, message: bytes, start: int, end: int) -> Decision:
        """A statement of the extended protocol at its Bind.

        ``message[start:end]`` is the Bind message from the count of parameter format codes on, values included; a
        message longer than the hold limit is cut off at what has arrived.
        """
        ...


class LeaveAlone:
    """Steers nothing."""

    __slots__ = ()

    def query(self, text: bytes) -> Decision:
        return LEAVE_ALONE

    def bind(self, text: bytes, message: bytes, start: int, end: int) -> Decision:
        return LEAVE_ALONE
