"""Opt-outs and what is worth advice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.policy import OBSERVATIONS, OptOuts, TemplateTimes, cheap, fingerprint


def test_sessions_opt_out_by_any_of_three_names() -> None:
    off = OptOuts(frozenset({"ann"}), frozenset({"shop"}), frozenset({"pg_dump"}))
    assert off.session("ann", "d", "a")
    assert off.session("u", "shop", "a")
    assert off.session("u", "d", "pg_dump")
    assert not off.session("u", "d", "a")
    assert not off.session("shop", "ann", "ann")


def test_a_statement_opts_out_by_its_fingerprint_whatever_its_literals() -> None:
    off = OptOuts(fingerprints=frozenset({fingerprint("SELECT * FROM t WHERE a = 1")}))
    assert off.statement("select * from t where a = 22 -- another")
    assert not off.statement("SELECT * FROM t WHERE b = 1")
    assert not OptOuts().statement("SELECT 1")


@given(st.text(max_size=50))
def test_any_text_has_a_fingerprint_or_none(text: str) -> None:
    found = fingerprint(text)
    assert found == "" or len(found) == 16


def test_measured_times_overrule_the_estimate() -> None:
    times = TemplateTimes()
    assert cheap(0.5, times, 1.0)
    for _ in range(OBSERVATIONS):
        times.add(30.0)
    assert not cheap(0.5, times, 1.0)
    fast = TemplateTimes()
    for _ in range(OBSERVATIONS):
        fast.add(0.2)
    assert cheap(1000.0, fast, 1.0)


def test_one_slow_run_is_forgiven_in_time() -> None:
    times = TemplateTimes()
    times.add(10.0)
    for _ in range(100):
        times.add(0.1)
    assert times.mean_ms < 0.2
    assert cheap(5.0, times, 1.0)
    assert TemplateTimes().known is False
