"""Quantiles of latencies from counts by bucket, cheap to add to and exact to merge.

A sketch is a plain ``{bucket: count}``: buckets grow by the same factor, eight to a doubling, so that a quantile is at
most 9 % off whatever the range (the idea of DDSketch: Masson, Rim and Lee, VLDB 2019). Counts of many processes add
up without loss, and the difference of two snapshots of one process is the sketch of what happened between them.

In a flat snapshot (see `proxy.metrics`) the sketch of one label is ``attribute{label|bucket}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log2
from typing import Final

LEAST_MS: Final = 0.01
"""All that is faster falls into bucket 0."""
PER_DOUBLING: Final = 8
LAST: Final = 287
"""The last, open bucket: about eight days."""

_MOST_MS: Final = LEAST_MS * 2.0 ** ((LAST - 1) / PER_DOUBLING)

Sketch = dict[int, float]


def bucket(ms: float) -> int:
    """The bucket of a duration; bucket ``n`` above 0 ends at ``LEAST_MS * 2 ** (n / PER_DOUBLING)``. About 0.2 us."""
    if not ms > LEAST_MS:
        return 0
    return int(log2(ms / LEAST_MS) * PER_DOUBLING) + 1 if ms < _MOST_MS else LAST


def quantile(sketch: Mapping[int, float], share: float) -> float:
    """The duration in milliseconds that a ``share`` (0 to 1) of all does not exceed; 0.0 of an empty sketch."""
    total = sum(sketch.values())
    wanted = share * total
    below = 0.0
    for number in sorted(sketch):
        count = sketch[number]
        if count > 0 and below + count >= wanted:
            part = (wanted - below) / count
            return LEAST_MS * 2 ** ((number - 1 + part) / PER_DOUBLING) if number else LEAST_MS * part
        below += count
    return 0.0


def sketches(totals: Mapping[str, float], attribute: str) -> dict[str, Sketch]:
    """The sketches by label in a flat snapshot."""
    start = f"{attribute}{{"
    found: dict[str, Sketch] = {}
    for key, count in totals.items():
        if key.startswith(start):
            label, _, number = key[len(start) : -1].rpartition("|")
            if number.isdigit():
                found.setdefault(label, {})[int(number)] = count
    return found


def of_histogram(totals: Mapping[str, float], attribute: str, bounds: Sequence[float], share: float) -> float:
    """The same of a histogram in a flat snapshot, in its own unit; what lies in the last, open bucket counts as its
    lower bound. 0.0 of an empty one."""
    counts = [totals.get(f"{attribute}{{{bound}}}", 0.0) for bound in (*bounds, "+Inf")]
    wanted = share * sum(counts)
    below, lower = 0.0, 0.0
    for bound, count in zip((*bounds, bounds[-1]), counts, strict=True):
        if count > 0 and below + count >= wanted:
            return lower + (bound - lower) * (wanted - below) / count
        below, lower = below + count, bound
    return 0.0


def since(now: Mapping[str, Sketch], before: Mapping[str, Sketch]) -> dict[str, Sketch]:
    """What was added between two snapshots, without labels that got nothing."""
    found: dict[str, Sketch] = {}
    for label, sketch in now.items():
        old = before.get(label, {})
        added = {number: count - old.get(number, 0) for number, count in sketch.items() if count > old.get(number, 0)}
        if added:
            found[label] = added
    return found
