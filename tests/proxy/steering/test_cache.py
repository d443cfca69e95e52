"""What a worker remembers: bounded, least recently used first out, and what was measured outlives the planner's changes
of mind."""

from __future__ import annotations

import pytest

from proxy.steering import Decision
from proxy.steering.cache import DecisionCache, Key, Template
from proxy.steering.template import HINTED, template

STEER = Decision("steered", b"/* x */")


def kind(text: str = "select 1 from a, b, c") -> Template:
    return Template(*template(text.encode()), 0)


def key(number: int, size: int = 0) -> Key:
    return (1, b"select %d" % number, b"\0\0", b"x" * size or None)


def test_decisions_are_bounded_by_count_and_bytes() -> None:
    cache = DecisionCache(100, 1 << 20)
    for number in range(1000):
        cache.remember(key(number), STEER)
        assert cache.decision(key(0)) is STEER  # used all the time: it stays
    assert len(cache) == 100
    assert cache.decision(key(1)) is None
    assert cache.decision(key(999)) is STEER
    for number in range(1000):
        cache.remember(key(number, 60_000), STEER)
        assert cache.size <= 1 << 20
    assert len(cache) < 10


def test_texts_and_templates_are_bounded() -> None:
    cache = DecisionCache(1000, 1 << 20)
    for number in range(3000):
        text = b"select a%d from x, y where '%s' = z" % (number, b"v" * (number % 3000))
        assert cache.learn(text, b"").text == text
        assert cache.size <= 1 << 20
    assert cache.seen(b"select a0 from x, y where '' = z", b"") is None
    assert cache.seen(text, b"") is not None
    assert cache.seen(text, b"\0\1\0\0\0\x17") is None


def test_literals_share_a_template_and_flags_do_not() -> None:
    cache = DecisionCache(1000, 1 << 20)
    texts = [b"select 1 from a, b", b"SELECT 2 FROM a, b", b"/*+ x */ select 1 from a, b", b"select 1; select 2"]
    first, second, hinted, several = (cache.learn(text, b"").template for text in texts)
    assert first is second
    assert [found.reason for found in (first, hinted, several)] == ["", "hinted", "several_statements"]
    assert (first.settled, hinted.settled, several.settled) == (False, True, True)


def test_scopes_are_kept_apart() -> None:
    cache = DecisionCache(1000, 1 << 20)
    numbers = {cache.scope(*names) for names in (("d", "u", "a", "p"), ("d", "u", "a", ""), ("du", "", "a", "p"))}
    assert len(numbers) == 3
    before = cache.scope("d", "u", "a", "p")
    for number in range(20_000):
        cache.scope("d", "u", str(number), "")
    assert cache.scope("d", "u", "a", "p") != before  # a new number, never another one's


def test_forgetting() -> None:
    cache = DecisionCache(1000, 1 << 20)
    known = cache.learn(b"select 1 from a, b", b"")
    known.template.answered(Decision("no_model"))
    known.template.observe(500.0, steered=False, cheap_ms=5.0)
    cache.remember(key(1), STEER)
    assert known.template.settled
    cache.forget()
    assert cache.decision(key(1)) is None
    seen = cache.seen(b"select 1 from a, b", b"")
    assert seen is known
    assert not known.template.settled
    assert known.template.expected_ms == 500.0


def test_what_cheap_means() -> None:
    found = kind()
    assert found.expected_ms < 0
    found.observe(1.0, steered=False, cheap_ms=5.0)
    assert (found.cheap, found.reason) == (True, "cheap")
    for _ in range(5):
        found.observe(100.0, steered=False, cheap_ms=5.0)
    assert not found.settled
    assert 50 < found.expected_ms < 100


def test_steered_runs_make_nothing_cheap() -> None:
    found = kind()
    for _ in range(10):
        found.observe(1.0, steered=True, cheap_ms=5.0)
    assert not found.cheap
    assert found.expected_ms == 1.0
    found.estimated_ms = 400.0
    assert found.expected_ms == 400.0


def test_explain_is_judged_by_the_query_it_is_about() -> None:
    found = kind("explain select 1 from a, b, c")
    found.observe(0.5, steered=False, cheap_ms=5.0)
    assert found.expected_ms < 0
    found.estimated_ms = 900.0
    found.judge(5.0)
    assert not found.cheap
    assert found.expected_ms == 900.0


@pytest.mark.parametrize("reason", ["refused", "other"])
def test_barred_for_good(reason: str) -> None:
    found = kind()
    found.bar(reason)
    found.renew(7)
    assert (found.settled, found.reason, found.generation) == (True, reason, 7)
    assert Template(b"select 0 from a, b", HINTED, 0).reason == "hinted"
