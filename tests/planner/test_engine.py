"""The planner process's memory: what is remembered, what is forgotten, and that no request can raise."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_runtime.store import ModelStore
from planner import engine as module
from planner.blackbox import BlackBox, Recorder, digest
from planner.control import Limits
from planner.counters import Counters
from planner.engine import Engine
from planner.lru import Lru
from planner.messages import Answer, Ask, Refused
from planner.policy import fingerprint
from planner.snapshot import ColumnInfo, Snapshot, TableInfo
from tests.support.shop import QUERY, constant_model


def table(oid: int, name: str, *columns: str) -> TableInfo:
    infos = {column: ColumnInfo(column, "integer", number) for number, column in enumerate(columns, 1)}
    return TableInfo(oid, "public", name, "r", 100_000.0, 1000, infos)


TABLES = (
    table(1, "customers", "id", "region", "tier"),
    table(2, "orders", "id", "customer_id", "region", "total"),
    table(3, "items", "order_id", "product_id"),
)
SNAPSHOT = Snapshot(
    "shop",
    180000,
    {("public", one.name): one for one in TABLES},
    capabilities=frozenset({"hint_plan"}),
    volatile_functions=frozenset({"random"}),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelStore]:
    folder = tmp_path_factory.mktemp("models")
    constant_model(folder)
    store = ModelStore(folder)
    store.reload()
    yield store
    store.close()


WORDS = (
    "SELECT", "*", "FROM", "orders", "o", "JOIN", "items", "i", "ON", "o", ".", "id", "=", "i.order_id", "WHERE", "(",
    ")", ",", "$1", "$2", "'x'", "1", "AND", "OR", "NOT", "IN", "LIKE", "NULL", "<", "LEFT", "FULL", "customers", "c",
    "UNION", "WITH", "x", "AS", "EXISTS", "LIMIT", "GROUP", "BY", "random()", "\0", "/*", "*/", "--", ";",
)  # fmt: skip


def make(store: ModelStore | None, **more: Any) -> Engine:
    return Engine(store, Limits(**more), Counters(), Recorder(-1))


def ask(text: str | bytes, **more: Any) -> Ask:
    raw = text.encode() if isinstance(text, str) else text
    fields = {"database": "shop", "user": "u", "application": "", "search_path": "", "template": b"t", **more}
    return Ask(number=7, text=raw, **fields)


def test_an_answer_is_remembered_until_something_changes(store: ModelStore) -> None:
    engine = make(store)
    assert engine.at_once(ask(QUERY), SNAPSHOT) is None
    answer = engine.answer(ask(QUERY), SNAPSHOT, 0)
    assert answer.prefix
    again = engine.at_once(ask(QUERY), SNAPSHOT)
    assert again is not None
    assert (again.number, again.prefix) == (7, answer.prefix)
    for other in (
        ask(QUERY, user="v"),
        ask(QUERY, search_path="x"),
        ask(QUERY, database="other"),
        ask(QUERY, bind=b""),
        ask(QUERY + " "),
    ):
        assert engine.at_once(other, SNAPSHOT) is None
    engine.forget()
    assert engine.at_once(ask(QUERY), SNAPSHOT) is None


def test_an_answer_computed_while_something_changed_is_not_remembered(store: ModelStore) -> None:
    class Meanwhile(Recorder):
        def begin(self, lane: int, digest: bytes) -> None:
            engine.forget()

    engine = Engine(store, Limits(), Counters(), Meanwhile(-1))
    assert engine.answer(ask(QUERY), SNAPSHOT, 0).prefix
    assert engine.at_once(ask(QUERY), SNAPSHOT) is None


def test_what_needs_no_computing(store: ModelStore) -> None:
    assert _reason(make(None).at_once(ask(QUERY), SNAPSHOT)) == ("no_model", "template")
    engine = make(store, users_off=("ann",), applications_off=("psql",))
    assert _reason(engine.at_once(ask(QUERY), None)) == ("no_catalog", "once")
    assert _reason(engine.at_once(ask(QUERY, user="ann"), SNAPSHOT)) == ("opted_out", "values")
    assert _reason(engine.at_once(ask(QUERY, application="psql"), SNAPSHOT)) == ("opted_out", "values")


def test_fingerprints_opt_out_in_either_case(store: ModelStore) -> None:
    engine = make(store, fingerprints_off=(fingerprint(QUERY).upper(),))
    answer = engine.answer(ask(QUERY.replace("'north'", "'south'")), SNAPSHOT, 0)
    assert _reason(answer) == ("opted_out", "template")
    # What shows its plan, and what runs it later, is left alone with it.
    for around in ("EXPLAIN ", "explain (analyze, costs off) ", "PREPARE p AS "):
        assert engine.answer(ask(around + QUERY), SNAPSHOT, 0).reason == "opted_out"


def test_a_refused_statement_is_left_alone_whatever_its_values(store: ModelStore) -> None:
    engine = make(store)
    text = QUERY.replace("'north'", "$1")
    assert engine.answer(ask(text, bind=b"\0\0\0\0\0\0"), SNAPSHOT, 0).prefix
    engine.refused(Refused("shop", b"t", text.encode(), "XX000", "no"))
    assert engine.answer(ask(text, bind=b"\0\0\0\1\0\0\0\1x\0\0"), SNAPSHOT, 0).reason == "refused"
    assert engine.answer(ask(QUERY), SNAPSHOT, 0).prefix


def test_a_quarantined_statement_is_not_even_read(store: ModelStore) -> None:
    engine = Engine(store, Limits(), Counters(), Recorder(-1), (digest("shop", QUERY.encode()),))
    assert engine.answer(ask(QUERY), SNAPSHOT, 0).reason == "quarantined"
    assert engine.answer(ask(QUERY + " "), SNAPSHOT, 0).prefix


def test_it_notes_what_it_works_on_and_clears_it(store: ModelStore) -> None:
    box = BlackBox()
    seen: list[bytes] = []

    class Watching(Recorder):
        def begin(self, lane: int, digest: bytes) -> None:
            super().begin(lane, digest)
            seen.append(digest)

    engine = Engine(store, Limits(), Counters(), Watching(os.dup(box.fd)))
    engine.answer(ask(QUERY), SNAPSHOT, 1)
    assert seen == [digest("shop", QUERY.encode())]
    assert box.inquest() == []
    box.close()


def test_memory_is_bounded(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ANSWER_BYTES", 20_000)
    engine = make(store)
    for number in range(100):
        engine.answer(ask(f"{QUERY} AND {number} = {number}"), SNAPSHOT, 0)
    assert 10 < len(engine._answers) < 60
    assert engine._answer_bytes <= 20_000
    for _ in range(3):
        engine.answer(ask(QUERY), SNAPSHOT, 0)
    assert engine._answer_bytes == sum(module._size(answer) for answer in engine._answers._entries.values())


def test_the_least_recently_used_goes_first() -> None:
    lru: Lru[str, int] = Lru(2)
    assert lru.put("a", 1) is None
    lru.put("b", 2)
    assert lru.get("a") == 1
    assert lru.put("c", 3) == 2
    assert (lru.get("b"), lru.get("a"), len(lru)) == (None, 1, 2)


def test_an_error_inside_is_an_answer(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("odd")

    counters = Counters()
    engine = Engine(store, Limits(), counters, Recorder(-1))
    monkeypatch.setattr(module, "decide", broken)
    assert _reason(engine.answer(ask(QUERY), SNAPSHOT, 0)) == ("failed", "once")
    assert counters.snapshot()["planner_failures{RuntimeError}"] == 1


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode(errors="surrogatepass")),
        st.lists(
            st.sampled_from(WORDS),
            max_size=25,
        ).map(lambda words: " ".join(words).encode()),
    ),
    st.one_of(st.none(), st.binary(max_size=40)),
    st.lists(st.integers(0, 2**32 - 1), max_size=3),
)
def test_no_request_raises(store: ModelStore, text: bytes, bind: bytes | None, types: list[int]) -> None:
    answer = make(store).answer(ask(text, bind=bind, types=tuple(types), search_path="\0,"), SNAPSHOT, 0)
    assert answer.reason or answer.prefix or answer.settings
    assert answer.reason != "failed"


def _reason(answer: Answer | None) -> tuple[str, str]:
    assert answer is not None
    return answer.reason, answer.scope
