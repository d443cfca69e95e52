"""A steering that does what a test says, and remembers what it was told."""

from __future__ import annotations

from collections.abc import Callable

from proxy.steering import LEAVE_ALONE, Decision, Known, Steering

Script = Callable[[bytes], Decision]


class ScriptedSteering(Steering):
    """``script`` decides by the text. ``seen`` has (text, parameters or None) of all that it was asked about."""

    def __init__(self, script: Script | None = None) -> None:
        super().__init__()
        self.script = script or (lambda text: LEAVE_ALONE)
        self.seen: list[tuple[bytes, bytes | None]] = []
        self.settings: dict[bytes, bytes] = {}
        self.steered: list[Decision] = []
        self.reasons: list[str] = []
        self.stops = 0
        self.errors: list[bytes] = []
        self.refusals: list[tuple[bytes, bytes, bool]] = []

    def query(self, text: bytes) -> Decision:
        self.seen.append((text, None))
        return self.script(text)

    def known(self, text: bytes, types: bytes) -> Known | None:
        # As in life: what ends a transaction joins nothing, and what cannot be prepared gets no advice.
        return None if b"end" in text or b"error" in text else Known(text, types, None)

    def bind(self, known: Known, message: bytes, start: int, end: int) -> Decision:
        self.seen.append((known.text, message[start:end]))
        return self.script(known.text)

    def reported(self, name: bytes, value: bytes) -> None:
        self.settings[name] = value

    def delivered(self, decision: Decision) -> None:
        self.steered.append(decision)

    def prevented(self, reason: str) -> None:
        self.reasons.append(reason)

    def stopped(self) -> None:
        self.stops += 1

    def failed(self, error: bytes) -> None:
        if error:
            self.errors.append(error)
        else:
            self.errors.pop()

    def refused(self, text: bytes, sqlstate: bytes, message: bytes, *, again: bool) -> None:
        self.refusals.append((text, sqlstate, again))
