"""What is saved comes back, in both kinds of store; nobody's decision is written over unseen; nothing is missed."""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from planner.memory.records import ArmRecord, LedgerEntry, QueryRecord, State, StoredAdvice
from planner.memory.store import Retention, Store, StoreError, open_store
from tests.planner.memory.store.made import NOW, TEMPLATE, arm, execution, guard, key, line, point, query

replace = msgspec.structs.replace


def test_all_comes_back(url: str) -> None:
    with open_store(url, literals=True) as store:
        saved = store.save([query()], [arm()], [line()], [execution()], [point()], [guard()])
        [entry], [sample] = store.ledger(), store.executions()
        shape = "SELECT * FROM orders WHERE id = "
        assert saved.queries == [query(revision=saved.revision, shape=saved.queries[0].shape)]
        assert saved.queries[0].shape.startswith(f"{shape}'#")
        assert store.query(key(1)) == saved.queries[0]
        assert store.arms(key(1)) == saved.arms == [arm(revision=saved.revision)]
        assert entry == line(id=entry.id, uid=entry.uid)
        assert sample == execution(id=sample.id, uid=sample.uid)
        assert store.history() == [point()]
        assert store.changed_since(0).guards == [guard(revision=saved.revision)]
        store.save(guards=[guard(content="older", updated=1.0)])
        assert store.changed_since(saved.revision).guards == []
        assert entry.uid
        assert sample.uid
    with open_store(url) as again:
        assert set(again.counts().values()) == {1}
        assert again.query("unknown") is None


def test_literals_are_hashed_unless_allowed(store: Store) -> None:
    secret = "SELECT * FROM orders WHERE name = 'Geheim' AND pin = 4711 -- Geheim\n"
    store.save([query(text=secret, params='["Geheim"]')], [], [line(text=secret)], [execution(text=secret)])
    [kept], [entry], [sample] = store.queries(), store.ledger(), store.executions()
    assert kept.shape == entry.text
    assert entry.text.startswith("SELECT * FROM orders WHERE name = '#")
    assert (kept.text, kept.params, sample.text, sample.params) == ("", "", "", "")
    rows = repr([kept, entry, sample])
    assert "Geheim" not in rows
    assert "4711" not in rows
    # What is read can be written again, and stays the same.
    store.save([kept])
    found = store.query(kept.key)
    assert found is not None
    assert found.shape == kept.shape


def test_filters_orders_and_pages(store: Store) -> None:
    other = query(4, database="crm", fingerprint="f2", calls=99, updated=NOW + 50, opted_out=True, actor="ann")
    store.save(
        [*(query(number) for number in (1, 2, 3)), other],
        [arm(1, state=State.APPROVED), arm(2), arm(2, "no_mergejoin"), arm(4, updated=NOW + 50)],
        [line(number) for number in range(1, 8)] + [line(8, kind="person", actor="ann")],
        [execution(number) for number in range(1, 6)],
        [point(1), point(2), point(3, model="none", metric="unsteered_latency")],
    )

    def keys(found: list[QueryRecord]) -> list[str]:
        return [record.key for record in found]

    assert keys(store.queries()) == [key(4), key(3), key(2), key(1)]
    assert keys(store.queries(limit=2, offset=1)) == [key(3), key(2)]
    assert keys(store.queries(order="calls", limit=1)) == [key(4)]
    assert keys(store.queries("crm")) == keys(store.queries(fingerprint="f2")) == keys(store.queries(frozen=True))
    assert keys(store.queries(since=NOW + 1)) == keys(store.queries(key_prefix=key(4)[:8])) == [key(4)]
    assert keys(store.queries(state=State.APPROVED)) == [key(1)]
    assert len(store.queries(template=TEMPLATE)) == 4
    assert store.queries(key_prefix="%") == store.queries(template="x") == []
    with pytest.raises(StoreError, match="ordered by one of"):
        store.queries(order="key; DROP TABLE arms")
    assert [(record.key, record.arm) for record in store.arms(since=NOW + 1)] == [(key(4), "no_hashjoin")]
    assert len(store.arms(keys=[key(2), key(4)])) == 3
    assert len(store.arms(state="approved")) == 1
    assert [entry.at - NOW for entry in store.ledger(limit=3)] == [8, 7, 6]
    assert [entry.at - NOW for entry in store.ledger(limit=3, before_id=store.ledger(limit=3)[-1].id)] == [5, 4, 3]
    assert [entry.at - NOW for entry in store.ledger(since=NOW + 2, until=NOW + 4)] == [3, 2]
    assert len(store.ledger(kind="person")) == len(store.ledger(actor="ann")) == len(store.ledger(key=key(3))) == 1
    assert [entry.at for entry in store.stream_ledger(at_once=3)] == [NOW + number for number in range(1, 9)]
    assert [sample.at - NOW for sample in store.executions(since=NOW + 2, until=NOW + 5)] == [2, 3, 4]
    first = store.executions(limit=2)
    assert [sample.at - NOW for sample in store.executions(after_id=first[-1].id)] == [3, 4, 5]
    assert [sample.at - NOW for sample in store.executions(newest=True, limit=1)] == [5]
    assert len(store.executions(key=key(2))) == 1
    assert [found.at - NOW for found in store.history(metric="statement_latency")] == [1, 2]
    assert [found.at - NOW for found in store.history(limit=2)] == [2, 3]
    assert [found.at - NOW for found in store.history(model="none", since=NOW, until=NOW + 3)] == []


