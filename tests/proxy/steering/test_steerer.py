"""Which statements are asked about, how long they may wait, and what a session's settings have to do with it."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from planner.messages import Answer
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.settings import ProxySettings
from proxy.steering import LEAVE_ALONE, UNDECIDED
from proxy.steering.steerer import SessionSteering, Steerer, _decision, _types

UPSTREAM = "postgresql://app@127.0.0.1:5432/shop"
JOIN = b"select 1 from a join b using (x) join c using (y)"


def steerer(**settings: Any) -> Steerer:
    found = Steerer(
        ProxySettings(upstream=UPSTREAM, planner_socket="/nowhere", auth="trust", **settings),
        Counters(),
        Log("test", "human", "error"),
    )
    found.client.may_ask = lambda: True  # type: ignore[method-assign]
    return found


def session(owner: Steerer, **settings: str) -> SessionSteering:
    return SessionSteering(owner, "shop", "app", settings)


def test_a_kind_never_seen_waits_when_it_joins_several_tables() -> None:
    owner = steerer()
    client = session(owner)
    assert client.query(JOIN) is UNDECIDED
    assert client.asking is not None
    assert client.asking.wait_ms == 20.0
    assert client.query(b"select 1 from a join b using (x)") is LEAVE_ALONE
    assert client.query(b"select 1 from a") is LEAVE_ALONE
    assert owner.counters.steering_reasons["not_waited"] == 1


@pytest.mark.parametrize(("took", "waits"), [(1000.0, 20.0), (100.0, 10.0), (20.0, 2.0), (2.0, 0.0)])
def test_waiting_is_bounded_by_a_tenth(took: float, waits: float) -> None:
    owner = steerer()
    known = owner.cache.learn(JOIN, b"")
    known.template.observe(took, steered=False, cheap_ms=1.0)
    assert owner.patience(known.template) == pytest.approx(waits)


def test_a_cheap_kind_is_not_asked_about() -> None:
    owner = steerer()
    client = session(owner)
    assert client.query(JOIN + b" where z = 1") is UNDECIDED
    client.done(0.001, failed=False)
    assert client.query(JOIN + b" where z = 2") is LEAVE_ALONE
    assert owner.counters.steering_reasons["cheap"] == 1
    for _ in range(20):  # it is measured all the same, and asked about once it is slow
        client.done(0.5, failed=False)
        client.query(JOIN + b" where z = 3")
    assert client.query(JOIN + b" where z = 4") is UNDECIDED


def test_only_one_statement_alone_is_measured() -> None:
    owner = steerer()
    client = session(owner)
    known = client.known(JOIN, b"\0\0")
    assert known is not None
    client.bind(known, b"abc", 0, 3)
    client.bind(known, b"abd", 0, 3)
    client.done(0.001, failed=False)
    assert known.template.runs == 0
    client.bind(known, b"abc", 0, 3)
    client.done(0.001, failed=True)
    assert known.template.runs == 0
    client.bind(known, b"abc", 0, 3)
    client.waited = 0.02
    client.done(0.5, failed=False)
    assert known.template.plain_ms == pytest.approx(480)


@pytest.mark.parametrize(
    ("settings", "texts", "decided"),
    [
        ({}, [], True),
        ({"pilotwire.mode": "off"}, [], False),
        ({"options": "-c pilotwire.mode=off"}, [], False),
        ({"options": "-c search_path=x --pilotwire.mode=off"}, [], False),
        ({}, [b"SET pilotwire.mode = 'off'"], False),
        ({}, [b"set session pilotwire.mode to off"], False),
        ({}, [b"set pilotwire.mode = off", b"reset pilotwire.mode"], True),
        ({}, [b"set pilotwire.mode = off", b"RESET ALL"], True),
        ({}, [b"set pilotwire.mode = off", b"discard all"], True),
        ({}, [b"set pilotwire.mode = off", b"set pilotwire.mode = 'on'"], True),
        ({}, [b"select set_config('pilotwire.mode', 'off', false)"], False),
        ({}, [b"select set_config('pilotwire.mode', 'observe', false)"], False),
        ({}, [b"begin; set local pilotwire.mode = off"], False),
        ({}, [b"select set_config('pilotwire.mode', $1, false)"], False),
        ({}, [b"set pilotwire.mode = 'offf'"], False),
        ({}, [b"set pilotwire.mode = off", b'set "pilotwire"."mode" = on'], True),
        ({}, [b"set pilotwire.mode = off", b"set pilotwire.mode to default"], True),
        ({}, [b"set other.mode = off"], True),
    ],
)
def test_the_sessions_own_mode(settings: dict[str, str], texts: list[bytes], decided: bool) -> None:
    client = session(steerer(), **settings)
    for text in texts:
        client.query(text)
    assert (client.query(JOIN) is UNDECIDED) is decided


def test_a_local_mode_ends_with_the_transaction() -> None:
    client = session(steerer())
    client.query(b"set local pilotwire.mode = 'off'")
    assert client.local
    assert client.query(JOIN) is LEAVE_ALONE
    client.transaction_over()
    assert client.query(JOIN) is UNDECIDED


@pytest.mark.parametrize(
    ("texts", "path"),
    [
        ([], "start"),
        ([b"set search_path = a, b"], "a, b"),
        ([b"SET SCHEMA 'x'"], "'x'"),
        ([b"set search_path to a; select 1"], "a"),
        ([b"set search_path = a", b"reset search_path"], "start"),
        ([b"set search_path = a", b"set search_path to default"], "start"),
        ([b"select set_config('search_path', 'a,b', false)"], "a,b"),
        ([b"set local search_path = a"], "start"),
    ],
)
def test_search_path_before_the_server_reports_it(texts: list[bytes], path: str) -> None:
    client = session(steerer(), search_path="start")
    for text in texts:
        client.query(text)
    assert client.search_path == path
    client.reported(b"search_path", b"told")
    client.query(b"set search_path = believed_no_more")
    assert client.search_path == "told"


def test_decisions_depend_on_what_the_session_is() -> None:
    owner = steerer()
    client, other = session(owner), session(owner)
    client.query(JOIN)
    other.reported(b"search_path", b"elsewhere")
    other.query(JOIN)
    assert client.asking is not None
    assert other.asking is not None
    assert client.asking.key != other.asking.key


def test_texts_in_other_encodings() -> None:
    owner = steerer()
    client = session(owner, client_encoding="LATIN1")
    assert client.query(JOIN) is UNDECIDED
    assert client.query(JOIN + " where c = 'é'".encode("latin1")) is LEAVE_ALONE
    client.reported(b"client_encoding", b"UTF8")
    client.reported(b"standard_conforming_strings", b"off")
    assert client.query(JOIN + b" where c = 'a\\n'") is LEAVE_ALONE
    assert owner.counters.steering_reasons["encoding"] == 2


def test_answers_that_cannot_be_delivered() -> None:
    good = (
        ("enable_hashjoin", "off"), ("random_page_cost", "1.1"), ("work_mem", "64MB"), ("geqo", "on"),
        ("plan_cache_mode", "force_custom_plan"), ("max_parallel_workers_per_gather", "0"),
    )  # fmt: skip
    settings = tuple((name.encode(), value.encode()) for name, value in good)
    assert _decision(Answer(1, settings=settings)).settings == settings
    for name, value in (("role", "x"), ("enable_sort", "maybe"), ("work_mem", "-1"), ("jit", "on;"), ("", "")):
        assert _decision(Answer(1, settings=((name.encode(), value.encode()),))).reason == "unusable_advice"
    assert _decision(Answer(1, b"a\0b")).reason == "unusable_advice"


def test_types_of_parse() -> None:
    assert _types(struct.pack("!hII", 2, 23, 4_000_000_000)) == (23, 4_000_000_000)
    assert _types(b"\0\0") == _types(b"") == _types(b"\0\1\0") == _types(b"\xff\xff") == ()
