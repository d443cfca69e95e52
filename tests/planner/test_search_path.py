"""search_path as the server would read it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.search_path import MAX_SCHEMAS, parse


@pytest.mark.parametrize(
    ("text", "schemas"),
    [
        ('"$user", public', ("ann", "public")),
        ("public", ("public",)),
        ("Sales,  Public", ("sales", "public")),
        ('"Sales", "with ""quotes""", "a,b"', ("Sales", 'with "quotes"', "a,b")),
        ('""', ()),
        ("", ()),
        ("a,,b", ()),
        ('"open', ()),
    ],
)
def test_paths(text: str, schemas: tuple[str, ...]) -> None:
    assert parse(text, "ann") == schemas


@given(st.text(max_size=200))
def test_anything_is_read_without_an_error(text: str) -> None:
    assert len(parse(text, "u")) <= MAX_SCHEMAS


@given(st.lists(st.text(min_size=1, max_size=10).filter(lambda name: name != "$user"), max_size=5))
def test_quoted_names_come_back(names: list[str]) -> None:
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in names)
    assert parse(quoted, "u") == tuple(names)