def test_what_two_instances_tell_of_one_change_is_there_once(store: Store) -> None:
    store.save(ledger=[line(1, at=NOW)])
    store.save(ledger=[line(1, at=NOW + 1), line(1, before="trial", after="approved", at=NOW + 2)])
    store.save(ledger=[line(1, before="trial", after="approved", at=NOW + 3), line(2, at=NOW)])
    # A person's word is told of however often it is given, and what happens again much later is another change.
    store.save(ledger=[line(2, actor="ann", at=NOW + 1), line(2, at=NOW + 1000)])
    told = [(one.key, one.after, one.at - NOW) for one in reversed(store.ledger(kind="state"))]
    assert told == [
        (key(1), "trial", 0),
        (key(1), "approved", 2),
        (key(2), "trial", 0),
        (key(2), "trial", 1),
        (key(2), "trial", 1000),
    ]


def test_a_line_of_the_ledger_is_never_changed_or_doubled(store: Store) -> None:
    entry = line(uid="once")
    store.save(ledger=[entry, line(2)], executions=[execution(uid="once")])
    store.save(ledger=[entry], executions=[execution(uid="once")])
    assert (store.counts()["ledger"], store.counts()["query_metrics"]) == (2, 1)
    with pytest.raises(StoreError), store.connector.writing() as connection:
        connection.execute(text("UPDATE ledger SET why = 'something else'"))
    assert [found.why for found in store.ledger()] == ["because", "because"]


def test_one_save_is_all_or_nothing(store: Store) -> None:
    with store.connector.writing() as connection:
        connection.execute(text("ALTER TABLE metric_history RENAME TO elsewhere"))
    with pytest.raises(StoreError, match="lacks a table") as caught:
        store.save([query()], [arm()], [line()], [execution()], [point()])
    assert caught.value.kind == "older"
    with store.connector.writing() as connection:
        connection.execute(text("ALTER TABLE elsewhere RENAME TO metric_history"))
    assert set(store.counts().values()) == {0}


