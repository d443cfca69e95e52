"""One key for one query, however its values come; and evidence that expires only when something has really changed."""

from __future__ import annotations

import struct
from dataclasses import replace
from datetime import date
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.keys import Conditions, canonical_params, canonical_path, conditions, params_of, same
from planner.memory.records import query_key
from planner.snapshot import ColumnInfo, ColumnStatistics, IndexInfo, Snapshot, TableInfo

INT4, TEXT, NUMERIC, DATE = 23, 25, 1700, 1082


def bind(values: list[bytes | None], formats: tuple[int, ...] = ()) -> bytes:
    parts = [struct.pack(f"!H{len(formats)}H", len(formats), *formats), struct.pack("!H", len(values))]
    for value in values:
        parts.append(struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value)
    return b"".join(parts) + b"\0\0"


def table(rows: float = 100_000.0, columns: int = 2, distinct: float = 500.0, name: str = "orders") -> TableInfo:
    infos = {
        f"c{number}": ColumnInfo(f"c{number}", "integer", number, statistics=ColumnStatistics(0.0, distinct))
        for number in range(columns)
    }
    return TableInfo(1, "public", name, "r", rows, 1000, infos)


def snapshot(*tables: TableInfo, version: int = 180000) -> Snapshot:
    return Snapshot("shop", version, {(one.schema, one.name): one for one in tables})


def test_text_binary_and_pythons_values_are_one() -> None:
    types = (INT4, TEXT)
    text = canonical_params(bind([b"42", b"north"]), types)
    assert text == canonical_params(bind([struct.pack("!i", 42), b"north"], (1, 0)), types)
    assert text == params_of([42, "north"]) == '["42", "north"]'
    assert canonical_params(bind([None, b"x"]), types) == params_of([None, "x"]) == '[null, "x"]'
    assert canonical_params(None) == canonical_params(bind([])) == params_of(()) == ""
    assert canonical_params(bind([b"1.50"]), (NUMERIC,)) == params_of([Decimal("1.5")])
    assert canonical_params(bind([b"2024-05-01"]), (DATE,)) == params_of([date(2024, 5, 1)])
    assert (
        params_of([[1, 2], True, 2.0, UUID(int=1)]) == '["{\\"1\\",\\"2\\"}", "true", "2", "' + str(UUID(int=1)) + '"]'
    )


@given(st.binary(max_size=200), st.lists(st.integers(0, 2**32 - 1), max_size=5))
def test_hostile_bytes_have_a_form(data: bytes, types: list[int]) -> None:
    assert isinstance(canonical_params(data, types), str)


def test_values_that_are_not_understood_are_told_apart_and_not_kept() -> None:
    blobs = [canonical_params(bind([bytes([number]) * 500], (1,)), (17,)) for number in (1, 2)]
    assert blobs[0] != blobs[1]
    assert len(blobs[0]) < 100


def test_a_path_is_what_holds_tables() -> None:
    one = snapshot(table())
    assert canonical_path(one, ("ann", "public", "public")) == canonical_path(one) == "public"
    assert canonical_path(one, ("nowhere",)) == ""
    assert query_key("d", "public", " SELECT 1 ; ") == query_key("d", "public", "SELECT 1")


def test_comments_count_for_nothing() -> None:
    tagged = ("SELECT 1 /* trace=1 */;", "/* a */ SELECT 1", "SELECT -- b\n 1", "SELECT /* /* c */ */ 1; -- d")
    assert {query_key("d", "public", text) for text in tagged} == {query_key("d", "public", "SELECT 1")}
    meant = ("SELECT '/* a */'", "SELECT '/* b */'", "/*+ SeqScan(a) */ SELECT 1", "SELECT 1 /* pilotwire: off */")
    assert len({query_key("d", "public", text) for text in meant}) == 4


def made(**more: object) -> Conditions:
    one = table(**more)  # type: ignore[arg-type]
    return conditions(snapshot(one), [one, None, one])


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (made(), ""),
        (made(rows=120_000.0), ""),
        (made(distinct=520.0), ""),
        (made(rows=200_000.0), "data"),
        (made(rows=1000.0), "data"),
        (made(distinct=5.0), "data"),
        (made(columns=3), "schema"),
        (made(name="other"), "schema"),
        (replace(made(), server_version=190000), "server"),
        (replace(made(), server_version=180001), ""),
    ],
)
def test_what_has_changed(now: Conditions, what: str) -> None:
    assert same(made(), now) == what


def test_an_index_is_part_of_the_schema_and_small_tables_are_alike() -> None:
    plain = table()
    indexed = replace(plain, indexes=(IndexInfo("i", ("c0",)),))
    assert same(conditions(snapshot(plain), [plain]), conditions(snapshot(indexed), [indexed])) == "schema"
    assert same(made(rows=10.0, distinct=5.0), made(rows=900.0, distinct=5.0)) == ""
    assert same(Conditions(), made()) == ""
    assert same(Conditions(drift="garbage"), made()) == "data"
