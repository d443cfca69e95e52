"""Which statements are asked about, how long they may wait, and what a session's settings have to do with it."""

from __future__ import annotations

import struct
import time
from typing import Any

import pytest

from planner.messages import Answer, Changed, Observed
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.settings import ProxySettings
from proxy.steering import LEAVE_ALONE, UNDECIDED
from proxy.steering.answers import decision_of
from proxy.steering.steerer import LEVELS, SessionSteering, Steerer, _types
from tests.proxy.wire.transcript import done, ready

UPSTREAM = "postgresql://app@127.0.0.1:5432/shop"
JOIN = b"select 1 from a join b using (x) join c using (y)"


def settings(**wanted: Any) -> ProxySettings:
    return ProxySettings(upstream=UPSTREAM, planner_socket="/nowhere", auth="trust", **wanted)


def steerer(**wanted: Any) -> Steerer:
    found = Steerer(settings(**wanted), Counters(), Log("test", "human", "error"))
    found.client.may_ask = lambda: True  # type: ignore[method-assign]
    return found


def session(owner: Steerer, **start: str) -> SessionSteering:
    return SessionSteering(owner, "shop", "app", start)


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
    client.done(0.001, b"")
    assert client.query(JOIN + b" where z = 2") is LEAVE_ALONE
    assert owner.counters.steering_reasons["cheap"] == 1
    for _ in range(20):  # it is measured all the same, and asked about once it is slow
        client.done(0.5, b"")
        client.query(JOIN + b" where z = 3")
    assert client.query(JOIN + b" where z = 4") is UNDECIDED


def test_only_one_statement_alone_is_measured() -> None:
    owner = steerer()
    client = session(owner)
    known = client.known(JOIN, b"\0\0")
    assert known is not None
    client.bind(known, b"abc", 0, 3)
    client.bind(known, b"abd", 0, 3)
    client.done(0.001, b"")
    assert known.template.runs == 0
    client.bind(known, b"abc", 0, 3)
    client.failed(b"E\0\0\0\x20SERROR\0VERROR\0C22012\0")
    client.done(0.001, b"")
    assert known.template.runs == 0
    client.bind(known, b"abc", 0, 3)
    client.waited = 0.02
    client.done(0.5, b"")
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
        # What the session began with is what it goes back to.
        ({"pilotwire.mode": "off"}, [b"set pilotwire.mode = on", b"reset all"], False),
        ({"options": "-c Pilotwire.Mode=off"}, [b"discard all"], False),
        ({"pilotwire.mode": "offf"}, [], False),
    ],
)
def test_the_sessions_own_mode(settings: dict[str, str], texts: list[bytes], decided: bool) -> None:
    client = session(steerer(), **settings)
    for text in texts:
        client.query(text)
    assert (client.query(JOIN) is UNDECIDED) is decided


@pytest.mark.parametrize(
    ("made", "text", "left"),
    [
        (b"create temp table first as select 1", b"from First, second", True),
        (b"CREATE LOCAL TEMPORARY TABLE IF NOT EXISTS first (a int)", b"from first, second", True),
        (b'create temporary view "Fir""st" as select 1', b'from "Fir""st", second', True),
        (b"select 1 as a into temp first", b"from first, second", True),
        (b"select * into temporary table first from x", b"from first, second", True),
        (b"insert into pg_temp.first values (1)", b"from first, second", True),
        (b"create temp table first as select 1", b"from first_, second", False),
        (b"select temp from first", b"from first, second", False),
        (b"insert into temp select 1", b"from first, second", False),
        (b"create table first as select 1", b"from first, second", False),
        (b"".join(b"create temp table t%d();" % i for i in range(60)), b"from first, second", True),
    ],
)
def test_what_may_be_about_a_temporary_table(made: bytes, text: bytes, left: bool) -> None:
    owner = steerer()
    client = session(owner)
    text = b"select 1 " + text + b", third"
    client.query(made)
    assert (client.query(text) is LEAVE_ALONE) is left
    assert owner.counters.steering_reasons["temporary_table"] == left
    client.query(b"discard all;")
    assert client.query(text) is UNDECIDED