class TestStale:
    """A writer that has not seen what was decided."""

    def test_a_persons_decision_stands(self, store: Store) -> None:
        [known] = store.save(arms=[arm()]).arms
        store.save(arms=[replace(known, state=State.REJECTED, actor="ann", why="no")])
        pair = {"latencies": (1.0,), "baseline": (3.0,), "moments": (NOW,)}
        store.save(arms=[replace(known, state=State.APPROVED, runs=9, **pair)])
        [found] = store.arms()
        assert (found.state, found.actor, found.why) == (State.REJECTED, "ann", "no")
        # What it has measured is added to what was known.
        assert (found.runs, found.latencies, found.baseline) == (9, (4.0, 5.0, 1.0), (9.0, 10.0, 3.0))
        # Having seen it, the system may decide again.
        store.save(arms=[replace(found, state=State.EXPIRED, actor="system", why="another schema")])
        assert store.arms()[0].state is State.EXPIRED

    def test_a_withdrawal_goes_through_but_not_against_a_person(self, store: Store) -> None:
        [known] = store.save(arms=[arm()]).arms
        store.save(arms=[replace(known, state=State.APPROVED, runs=20)])
        store.save(arms=[replace(known, state=State.REJECTED, why="slower")])
        [found] = store.arms()
        assert (found.state, found.why, found.runs) == (State.REJECTED, "slower", 20)
        store.save(arms=[replace(found, state=State.PREFERRED, actor="ann")])
        store.save(arms=[replace(found, state=State.REJECTED)])
        assert store.arms()[0].state is State.PREFERRED

    def test_a_freeze_stands_and_counts_are_not_lost(self, store: Store) -> None:
        [known] = store.save([query()]).queries
        store.save([replace(known, opted_out=True, actor="ann")])
        store.save([replace(known, calls=90, total_ms=900.0, first_seen=NOW - 5, last_seen=NOW + 9)])
        [found] = store.queries()
        assert (found.opted_out, found.actor, found.calls) == (True, "ann", 90)
        store.save([replace(known, calls=50, last_seen=NOW + 20)])
        [found] = store.queries()
        assert (found.calls, found.first_seen, found.last_seen) == (90, NOW - 5, NOW + 20)

    def test_what_is_forgotten_stays_so_until_it_is_seen_anew(self, store: Store) -> None:
        [known] = store.save([query()], [arm()]).queries
        assert store.forget(key(1), actor="ann", why="test data")
        assert not store.forget(key(1), actor="ann")
        left = store.save([replace(known, calls=9)], [arm(runs=9)])
        assert [record.forgotten for record in left.queries] == [True]
        assert (store.query(key(1)), store.queries(), store.arms()) == (None, [], [])
        [tombstone] = store.changed_since(known.revision).queries
        assert (tombstone.forgotten, tombstone.actor) == (True, "ann")
        [entry] = store.ledger(kind="person")
        assert (entry.after, entry.actor, entry.why, entry.key) == ("forgotten", "ann", "test data", key(1))
        store.save([query(first_seen=tombstone.updated + 1)], [arm()])
        assert store.query(key(1)) is not None
        assert len(store.arms()) == 1


class TestWatching:
    def test_changes_come_once_and_in_parts(self, store: Store) -> None:
        for number in range(1, 8):
            store.save([query(number)], [arm(number)])
        store.save([query(number) for number in range(20, 26)])
        seen: list[str] = []
        revision, parts = 0, 0
        while (changes := store.changed_since(revision, limit=4)).revision != revision:
            revision, parts = changes.revision, parts + 1
            seen += [record.key for record in changes.queries]
        assert sorted(seen) == sorted(key(number) for number in [*range(1, 8), *range(20, 26)])
        assert parts >= 3
        assert store.changed_since(revision) == (revision, [], [], [])
        store.save(ledger=[line()], executions=[execution()])
        assert store.changed_since(revision) == (revision, [], [], [])
        store.save(arms=[arm(3, state=State.APPROVED)])
        assert [record.key for record in store.changed_since(revision).arms] == [key(3)]

    def test_a_store_put_in_place_of_another_is_read_from_its_beginning(self, store: Store) -> None:
        store.save([query()])
        assert [record.key for record in store.changed_since(store.revision() + 1000).queries] == [key(1)]

    def test_nothing_is_missed_while_several_write(self, url: str) -> None:
        """Revisions become visible in the order of their numbers, however transactions overlap."""
        open_store(url).close()
        writers, each = 3, 15
        errors: list[Exception] = []

        def write(first: int) -> None:
            try:
                with open_store(url) as mine:
                    for number in range(first, first + each):
                        mine.save([query(number)])
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=write, args=(100 * number,)) for number in range(writers)]
        for thread in threads:
            thread.start()
        seen: list[str] = []
        revision = 0
        with open_store(url) as store:
            while True:
                running = any(thread.is_alive() for thread in threads)
                changes = store.changed_since(revision)
                revision = changes.revision
                seen += [record.key for record in changes.queries]
                if not running:
                    break
            assert errors == []
            assert sorted(seen) == sorted(key(100 * n + i) for n in range(writers) for i in range(each))
            assert len({record.revision for record in store.queries()}) == writers * each


