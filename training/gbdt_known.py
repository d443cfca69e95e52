"""How far a model is believed on join templates that it was trained on, with values that it was not.

Limits that are chosen by templates never seen are too strict for these: the model knows their joins. So they have
limits of their own, chosen in the same way by held-out queries whose template other queries of the training have, and
the manifest names the templates (`model_runtime.manifest.KnownTemplates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from training.judging import EVIDENCE_GAIN, deviation_limit, evident_limit, no_worse

Array = npt.NDArray[Any]
LEAST_KNOWN: Final = 100
"""With fewer held-out rows of known templates, these are treated as all others."""


@dataclass(frozen=True, slots=True)
class Known:
    """The limits for join templates that were trained on. Corrections are taken times ``scale``; ``used`` is the share
    of held-out rows whose correction is used under these limits, ``before`` under the general ones."""

    outside_ranges: int
    log_std: float | None
    scale: float
    used: float
    before: float


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Rows of queries kept out of training, [n] each: the true log ratio, what was predicted, how many features were
    outside of the ranges, and the expected error as serving sees it (too little support included)."""

    target: Array
    predicted: Array
    outside: Array
    doubt: Array

    def of(self, rows: Array) -> HeldOut:
        return HeldOut(self.target[rows], self.predicted[rows], self.outside[rows], self.doubt[rows])


def with_others(template: Array, judged: Array, fold: Array) -> Array:
    """bool [n], of each row's template, whether the row is judged, and its fold: another fold too has a judged row of
    the template, so that it was trained on when the row's own fold was kept out."""
    pairs = np.unique(np.stack([template, fold], axis=1)[judged], axis=0)
    folds_with = np.bincount(pairs[:, 0], minlength=int(template.max()) + 1)
    return np.asarray(folds_with[template] > 1)


def find_known(
    rows: HeldOut, scale: float, outside_ranges: int, log_std: float | None, scales: Sequence[float]
) -> Known | None:
    """The limits by these rows, never stricter than the general ``scale``, ``outside_ranges`` and ``log_std``. It takes
    evidence to have a greater scale. None where there are too few rows, or corrections are worse than none."""
    if len(rows.target) < LEAST_KNOWN:
        return None
    native = np.abs(rows.target)
    for own in (own for own in scales if own >= scale):
        error = np.abs(rows.target - own * rows.predicted)
        if no_worse(native, error) and (own == scale or error.mean() <= EVIDENCE_GAIN * native.mean()):
            break
    else:
        return None
    before = (rows.outside <= outside_ranges) & (rows.doubt <= (log_std or np.inf))
    limit = deviation_limit(rows.doubt, native, error)
    limit = None if limit is None or log_std is None else max(limit, log_std)
    wider = int(evident_limit(rows.outside, native, error, np.arange(rows.outside.max() + 1)))
    wider = max(wider, outside_ranges)
    used = (rows.outside <= wider) & (rows.doubt <= (limit or np.inf))
    return Known(wider, limit, own, float(used.mean()), float(before.mean()))
