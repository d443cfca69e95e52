"""The client's side of a SCRAM exchange with every step open to tampering, for a real server and for ours alike."""

from __future__ import annotations

import asyncio
import base64
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from proxy.auth import scram
from proxy.auth.exchange import Exchange
from proxy.auth.failures import AuthFailed
from proxy.wire.messages import error_fields, message, startup_message

NONCE = "rOprNGfwEbeRWgbNEkqO"


def initial(data: bytes, mechanism: str = "SCRAM-SHA-256", length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return mechanism.encode() + b"\0" + struct.pack("!i", size) + data


def honest_final(password: str, bare: str, challenge: str, binding: bytes = b"n,,") -> str:
    nonce, salt, rounds = (part[2:] for part in challenge.split(","))
    keys = scram.derive_keys(password, base64.b64decode(salt), int(rounds))
    without_proof = f"c={base64.b64encode(binding).decode()},r={nonce}"
    proof = scram.client_proof(keys.client_key, f"{bare},{challenge},{without_proof}".encode())
    return f"{without_proof},p={base64.b64encode(proof).decode()}"


@dataclass(frozen=True)
class Script:
    """``first`` is the body of the first ``p`` message; ``final`` makes the second from the honest one (None: none)."""

    name: str
    first: bytes = initial(f"n,,n=,r={NONCE}".encode())
    final: Callable[[str], bytes] | None = None
    password: str = "wrong"
    binding: bytes = b"n,,"
    bare: str = field(default=f"n=,r={NONCE}")

    def second(self, challenge: str) -> bytes:
        honest = honest_final(self.password, self.bare, challenge, self.binding)
        return honest.encode() if self.final is None else self.final(honest)


Outcome = dict[str, str]


def ours(exchange: Exchange, script: Script) -> Outcome:
    """The fields of the ErrorResponse, or {} when the client got in."""
    exchange.start()
    try:
        reply = exchange.receive(script.first)
        exchange.receive(script.second(reply[9:].decode()))
    except AuthFailed as failure:
        return _compared(error_fields(failure.response()[5:]))
    assert exchange.done
    return {}


async def theirs(
    host: str, port: int, user: str, script: Script, reader_writer: Callable[..., object] | None = None
) -> Outcome:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        return await theirs_over(reader, writer, user, script)
    finally:
        writer.close()


async def theirs_over(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str, script: Script) -> Outcome:
    writer.write(startup_message({"user": user, "database": "postgres"}))
    await _read(reader)
    writer.write(message(b"p", script.first))
    kind, body = await _read(reader)
    if kind == b"R":
        writer.write(message(b"p", script.second(body[4:].decode())))
        kind, body = await _read(reader)
    if kind == b"E":
        return _compared(error_fields(body))
    assert (kind, body[:4]) == (b"R", b"\0\0\0\x0c")
    return {}


async def _read(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    header = await asyncio.wait_for(reader.readexactly(5), 20)
    return header[:1], await reader.readexactly(int.from_bytes(header[1:], "big") - 4)


def _compared(fields: dict[str, str]) -> Outcome:
    return {key: fields[key] for key in "SVCMD" if key in fields}