class TestRetention:
    def test_what_is_old_goes(self, store: Store) -> None:
        new = NOW + 100_000
        store.save(
            [query(1), query(2, last_seen=new)],
            [arm(1), arm(2), arm(9, updated=NOW)],
            [line(1), line(2, at=new)],
            [execution(1), execution(2, at=new)],
            [point(1), point(2, model="other"), point(3, at=new)],
        )
        gone = store.expire(Retention(ledger=50_000, executions=50_000, history=50_000, queries=50_000), new)
        assert gone == {"ledger": 1, "query_metrics": 1, "metric_history": 2, "queries": 2}
        assert [record.key for record in store.queries()] == [key(2)]
        assert [record.key for record in store.arms()] == [key(2)]
        assert [found.at for found in store.ledger()] == [found.at for found in store.executions()] == [new]
        assert [found.at for found in store.history()] == [new]

    def test_nothing_goes_that_is_kept_for_ever_or_decided_by_a_person(self, store: Store) -> None:
        store.save(
            [query(1, opted_out=True), query(2), query(3), query(4)],
            [arm(2, actor="ann", state=State.REJECTED), arm(3, state=State.PREFERRED)],
            [line()],
            [execution(number) for number in range(1, 6)],
        )
        gone = store.expire(Retention(ledger=0, executions=0, history=0, queries=0, execution_rows=3), NOW * 2)
        assert gone == {"ledger": 0, "query_metrics": 2, "metric_history": 0, "queries": 0}
        assert [sample.at - NOW for sample in store.executions()] == [3, 4, 5]
        assert store.expire(Retention(ledger=0, queries=0, ledger_rows=0, query_rows=4), NOW * 2)["queries"] == 0
        assert store.expire(Retention(ledger=0, queries=0, query_rows=3), NOW * 2)["queries"] == 1
        store.save([query(4)])
        assert store.expire(Retention(), NOW * 2)["queries"] == 1
        assert sorted(record.key for record in store.queries()) == sorted(key(number) for number in (1, 2, 3))
        assert len(store.arms()) == 2


def test_a_file_can_be_read_by_its_owner_only(sqlite_url: str, tmp_path: Path) -> None:
    url = sqlite_url.replace("store.db", "deep/er/store.db")
    with open_store(url) as store:
        store.save([query()])
        files = list((tmp_path / "deep" / "er").iterdir())
        assert len(files) >= 2
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        assert stat.S_IMODE((tmp_path / "deep" / "er").stat().st_mode) == 0o700


@pytest.fixture
def literal_store(url: str) -> Iterator[Store]:
    with open_store(url, literals=True) as opened:
        yield opened


_TEXT = st.text(st.characters(codec=None), max_size=80) | st.text("\0\ud800'$/*-", max_size=12)
_FLOAT = st.floats(allow_nan=True, allow_infinity=True)


@given(_TEXT, _FLOAT, st.integers(), st.lists(_FLOAT, max_size=40))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_clients_send_can_be_stored(
    literal_store: Store, words: str, number: float, count: int, numbers: list[float]
) -> None:
    store = literal_store
    advice = StoredAdvice(rows=(((words,), number),), settings=((words, words),))
    record = query(text=words, params=words, database=words, total_ms=number, calls=count, baseline=tuple(numbers))
    saved = store.save(
        [record],
        [arm(advice=advice, why=words, runs=count, latencies=tuple(numbers))],
        [LedgerEntry(at=abs(number), kind="state", text=words, why=words, advice=advice)],
        [execution(user=words, took_ms=number, rows=count, text=words)],
    )
    assert isinstance(saved.queries[0], QueryRecord)
    assert isinstance(store.arms(key(1))[0], ArmRecord)
    [found] = store.ledger(limit=1)
    assert len(found.why) <= 6 * len(words)
