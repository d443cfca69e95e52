"""Reading what a client sends in a SCRAM exchange: pure functions over untrusted bytes.

Each check, its order and its wording are those of a PostgreSQL server, so a driver's author sees the same diagnosis.
Nothing here is longer than ``MAX_SASL_MESSAGE``: the exchange refuses longer messages unread.
"""

from __future__ import annotations

import base64
import binascii
import struct
from dataclasses import dataclass, field

from proxy.auth.failures import (
    FEATURE_NOT_SUPPORTED,
    INVALID_AUTHORIZATION,
    PROTOCOL_VIOLATION,
    AuthFailed,
    malformed,
)
from proxy.auth.scram import CHANNEL_BINDING, MECHANISM, MECHANISM_PLUS
from proxy.auth.secrets import KEY_BYTES

MAX_SASL_MESSAGE = 1024
"""Bytes of one SASL message, its length word counted: the server's own limit."""

_LENGTH = struct.Struct("!i")


@dataclass(frozen=True, slots=True)
class ClientFirst:
    """``flag`` is the gs2 channel-binding flag (n, y or p); ``bare`` the message without the gs2 header."""

    flag: str
    bare: str
    nonce: str


@dataclass(frozen=True, slots=True)
class ClientFinal:
    nonce: str
    without_proof: str
    proof: bytes = field(repr=False)


def split_initial_response(body: bytes) -> tuple[str, bytes | None]:
    """Mechanism and data of a SASLInitialResponse; the data is None when the client sent none."""
    name, zero, rest = body.partition(b"\0")
    if not zero:
        raise AuthFailed(PROTOCOL_VIOLATION, "invalid string in message")
    mechanism = name.decode("utf-8", "replace")
    if mechanism not in (MECHANISM, MECHANISM_PLUS):
        raise AuthFailed(PROTOCOL_VIOLATION, "client selected an invalid SASL authentication mechanism")
    if len(rest) < 4:
        raise AuthFailed(PROTOCOL_VIOLATION, "insufficient data left in message")
    (length,) = _LENGTH.unpack_from(rest)
    data = rest[4:]
    if length == -1:
        if data:
            raise AuthFailed(PROTOCOL_VIOLATION, "invalid message format")
        return mechanism, None
    if length < 0 or length > len(data):
        raise AuthFailed(PROTOCOL_VIOLATION, "insufficient data left in message")
    if length < len(data):
        raise AuthFailed(PROTOCOL_VIOLATION, "invalid message format")
    return mechanism, data


def read_client_first(data: bytes, *, plus: bool, tls: bool) -> ClientFirst:
    """``plus``: the client chose SCRAM-SHA-256-PLUS; ``tls``: we could have bound the exchange to the channel."""
    text = _text(data)
    flag, rest = _read_gs2_flag(text, plus=plus, tls=tls)
    if rest.startswith("a"):
        raise AuthFailed(FEATURE_NOT_SUPPORTED, "client uses authorization identity, but it is not supported")
    if not rest.startswith(","):
        raise malformed(f'Unexpected attribute "{_show(rest)}" in client-first-message.')
    bare = rest[1:]
    if bare.startswith("m"):
        raise AuthFailed(FEATURE_NOT_SUPPORTED, "client requires an unsupported SCRAM extension")
    _user, rest = _attribute(bare, "n")
    nonce, rest = _attribute(rest, "r")
    if not all("!" <= character <= "~" for character in nonce):
        raise AuthFailed(PROTOCOL_VIOLATION, "non-printable characters in SCRAM nonce")
    while rest:
        _name, _value, rest = _any_attribute(rest)
    return ClientFirst(flag, bare, nonce)


def _read_gs2_flag(text: str, *, plus: bool, tls: bool) -> tuple[str, str]:
    flag = text[0]
    if flag == "p":
        if not plus:
            raise malformed(
                "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes "
                "channel binding data."
            )
        binding, rest = _attribute(text, "p")
        if binding != CHANNEL_BINDING:
            shown = "".join(c if "!" <= c <= "~" else "?" for c in binding[:30])
            raise AuthFailed(PROTOCOL_VIOLATION, f'unsupported SCRAM channel-binding type "{shown}"')
        return flag, rest
    if flag not in ("n", "y"):
        raise malformed(f'Unexpected channel-binding flag "{_show(text)}".')
    if plus:
        raise malformed(
            "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data."
        )
    if flag == "y" and tls:
        # Somebody between us removed the PLUS mechanism from our list.
        raise AuthFailed(
            INVALID_AUTHORIZATION,
            "SCRAM channel binding negotiation error",
            "The client supports SCRAM channel binding but thinks the server does not.  "
            "However, this server does support channel binding.",
        )
    if text[1:2] != ",":
        raise malformed(f'Comma expected, but found character "{_show(text[1:])}".')
    return flag, text[2:]


def read_client_final(data: bytes, *, flag: str, channel_binding: bytes | None) -> ClientFinal:
    """``flag`` is that of the client's first message; ``channel_binding`` the data it must repeat when flag is p."""
    text = _text(data)
    binding, rest = _attribute(text, "c")
    if flag == "p":
        header = f"p={CHANNEL_BINDING},,".encode()
        if binding != base64.b64encode(header + (channel_binding or b"")).decode("ascii"):
            raise AuthFailed(INVALID_AUTHORIZATION, "SCRAM channel binding check failed")
    elif binding != base64.b64encode(f"{flag},,".encode()).decode("ascii"):
        raise AuthFailed(PROTOCOL_VIOLATION, "unexpected SCRAM channel-binding attribute in client-final-message")
    nonce, rest = _attribute(rest, "r")
    while True:
        before = rest
        name, value, rest = _any_attribute(rest)
        if name == "p":
            break
    try:
        proof = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        proof = b""
    if len(proof) != KEY_BYTES:
        raise malformed("Malformed proof in client-final-message.")
    if rest:
        raise malformed("Garbage found at the end of client-final-message.")
    return ClientFinal(nonce, text[: len(text) - len(before) - 1], proof)


def _text(data: bytes) -> str:
    if not data:
        raise malformed("The message is empty.")
    if b"\0" in data:
        raise malformed("Message length does not match input length.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        # RFC 5802 prescribes UTF-8; the server does not look, but no client that it accepts sends anything else.
        raise malformed("The message is not valid UTF-8.") from None


def _attribute(text: str, name: str) -> tuple[str, str]:
    """The value of the attribute ``name``, which must come first, and what follows the comma behind it."""
    if text[:1] != name:
        raise malformed(f'Expected attribute "{name}" but found "{_show(text)}".')
    if text[1:2] != "=":
        raise malformed(f'Expected character "=" for attribute "{name}".')
    value, _, rest = text[2:].partition(",")
    return value, rest


def _any_attribute(text: str) -> tuple[str, str, str]:
    if not text:
        raise malformed("Attribute expected, but found end of string.")
    name = text[0]
    if not (name.isascii() and name.isalpha()):
        raise malformed(f'Attribute expected, but found invalid character "{_show(text)}".')
    value, rest = _attribute(text, name)
    return name, value, rest


def _show(text: str) -> str:
    """The first byte as the server shows it: in quotes when printable, else in hexadecimal."""
    first = text[:1].encode("utf-8")[:1] or b"\0"
    return f"'{chr(first[0])}'" if 0x21 <= first[0] <= 0x7E else f"0x{first[0]:02x}"
