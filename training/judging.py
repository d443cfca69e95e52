"""By which evidence corrections are believed: the rules that all trained models share.

Errors are absolute errors of logarithms on rows that the predicting model had not seen, [n]: ``native`` without a
correction, ``model`` with it.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
EVIDENCE_ROWS: Final = 20
SLIGHT: Final = 0.05
"""An error that changes no plan: five per cent."""
EVIDENCE_GAIN: Final = 0.9
"""Corrections count as better when their mean error is at most so much of the native one's."""


def no_worse(native: Array, model: Array) -> bool:
    """Whether neither the median nor the tail got worse. A median that stays within `SLIGHT` did not: where half of the
    estimates are exact, any correction is further off by a few per cent."""
    middle, tail = np.percentile(model, (50, 90))
    native_middle, native_tail = np.percentile(native, (50, 90))
    return bool(middle <= max(native_middle, SLIGHT) and tail <= native_tail)


def evident_limit(measure: Array, native: Array, model: Array, candidates: Array) -> float:
    """The least candidate for which there is no evidence that rows with a greater ``measure`` gain; the last one where
    there is such evidence for all."""
    for limit in candidates[:-1]:
        beyond = measure > limit
        if beyond.sum() < EVIDENCE_ROWS or model[beyond].mean() > EVIDENCE_GAIN * native[beyond].mean():
            return float(limit)
    return float(candidates[-1])


def deviation_limit(expected: Array, native: Array, model: Array) -> float | None:
    """Above which expected error a correction is not to be used; None where all are good. Half of the rows are always
    believed."""
    levels = np.unique(np.percentile(expected, np.arange(50, 100)))
    judged = [level for level in levels if (expected > level).sum() >= EVIDENCE_ROWS]
    limit = evident_limit(expected, native, model, np.array([*judged, np.inf]))
    return limit if np.isfinite(limit) else None
