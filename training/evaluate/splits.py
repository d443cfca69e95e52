"""Ways to divide a workload into what a model is trained on and what it is judged by.

Each answers a question of its own: how it does on more of the same (``random``), on joins never seen (``template``,
which keeps whole templates out), on known joins with other values (``values``), and on the very statements it was
trained on (``repeated``, what a dashboard sends all day). Pure functions of the cases and a seed.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from training.evaluate.cases import Case

SPLITS: Final = {
    "random": "Statements not trained on, drawn at random",
    "template": "Templates left out: nothing with these joins was trained on",
    "values": "Same template, new values: trained on its siblings only",
    "repeated": "Repeated: trained on these very statements",
}
"""Name to what it means, in the order in which they are shown."""


@dataclass(frozen=True, slots=True)
class Fold:
    """Places in the list of cases: trained on the one, judged by the other."""

    train: tuple[int, ...]
    test: tuple[int, ...]


def divide(split: str, cases: Sequence[Case], folds: int, seed: int) -> list[Fold]:
    """The folds of one split, no more than ``folds``; no place is judged twice. Empty where it makes no sense: one
    template only, or no template with two statements. Statements without joins are neither trained on nor judged."""
    joined = [place for place, case in enumerate(cases) if case.template]
    chance = random.Random(seed)  # noqa: S311 - no secret
    if split == "repeated":
        return [Fold(tuple(joined), tuple(joined))] if joined else []
    by_template: dict[str, list[int]] = {}
    for place in joined:
        by_template.setdefault(cases[place].template, []).append(place)
    if split == "template":
        return _grouped(list(by_template.values()), folds, chance)
    if split == "random":
        return _grouped([[place] for place in joined], folds, chance)
    if split == "values":
        return _siblings(by_template, folds, chance)
    raise ValueError(f"no split {split}")


def _grouped(groups: list[list[int]], folds: int, chance: random.Random) -> list[Fold]:
    """Each group is judged as a whole; the largest first, each to the fold that has least."""
    if len(groups) < 2:
        return []
    chance.shuffle(groups)
    tests: list[list[int]] = [[] for _ in range(min(folds, len(groups)))]
    for group in sorted(groups, key=len, reverse=True):
        min(tests, key=len).extend(group)
    everything = {place for group in groups for place in group}
    return [Fold(tuple(sorted(everything - set(test))), tuple(sorted(test))) for test in tests]


def _siblings(by_template: dict[str, list[int]], folds: int, chance: random.Random) -> list[Fold]:
    """Of each template some are judged while siblings stay in the training; those alone in theirs are never judged."""
    tests: list[list[int]] = [[] for _ in range(folds)]
    alone: list[int] = []
    first = 0
    for group in by_template.values():
        if len(group) < 2:
            alone += group
            continue
        chance.shuffle(group)
        parts = min(folds, len(group))
        for number, place in enumerate(group):
            tests[(first + number % parts) % folds].append(place)
        first += parts
    everything = {place for test in tests for place in test} | set(alone)
    return [Fold(tuple(sorted(everything - set(test))), tuple(sorted(test))) for test in tests if test]
