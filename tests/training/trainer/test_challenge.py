"""A challenger takes over only when it is better by the margin, and the reason is said either way."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from training.evaluate.measure import Series
from training.evaluate.results import DEFAULT, Measured, Results, Steered
from training.evaluate.truth import SubPlan
from training.trainer.challenge import Figures, compare, figures

CHAMPION = Figures("old-1", 100, math.log(2.0), 8.0, 30, 10_000.0, 1, 3.0)


def challenger(quicker: float = 1.0, nearer: float = 1.0, **changes: float) -> Figures:
    made = replace(
        CHAMPION, name="new-2", total_ms=CHAMPION.total_ms / quicker, error=CHAMPION.error - math.log(nearer)
    )
    return replace(made, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("ours", "better", "why"),
    [
        (challenger(1.2), True, "take 8.33 s instead of 10.00 s with old-1"),
        (challenger(1.0, 1.2), True, "typical q-error of 100 joins is 1.67 instead of 2.00"),
        (challenger(1.01, 1.04), False, "it is not better by 5%"),
        (challenger(0.9, 2.0), False, "it is slower"),
        (challenger(2.0, 0.9), False, "its estimates are worse"),
        (challenger(1.5, 1.5, p90=9.0), False, "the tail of its estimates is worse, q-error p90 9.0 against 8.0"),
        (challenger(1.5, 1.5, much_slower=2), False, "it makes 2 statements more than twice slower, old-1 1"),
        (challenger(1.5, 1.5, much_slower=1), True, "take"),
        (challenger(1.5, 1.5, sub_plans=19), False, "too few to judge by: 19 joins"),
        (challenger(1.5, 1.5, statements=4), False, "too few to judge by"),
    ],
)
def test_the_rules(ours: Figures, better: bool, why: str) -> None:
    found, said = compare(ours, CHAMPION, 0.05)
    assert (found, why in said) == (better, True), said


def test_a_model_of_settings_is_judged_by_time_alone() -> None:
    none = replace(CHAMPION, sub_plans=0, error=0.0, p90=1.0)
    found, said = compare(replace(none, total_ms=5_000.0), none, 0.05, estimates=False)
    assert found
    assert "q-error" not in said
    assert not compare(replace(none, error=9.0, p90=99.0), none, 0.05, estimates=False)[0]
    assert "too few" in compare(replace(none, statements=4), none, 0.05, estimates=False)[1]


def test_a_model_is_never_better_than_itself() -> None:
    assert not compare(CHAMPION, CHAMPION, 0.0001)[0]


def test_figures_are_of_what_both_sides_have() -> None:
    def query(name: str, **times: float) -> Measured:
        made = Measured(name, 1, "SELECT", "t", 2, "unknown")
        made.series = {kind: Series(times=[ms]) for kind, ms in times.items()}
        made.steered = {kind: Steered("", 10.0) for kind in times if kind != DEFAULT}
        return made

    results = Results("shop")
    results.queries = [
        query("a", default=100.0, new=40.0, old=90.0),
        query("b", default=100.0, new=240.0, old=100.0),
        query("c", default=100.0, new=1.0),
    ]
    results.sub_plans = [
        SubPlan("a", 0, 3, ("x", "y"), 10.0, 100.0, {"new": 100.0, "old": 50.0}),
        SubPlan("a", 0, 5, ("x", "z"), 10.0, 0.0, {"new": 100.0, "old": 50.0}),
        SubPlan("b", 0, 3, ("x", "y"), 10.0, 100.0, {"new": 100.0}),
    ]
    ours, theirs = figures(results, "new", "old")
    # Decisions are part of the time.
    assert (ours.statements, ours.total_ms, ours.much_slower, ours.worst) == (2, 300.0, 1, 2.5)
    assert (theirs.total_ms, theirs.much_slower) == (210.0, 0)
    assert (ours.sub_plans, ours.error) == (1, 0.0)
    assert theirs.error == pytest.approx(math.log(2))

    # Ten milliseconds of decisions, and four of chance.
    results.queries[1].series["old"].times = [244.0]
    ours, theirs = figures(results, "new", "old")
    assert (ours.total_ms, theirs.total_ms) == (50.0 + 254.0, 100.0 + 254.0)
    alone, postgresql = figures(results, "new", "")
    assert (alone.statements, postgresql.total_ms, postgresql.name) == (3, 300.0, "PostgreSQL")
    assert postgresql.error == pytest.approx(math.log(10))
