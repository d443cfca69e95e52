"""What may be shown of a statement."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.slow_log import shown

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT  *\nFROM t WHERE a = 's3cret' AND b = 12", "select * from t where a = '' and b = 0"),
        ("SELECT $$s3cret$$, $1 /* s3cret */ -- s3cret", "select '', $1"),
        ("SELECT 's3cret", "select"),
    ],
)
def test_literals_and_comments_are_left_out(text: str, expected: str) -> None:
    assert shown(text.encode(), conforming=True, literals=False).strip() == expected
    assert shown(text.encode(), conforming=True, literals=True) == text


@pytest.mark.parametrize("text", [r"SELECT 'it\'s3cret'", r"SELECT 'a\', 's3cret'", r"SELECT 'a', '\', 's3cret'"])
def test_where_nobody_knows_what_a_backslash_means_nothing_behind_a_quote_is_shown(text: str) -> None:
    assert shown(text.encode(), conforming=None, literals=False).strip() == "select"


@given(st.binary(max_size=200), st.sampled_from([True, False, None]))
def test_any_bytes_can_be_shown(text: bytes, conforming: bool | None) -> None:
    literal = b"SELECT '" + text.replace(b"'", b"").replace(b"\\", b"") + SECRET.encode() + b"', 1"
    assert SECRET not in shown(literal, conforming=conforming, literals=False)
    assert isinstance(shown(text, conforming=conforming, literals=True), str)
