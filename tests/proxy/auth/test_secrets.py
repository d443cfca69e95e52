from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth import scram
from proxy.auth.secrets import Md5Hash, Password, ScramVerifier, parse_secret

VERIFIER = scram.make_verifier("secret", b"0123456789abcdef")


def test_the_three_forms() -> None:
    assert parse_secret("") is None
    assert parse_secret("hunter2") == Password("hunter2")
    assert parse_secret("md5" + "0f" * 16) == Md5Hash("0f" * 16)
    assert parse_secret(str(VERIFIER)) == VERIFIER


@pytest.mark.parametrize(
    "text", ["md5", "md5" + "0F" * 16, "md5" + "0f" * 15, "md5" + "0f" * 16 + "0", "SCRAM-SHA-1$x"]
)
def test_what_only_resembles_a_hash_is_a_password(text: str) -> None:
    assert parse_secret(text) == Password(text)


@pytest.mark.parametrize(
    "text",
    [
        "SCRAM-SHA-256$4096",
        "SCRAM-SHA-256$:",
        "SCRAM-SHA-256$4096:c2FsdA==$c2FsdA==:c2FsdA==",
        str(VERIFIER)[:-1],
        str(VERIFIER) + "$",
        str(VERIFIER).replace("4096", "0"),
        str(VERIFIER).replace("4096", "-1"),
        str(VERIFIER).replace("4096", "²"),
        str(VERIFIER).replace("4096", "9" * 30),
        str(VERIFIER).replace(":", "!", 1),
        "x" * 2049,
        "a\0b",
    ],
)
def test_damaged_secrets_are_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as caught:
        parse_secret(text)
    assert text not in str(caught.value)


def test_nothing_shows_a_secret() -> None:
    for secret in (Password("hush"), VERIFIER, Md5Hash("0f" * 16)):
        assert "hush" not in repr(secret)
        assert "0f0f" not in repr(secret)
        assert "=" not in repr(secret).replace("iterations=", "")


@given(
    st.integers(1, 2**31 - 1), st.binary(min_size=1, max_size=64), st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
)  # fmt: skip
def test_verifiers_are_read_back(iterations: int, salt: bytes, stored_key: bytes, server_key: bytes) -> None:
    verifier = ScramVerifier(iterations, salt, stored_key, server_key)
    assert parse_secret(str(verifier)) == verifier


@given(st.text(max_size=80) | st.text(max_size=80).map(lambda tail: "SCRAM-SHA-256$" + tail))
def test_any_text_is_a_secret_or_a_clear_error(text: str) -> None:
    try:
        secret = parse_secret(text)
    except ValueError:
        assert text.startswith("SCRAM-SHA-256$") or "\0" in text
    else:
        assert secret == (Password(text) if text else None)
