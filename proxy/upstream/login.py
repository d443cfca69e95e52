"""Logging in to the server by ourselves: the client side of the start-up protocol, without I/O.

asyncpg logs in for pooled connections. This serves direct links, which need what it cannot do: replication, the
client's own start-up packet and protocol version, a user known by a SCRAM verifier only (``ScramKeysCredential``), and
channel binding.

Feed ``receive`` what the server sends and send what it gives back, until ``done`` (ReadyForQuery came) or ``failed``
(an ErrorResponse to pass on: the server's own as it came, or one made here). The server is not trusted with our
memory or time: the sizes of messages, their sum and the cost of a password are bounded.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
import struct
from typing import Final

from proxy.auth import scram
from proxy.auth.exchange import md5_of
from proxy.auth.secrets import md5_digest
from proxy.login import Credential, PasswordCredential, ScramKeysCredential
from proxy.wire.messages import cstring, error_response, message

MAX_REQUEST_BYTES: Final = 2000
"""Of an authentication request, libpq's limit."""
MAX_MESSAGE_BYTES: Final = 32768
"""Of any other message of the greeting: errors (libpq reads 30,000), settings, options not understood."""
MAX_GREETING_BYTES: Final = 1 << 20
MAX_ITERATIONS: Final = 1_000_000
"""Rounds of PBKDF2 a server may ask for: about 0.3 s, in which nothing else runs."""

_HEADER = struct.Struct("!ci")
_INT = struct.Struct("!i")
_METHODS = {
    2: "Kerberos V5",
    6: "SCM credentials",
    7: "GSSAPI",
    9: "SSPI",
}
_CONNECTION_FAILURE = "08006"
_PROTOCOL_VIOLATION = "08P01"
_INVALID_AUTHORIZATION = "28000"


class _LoginError(Exception):
    def __init__(self, sqlstate: str, text: str) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


