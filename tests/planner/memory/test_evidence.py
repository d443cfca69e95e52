"""Verdicts from pairs of runs: exact critical values, bounds that cover, and what a few runs can and cannot show."""

from __future__ import annotations

import itertools
import math
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.memory.evidence import (
    MAX_WAITING,
    Pair,
    Pairs,
    Rules,
    Verdict,
    bounds,
    judge,
    pairs_of,
    slower,
    together,
)
from planner.memory.records import MAX_LATENCIES, ArmRecord

TIMES = st.lists(st.floats(0, 1e9), max_size=50)


def test_the_bound_is_wilcoxons_exact_one() -> None:
    """Against the test by its definition: all signs of the ranks, for each size."""
    for size in range(1, 10):
        sums = [
            sum(rank for rank, sign in enumerate(signs, 1) if sign) for signs in itertools.product((0, 1), repeat=size)
        ]
        logs = [rank / 100 for rank in range(1, size + 1)]
        for alpha in (1 / 8, 1 / 32, 1 / 64):
            allowed = max((w for w in range(size * (size + 1) // 2 + 1)
                           if sum(s <= w for s in sums) / len(sums) <= alpha), default=-1)  # fmt: skip
            _, low, high = bounds(logs, alpha)
            means = sorted((a + b) / 2 for i, a in enumerate(logs) for b in logs[i:])
            if allowed < 0:
                assert (low, high) == (0.0, math.inf)
            else:
                assert (low, high) == pytest.approx((math.exp(means[allowed]), math.exp(means[-1 - allowed])))


def test_the_bounds_cover_the_true_gain() -> None:
    dice = random.Random(7)
    missed = 0
    for _ in range(400):
        logs = [math.log(1.5) + dice.gauss(0, 0.4) for _ in range(10)]
        missed += bounds(logs, 1 / 16)[1] > 1.5
    assert missed / 400 < 0.1


@pytest.mark.parametrize(
    ("steered", "baseline", "verdict"),
    [
        ([], [], Verdict.OPEN),
        ([50.0] * 2, [100.0] * 2, Verdict.OPEN),
        # A few runs are enough where nothing of one side comes near the other.
        ([20.0, 22, 19], [100.0, 90, 120], Verdict.WINS),
        ([60.0, 62, 59], [100.0, 90, 120], Verdict.OPEN),
        ([60.0, 62, 59, 61, 60, 58, 61], [100.0, 90, 120, 99, 101, 95, 98], Verdict.WINS),
        # 1.1 times as fast is too little, and so are 2 ms.
        ([90.0, 91, 89, 90, 92, 90], [100.0, 99, 101, 100, 98, 102], Verdict.NO_GAIN),
        ([1.0] * 6, [3.0] * 6, Verdict.OPEN),
        ([1.0] * 16, [3.0] * 16, Verdict.NO_GAIN),
        ([300.0, 310, 305], [100.0, 90, 120], Verdict.LOSES),
        ([110.0, 120, 130, 115, 112, 111, 114], [100.0, 101, 99, 98, 97, 100, 96], Verdict.LOSES),
        # Four pairs of which not one shows the gain that is wanted.
        ([95.0, 99, 91, 101], [100.0, 98, 102, 99], Verdict.NO_GAIN),
        ([115.0, 119, 121, 113], [100.0, 98, 102, 99], Verdict.LOSES),
        ([95.0, 99, 70, 101], [100.0, 98, 102, 99], Verdict.OPEN),
        # An odd run now and then changes nothing.
        ([60.0, 62, 900, *[61.0] * 13], [100.0, 90, 120, *[99.0] * 13], Verdict.WINS),
    ],
)
def test_verdicts(steered: list[float], baseline: list[float], verdict: Verdict) -> None:
    assert judge(steered, baseline).verdict is verdict


def test_a_server_that_slows_down_is_no_evidence() -> None:
    """Two levels of load, the same ratio within each pair."""
    load = [100.0] * 8 + [400.0] * 8
    assert judge([one * 0.5 for one in load], load).verdict is Verdict.WINS
    # The latest runs are four times as slow as the first: so are both sides.
    assert slower([one * 0.9 for one in load], load) is None


def test_what_became_slower_lately_is_found() -> None:
    steered = [50.0] * 20 + [150.0] * 7
    finding = slower(steered, [100.0] * 27)
    assert finding is not None
    assert finding.gain < 1
    assert "times as fast" in finding.why
    assert slower([50.0] * 20 + [150.0] * 2, [100.0] * 22) is None


@given(TIMES, TIMES)
def test_any_times_have_a_verdict(steered: list[float], baseline: list[float]) -> None:
    finding = judge(steered, baseline)
    assert finding.pairs == min(len(steered), len(baseline), MAX_LATENCIES)
    assert finding.low <= finding.gain * (1 + 1e-9)
    assert finding.gain <= finding.high * (1 + 1e-9)
    assert finding.why


@given(st.lists(st.booleans(), max_size=300))
def test_pairs_are_aligned_and_bounded(sides: list[bool]) -> None:
    pairs = Pairs()
    for moment, steered in enumerate(sides):
        (pairs.add_steered if steered else pairs.add_plain)(float(moment), float(moment))
    assert len(pairs.steered) == len(pairs.baseline) == len(pairs) <= MAX_LATENCIES
    # Runs of a pair are near each other: whoever waits longest is left out first.
    left = abs(2 * sum(sides) - len(sides))
    assert len(sides) - 2 * pairs.fresh <= max(left, 0) + 2 * MAX_WAITING + len(sides)


def test_pairs_go_on_where_a_record_ended() -> None:
    pairs = Pairs(pairs_of(ArmRecord(key="q", arm="a", latencies=(1.0, 2.0), baseline=(3.0, 4.0, 5.0))))
    assert (pairs.steered, pairs.baseline) == ((1.0, 2.0), (4.0, 5.0))
    pairs.add(6.0, 7.0, 1e9)
    assert len(pairs) == 3
    pairs.clear()
    assert len(pairs) == 0


def record(pairs: list[Pair], since: float = 0.0) -> ArmRecord:
    moments, latencies, baseline = zip(*pairs, strict=True) if pairs else ((), (), ())
    return ArmRecord(key="q", arm="a", latencies=latencies, baseline=baseline, moments=moments, since=since)


PAIRS = st.lists(st.tuples(*[st.floats(0.0, 50.0)] * 3), max_size=MAX_LATENCIES)


@given(PAIRS, PAIRS, PAIRS)
def test_the_pairs_of_several_instances_add_up(one: list[Pair], two: list[Pair], three: list[Pair]) -> None:
    """In any order, and however often what is there already comes again."""

    def joined(first: ArmRecord, second: ArmRecord) -> ArmRecord:
        return msgspec.structs.replace(first, **together(first, second))

    a, b, c = record(one), record(two, 5.0), record(three)
    whole = joined(joined(a, b), c)
    assert whole == joined(joined(c, b), a) == joined(joined(joined(b, a), c), a)
    counted = sorted({pair for pair in [*one, *two, *three] if pair[0] >= 5.0})
    assert pairs_of(whole) == counted[-MAX_LATENCIES:]


def test_stricter_rules_want_more() -> None:
    steered, baseline = [60.0] * 8, [100.0 + one for one in range(8)]
    assert judge(steered, baseline).verdict is Verdict.WINS
    assert judge(steered, baseline, Rules(min_gain=2.0, early=False)).verdict is Verdict.NO_GAIN
    assert judge(steered, baseline, Rules(min_pairs=9)).verdict is Verdict.OPEN


def test_half_the_gain_will_do_where_much_is_saved() -> None:
    """With confidence all the same, and not below half of what is asked for."""
    steered = [100.0 + one for one in range(8)]
    assert judge(steered, [one * 1.15 for one in steered]).verdict is Verdict.NO_GAIN, "15 ms are little"
    assert judge(steered, [one * 1.15 for one in steered], Rules(min_ms=1.0)).verdict is Verdict.WINS
    assert judge(steered, [one * 1.15 for one in steered], Rules(min_ms=1.0, heavy=math.inf)).verdict is Verdict.NO_GAIN
    slow = [one * 10 for one in steered]
    assert judge(slow, [one * 1.15 for one in slow]).verdict is Verdict.WINS
    assert judge(slow, [one * 1.08 for one in slow]).verdict is Verdict.NO_GAIN
    noisy = [one * factor for one, factor in zip(slow, (1.4, 0.9) * 4, strict=True)]
    assert judge(slow, noisy).verdict is Verdict.OPEN
