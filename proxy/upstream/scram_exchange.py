"""SCRAM towards the server in asyncpg's place.

asyncpg derives the keys in Python, 14 ms of the event loop for each connection with the usual 4096 rounds, in which no
other client of the worker gets a byte. So the server's SASL messages are answered here, with keys that are derived in C
and kept, and asyncpg sees a server that accepts it at once. No I/O.
"""

from __future__ import annotations

from typing import Final

from proxy.login import PasswordCredential
from proxy.upstream.login import UpstreamLogin
from proxy.wire.frames import HEADER_SIZE, whole_messages

_AUTHENTICATION: Final = 0x52  # R
_SASL_CODES: Final = frozenset({10, 11, 12})
_SHORTEST: Final = 9  # a message with its code
# What a server says before it accepts a login is short; asyncpg is to judge anything longer.
_LIMIT: Final = 32 * 1024


class ScramExchange:
    """One login. `feed` takes what the server sends until the login is over."""

    __slots__ = ("_buffer", "_login", "_over", "_started")

    def __init__(self, startup: bytes, user: str, credential: PasswordCredential) -> None:
        self._login = UpstreamLogin(startup, user, credential, None)
        self._buffer = b""
        self._started = False
        self._over = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """(what asyncpg is to see of it, what to send to the server).

        A server that fails to prove that it knows the password becomes an ErrorResponse for asyncpg.
        """
        if self._over:
            return data, b""
        data = self._buffer + data
        messages, rest = whole_messages(data)
        replies = b""
        for kind, start, end in messages:
            raw = data[start:end]
            code = int.from_bytes(raw[HEADER_SIZE:9], "big")
            ours = kind == _AUTHENTICATION and _SHORTEST <= end - start <= _LIMIT
            if not ours or (code not in _SASL_CODES and not (code == 0 and self._started)):
                self._over = True  # an error, or something odd: asyncpg's affair
                return data[start:], replies
            self._started = True
            replies += b"".join(self._login.receive(raw))
            if self._login.failed is not None:
                self._over = True
                return self._login.failed, b""
            if code == 0:
                self._over = True
                return data[start:], replies
        self._buffer = data[rest:]
        if len(self._buffer) > _LIMIT or self._buffer[:1] not in (b"", b"R"):
            # The same of a message that is not whole yet: nothing is held back for it.
            self._over = True
            return self._buffer, replies
        return b"", replies