class UpstreamLogin:
    """One login. ``startup`` is the whole start-up packet; ``channel_binding`` the tls-server-end-point data of the
    server's certificate, None without TLS.

    ``greeting``: the raw ParameterStatus, NoticeResponse and BackendKeyData messages, in order. ``pid`` and ``secret``:
    the cancel key (4 to 256 bytes). ``minor``: the protocol's minor version agreed on. ``unknown_options``: the
    ``_pq_.`` options that the server does not know. ``rest``: bytes that came behind ReadyForQuery.
    """

    __slots__ = (
        "_authenticated",
        "_binding",
        "_buffer",
        "_credential",
        "_greeting_bytes",
        "_scram",
        "_startup",
        "_user",
        "done",
        "failed",
        "greeting",
        "minor",
        "pid",
        "secret",
        "unknown_options",
    )

    def __init__(self, startup: bytes, user: str, credential: Credential, channel_binding: bytes | None) -> None:
        self._startup = startup
        self._user = user
        self._credential = credential
        self._binding = channel_binding
        self._buffer = bytearray()
        self._scram: _ScramClient | None = None
        self._authenticated = False
        self._greeting_bytes = 0
        self.done = False
        self.failed: bytes | None = None
        self.greeting: list[bytes] = []
        self.minor: int = int.from_bytes(startup[6:8], "big")
        self.unknown_options: list[str] = []
        self.pid = 0
        self.secret = b""

    def __repr__(self) -> str:
        state = "failed" if self.failed else "done" if self.done else "starting" if self._authenticated else "proving"
        return f"<UpstreamLogin {self._user!r} {state}>"

    @property
    def rest(self) -> bytes:
        return bytes(self._buffer) if self.done else b""

    def start(self) -> bytes:
        return self._startup

    def receive(self, data: bytes) -> list[bytes]:
        """What to send next. Nothing after ``done`` (the data joins ``rest``) or ``failed`` (the data is dropped)."""
        if self.failed is not None:
            return []
        self._buffer += data
        replies: list[bytes] = []
        try:
            while not self.done and self.failed is None:
                found = self._next_message()
                if found is None:
                    break
                reply = self._take(*found)
                if reply:
                    replies.append(reply)
        except _LoginError as failure:
            self.failed = error_response(failure.sqlstate, str(failure))
            self._buffer.clear()
            return []
        return replies

    def connection_lost(self) -> None:
        """The server closed the connection: a failure unless the login is over."""
        if self.done or self.failed is not None:
            return
        old_style = bytes(self._buffer[1:]).rstrip(b"\0\n") if self._buffer[:1] == b"E" else b""
        text = old_style[:1000].decode("utf-8", "replace") or "server closed the connection unexpectedly"
        self.failed = error_response(_CONNECTION_FAILURE, text)

    def _next_message(self) -> tuple[bytes, bytes, bytes] | None:
        """Kind, body and the whole of the next message; None when it is not complete."""
        buffer = self._buffer
        if len(buffer) < 5:
            return None
        kind, length = _HEADER.unpack_from(buffer)
        if kind == b"E" and not 8 <= length <= MAX_MESSAGE_BYTES and not self._authenticated:
            self._check_old_error()
            return None
        limit = MAX_REQUEST_BYTES if kind == b"R" else MAX_MESSAGE_BYTES
        if kind not in b"RSKNEZv" or not 4 <= length <= limit:
            raise _LoginError(
                _PROTOCOL_VIOLATION,
                f"the server sent a message of type {kind!r} and length {length} during the login: check that the "
                "upstream is a PostgreSQL server",
            )
        if len(buffer) <= length:
            return None
        raw = bytes(buffer[: length + 1])
        del buffer[: length + 1]
        return kind, raw[5:], raw

    def _check_old_error(self) -> None:
        """A server that cannot even start a process answers in the form of protocol 2: text up to a zero byte."""
        end = self._buffer.find(b"\0")
        if end > 0:
            raise _LoginError(_CONNECTION_FAILURE, bytes(self._buffer[1:end]).decode("utf-8", "replace").strip())
        if len(self._buffer) > MAX_MESSAGE_BYTES:
            raise _LoginError(_PROTOCOL_VIOLATION, "the server sent an error message without an end")

    def _take(self, kind: bytes, body: bytes, raw: bytes) -> bytes:
        if kind == b"E":
            self.failed = raw
        elif kind == b"N":
            self._keep(raw)
        elif not self._authenticated:
            if kind == b"R":
                return self._authenticate(body)
            if kind != b"v":
                raise _unexpected(kind, "before the login was accepted")
            self._negotiate(body)
        elif kind == b"S":
            self._keep(raw)
        elif kind == b"K":
            if not 8 <= len(body) <= 260:
                raise _LoginError(_PROTOCOL_VIOLATION, f"the server sent a cancel key of {len(body) - 4} bytes")
            self.pid, self.secret = _INT.unpack_from(body)[0], body[4:]
            self._keep(raw)
        elif kind == b"Z":
            self.done = True
        else:
            raise _unexpected(kind, "after the login was accepted")
        return b""

    def _keep(self, raw: bytes) -> None:
        self._greeting_bytes += len(raw)
        if self._greeting_bytes > MAX_GREETING_BYTES:
            raise _LoginError(_PROTOCOL_VIOLATION, "the server's greeting is longer than 1 MiB")
        self.greeting.append(raw)

    def _negotiate(self, body: bytes) -> None:
        """NegotiateProtocolVersion: the newest minor version the server speaks, and the options it does not know."""
        if len(body) < 8:
            raise _LoginError(_PROTOCOL_VIOLATION, "the server sent an invalid NegotiateProtocolVersion message")
        version, count = struct.unpack_from("!ii", body)
        names = body[8:].split(b"\0")[:-1]
        # The version is the whole one (3.x) or the minor alone, by the age of the server.
        if version >> 16 not in (0, 3) or version & 0xFFFF > self.minor or len(names) != count:
            raise _LoginError(_PROTOCOL_VIOLATION, "the server sent an invalid NegotiateProtocolVersion message")
        self.minor = version & 0xFFFF
        self.unknown_options = [name.decode("utf-8", "surrogateescape") for name in names]

    def _authenticate(self, body: bytes) -> bytes:
        if len(body) < 4:
            raise _LoginError(_PROTOCOL_VIOLATION, "the server sent an invalid authentication request")
        (code,) = _INT.unpack_from(body)
        data = body[4:]
        if code == 0:
            if self._scram is not None and not self._scram.verified:
                raise _LoginError(
                    _INVALID_AUTHORIZATION,
                    "the server accepted the login before it had proved that it knows the password: check that the "
                    "upstream is the right server",
                )
            self._authenticated = True
            return b""
        if code == 3:
            return message(b"p", cstring(self._password("a password in clear")))
        if code == 5:
            return message(b"p", self._md5_answer(data))
        if code == 10:
            return self._start_scram(data)
        if code in (11, 12):
            if self._scram is None:
                raise _LoginError(_PROTOCOL_VIOLATION, "the server sent a SASL challenge that nobody asked for")
            if code == 11:
                return message(b"p", self._scram.answer(data))
            self._scram.verify(data)
            return b""
        raise _LoginError(
            _PROTOCOL_VIOLATION,
            f"the server asks for the login method {_METHODS.get(code, code)}, which the proxy cannot do: let "
            "pg_hba.conf ask the proxy for scram-sha-256",
        )

    def _password(self, wanted: str) -> str:
        credential = self._credential
        if isinstance(credential, PasswordCredential) and md5_digest(credential.password) is None:
            return credential.password
        if isinstance(credential, PasswordCredential):
            raise self._cannot_prove(wanted, "knows only its MD5 hash")
        if isinstance(credential, ScramKeysCredential):
            raise self._cannot_prove(wanted, "knows only its SCRAM verifier")
        raise self._cannot_prove(wanted, "knows no password of it")

    def _cannot_prove(self, wanted: str, why: str) -> _LoginError:
        return _LoginError(
            _INVALID_AUTHORIZATION,
            f'the server asks for {wanted} of user "{self._user}" and the proxy {why}: add the password to '
            "users_file, or change the user's line in pg_hba.conf",
        )

    def _md5_answer(self, salt: bytes) -> bytes:
        if len(salt) != 4:
            raise _LoginError(_PROTOCOL_VIOLATION, "the server sent an md5 salt of a wrong length")
        credential = self._credential
        digest = md5_digest(credential.password) if isinstance(credential, PasswordCredential) else None
        if digest is None:
            digest = md5_of(self._password("an MD5 password"), self._user)
        return cstring("md5" + hashlib.md5(digest.encode() + salt, usedforsecurity=False).hexdigest())

    def _start_scram(self, data: bytes) -> bytes:
        if self._scram is not None:
            raise _LoginError(_PROTOCOL_VIOLATION, "the server began a second SASL exchange")
        offered = data.split(b"\0")
        plus = self._binding is not None and scram.MECHANISM_PLUS.encode() in offered
        if not plus and scram.MECHANISM.encode() not in offered:
            names = b", ".join(offered).decode("ascii", "replace").strip(", ")[:200]
            raise _LoginError(
                _PROTOCOL_VIOLATION,
                f"the server offers only the SASL mechanisms {names}, and the proxy can do SCRAM-SHA-256: change the "
                "user's line in pg_hba.conf",
            )
        credential = self._credential
        source: str | ScramKeysCredential
        source = credential if isinstance(credential, ScramKeysCredential) else self._password("a SCRAM proof")
        unbound = "n" if self._binding is None else "y"
        flag = f"p={scram.CHANNEL_BINDING}" if plus else unbound
        self._scram = _ScramClient(source, flag, self._binding if plus else None)
        first = self._scram.first()
        mechanism = scram.MECHANISM_PLUS if plus else scram.MECHANISM
        return message(b"p", cstring(mechanism) + _INT.pack(len(first)) + first)


