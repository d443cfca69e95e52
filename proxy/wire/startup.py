"""The packets a client sends before it is anybody: requests for encryption, cancel requests, the start-up message.

They carry no kind byte, only a length and a code. ``FirstPackets`` collects them from whatever pieces arrive and hands
them out one by one; it never asks for a byte beyond the packet under way (``wanted``), so that a caller which reads no
more than that leaves a TLS handshake, or the first query, untouched in the socket. No I/O here.

What is accepted, what is refused and in which words is PostgreSQL 18's ``ProcessStartupPacket``: a refusal raises
``StartupRefused``, whose ``response`` holds the bytes to send before closing. They are empty where the server closes
without a word, which it does for whatever does not look like its protocol at all.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from proxy.wire.messages import error_response, message

MAX_STARTUP_PACKET: Final = 10_000
"""Bytes of a first packet behind its length word."""
MAX_CANCEL_KEY: Final = 256
LATEST_MINOR: Final = 2
NAME_BYTES: Final = 63
"""Bytes of a user's or database's name that count: the server cuts off the rest."""

CANCEL_CODE: Final = 80877102
SSL_CODE: Final = 80877103
GSS_CODE: Final = 80877104

_HEAD = struct.Struct("!iI")
_CODE = struct.Struct("!I")
_PAIR = struct.Struct("!II")

INTERLOPER_DETAIL: Final = (
    "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack."
)


class StartupRefused(Exception):
    """The connection ends here. ``response`` goes to the client first; ``text`` is for the log."""

    def __init__(self, text: str, response: bytes = b"") -> None:
        super().__init__(text)
        self.text = text
        self.response = response


def fatal(sqlstate: str, text: str, *, detail: str | None = None, hint: str | None = None) -> StartupRefused:
    """A refusal that is told to the client."""
    return StartupRefused(text, error_response(sqlstate, text, detail=detail, hint=hint))


def unencrypted_data_after(request: str) -> StartupRefused:
    """``request`` is ``SSL request`` or ``GSSAPI encryption request``: bytes came behind it before it was answered."""
    return fatal("08P01", f"received unencrypted data after {request}", detail=INTERLOPER_DETAIL)


@dataclass(frozen=True, slots=True)
class SslRequest:
    """Answered by ``S`` and a TLS handshake, or by ``N``."""


@dataclass(frozen=True, slots=True)
class GssRequest:
    """Answered by ``N``: GSSAPI encryption is not offered."""


@dataclass(frozen=True, slots=True)
class CancelRequest:
    pid: int
    secret: bytes


@dataclass(frozen=True, slots=True)
class StartupMessage:
    """A valid start-up message.

    ``user`` and ``database`` have at most 63 bytes; ``database`` is the user's name when none was given.
    ``settings`` are in the order sent, without user, database, replication and ``_pq_.*``; of one sent twice
    the last counts. ``replication`` is the parameter's text when it asks for a replication connection. ``minor`` is
    the protocol's minor version agreed on. ``negotiate`` is the NegotiateProtocolVersion message to send before
    authentication, or empty. ``raw`` is the packet as it came.
    """

    user: str
    database: str
    settings: dict[str, str]
    minor: int
    replication: str | None
    negotiate: bytes
    raw: bytes


FirstPacket = SslRequest | GssRequest | CancelRequest | StartupMessage


class FirstPackets:
    """Collects the first packets of one connection.

    ``encrypted`` says that the bytes come out of TLS that was asked for by SSLRequest: asking once more, for either
    encryption, is then an unknown protocol version, as it is on the server.
    """

    __slots__ = ("_buffer", "_gss_done", "_ssl_done")

    def __init__(self, *, encrypted: bool = False) -> None:
        self._buffer = b""
        self._ssl_done = encrypted
        self._gss_done = encrypted

    def __repr__(self) -> str:
        return f"<FirstPackets {len(self._buffer)} bytes, {self.wanted} wanted>"

    @property
    def wanted(self) -> int:
        """Bytes still missing of the packet under way, as far as its length is known. Never 0."""
        have = len(self._buffer)
        if have < 4:
            return 4 - have
        # The length counts itself. One that lies is refused by ``next`` before anybody waits for the bytes.
        return max(1, min(int.from_bytes(self._buffer[:4], "big"), MAX_STARTUP_PACKET + 4) - have)

    @property
    def buffered(self) -> bytes:
        """What came behind the last packet handed out."""
        return self._buffer

    def feed(self, data: bytes) -> None:
        self._buffer += data

    def next(self) -> FirstPacket | None:
        """The next whole packet, None while it is incomplete. Raises StartupRefused."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        length = int.from_bytes(buffer[:4], "big", signed=True) - 4
        if not 4 <= length <= MAX_STARTUP_PACKET:
            raise StartupRefused("invalid length of startup packet")
        if len(buffer) < 4 + length:
            return None
        packet, self._buffer = buffer[: 4 + length], buffer[4 + length :]
        (code,) = _CODE.unpack_from(packet, 4)
        if code == CANCEL_CODE:
            return _cancel_request(packet)
        if code == SSL_CODE and not self._ssl_done:
            self._ssl_done = True
            return SslRequest()
        if code == GSS_CODE and not self._gss_done:
            self._gss_done = True
            return GssRequest()
        return parse_startup(packet)


