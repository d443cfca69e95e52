"""The arithmetic, against scramp as an independent implementation."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scramp import ScramClient, ScramMechanism

from proxy.auth import scram
from proxy.auth.exchange import ScramExchange
from proxy.auth.failures import AuthFailed
from proxy.login import ScramKeysCredential

SALT = b"0123456789abcdef"


@given(st.text(st.characters(codec="utf-8", categories=("L", "N", "P"), max_codepoint=0x17F), min_size=1, max_size=20))
@settings(max_examples=20, deadline=None)
def test_verifiers_are_those_of_scramp(password: str) -> None:
    verifier = scram.make_verifier(password, SALT)
    assert ScramMechanism().make_auth_info(password, 4096, SALT) == (
        SALT, verifier.stored_key, verifier.server_key, 4096,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("password", "prepared"),
    [
        ("plain", b"plain"),
        ("control\x01", b"control\x01"),
        ("a\u00a0b\u00adc", b"a bc"),
        ("\u00ad", b"\xc2\xad"),
        ("x\u2028", b"x\xe2\x80\xa8"),
        ("\u2168", b"IX"),
        ("latin\udce9", b"latin\xe9"),
    ],
)
def test_preparation(password: str, prepared: bytes) -> None:
    assert scram.prepare_password(password) == prepared


def talk(client: ScramClient, exchange: ScramExchange, header: bytes = b"SCRAM-SHA-256\0") -> None:
    exchange.start()
    first = client.get_client_first().encode()
    challenge = exchange.receive(header + len(first).to_bytes(4, "big") + first)
    client.set_server_first(challenge[9:].decode())
    final = exchange.receive(client.get_client_final().encode())
    client.set_server_final(final[9:].decode())


@given(
    st.binary(max_size=40).map(lambda raw: base64.b64encode(raw).decode() or "x"), st.binary(min_size=12, max_size=40)
)
@settings(max_examples=20, deadline=None)
def test_client_key_is_recovered(password: str, salt: bytes) -> None:
    keys = scram.derive_keys(password, salt, 4096)
    exchange = ScramExchange("bob", scram.make_verifier(password, salt))
    talk(ScramClient(["SCRAM-SHA-256"], "bob", password), exchange)
    assert exchange.credential == ScramKeysCredential(keys.client_key, keys.server_key)


def test_bound_exchange_with_scramp() -> None:
    exchange = ScramExchange("bob", scram.make_verifier("secret", SALT), channel_binding=b"hash")
    binding = ("tls-server-end-point", b"hash")
    client = ScramClient(["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"], "bob", "secret", channel_binding=binding)
    talk(client, exchange, b"SCRAM-SHA-256-PLUS\0")
    assert exchange.done


def test_wrong_password_with_scramp() -> None:
    exchange = ScramExchange("bob", scram.make_verifier("secret", SALT))
    with pytest.raises(AuthFailed) as caught:
        talk(ScramClient(["SCRAM-SHA-256"], "bob", "other"), exchange)
    assert caught.value.sqlstate == "28P01"


def test_proof_of_a_wrong_length_proves_nothing() -> None:
    assert scram.recover_client_key(bytes(32), b"", bytes(31)) is None
    assert scram.recover_client_key(bytes(32), b"", bytes(32)) is None
