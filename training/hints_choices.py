"""How sure a model of settings has to be, found by the choices it would make for statements that it has not seen.

An arm is advised where it is no slower even if it is as much worse than predicted as one in twenty is
(`planner.advise.best_arm`), so what decides is by how much expected errors are stretched. There are two answers. One is
for join templates that the trees have never seen: errors are stretched until one in twenty of the arms that look worth
taking is further off, and further while the workload would be slower for the choices. The other is for templates that
were trained on, judged by statements of these that were kept out: from the first stretch down to the least at which no
more than one in ten of the chosen arms makes its statement slower, none much, and these lose no more than a tenth of
what the others gain. The first failure ends the search, so that no lucky value further down is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from planner.advise import ARM_CONFIDENCE, best_arm
from training.evaluate.measure import SLOWER, slowdown

Array = npt.NDArray[Any]
LEAST_STATEMENTS: Final = 20
"""With which arms were measured; fewer teach nothing."""
LEAST_DEVIATION: Final = 0.05
STRETCHES: Final = (1.0, 1.5, 2.0, 3.0)
STEP: Final = 0.85
LEAST_STRETCH: Final = 0.25
WRONG: Final = 0.05
"""The share of tempting arms that may be further off than what is expected to be the most."""
LEAST_CHOSEN: Final = 10
"""From fewer choices nothing follows."""
LOST: Final = 0.1
"""The share of chosen arms that may make their statement slower, and of the gained time that these may cost."""
WORST: Final = 1.5
"""How many times slower a chosen arm may have made a statement."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What the model would have chosen for statements it has not seen, without their plans, as the proxy asks: seconds
    of all of them by default, with the chosen arms, and with the best arm of each; how many were steered, how many of
    these got slower, the worst factor, and the seconds that were lost."""

    before: float = 0.0
    after: float = 0.0
    best: float = 0.0
    steered: int = 0
    slower: int = 0
    worst: float = 1.0
    lost: float = 0.0

    def notes(self, prefix: str = "") -> dict[str, bool | int | float | str]:
        """As the manifest has them."""
        return {
            f"{prefix}steered": self.steered,
            f"{prefix}slower": self.slower,
            f"{prefix}worst": self.worst,
            f"{prefix}seconds_default": self.before,
            f"{prefix}seconds_chosen": self.after,
            f"{prefix}seconds_best": self.best,
        }


@dataclass(frozen=True, slots=True)
class Unseen:
    """What is predicted of statements that the predicting trees have not seen: ``truth`` and ``ratios`` [n, arms] are
    ln(arm / default), the former NaN where it is not known, ``spreads`` [n, arms] the expected errors before they are
    stretched, ``default_ms`` [n]."""

    truth: Array
    ratios: Array
    spreads: Array
    default_ms: Array

    def of(self, rows: Array) -> Unseen:
        return Unseen(self.truth[rows], self.ratios[rows], self.spreads[rows], self.default_ms[rows])

    def chosen(self, stretch: float, settings: Sequence[Mapping[str, str]]) -> Choices:
        """The choices when errors are stretched so."""
        spreads = np.maximum(self.spreads * stretch, LEAST_DEVIATION)
        factor = np.ones(len(self.truth))
        steered = 0
        for row in range(len(factor)):
            best, _ = best_arm(self.ratios[row], spreads[row], settings)
            if best is not None and np.isfinite(self.truth[row, best]):
                factor[row] = np.exp(self.truth[row, best])
                steered += 1
        known = np.where(np.isfinite(self.truth), self.truth, 0.0)
        possible = np.exp(np.minimum(known.min(axis=1, initial=0.0), 0.0))
        slowed = [slowdown(ms, ms * by) > SLOWER for ms, by in zip(self.default_ms, factor, strict=True)]
        return Choices(
            before=float(self.default_ms.sum()) / 1e3,
            after=float((self.default_ms * factor).sum()) / 1e3,
            best=float((self.default_ms * possible).sum()) / 1e3,
            steered=steered,
            slower=int(np.count_nonzero(slowed)),
            worst=float(factor.max(initial=1.0)),
            lost=float((self.default_ms * np.maximum(factor - 1.0, 0.0)).sum()) / 1e3,
        )


def general_stretch(
    rows: Unseen, worse: Array, tempting: Array, settings: Sequence[Mapping[str, str]]
) -> tuple[float, float, Choices]:
    """By how much errors are stretched for templates not seen, the scale of the ratios, 0.0 where nothing is to be
    chosen, and what is chosen then. ``worse`` is by how many expected errors each measured arm was worse than
    predicted, ``tempting`` which of these were predicted to be faster."""
    judged = worse[tempting] if tempting.sum() >= LEAST_STATEMENTS else worse
    least = max(float(np.quantile(judged, 1 - WRONG)) / ARM_CONFIDENCE, 1.0)
    for factor in STRETCHES:
        choices = rows.chosen(least * factor, settings)
        if choices.after <= choices.before:
            return least * factor, 1.0, choices
    nothing = Unseen(rows.truth, np.zeros_like(rows.ratios), rows.spreads, rows.default_ms)
    return least, 0.0, nothing.chosen(least, settings)


@dataclass(frozen=True, slots=True)
class Known:
    """For templates that were trained on: ``stretch`` of the expected errors, how many features may be outside of their
    ranges, and what is chosen for statements kept out."""

    stretch: float
    outside_ranges: int
    choices: Choices


def find_known(rows: Unseen, first: float, outside_ranges: int, settings: Sequence[Mapping[str, str]]) -> Known | None:
    """The least stretch, from ``first`` down, for statements whose template others in training have. None where there
    are too few of them or nothing can be chosen with confidence."""
    if len(rows.truth) < LEAST_STATEMENTS:
        return None
    found = None
    stretch = first
    while stretch > LEAST_STRETCH:
        choices = rows.chosen(stretch, settings)
        if choices.slower and not _confident(choices):
            break
        if choices.after < choices.before and choices.steered >= LEAST_CHOSEN:
            found = Known(stretch, outside_ranges, choices)
        stretch *= STEP
    return found


def _confident(choices: Choices) -> bool:
    gained = choices.before - choices.after + choices.lost
    few = choices.slower <= max(1.0, LOST * choices.steered)
    return few and choices.lost <= LOST * gained and choices.worst <= WORST
