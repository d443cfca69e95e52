"""No literal gets through; equal ones are seen to be equal; what went through once stays as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.store.redact import LONGEST, Redactor

SALT = "salt"


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("SELECT * FROM t WHERE a = $1", "SELECT * FROM t WHERE a = $1"),
        ("  SELECT a FROM t  -- why\n", "SELECT a FROM t"),
        ("SELECT /* 'x' */ a FROM \"T 1\"", 'SELECT  a FROM "T 1"'),
        ("", ""),
    ],
)
def test_what_is_no_literal_stays(text: str, shape: str) -> None:
    assert Redactor(SALT).shape(text) == shape


@pytest.mark.parametrize(
    "literal",
    ["'Geheim'", "4711", "47.11e3", "$x$Geheim$x$", "E'Gehei\\x6d'", "U&'Geheim'", "X'4711'", "B'101'", "0x4711"],
)
def test_every_kind_of_literal_is_hashed(literal: str) -> None:
    shape = Redactor(SALT).shape(f"SELECT é FROM t WHERE a = {literal} AND b = {literal}")
    assert "Geheim" not in shape
    assert "4711" not in shape
    first, second = shape.removeprefix("SELECT é FROM t WHERE a = ").split(" AND b = ")
    assert first == second
    assert len(first) == len("'#0123456789ab'")


def test_hashes_depend_on_the_salt_and_survive_a_second_pass() -> None:
    text = "SELECT 'Geheim', 7"
    once = Redactor(SALT).shape(text)
    assert Redactor(SALT).shape(once) == Redactor("other").shape(once) == once
    assert Redactor("other").shape(text) != once
    assert Redactor(SALT).shape("SELECT 'Other', 7") != once


def test_what_cannot_be_read_is_hashed_as_a_whole() -> None:
    for text in (
        "SELECT 'Geheim",
        "SELECT $$Geheim",
        "/* Geheim",
        "SELECT 1\0 'Geheim'",
        "SELECT '\ud800' || 'Geheim'",
    ):
        shape = Redactor(SALT).shape(text)
        assert "Geheim" not in shape
        assert shape.startswith("'#")


def test_a_long_text_is_cut_and_hides_its_literals() -> None:
    text = " " * 100 + "SELECT " + ", ".join(["'Geheim'"] * 5_000)
    shape = Redactor(SALT).shape(text)
    assert len(shape) <= LONGEST + 4
    assert "Geheim" not in shape


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="'\\\0"), min_size=4, max_size=10), max_size=4))
def test_no_quoted_word_gets_through(words: list[str]) -> None:
    marked = [f"<<{word}>>" for word in words]
    shape = Redactor(SALT).shape("SELECT " + ", ".join(f"'{word}'" for word in marked) + " FROM t")
    assert not any(word in shape for word in marked)


@given(st.text())
def test_nothing_raises(text: str) -> None:
    redactor = Redactor(SALT)
    assert redactor.shape(text) == redactor.shape(text)
