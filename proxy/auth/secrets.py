"""What proves a user: a password, a SCRAM verifier, or an MD5 hash, written as PostgreSQL stores them.

The three spellings are those of ``pg_authid.rolpassword`` and of a PgBouncer users file: ``SCRAM-SHA-256$...`` and
``md5...`` are recognised by their form, anything else is a password in clear. One difference is deliberate: text that
begins like a verifier but is none is refused, since taking it for a password would let in whoever read the file.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field

KEY_BYTES = 32
MAX_SALT_BYTES = 256
MAX_SECRET_CHARS = 2048
_MAX_ITERATIONS = 2**31 - 1
_VERIFIER_PREFIX = "SCRAM-SHA-256$"
_MD5 = re.compile(r"md5([0-9a-f]{32})")


@dataclass(frozen=True, slots=True)
class Password:
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ScramVerifier:
    """``SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey``; both keys have 32 bytes."""

    iterations: int
    salt: bytes = field(repr=False)
    stored_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)

    def __str__(self) -> str:
        salt, stored, server = (
            base64.b64encode(part).decode("ascii") for part in (self.salt, self.stored_key, self.server_key)
        )
        return f"{_VERIFIER_PREFIX}{self.iterations}:{salt}${stored}:{server}"


@dataclass(frozen=True, slots=True)
class Md5Hash:
    """``digest`` is md5(password + user) in 32 lower-case hexadecimal digits."""

    digest: str = field(repr=False)


Secret = Password | ScramVerifier | Md5Hash


def parse_secret(text: str) -> Secret | None:
    """The secret that ``text`` spells; None when it is empty (a user without a password).

    ValueError, never repeating the text, when it is too long, holds a zero byte, or is a damaged verifier.
    """
    if not text:
        return None
    if len(text) > MAX_SECRET_CHARS:
        raise ValueError(f"a secret may have at most {MAX_SECRET_CHARS} characters")
    if "\0" in text:
        raise ValueError("a secret must not hold a zero byte")
    if digest := md5_digest(text):
        return Md5Hash(digest)
    if text.startswith(_VERIFIER_PREFIX):
        return _parse_verifier(text)
    return Password(text)


def md5_digest(text: str) -> str | None:
    """The 32 digits of ``md5...``, or None when ``text`` is not such a hash.

    The server takes every password of this form for a hash, so no user's password can be mistaken for one.
    """
    found = _MD5.fullmatch(text)
    return found.group(1) if found else None


def _parse_verifier(text: str) -> ScramVerifier:
    broken = ValueError(
        "this begins like a SCRAM verifier but is none: copy it whole, SCRAM-SHA-256$iterations:salt$key:key"
    )
    parts = re.split(r"[$:]", text)
    if len(parts) != 5 or text.count("$") != 2:
        raise broken
    iterations = parts[1]
    if not iterations.isascii() or not iterations.isdigit() or not 1 <= int(iterations[:11]) <= _MAX_ITERATIONS:
        raise broken
    try:
        salt, stored_key, server_key = (base64.b64decode(part, validate=True) for part in parts[2:])
    except (binascii.Error, ValueError):
        raise broken from None
    if not 1 <= len(salt) <= MAX_SALT_BYTES or len(stored_key) != KEY_BYTES or len(server_key) != KEY_BYTES:
        raise broken
    return ScramVerifier(int(iterations), salt, stored_key, server_key)