@pytest.mark.parametrize(
    ("text", "protocol", "bound"),
    [
        (b"set transform_null_equals = on", "simple", False),
        (b"set local xmloption to content", "extended", False),
        (JOIN + b" where set_config('array_nulls', 'off', true) = 'off'", "simple", False),
        (JOIN + b"; set array_nulls = off", "extended", False),
        (b"set application_name = 'x'", "simple", True),
    ],
)
def test_what_was_prepared_before_constants_were_read_otherwise(text: bytes, protocol: str, bound: bool) -> None:
    """Parsed anew for the advice, it could mean something else; a rollback would change that back unseen."""
    client = session(steerer())
    known = client.known(JOIN, b"\0\0")
    assert known is not None
    assert client.bind(known, b"abc", 0, 3) is UNDECIDED
    if protocol == "simple":
        client.query(text)
    else:
        client.known(text, b"\0\0")
    assert (client.bind(known, b"abd", 0, 3) is UNDECIDED) is bound
    assert (client.known(JOIN + b" where 1 = 2", b"\0\0") is not None) is bound
    assert client.query(JOIN + b" where 1 = 3") is UNDECIDED


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"/*+ Set(enable_hashjoin off) */ " + JOIN, "hinted"),
        (b"/* pilotwire: off */ " + JOIN, "opted_out"),
        (JOIN + b" where a.since > 'yesterday'", "moment"),
    ],
)
def test_what_is_never_steered_once_prepared_is_counted_with_its_reason(text: bytes, reason: str) -> None:
    owner = steerer()
    client = session(owner)
    assert client.known(text, b"\0\0") is None
    assert dict(owner.counters.steering_reasons) == {reason: 1}
    client.query(b"set pilotwire.mode = 'off'")
    assert client.known(text, b"\0\0") is None
    assert dict(owner.counters.steering_reasons) == {reason: 1}


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
    assert decision_of(Answer(1, settings=settings)).settings == settings
    for name, value in (("role", "x"), ("enable_sort", "maybe"), ("work_mem", "-1"), ("jit", "on;"), ("", "")):
        assert decision_of(Answer(1, settings=((name.encode(), value.encode()),))).reason == "unusable_advice"
    assert decision_of(Answer(1, b"a\0b")).reason == "unusable_advice"


def test_types_of_parse() -> None:
    assert _types(struct.pack("!hII", 2, 23, 4_000_000_000)) == (23, 4_000_000_000)
    assert _types(b"\0\0") == _types(b"") == _types(b"\0\1\0") == _types(b"\xff\xff") == ()


def advised(owner: Steerer, **fields: Any) -> SessionSteering:
    """A session for whose statement `JOIN` there is advice in the cache."""
    client = session(owner)
    client.query(JOIN)
    assert client.asking is not None
    owner.cache.remember(client.asking.key, decision_of(Answer(1, b"/*+ x */ ", **fields)))
    client.done(1.0, b"")
    return client


@pytest.mark.parametrize(
    ("mode", "share", "expected"),
    [
        ("on", 1.0, 1.0),
        ("on", 0.9, 0.9),
        ("on", 0.0, 0.0),
        ("canary", 1.0, 0.2),
        ("canary", 0.5, 0.1),
        ("shadow", 1, 0),
    ],
)
def test_a_share_of_the_executions(mode: str, share: float, expected: float) -> None:
    owner = steerer()
    client = advised(owner, share=share)
    owner.configure(settings(mode=mode, canary_share=0.2))
    steered = sum(client.query(JOIN) is not LEAVE_ALONE for _ in range(2000))
    assert steered / 2000 == pytest.approx(expected, abs=0.05 if 0 < expected < 1 else 0)
    assert owner.counters.steering_control == (0 if mode == "shadow" else 2000 - steered)


