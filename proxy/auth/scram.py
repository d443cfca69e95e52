"""The arithmetic of SCRAM-SHA-256 (RFC 5802, RFC 7677) that both sides share: keys, proofs, signatures.

The library ``scramp`` judges our clients' proofs (see ``exchange``) and prepares passwords here. What it cannot do is
below: it keeps no ClientKey, starts from a password only, refuses fewer than 4096 iterations (which a server may be
set to) and passwords that SASLprep prohibits (where PostgreSQL takes the raw bytes).
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from dataclasses import dataclass, field

from scramp.utils import ScramException, saslprep

from proxy.auth.secrets import KEY_BYTES, ScramVerifier

MECHANISM = "SCRAM-SHA-256"
MECHANISM_PLUS = "SCRAM-SHA-256-PLUS"
CHANNEL_BINDING = "tls-server-end-point"
DEFAULT_ITERATIONS = 4096
SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class ScramKeys:
    """What a client needs to prove itself: 32 bytes each."""

    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


def prepare_password(password: str) -> bytes:
    """SASLprep where it applies, the bytes as they are where it does not, as the server and libpq do."""
    raw = password.encode("utf-8", "surrogateescape")
    if password.isascii():
        return raw
    try:
        return saslprep(password).encode("utf-8") or raw
    except (ScramException, UnicodeEncodeError):
        return raw


@functools.lru_cache(maxsize=256)
def derive_keys(password: str, salt: bytes, iterations: int) -> ScramKeys:
    """Costs about 1 ms for 4096 iterations; kept, since every connection of a user asks for the same keys."""
    salted = hashlib.pbkdf2_hmac("sha256", prepare_password(password), salt, iterations)
    return ScramKeys(_hmac(salted, b"Client Key"), _hmac(salted, b"Server Key"))


def make_verifier(password: str, salt: bytes, iterations: int = DEFAULT_ITERATIONS) -> ScramVerifier:
    keys = derive_keys(password, salt, iterations)
    return ScramVerifier(iterations, salt, hashlib.sha256(keys.client_key).digest(), keys.server_key)


def client_proof(client_key: bytes, auth_message: bytes) -> bytes:
    stored_key = hashlib.sha256(client_key).digest()
    return _xor(client_key, _hmac(stored_key, auth_message))


def recover_client_key(stored_key: bytes, auth_message: bytes, proof: bytes) -> bytes | None:
    """The ClientKey hidden in a client's proof; None when the proof is wrong."""
    if len(proof) != KEY_BYTES:
        return None
    client_key = _xor(proof, _hmac(stored_key, auth_message))
    return client_key if hmac.compare_digest(hashlib.sha256(client_key).digest(), stored_key) else None


def server_signature(server_key: bytes, auth_message: bytes) -> bytes:
    return _hmac(server_key, auth_message)


def _hmac(key: bytes, message: bytes) -> bytes:
    return hmac.digest(key, message, "sha256")


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
