"""What a statement's text says about session state."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.statements import (
    ADVISORY,
    BY_NAME,
    DATABASE,
    HOLD,
    SET_CONFIG,
    SETS,
    TEMPORARY,
    UNLOCKS,
    changes_reading,
    classify,
    databases_named,
    identifier,
    literal,
    prepared_name,
    settings_named,
)


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("select 1", 0),
        ("select * from t order by a offset 5 limit 3", 0),
        ("insert into attempts values (1)", 0),
        ("SET x = 1", SETS),
        ("update t set a = 1", SETS),
        ("/* c */ReSet x", SETS),
        ("select set_config('a.b', 'c', false)", SETS | SET_CONFIG),
        ("select pg_advisory_lock(1)", ADVISORY),
        ("SELECT PG_TRY_ADVISORY_LOCK_SHARED(1)", ADVISORY),
        ("select pg_advisory_xact_lock(1)", 0),
        ("select pg_advisory_unlock(1)", UNLOCKS),
        ("select pg_advisory_unlock_all()", UNLOCKS),
        ("create temp table x ()", TEMPORARY),
        ("select 1 into temporary x", TEMPORARY),
        ("create table pg_temp.x ()", TEMPORARY),
        ("select temperature, template from attempt", 0),
        ("declare c cursor with\n hold for select 1", HOLD),
        ("select threshold", 0),
        ("create database a", DATABASE),
        ("select current_database()", 0),
        ("deallocate s", BY_NAME),
        ('execute "S"(1)', BY_NAME),
        ("grant execute on function f to joe", 0),
    ],
)
def test_classify(text: str, flags: int) -> None:
    assert classify(text.encode()) == flags


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("set x = 1", {"x"}),
        ("SET SESSION Work_Mem TO '1MB'", {"work_mem"}),
        ("set local x = 1", set()),
        ("set time zone 'UTC'", {"timezone"}),
        ("set local time zone 'UTC'", set()),
        ("set names 'utf8'", {"client_encoding"}),
        ("set schema 'a'", {"search_path"}),
        ("set role joe", {"role"}),
        ("reset a . b", {"a.b"}),
        ('set "My"."Own" = 1', {"my.own"}),
        ("set session authorization joe", {"session authorization"}),
        ("set transaction isolation level serializable", set()),
        ("set transaction_isolation = serializable", set()),
        ("set constraints all deferred", set()),
        ("begin; set a = 1; set b = 2; commit", {"a", "b"}),
        ("/* why */ set a = 1", {"a"}),
        ("-- why\nset a = 1", {"a"}),
        ("set /* why */ a = 1", {"a"}),
        ("select '--'; set a = 1", {"a"}),
        ("select '/*'; set a = 1", {"a"}),
        ("update t set port = 1", set()),
        ("select set_config('a.b', '', true), set_config ( 'c', '', false)", {"a.b", "c"}),
    ],
)
def test_settings_named(text: str, names: set[str]) -> None:
    found = settings_named(text.encode())
    assert {name.decode() for name in found.names} == names
    assert not found.everything
    assert not found.opaque


def test_what_goes_back_to_its_default() -> None:
    found = settings_named(
        b"reset a; set b to default; set c = default; set d = 1; reset e; set e = 1; set f = 1; reset f"
    )
    assert found.to_default == {b"a", b"b", b"c", b"f"}
    assert found.count == 8
    assert settings_named(b"reset all").everything
    assert settings_named(b"RESET  ALL;").count == 1


@pytest.mark.parametrize("text", ["select set_config(name, '', false)", "select set_config('a' || 'b', '', true)"])
def test_a_hidden_name(text: str) -> None:
    assert settings_named(text.encode()).opaque or settings_named(text.encode()).names == {b"a"}


def test_an_updated_view() -> None:
    assert settings_named(b"update pg_settings set setting = 'x' where name = 'y'").opaque


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("deallocate s", "s"),
        ("  ;DEALLOCATE PREPARE My_Name;", "my_name"),
        ('deallocate "My ""Name"""', 'My "Name"'),
        ("execute s(1, 'two')", "s"),
        ("explain analyze execute s", "s"),
        ("explain (analyze, costs off)execute q", "q"),
        ("explain execute s", "s"),
        ("/* from: a */ -- b\n execute s", "s"),
        ("/* execute t */ select 1", None),
        ("deallocate all", None),
        ("deallocate prepare all", None),
        ('deallocate "all"', "all"),
        ("deallocates s", None),
        ("select 1; deallocate s", None),
    ],
)
def test_prepared_name(text: str, name: str | None) -> None:
    found = prepared_name(text.encode())
    if found is None:
        assert name is None
        return
    start, end, folded, deallocates = found
    assert folded.decode() == name
    assert deallocates == ("deallocate" in text.lower())
    assert text.encode()[:start] + b"X" + text.encode()[end:] == text.encode().replace(
        text.encode()[start:end], b"X", 1
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("set transform_null_equals = on", True),
        ("SET LOCAL xmloption TO content", True),
        ("set xml option document", True),
        ("begin; set session array_nulls = off", True),
        ("/* a */ reset lc_monetary", True),
        ("select set_config('array_nulls', 'off', true)", True),
        ("select set_config($1, $2, false)", True),
        ("do $$ begin set lc_monetary = 'C'; end $$", True),
        ("update pg_settings set setting = 'off' where name = 'array_nulls'; select 1", True),
        ("select set_config('app.tenant', $1, true)", False),
        ("set application_name = 'transform_null_equals'", False),
        ("set time zone 'UTC'", False),
        ("set session authorization joe", False),
        ("set transaction isolation level serializable", False),
        ("set constraints all deferred", False),
        ("set enable_hashjoin = off; reset statement_timeout", False),
        ("reset all", False),
        ("update t set array_nulls = 1", False),
        ("select 1", False),
    ],
)
def test_settings_by_which_texts_are_read(text: str, expected: bool) -> None:
    assert changes_reading(text.encode()) is expected


def test_databases_named() -> None:
    assert databases_named(b'drop database if exists "My DB"') == {"template1", "My DB"}
    assert databases_named(b"create database A with owner joe template = B") == {"template1", "a", "b"}
    assert databases_named(b"alter database a rename to b; drop database c") == {"template1", "a", "c"}


def test_quoting() -> None:
    assert literal(b"it's \\ x") == b" E'it''s \\\\ x'"
    assert identifier(b'a"b') == b'"a""b"'


@given(st.binary(max_size=300))
def test_any_text_is_taken(text: bytes) -> None:
    classify(text)
    changes_reading(text)
    settings_named(text)
    prepared_name(text)
    databases_named(text)