def _cancel_request(packet: bytes) -> CancelRequest:
    secret = packet[12:]
    if not 0 < len(secret) <= MAX_CANCEL_KEY:
        raise StartupRefused("invalid length of cancel request packet")
    return CancelRequest(int.from_bytes(packet[8:12], "big", signed=True), secret)


def parse_startup(packet: bytes) -> StartupMessage:
    """Reads a start-up packet that is complete, length word included. Raises StartupRefused."""
    _, version = _HEAD.unpack_from(packet)
    major, asked_minor = version >> 16, version & 0xFFFF
    if major != 3:
        raise _unsupported_version(major, asked_minor)
    pairs = _split(packet)
    minor = min(asked_minor, LATEST_MINOR)
    user, database, replication, unknown = b"", b"", None, []
    settings: dict[str, str] = {}
    for name, value in pairs.found:
        if name == b"user":
            user = value
        elif name == b"database":
            database = value
        elif name == b"replication":
            replication = _replication(value)
        elif name.startswith(b"_pq_."):
            unknown.append(name)
        else:
            # Taken out first, so that the order is that of the values which count.
            settings.pop(key := _text(name), None)
            settings[key] = _text(value)
    if not pairs.terminated:
        raise fatal("08P01", "invalid startup packet layout: expected terminator as last byte")
    negotiate = _negotiation(minor, unknown) if asked_minor > LATEST_MINOR or unknown else b""
    if not user:
        refused = fatal("28000", "no PostgreSQL user name specified in startup packet")
        raise StartupRefused(refused.text, negotiate + refused.response)
    return StartupMessage(
        user=_text(user[:NAME_BYTES]),
        database=_text((database or user)[:NAME_BYTES]),
        settings=settings,
        minor=minor,
        replication=replication,
        negotiate=negotiate,
        raw=packet,
    )


@dataclass(frozen=True, slots=True)
class _Pairs:
    found: list[tuple[bytes, bytes]]
    terminated: bool


def _split(packet: bytes) -> _Pairs:
    """The names and values behind the version. Strings that are cut off end at the packet's end, as in C."""
    found = []
    offset, end = 8, len(packet)
    while offset < end and packet[offset]:
        value_at = _string_end(packet, offset) + 1
        if value_at >= end:
            break
        value_end = _string_end(packet, value_at)
        found.append((packet[offset : value_at - 1], packet[value_at:value_end]))
        offset = value_end + 1
    return _Pairs(found, offset == end - 1)


def _string_end(packet: bytes, start: int) -> int:
    end = packet.find(b"\0", start)
    return len(packet) if end < 0 else end


def _unsupported_version(major: int, minor: int) -> StartupRefused:
    text = f"unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.{LATEST_MINOR}"
    if major < 3:
        # Protocols 1 and 2 had errors of text alone; such a client understands nothing else.
        return StartupRefused(text, b"EFATAL:  " + text.encode() + b"\n\0")
    return fatal("0A000", text)


def _negotiation(minor: int, unknown: list[bytes]) -> bytes:
    body = _PAIR.pack(3 << 16 | minor, len(unknown))
    return message(b"v", body + b"".join(name + b"\0" for name in unknown))


def _replication(value: bytes) -> str | None:
    """The value when it asks for replication. The server's reading of booleans: unique prefixes, any case."""
    if value == b"database":
        return "database"
    # The server's comparison stops at the shorter text, which makes every prefix but the ambiguous "o" do.
    word = value.lower()
    if word == b"1" or (word and (b"true".startswith(word) or b"yes".startswith(word))) or word == b"on":
        return _text(value)
    if word == b"0" or (word and (b"false".startswith(word) or b"no".startswith(word))) or word in {b"of", b"off"}:
        return None
    raise fatal(
        "22023",
        f'invalid value for parameter "replication": "{_text(value)}"',
        hint='Valid values are: "false", 0, "true", 1, "database".',
    )


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def encryption_refused(user: str, database: str, replication: str | None, peer: str) -> bytes:
    """The server's answer to a client in clear where pg_hba.conf has only ``hostssl`` lines. ``peer`` is an address."""
    # A walsender without a database is matched by "replication" lines, and the server says so in another sentence.
    if replication is not None and replication != "database":
        text = f'no pg_hba.conf entry for replication connection from host "{peer}", user "{user}", no encryption'
    else:
        text = f'no pg_hba.conf entry for host "{peer}", user "{user}", database "{database}", no encryption'
    return error_response("28000", text)
