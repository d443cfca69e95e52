"""The first look at a text: the same whether the text was met before or not."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.steering.template import JOINS, SETS, glance
from proxy.wire import looks
from proxy.wire.looks import look
from proxy.wire.statements import BY_NAME, STATE, TEMPORARY, classify

_WORDS = (
    "select", "from", "join", ",", "set", "reset", "set_config(", "pg_settings", "update", "temp", "s2et", "set3", "é",
    "create", "temporary", "with", "hold", "database", "drop", "discard", "deallocate", "execute", "1", "e1", "$1",
    "pg_advisory_unlock", ";", "(", "'", '"', "/*", "*/", "--", "\n", "_",
)  # fmt: skip
_SPOKEN = st.lists(st.sampled_from(_WORDS), max_size=12).map(lambda words: " ".join(words).encode())
_TEXTS = _SPOKEN | st.binary(max_size=60)


@given(_TEXTS, st.integers(0, 9))
@example(b"DEALLOCATE s1", 7)
@example(b"SELECT 1 FROM t1, t2 /* 3set */", 0)
@settings(max_examples=300, deadline=None)
def test_letters_case_and_numbers_change_nothing(text: bytes, digit: int) -> None:
    other = bytes(0x30 + digit if 0x30 <= byte <= 0x39 else byte for byte in text).swapcase()
    for one in (text, other, text):
        assert look(one) == classify(one) | glance(one)


def test_its_bits_are_told_apart() -> None:
    assert look(b"create temp table a as select 1 from b join c using (x)") == TEMPORARY | JOINS
    assert look(b"deallocate x") == BY_NAME
    assert look(b"discard all") == SETS
    assert not STATE & (JOINS | SETS)


@pytest.mark.parametrize("length", [10, 5_000])
def test_what_is_remembered_is_bounded(length: int) -> None:
    for number in range(3000):
        letters = "".join(chr(ord("a") + int(digit)) for digit in f"{number:06}")
        look(f"select {letters} {'x' * length}".encode())
    found = looks._LOOKS._found
    assert len(found) <= 1024
    assert max(map(len, found)) <= 1024
