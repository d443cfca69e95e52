"""A PostgreSQL client as thin as can be, so that what is measured is the path and not the driver.

Blocking sockets, protocol 3.0, no decoding of rows: it only finds the end of an answer. It speaks trust and
SCRAM-SHA-256; the salted password is remembered, as its four thousand rounds are the client's cost, not the path's.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import os
import select
import socket
import ssl
import struct
from collections.abc import Iterator

from benchmarks.processes import HOST, BenchmarkError

READY_LENGTH = 6
TIMEOUT = 60.0
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)
_CHUNK = 1024 * 1024


@functools.cache
def _salted(password: str, salt: bytes, rounds: int) -> bytes:
    return hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)


def message(kind: bytes, body: bytes) -> bytes:
    """One frontend message: type, length, body."""
    return kind + struct.pack("!i", len(body) + 4) + body


def startup(user: str, database: str) -> bytes:
    """The start-up packet of protocol 3.0."""
    body = struct.pack("!i", 196608) + f"user\0{user}\0database\0{database}\0\0".encode()
    return struct.pack("!i", len(body) + 4) + body


def parse_message(name: str, sql: str) -> bytes:
    """Parse without parameter types."""
    return message(b"P", f"{name}\0{sql}\0".encode() + b"\0\0")


def execute_messages(name: str) -> bytes:
    """Bind without parameters, Execute, Sync for the prepared statement `name`."""
    bind = message(b"B", b"\0" + name.encode() + b"\0" + b"\0\0" * 3)
    return bind + message(b"E", b"\0\0\0\0\0") + message(b"S", b"")


def scram_proof(password: str, first_bare: str, server_first: str) -> str:
    """The client-final-message that answers `server_first` (RFC 5802), without channel binding."""
    fields = dict(part.split("=", 1) for part in server_first.split(","))
    salted = _salted(password, base64.b64decode(fields["s"]), int(fields["i"]))
    client_key = hmac.digest(salted, b"Client Key", "sha256")
    without_proof = f"c=biws,r={fields['r']}"
    auth = f"{first_bare},{server_first},{without_proof}".encode()
    signature = hmac.digest(hashlib.sha256(client_key).digest(), auth, "sha256")
    proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
    return f"{without_proof},p={base64.b64encode(proof).decode()}"


class Client:
    """One connection, logged in once the constructor returns. Raises BenchmarkError on any error of the server."""

    def __init__(
        self,
        port: int,
        *,
        user: str = "postgres",
        database: str = "postgres",
        password: str = "",
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._socket = socket.create_connection((HOST, port), timeout=TIMEOUT)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket.sendall(_SSL_REQUEST)
                if self._socket.recv(1) != b"S":
                    raise BenchmarkError(f"Port {port} offers no TLS.")
                self._socket = tls.wrap_socket(self._socket, server_hostname=HOST)
            self._login(user, database, password)
        except BaseException:
            self._socket.close()
            raise

    def close(self) -> None:
        """Say Terminate and close."""
        try:
            self._socket.sendall(message(b"X", b""))
        except OSError:
            pass
        finally:
            self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def query(self, sql: str) -> int:
        """Run `sql` by the simple protocol; the answer's length in bytes."""
        return self.ask(message(b"Q", sql.encode() + b"\0"))

    def ask(self, request: bytes) -> int:
        """Send `request` and read up to ReadyForQuery; the answer's length in bytes."""
        self._socket.sendall(request)
        return self.read_answer()

    def read_answer(self) -> int:
        """Read up to ReadyForQuery, however long that is, without looking at messages; the number of bytes.

        The end is known by the last six bytes received, which the benchmark's own rows never look like.
        """
        data = self._socket.recv(_CHUNK)
        total, first, tail = len(data), data[:1024], data
        while not _ends_ready(tail):
            if not data:
                raise BenchmarkError("The server closed the connection.")
            data = self._socket.recv(_CHUNK)
            total += len(data)
            tail = tail[-READY_LENGTH:] + data if len(data) < READY_LENGTH else data
        if first[:1] == b"E":
            raise BenchmarkError(f"The server said: {error_text(first)}")
        return total

    def copy_in(self, sql: str, chunks: Iterator[bytes]) -> int:
        """COPY FROM STDIN of `chunks`, each a run of complete CopyData messages; the number of bytes sent."""
        self._socket.sendall(message(b"Q", sql.encode() + b"\0"))
        kind, body = self._message()
        if kind != b"G":
            raise BenchmarkError(f"COPY was not taken: {error_text(kind + bytes(4) + body)}")
        sent = 0
        for chunk in chunks:
            self._socket.sendall(chunk)
            sent += len(chunk)
        self.ask(message(b"c", b""))
        return sent

    def fill(self, data: bytes, seconds: float) -> int:
        """Send `data` over and over until nothing is taken for `seconds`; the number of bytes taken."""
        self._socket.settimeout(seconds)
        view, taken = memoryview(data), 0
        try:
            while True:
                at = taken % len(data)
                taken += self._socket.send(view[at:])
        except TimeoutError:
            return taken
        finally:
            self._socket.settimeout(TIMEOUT)

    def answered(self) -> bool:
        """Whether something from the server waits to be read."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def _login(self, user: str, database: str, password: str) -> None:
        self._socket.sendall(startup(user, database))
        first_bare = ""
        while True:
            kind, body = self._message()
            if kind == b"Z":
                return
            if kind == b"E":
                raise BenchmarkError(f"Login was refused: {error_text(kind + bytes(4) + body)}")
            if kind != b"R":
                continue
            (code,) = struct.unpack_from("!i", body)
            if code == 10:
                first_bare = f"n=,r={base64.b64encode(os.urandom(18)).decode()}"
                first = f"n,,{first_bare}".encode()
                self._socket.sendall(message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first))
            elif code == 11:
                self._socket.sendall(message(b"p", scram_proof(password, first_bare, body[4:].decode()).encode()))
            elif code not in {0, 12}:
                raise BenchmarkError(f"The server asks for authentication {code}, which the benchmark does not speak.")

    def _message(self) -> tuple[bytes, bytes]:
        head = self._exactly(5)
        (length,) = struct.unpack_from("!i", head, 1)
        return head[:1], self._exactly(length - 4)

    def _exactly(self, size: int) -> bytes:
        parts = b""
        while len(parts) < size:
            data = self._socket.recv(size - len(parts))
            if not data:
                raise BenchmarkError("The server closed the connection.")
            parts += data
        return parts


def _ends_ready(data: bytes) -> bool:
    return data[-READY_LENGTH:-1] == b"Z\0\0\0\5"


def error_text(data: bytes) -> str:
    """The human-readable message in an ErrorResponse given with its type byte and length."""
    for part in data[5:].split(b"\0"):
        if part[:1] == b"M":
            return part[1:].decode(errors="replace")
    return "no message"
