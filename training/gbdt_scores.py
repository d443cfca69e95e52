"""How good estimates are on rows that were kept out of training: q-errors, and the folds that keep rows out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
PERCENTILES: Final = (50, 90, 99)
ALWAYS: Final = -1
"""The fold of rows that are never kept out."""


@dataclass(frozen=True, slots=True)
class Split:
    """Percentiles (`PERCENTILES`) of the q-error over one way to divide the queries, native and model."""

    queries: int
    sub_plans: int
    native: tuple[float, ...]
    model: tuple[float, ...]


def folds(groups: Array, count: int, seed: int) -> Array:
    """A fold number [n] for each row: rows of a group stay together, and folds have about equally many rows. Fewer
    folds than ``count`` where there are fewer groups."""
    names, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(min(count, len(names)))
    fold_of = {}
    for place in order:
        fold = int(np.argmin(filled))
        fold_of[names[place]] = fold
        filled[fold] += sizes[place]
    return np.array([fold_of[group] for group in groups], np.int64)


def folds_of(groups: Array, judged: Array, count: int, seed: int) -> Array:
    """As `folds`, by the judged rows (bool [n]) alone. Other rows go with their group, so that a group is kept out as a
    whole, and those of groups without a judged row are `ALWAYS` trained on."""
    found = np.full(len(groups), ALWAYS, np.int64)
    found[judged] = folds(groups[judged], count, seed)
    fold_of = dict(zip(groups[judged].tolist(), found[judged].tolist(), strict=True))
    found[~judged] = [fold_of.get(group, ALWAYS) for group in groups[~judged].tolist()]
    return found


def q_errors(target: Array, prediction: Array | float = 0.0) -> tuple[float, ...]:
    """Percentiles of max(actual/estimate, estimate/actual) when log(actual / native) is predicted so."""
    error = np.abs(target - prediction)
    return tuple(float(value) for value in np.exp(np.minimum(np.percentile(error, PERCENTILES), 700)))
