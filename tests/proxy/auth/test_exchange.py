"""Transcripts of single exchanges; what a real server says to the same bytes is compared in test_wording."""

from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth import scram
from proxy.auth.exchange import Exchange, Md5Exchange, ScramExchange, accept, md5_of
from proxy.auth.failures import AuthFailed, certificate_failed, no_entry
from proxy.auth.secrets import Md5Hash, Password
from proxy.login import NoCredential, PasswordCredential, ScramKeysCredential
from proxy.wire.messages import error_fields, message
from tests.proxy.auth.dialogue import NONCE, honest_final, initial

VERIFIER = scram.make_verifier("secret", b"0123456789abcdef")
BARE = f"n=,r={NONCE}"


def request(code: int, data: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!i", code) + data)


def refused(exchange: Exchange, body: bytes) -> AuthFailed:
    with pytest.raises(AuthFailed) as caught:
        exchange.receive(body)
    assert not exchange.done
    return caught.value


def test_nothing_asked() -> None:
    exchange = accept()
    assert (exchange.start(), exchange.done, exchange.credential) == (b"", True, NoCredential())
    with pytest.raises(AuthFailed):
        exchange.receive(b"x")


def test_credential_before_the_end() -> None:
    with pytest.raises(RuntimeError, match="not been verified"):
        _ = ScramExchange("bob", VERIFIER).credential


def test_transcript_of_a_login() -> None:
    exchange = ScramExchange("bob", VERIFIER)
    assert exchange.start() == request(10, b"SCRAM-SHA-256\0\0")
    challenge = exchange.receive(initial(f"n,,{BARE}".encode()))
    assert challenge.startswith(b"R")
    text = challenge[9:].decode()
    assert text.startswith(f"r={NONCE}")
    assert text.endswith(",s=MDEyMzQ1Njc4OWFiY2RlZg==,i=4096")
    final = exchange.receive(honest_final("secret", BARE, text).encode())
    assert final.startswith(b"R")
    assert final[5:11] == b"\0\0\0\x0cv="
    assert exchange.done
    keys = scram.derive_keys("secret", b"0123456789abcdef", 4096)
    assert exchange.credential == ScramKeysCredential(keys.client_key, keys.server_key)
    assert "ScramExchange done" in repr(exchange)


def test_client_that_wants_to_be_asked() -> None:
    exchange = ScramExchange("bob", VERIFIER, password="secret")
    exchange.start()
    assert exchange.receive(initial(b"", length=-1)) == request(11)
    challenge = exchange.receive(f"n,,{BARE}".encode())[9:].decode()
    exchange.receive(honest_final("secret", BARE, challenge).encode())
    assert exchange.credential == PasswordCredential("secret")


def test_plus_is_offered_first_when_bound() -> None:
    exchange = ScramExchange("bob", VERIFIER, channel_binding=b"hash")
    assert exchange.start() == request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0")


@pytest.mark.parametrize(("salt", "iterations"), [(b"short", 4096), (b"0123456789abcdef", 1), (b"x", 7)])
def test_verifiers_that_scramp_alone_would_refuse(salt: bytes, iterations: int) -> None:
    exchange = ScramExchange("bob", scram.make_verifier("secret", salt, iterations))
    exchange.start()
    challenge = exchange.receive(initial(f"n,,{BARE}".encode()))[9:].decode()
    exchange.receive(honest_final("secret", BARE, challenge).encode())
    assert exchange.done


def test_a_failed_exchange_stays_failed() -> None:
    forgotten: list[str] = []
    exchange = ScramExchange("bob", VERIFIER, on_mismatch=lambda: forgotten.append("bob"))
    assert "unexpected" in refused(exchange, b"too early").message
    exchange.start()
    challenge = exchange.receive(initial(f"n,,{BARE}".encode()))[9:].decode()
    failure = refused(exchange, honest_final("wrong", BARE, challenge).encode())
    assert (failure.sqlstate, failure.message) == ("28P01", 'password authentication failed for user "bob"')
    assert failure.log_detail == 'Password does not match for user "bob".'
    assert "D" not in error_fields(failure.response()[5:])
    assert forgotten == ["bob"]
    refused(exchange, honest_final("secret", BARE, challenge).encode())


def test_lengths_are_bounded() -> None:
    exchange = ScramExchange("bob", VERIFIER)
    exchange.start()
    refused(exchange, b"x" * (exchange.max_message - 3))


def md5_answer(start: bytes, digest: str) -> bytes:
    assert start[:9] == b"R\0\0\0\x0c\0\0\0\x05"
    return b"md5" + hashlib.md5(digest.encode() + start[9:]).hexdigest().encode() + b"\0"


def test_md5() -> None:
    digest = md5_of("secret", "bob")
    for secret, password in ((Password("secret"), "secret"), (Md5Hash(digest), "md5" + digest)):
        exchange = Md5Exchange("bob", secret, "")
        assert exchange.receive(md5_answer(exchange.start(), digest)) == b""
        assert exchange.credential == PasswordCredential(password)
        with pytest.raises(AuthFailed):
            exchange.receive(b"again\0")


@pytest.mark.parametrize(
    ("body", "sqlstate", "text"),
    [
        (b"md5\0", "28P01", 'password authentication failed for user "bob"'),
        (b"\0", "28P01", "empty password returned by client"),
        (b"md5", "08P01", "invalid password packet size"),
        (b"", "08P01", "invalid password packet size"),
        (b"md5\0x", "08P01", "invalid password packet size"),
        (b"a\0b\0", "08P01", "invalid password packet size"),
    ],
)
def test_md5_refusals(body: bytes, sqlstate: str, text: str) -> None:
    exchange = Md5Exchange("bob", Password("secret"), "")
    exchange.start()
    failure = refused(exchange, body)
    assert (failure.sqlstate, failure.message) == (sqlstate, text)


def test_md5_of_nobody() -> None:
    exchange = Md5Exchange("bob", None, 'Role "bob" does not exist.')
    failure = refused(exchange, md5_answer(exchange.start(), "0" * 32))
    assert (failure.sqlstate, failure.log_detail) == ("28P01", 'Role "bob" does not exist.')


def test_other_refusals() -> None:
    assert certificate_failed("bob", "").message == 'certificate authentication failed for user "bob"'
    refusal = no_entry("unix", "bob", "shop", tls=True, log_detail="")
    assert refusal.message == 'no pg_hba.conf entry for host "[local]", user "bob", database "shop", SSL encryption'
    assert error_fields(refusal.response()[5:])["S"] == "FATAL"


_PIECES = st.sampled_from(
    [b"n", b"y", b"p=", b"tls-server-end-point", b",", b"=", b"a=", b"m=", b"r=", b"c=biws", b"p=", NONCE.encode(),
     b"\0", b"\xff", b"SCRAM-SHA-256\0", b"SCRAM-SHA-256-PLUS\0", b"\0\0\0\x10", b"\xff\xff\xff\xff",
     b"\x7f\xff\xff\xff"]
)  # fmt: skip
_BODIES = st.binary(max_size=200) | st.lists(_PIECES, max_size=16).map(b"".join)


def answer(exchange: Exchange, body: bytes) -> bytes:
    try:
        return exchange.receive(body)
    except AuthFailed as failure:
        return failure.response()


@given(st.lists(_BODIES, min_size=1, max_size=3), st.booleans())
def test_any_message_is_answered_or_refused(bodies: list[bytes], tls: bool) -> None:
    exchange = ScramExchange("bob", VERIFIER, channel_binding=b"hash" if tls else None)
    exchange.start()
    for body in bodies:
        reply = answer(exchange, body)
        assert reply[:1] in (b"R", b"E")
        assert len(reply) < 1200
    assert not exchange.done


@given(_BODIES)
def test_any_second_message_is_refused(body: bytes) -> None:
    exchange = ScramExchange("bob", VERIFIER)
    exchange.start()
    exchange.receive(initial(f"n,,{BARE}".encode()))
    refused(exchange, body)


@given(_BODIES)
def test_any_first_message_in_the_right_frame(data: bytes) -> None:
    exchange = ScramExchange("bob", VERIFIER)
    exchange.start()
    assert answer(exchange, initial(data))[:1] in (b"R", b"E")


@given(st.binary(max_size=100))
def test_any_md5_answer_is_refused(body: bytes) -> None:
    exchange = Md5Exchange("bob", Password("secret"), "")
    exchange.start()
    refused(exchange, body)
