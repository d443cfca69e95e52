"""Reading workload files: both forms, and what is said about statements that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.errors import TrainingError
from training.queries import MAX_STATEMENT_BYTES, Query, read_file, read_text


def test_plain_sql() -> None:
    text = "-- a report; daily\nSELECT ';' ;\n\nSELECT é\nFROM t; /* two; */ SELECT $$;$$;\n"
    workload = read_text(text)
    assert workload.queries == (
        Query(2, "-- a report; daily\nSELECT ';'"),
        Query(4, "SELECT é\nFROM t"),
        Query(5, "/* two; */ SELECT $$;$$"),
    )
    assert workload.skipped == ()


def test_counted_lines() -> None:
    workload = read_text("-- made by hand\n12||SELECT 1;\n\n1e+06|| SELECT ';';\nSELECT 3\n")
    assert workload.queries == (Query(2, "SELECT 1"), Query(4, "SELECT ';'"), Query(5, "SELECT 3"))


def test_bad_statements_are_named_and_the_rest_is_kept() -> None:
    workload = read_text("SELECT 1;\nSELEC 2;\n\\timing\n;SELECT 3;\nSELECT 'never ends;\nSELECT 4;")
    assert [query.text for query in workload.queries] == ["SELECT 1", "SELECT 3"]
    assert [str(skipped) for skipped in workload.skipped] == [
        'line 2: syntax error at or near "SELEC": SELEC 2',
        'line 3: syntax error at or near "\\": \\timing',
        "line 5: unterminated quoted string at or near \"'never ends; SELEC...: SELECT 'never ends; SELECT 4;",
    ]


def test_a_long_statement_is_left_out() -> None:
    workload = read_text(f"SELECT '{'x' * MAX_STATEMENT_BYTES}'; SELECT 1")
    assert [query.text for query in workload.queries] == ["SELECT 1"]
    assert workload.skipped[0].reason == "longer than 64 kB"
    assert len(workload.skipped[0].excerpt) == 60


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no statement that PostgreSQL understands$"),
        (b"-- nothing\n", "holds no statement that PostgreSQL understands$"),
        (b"SELEC 1", 'the first problem: line 1: syntax error at or near "SELEC": SELEC 1$'),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"SELECT 1\x00", "the first problem: line 1: "),
    ],
)
def test_files_without_statements(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "queries.sql"
    file.write_bytes(content)
    with pytest.raises(TrainingError, match=message):
        read_file(file)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be read: No such file or directory"):
        read_file(tmp_path / "none.sql")
    with pytest.raises(TrainingError, match="cannot be read: Is a directory"):
        read_file(tmp_path)


@given(
    st.lists(st.sampled_from(["SELECT 1", ";", "\n", "'", "$$", "/*", "*/", "--", "12||", "x", "é", "\0", '"', "\\"]))
)
def test_any_text_is_read(pieces: list[str]) -> None:
    workload = read_text("".join(pieces))
    for query in workload.queries:
        assert query.text in "".join(pieces)
        assert 1 <= query.line <= "".join(pieces).count("\n") + 1