def _unexpected(kind: bytes, when: str) -> _LoginError:
    return _LoginError(_PROTOCOL_VIOLATION, f"the server sent an unexpected message of type {kind!r} {when}")


class _ScramClient:
    """The client side of SCRAM-SHA-256, from a password or from recovered keys."""

    __slots__ = ("_bare", "_cbind", "_header", "_nonce", "_signature", "_source", "verified")

    def __init__(self, source: str | ScramKeysCredential, flag: str, binding: bytes | None) -> None:
        self._source = source
        self._header = f"{flag},,".encode()
        self._cbind = base64.b64encode(self._header + (binding or b""))
        self._nonce = base64.b64encode(secrets.token_bytes(18))
        # The server takes the user from the start-up packet; libpq leaves the name out too.
        self._bare = b"n=,r=" + self._nonce
        self._signature: bytes | None = None
        self.verified = False

    def first(self) -> bytes:
        return self._header + self._bare

    def answer(self, challenge: bytes) -> bytes:
        if self._signature is not None:
            raise _LoginError(_PROTOCOL_VIOLATION, "the server sent a second SCRAM challenge")
        nonce, salt, iterations = _read_server_first(challenge)
        if not nonce.startswith(self._nonce) or len(nonce) == len(self._nonce):
            raise _LoginError(_PROTOCOL_VIOLATION, "the server's SCRAM nonce does not continue ours")
        if isinstance(self._source, str):
            if not 1 <= iterations <= MAX_ITERATIONS:
                raise _LoginError(
                    _PROTOCOL_VIOLATION,
                    f"the server asks for {iterations} SCRAM iterations and the proxy does at most {MAX_ITERATIONS}: "
                    "set the password anew with a smaller scram_iterations",
                )
            keys = scram.derive_keys(self._source, salt, iterations)
        else:
            keys = scram.ScramKeys(self._source.client_key, self._source.server_key)
        without_proof = b"c=" + self._cbind + b",r=" + nonce
        auth_message = b",".join((self._bare, challenge, without_proof))
        self._signature = scram.server_signature(keys.server_key, auth_message)
        return without_proof + b",p=" + base64.b64encode(scram.client_proof(keys.client_key, auth_message))

    def verify(self, final: bytes) -> None:
        signature = _decode(final[2:].split(b",")[0]) if final.startswith(b"v=") else b""
        if self._signature is None or not hmac.compare_digest(signature, self._signature):
            raise _LoginError(
                _INVALID_AUTHORIZATION,
                "the server could not prove that it knows the password: check that the upstream is the right server",
            )
        self.verified = True


def _read_server_first(challenge: bytes) -> tuple[bytes, bytes, int]:
    parts = challenge.split(b",")
    if len(parts) < 3 or [part[:2] for part in parts[:3]] != [b"r=", b"s=", b"i="]:
        raise _LoginError(_PROTOCOL_VIOLATION, "the server sent a malformed SCRAM challenge")
    salt, iterations = _decode(parts[1][2:]), parts[2][2:]
    if not salt or not iterations.isdigit() or len(iterations) > 10:
        raise _LoginError(_PROTOCOL_VIOLATION, "the server sent a malformed SCRAM challenge")
    return parts[0][2:], salt, int(iterations)


def _decode(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""
