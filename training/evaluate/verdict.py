"""The figures of an evaluation in one word and two sentences, by fixed rules that are printed with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from training.evaluate.measure import Summary
from training.evaluate.results import PROXY, Results

GAIN: Final = 1.05
"""Factors nearer to 1 than this are no difference."""
FEWEST: Final = 5
"""Of fewer statements nothing is concluded."""
RULES: Final = (
    f"With fewer than {FEWEST} statements nothing is said. Worth serving: at least 5 % faster in total, without the "
    "two largest and in the geometric mean, and nothing more than twice slower. With care: faster in total, but not in "
    "all of these. Not worth serving: slower in total or in the geometric mean by more than 5 %. Else: no difference."
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """``level`` is ``good``, ``mixed``, ``none`` or ``bad``, ``word`` says it; ``sentences`` are for everybody."""

    level: str
    word: str
    sentences: tuple[str, ...]


def judge(results: Results) -> Verdict:
    """The verdict on `Results.main`."""
    kind, cases = results.main()
    found = results.summary(kind, cases) if kind else None
    if found is None and not results.queries:
        return Verdict("none", "Nothing was run", ("What follows is about estimates alone.",))
    if found is None:
        return Verdict(
            "none", "Nothing was steered", ("No model steered any statement; what follows compares the baselines.",)
        )
    who = "Through the proxy" if kind == PROXY else f"With the model {kind}"
    if results.folded(kind):
        who = "With models trained on the rest of it"
    part = "the workload" if cases is None else f"{found.statements} statements of the workload"
    verb = "takes" if cases is None else "take"
    first = (
        f"{who}, {part} {verb} {seconds(found.steered_ms)} instead of {seconds(found.plain_ms)}: "
        f"{_times(found.total)}; for a typical statement {_times(found.geometric_mean)}."
    )
    slower = len(results.regressions(kind, cases))
    second = (
        f"{slower} of {found.statements} statements got slower by more than a tenth, the worst {found.worst:.2f} times."
        if slower
        else f"None of {found.statements} statements got slower by more than a tenth."
    )
    if found.statements > 4 and found.total > GAIN > found.total_without_two:
        second += " Two statements make most of the difference."
    level, word = _level(found)
    return Verdict(level, word, (first, second))


def _level(found: Summary) -> tuple[str, str]:
    if found.statements < FEWEST:
        return "none", "Too few statements to say"
    if found.total < 1 / GAIN or found.geometric_mean < 1 / GAIN:
        return "bad", "Not worth serving"
    if min(found.total, found.total_without_two, found.geometric_mean) >= GAIN and found.over_2 == 0:
        return "good", "Worth serving"
    if found.total >= GAIN:
        return "mixed", "Worth serving with care"
    return "none", "No difference"


def _times(factor: float) -> str:
    if abs(factor - 1) < 0.01:
        return "no difference"
    if factor >= 1:
        return f"{factor:.2f} times as fast"
    return f"{1 / factor:.2f} times slower"


def seconds(ms: float) -> str:
    """A time for people."""
    if ms >= 120_000:
        return f"{ms / 60_000:.1f} min"
    if ms >= 1000:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if ms >= 10 else f"{ms:.1f} ms"
