"""What wire workers and the planner process say to each other: msgpack bodies behind a four-byte length.

The only module of the planner that wire workers import, so it must stay light. Workers ask with `Ask` and tell what
statements took with `Observed`; the planner answers each `Ask` with one `Answer` and says `Changed` when earlier
answers no longer hold. All times are in milliseconds.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

import msgspec

MAX_FRAME: Final = 1 << 20
_LENGTH: Final = struct.Struct("!I")


class Ask(msgspec.Struct, tag="ask", array_like=True):
    """One statement that is about to run.

    ``bind`` is None for a statement without parameters, else the part of Bind from the count of parameter format codes
    on; ``types`` are the parameter type OIDs that Parse gave (0: unspecified). ``template`` is the worker's key of the
    statement without its literals; the planner keeps what it learns of it under that key.
    """

    number: int
    database: str
    user: str
    application: str
    search_path: str
    template: bytes
    text: bytes
    bind: bytes | None = None
    types: tuple[int, ...] = ()


class Answer(msgspec.Struct, tag="answer", array_like=True):
    """``prefix`` goes before the text, ``settings`` around the statement; both empty: leave it alone, for ``reason``.

    ``scope`` says what the answer may be remembered for: ``values`` (this text with these parameters), ``template``
    (every statement of the template), or ``once``. ``estimated_ms`` is what the statement is thought to take unsteered;
    0: not known. ``model`` is ``name-version`` of the model that had the largest say, "" for none.

    ``query`` is what the planner remembers the statement with its values under, to be given back with what it took; b""
    when nothing is to be told. ``arm`` names the advice there. Of the executions a share of ``share`` is steered, the
    others are left alone as a control group. A steered run that may be stopped and run again as the client sent it is
    given ``budget_ms``; 0: no limit. Unless ``approved``, advice is used only where such a limit can be kept, when
    ``budget_ms`` is not 0.
    """

    number: int
    prefix: bytes = b""
    settings: tuple[tuple[bytes, bytes], ...] = ()
    reason: str = ""
    scope: str = "values"
    model: str = ""
    dialect: str = ""
    estimated_ms: float = 0.0
    query: bytes = b""
    arm: str = ""
    share: float = 1.0
    budget_ms: float = 0.0
    approved: bool = False


class Observed(msgspec.Struct, tag="observed", array_like=True):
    """What one statement took. ``steered``: with advice; ``failed``: it ended in an error, with ``sqlstate``.

    ``query`` and ``arm`` come from the answer that it ran under; ``control``: that answer had advice, and it was left
    alone for comparison. ``stopped_ms`` is what a steered run took that went over its budget and was stopped, 0.0 when
    there was none: ``took_ms`` is then that of the run after it, and ``steered`` is false. ``rows`` is the number in
    the command's tag, -1 when it has none. ``text`` and ``bind`` are given for a sample only, for `query_metrics`.
    """

    database: str
    template: bytes
    took_ms: float
    steered: bool
    failed: bool = False
    rows: int = -1
    model: str = ""
    query: bytes = b""
    arm: str = ""
    control: bool = False
    sqlstate: str = ""
    stopped_ms: float = 0.0
    user: str = ""
    application: str = ""
    search_path: str = ""
    reason: str = ""
    text: bytes = b""
    bind: bytes | None = None


class Refused(msgspec.Struct, tag="refused", array_like=True):
    """The server refused a statement because of what was added to it: it is not to be steered again."""

    database: str
    template: bytes
    text: bytes
    sqlstate: str
    message: str


class Changed(msgspec.Struct, tag="changed", array_like=True):
    """The planner's answers may have changed (a model was swapped, the catalog refreshed, a mode set): forget them.
    With ``queries`` only those that named one of them have."""

    generation: int
    mode: str = ""
    queries: tuple[bytes, ...] = ()


Message = Ask | Answer | Observed | Refused | Changed

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_Read = TypeVar("_Read")


class FrameError(ValueError):
    """The other side does not speak this protocol, or a frame is longer than it may be."""


def encode(message: msgspec.Struct) -> bytes:
    """One frame."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class FrameReader(Generic[_Read]):
    """Turns a stream of bytes into what ``decoder`` reads; keeps at most one incomplete frame of ``limit`` bytes."""

    __slots__ = ("_buffer", "_decoder", "_limit")

    def __init__(self, decoder: msgspec.msgpack.Decoder[_Read], limit: int) -> None:
        self._buffer = bytearray()
        self._decoder = decoder
        self._limit = limit

    def feed(self, data: bytes) -> Iterator[_Read]:
        """The messages that are complete now. Raises FrameError."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > self._limit:
                raise FrameError(f"a frame of {length} bytes, more than {self._limit}")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            body = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            try:
                yield self._decoder.decode(body)
            except msgspec.MsgspecError as error:
                raise FrameError(str(error)) from None


class Reader(FrameReader[Message]):
    """Reads what workers and the planner process say to each other."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_decoder, MAX_FRAME)
