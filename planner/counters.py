"""What the planner process counts: plain numbers, sent to the supervisor as one flat dictionary.

Keys are ``name``, ``name{label}`` and, for a histogram, ``name{upper bound}`` (one count for each bucket, not
cumulated) with ``name_sum``; a sketch of quantiles is ``name{label|bucket}``. Labels are bounded in number: what comes
after `MAX_LABELS` of one name is ``other``.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from math import log2
from typing import Final

BOUNDS: Final[tuple[float, ...]] = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0)
"""Upper bounds of the histograms' buckets in seconds."""
LOAD_BOUNDS: Final[tuple[float, ...]] = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""The same for what is done to a model's file."""
MAX_LABELS: Final = 40
_KEYS: Final = tuple(str(bound) for bound in (*BOUNDS, "+Inf"))


class Counters:
    """Added to from the lanes' threads and the event loop; about 1 us for each count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, float] = {}
        self._labels: dict[str, set[str]] = {}

    def add(self, name: str, label: str = "", amount: float = 1) -> None:
        with self._lock:
            key = f"{name}{{{self._bounded(name, label)}}}" if label else name
            self._counts[key] = self._counts.get(key, 0) + amount

    def observe(self, name: str, seconds: float) -> None:
        """Counts a duration in the histogram ``name``."""
        key = f"{name}{{{_KEYS[bisect_left(BOUNDS, seconds)]}}}"
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1
            self._counts[f"{name}_sum"] = self._counts.get(f"{name}_sum", 0) + seconds

    def observe_in(self, name: str, value: float, bounds: tuple[float, ...]) -> None:
        """Counts a value in the histogram ``name`` with buckets of its own."""
        place = bisect_left(bounds, value)
        key = f"{name}{{{bounds[place] if place < len(bounds) else '+Inf'}}}"
        with self._lock:
            self._counts[key] = self._counts.get(key, 0) + 1
            self._counts[f"{name}_sum"] = self._counts.get(f"{name}_sum", 0) + value

    def observe_model(self, model: str, seconds: float) -> None:
        """Counts one run of a model under its ``name-version``, for quantiles."""
        number = bucket(seconds * 1000)
        with self._lock:
            key = f"inference_latency{{{self._bounded('inference_latency', model)}|{number}}}"
            self._counts[key] = self._counts.get(key, 0) + 1

    def snapshot(self) -> dict[str, float]:
        with self._lock:
            return dict(self._counts)

    def _bounded(self, name: str, label: str) -> str:
        known = self._labels.setdefault(name, set())
        if label not in known:
            if len(known) >= MAX_LABELS:
                return "other"
            known.add(label)
        return label


def bucket(ms: float) -> int:
    """The bucket of a duration in a sketch, the same as in `proxy.quantiles`, which is above this package."""
    if not ms > 0.01:
        return 0
    return int(log2(ms / 0.01) * 8) + 1 if ms < 0.01 * 2**35.75 else 287