def test_what_is_told_of_a_statement(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = steerer()
    client = advised(owner, query=b"key", arm="an_arm", model="m-1", budget_ms=50.0, share=1.0)
    told: list[Observed] = []
    monkeypatch.setattr(owner.client, "observe", told.append)
    answer = done("SELECT 17") + ready()
    # Steered.
    client.delivered(client.query(JOIN))
    client.done(0.03, answer)
    # Stopped and run again.
    client.delivered(client.query(JOIN))
    client.failed(b"E...")
    client.failed(b"")
    time.sleep(0.01)
    client.stopped()
    client.done(0.05, answer)
    # It could not be followed.
    client.query(JOIN)
    client.prevented("no_budget_possible_here")
    client.done(0.03, done("COPY") + ready())
    # It failed.
    client.delivered(client.query(JOIN))
    client.failed(b"E\0\0\0\x60SERROR\0VERROR\0C40001\0Mno\0")
    client.done(0.03, ready())
    # The die said that it is left alone.
    monkeypatch.setattr("proxy.steering.steerer.random", lambda: 1.0)
    owner.cache.remember(
        next(iter(owner.cache._decisions)), decision_of(Answer(1, b"x", share=0.9, query=b"key", arm="a"))
    )
    client.query(JOIN)
    client.done(0.03, answer)
    assert [(one.steered, one.control, one.failed, one.sqlstate, one.rows, one.arm, one.reason) for one in told] == [
        (True, False, False, "", 17, "an_arm", ""),
        (False, False, False, "", 17, "an_arm", "over_budget"),
        (False, False, False, "", -1, "", "no_budget_possible_here"),
        (True, False, True, "40001", -1, "an_arm", ""),
        (False, True, False, "", 17, "a", "control"),
    ]
    assert [one.query for one in told] == [b"key"] * 5
    assert told[1].stopped_ms >= 10
    assert told[1].took_ms == pytest.approx(50 - told[1].stopped_ms)
    assert told[0].text == JOIN


def test_texts_are_told_of_at_a_bounded_rate() -> None:
    owner = steerer()
    moment = 1000.0
    assert sum(owner.may_sample(moment) for _ in range(1000)) == 10
    moment += 0.5
    assert sum(owner.may_sample(moment) for _ in range(1000)) == 5


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("select 1 from a join b using (x)", True),
        ("(select 1 from a, b) union select 2", True),
        ("with x as (select 1 from a, b) select * from x", True),
        ("with x as (delete from a using b returning 1) select * from x", False),
        ("select 1 into c from a, b", False),
        ("select 1 from a, b for update", False),
        ("select 1 from a, b for no key update of a", False),
        ("select 1 from a, b for share", False),
        ("select nextval('s') from a, b", False),
        ("select pg_advisory_lock(1) from a, b", False),
        ("select 'delete from a' from a, b", True),
        ("explain analyze select 1 from a, b", False),
        ("insert into c select 1 from a, b", False),
    ],
)
def test_what_may_be_run_twice(text: str, expected: bool) -> None:
    owner = steerer()
    known = owner.cache.learn(text.encode(), b"")
    assert known.template.repeatable is expected
    answer = Answer(1, b"x", budget_ms=5.0, query=b"k")
    decision = decision_of(answer, repeatable=expected)
    assert (decision.prefix, decision.budget_ms, decision.query) == (
        (b"x", 5.0, b"k") if expected else (b"", 0.0, b"k")
    )
    answer.approved = True
    decision = decision_of(answer, repeatable=expected)
    assert (decision.prefix, decision.budget_ms) == (b"x", 5.0 if expected else 0.0)


def test_the_planner_can_only_lower_the_mode() -> None:
    owner = steerer(mode="shadow")
    for said, level in (("on", "shadow"), ("observe", "observe"), ("", "observe"), ("on", "shadow")):
        owner._changed(Changed(1, said))
        assert owner.level == LEVELS[level]


def test_only_the_decisions_that_changed_are_forgotten() -> None:
    owner = steerer()
    cache = owner.cache
    for number in range(4):
        cache.remember((1, b"text", b"", bytes([number])), decision_of(Answer(1, b"x", query=bytes([number % 2]))))
    owner._changed(Changed(1, queries=(b"\1", b"\7")))
    assert [key[3] for key in cache._decisions] == [b"\0", b"\2"]
    owner._changed(Changed(2))
    assert len(cache) == 0
    assert cache.size == 0
