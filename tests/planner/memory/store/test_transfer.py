"""A store moves whole, or not at all; the ledger is exported as others can read it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from planner.memory.records import State
from planner.memory.store import Store, StoreError, open_store
from planner.memory.store.ledger_export import as_json, json_lines, write_parquet
from planner.memory.store.transfer import copy, export_lines, import_lines
from tests.planner.memory.store.made import NOW, arm, execution, guard, key, line, point, query


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Store]:
    store = open_store(f"{tmp_path}/source.db", literals=True)
    store.save(
        [query(number) for number in range(1, 50)],
        [arm(number, actor="ann", state=State.PREFERRED) for number in range(1, 4)],
        [line(number) for number in range(1, 30)],
        [execution(number) for number in range(1, 4)],
        [point(), point(2)],
    )
    store.forget(key(3), actor="ann")
    yield store
    store.close()


def held(store: Store) -> list[str]:
    """What a store holds, but for what numbers its rows."""
    records = [
        *store.changed_since(0).queries,
        *store.changed_since(0).guards,
        *store.arms(),
        *store.stream_ledger(),
        *store.executions(),
        *store.history(),
    ]
    return sorted(
        repr({name: getattr(record, name) for name in record.__struct_fields__ if name not in ("id", "revision")})
        for record in records
    )


def test_there_and_back(source: Store, store: Store, tmp_path: Path) -> None:
    told: list[int] = []
    # More than goes into one statement.
    source.save([query(number) for number in range(50, 1300)], guards=[guard()])
    expected = {"query": 1299, "arm": 2, "ledger": 30, "execution": 3, "history": 2, "guard": 1}
    assert import_lines(store, export_lines(source, told.append)) == expected
    assert sum(told) == sum(expected.values())
    assert held(store) == held(source)
    assert [entry.at for entry in store.stream_ledger()][:3] == [NOW + 1, NOW + 2, NOW + 3]
    with open_store(f"{tmp_path}/third.db") as third:
        import_lines(third, export_lines(store))
        assert held(third) == held(source)


def test_a_copy_keeps_hashes_comparable(source: Store, store: Store) -> None:
    shape = source.queries(key_prefix=key(1))[0].shape
    copy(source, store)
    copy(source, store)
    assert held(store) == held(source)
    with open_store(store.location.url) as again:
        again.save([query(1, updated=NOW + 1, first_seen=NOW)])
        [found] = again.queries(key_prefix=key(1))
        assert (found.shape, found.text) == (shape, "")


def test_an_import_merges(source: Store, store: Store) -> None:
    store.save([query(1, calls=99, updated=NOW + 5), query(2, calls=99, updated=NOW - 5)], [arm(1, updated=NOW + 5)])
    store.save([query(5000)], [], [line(77)])
    seen = store.revision()
    for _ in range(2):
        import_lines(store, export_lines(source))
    calls = {record.key: record.calls for record in store.queries(limit=2000)}
    assert (calls[key(1)], calls[key(2)], calls[key(5000)]) == (99, 3, 3)
    assert {record.key: record.state for record in store.arms()} == {key(1): State.TRIAL, key(2): State.PREFERRED}
    assert store.counts()["ledger"] == 31
    assert len(store.changed_since(seen).queries) == 48


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda lines: lines[:-1], "not whole"),
        (lambda lines: [], "not whole"),
        (lambda lines: [*lines[:20], b'{"query": {"key": 7}}\n', *lines[20:]], "line 21 is not"),
        (lambda lines: [*lines[:20], *lines[21:]], "is not of a store's export"),
        (lambda lines: [*lines, lines[5]], "is not of a store's export"),
        (lambda lines: [b'{"pilotwire_store": 2}\n', *lines[1:]], "format 2, this program reads 1"),
        (lambda lines: lines[1:], "line 1 is not"),
    ],
)
def test_what_is_not_whole_changes_nothing(source: Store, sqlite_url: str, damage: object, message: str) -> None:
    lines = list(export_lines(source))
    with open_store(sqlite_url) as store:
        with pytest.raises(StoreError, match=message):
            import_lines(store, damage(lines))  # type: ignore[operator]
        assert not any(store.counts().values())


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([b'{"query": null}', b'{"pilotwire_store":1}', b"[1]"]), max_size=5
    )
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_anything_may_come_in(sqlite_url: str, lines: list[bytes]) -> None:
    with open_store(sqlite_url) as store, pytest.raises(StoreError) as caught:
        import_lines(store, lines)
    assert "\n" not in str(caught.value)


def test_the_ledger_as_json_and_as_parquet(store: Store, tmp_path: Path) -> None:
    store.save(ledger=[line(number) for number in range(1, 4)])
    store.save(ledger=[line(9, at=NOW + 9.123456, measured_gain=0.0, actor="Ånn", why="a\nb")])
    lines = [json.loads(text) for text in "".join(json_lines(store.stream_ledger())).splitlines()]
    assert [entry["at"] for entry in lines[:2]] == ["2023-11-14T22:13:21.000000Z", "2023-11-14T22:13:22.000000Z"]
    assert lines[3]["at"] == "2023-11-14T22:13:29.123456Z"
    assert (lines[3]["measured_gain"], lines[3]["expected_gain"]) == (None, 2.5)
    assert (lines[3]["actor"], lines[3]["why"], lines[3]["key"]) == ("Ånn", "a\nb", key(9))
    assert lines[0]["advice"] == {
        "settings": {"enable_hashjoin": "off"}, "rows": [{"aliases": ["c", "o"], "rows": 12.5}]
    }  # fmt: skip
    file = tmp_path / "ledger.parquet"
    assert write_parquet(store.stream_ledger(), file) == 4
    rows = parquet.read_table(file).to_pylist()
    assert [row["at"].timestamp() for row in rows] == [NOW + 1, NOW + 2, NOW + 3, NOW + 9.123456]
    for row, entry in zip(rows, lines, strict=True):
        assert json.loads(row["advice"]) == entry["advice"]
        assert {name: value for name, value in row.items() if name not in ("at", "advice")} == {
            name: value for name, value in entry.items() if name not in ("at", "advice")
        }
    assert as_json(line(at=1e300))["at"].startswith("1970-")
    assert write_parquet(store.stream_ledger(since=NOW * 2), file) == 0
    assert parquet.read_table(file).num_rows == 0
