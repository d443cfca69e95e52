"""LIKE patterns against the server and against each other."""

from __future__ import annotations

import re
import time

from hypothesis import given
from hypothesis import strategies as st

from planner.patterns import Pattern
from tests.support.postgres import Postgres

texts = st.text(alphabet="abAB%_\\é ", max_size=8)


def expression(pattern: str) -> str:
    """The pattern as a regular expression, character by character."""
    parts, escaped = [], False
    for character in pattern:
        if escaped or character not in "%_\\":
            parts.append(re.escape(character))
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            parts.append(".*" if character == "%" else ".")
    return "".join(parts)


@given(texts, texts, st.booleans())
def test_matching_is_that_of_a_regular_expression(pattern: str, text: str, ignore_case: bool) -> None:
    wanted = re.fullmatch(
        expression(pattern.lower() if ignore_case else pattern), text.lower() if ignore_case else text, re.DOTALL
    )
    assert Pattern(pattern, ignore_case=ignore_case).matches(text) is (wanted is not None)


@given(texts, texts)
def test_matches_begin_with_the_prefix(pattern: str, text: str) -> None:
    taken = Pattern(pattern)
    if taken.matches(text):
        assert text.startswith(taken.prefix)
    if taken.exact:
        assert taken.matches(taken.prefix)
        assert taken.matches(text) is (text == taken.prefix)
    assert 0 < taken.rest <= 1


def test_the_server_agrees(postgres: Postgres) -> None:
    patterns = ["", "%", "_", "a%", "%a", "%a%b%", "a_c", "a\\%", "%\\_b", "A%", "_%_", "%%", "é_", "a%a"]
    words = ["", "a", "ab", "abc", "a%", "x_b", "Abc", "é1", "aXa", "aa", "b a b"]
    quoted = "SELECT {text} LIKE {pattern}, {text} ILIKE {pattern}"
    for pattern in patterns:
        query = " UNION ALL ".join(quoted.format(text=f"'{word}'", pattern=f"'{pattern}'") for word in words)
        for word, line in zip(words, postgres.sql(query).splitlines(), strict=True):
            like, ilike = (value == "t" for value in line.split("|"))
            assert Pattern(pattern).matches(word) is like, (pattern, word)
            assert Pattern(pattern, ignore_case=True).matches(word) is ilike, (pattern, word)


def test_no_pattern_takes_long() -> None:
    hostile = Pattern("%a" * 2000 + "%b_" * 500)
    begun = time.thread_time()
    assert not hostile.matches("a" * 10_000)
    assert time.thread_time() - begun < 1
