"""Champion and challenger: whether a new model may take over from the one that serves.

Both are judged by the same held-out statements in one evaluation: the same true counts, and runs that take turns. The
challenger takes over when it is better by the margin in time or in its estimates, and worse by the margin in neither,
nor in the tail of its estimates; and when it makes no more statements than twice slower. A model of settings, which
estimates nothing, is judged by time alone. Where nothing serves, the champion is PostgreSQL's own planner.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Final

from training.evaluate.measure import SLACK_MS, percentile, q_error, summarise
from training.evaluate.results import DEFAULT, Results
from training.trainer.events import mean_error

LEAST_SUB_PLANS: Final = 20
LEAST_STATEMENTS: Final = 5
SHORT: Final = "the held-out statements are too few to judge by"


@dataclass(frozen=True, slots=True)
class Figures:
    """One side on the held-out statements. ``error`` is the mean |ln(estimate / true)| of ``sub_plans`` joins, ``p90``
    their q-error; ``total_ms`` the time of ``statements``, with decisions; ``much_slower`` how many of them take more
    than twice PostgreSQL's own time."""

    name: str
    sub_plans: int
    error: float
    p90: float
    statements: int
    total_ms: float
    much_slower: int
    worst: float


@dataclass(frozen=True, slots=True)
class Judgement:
    """``better``: the challenger takes over. ``why`` is a sentence either way."""

    better: bool
    why: str
    challenger: Figures
    champion: Figures

    def as_json(self) -> dict[str, Any]:
        return {"challenger": asdict(self.challenger), "champion": asdict(self.champion)}


def judge(results: Results, challenger: str, champion: str, margin: float, *, estimates: bool = True) -> Judgement:
    """Compare two kinds of one evaluation; ``champion`` "" stands for PostgreSQL alone. Without ``estimates`` only the
    times count."""
    ours, theirs = figures(results, challenger, champion)
    better, why = compare(ours, theirs, margin, estimates=estimates)
    return Judgement(better, why, ours, theirs)


def figures(results: Results, challenger: str, champion: str) -> tuple[Figures, Figures]:
    """Both sides on the statements and sub-plans that both have; a statement that takes about the same under both
    counts as equal."""
    other = champion or DEFAULT
    common = []
    for query in results.queries:
        before, ours, theirs = query.ms(DEFAULT), query.ms(challenger), query.ms(other)
        if before is not None and ours is not None and theirs is not None:
            # Smaller differences are the clock's and the scheduler's: a model must neither win nor lose by them.
            theirs = before if abs(theirs - before) <= SLACK_MS else theirs
            ours = before if abs(ours - before) <= SLACK_MS else ours
            common.append((before, theirs if abs(ours - theirs) <= SLACK_MS else ours, theirs))
    joins = [
        (one.predicted[challenger], one.predicted[champion] if champion else one.native, one.true)
        for one in results.sub_plans
        if one.true >= 1 and challenger in one.predicted and (not champion or champion in one.predicted)
    ]

    def side(name: str, at: int) -> Figures:
        pairs = [(row[0], row[at + 1]) for row in common]
        estimates = [(row[at], row[2]) for row in joins]
        summary = summarise(pairs) if pairs else None
        return Figures(
            name=name,
            sub_plans=len(estimates),
            error=mean_error(estimates) or 0.0,
            p90=percentile([q_error(*pair) for pair in estimates], 90) if estimates else 1.0,
            statements=len(pairs),
            total_ms=sum(pair[1] for pair in pairs),
            much_slower=summary.over_2 if summary is not None else 0,
            worst=summary.worst if summary is not None else 1.0,
        )

    return side(challenger, 0), side(champion or "PostgreSQL", 1)


def compare(ours: Figures, theirs: Figures, margin: float, *, estimates: bool = True) -> tuple[bool, str]:
    """Whether the first is better by the margin (0.05: five per cent), and the sentence that says why."""
    if ours.statements < LEAST_STATEMENTS or (estimates and ours.sub_plans < LEAST_SUB_PLANS):
        return False, f"{SHORT}: {ours.sub_plans} joins with rows, {ours.statements} statements that ran"
    quicker = theirs.total_ms / ours.total_ms if ours.total_ms > 0 else 1.0
    nearer = math.exp(theirs.error - ours.error) if estimates else 1.0
    said = (
        f"{ours.statements} held-out statements take {ours.total_ms / 1000:.2f} s instead of "
        f"{theirs.total_ms / 1000:.2f} s with {theirs.name}"
    )
    if estimates:
        said += (
            f", a typical q-error of {ours.sub_plans} joins is {math.exp(ours.error):.2f} instead of "
            f"{math.exp(theirs.error):.2f}"
        )
    if ours.much_slower > theirs.much_slower:
        return False, (
            f"it makes {ours.much_slower} statements more than twice slower, {theirs.name} {theirs.much_slower} "
            f"(the worst {ours.worst:.1f} times); {said}"
        )
    if quicker < 1 - margin:
        return False, f"it is slower: {said}"
    if nearer < 1 - margin:
        return False, f"its estimates are worse: {said}"
    if estimates and ours.p90 > theirs.p90 * (1 + margin):
        return False, f"the tail of its estimates is worse, q-error p90 {ours.p90:.1f} against {theirs.p90:.1f}; {said}"
    if max(quicker, nearer) < 1 + margin:
        return False, f"it is not better by {margin:.0%}: {said}"
    return True, said
