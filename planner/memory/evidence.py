"""Is an arm faster than the statement as it was? A verdict from interleaved runs that respects noise.

Runs come in pairs: one steered and one unsteered run of the same statement, next to each other in time, so that a
server that slows down, a cache that fills, a night's backup weigh on both sides of a pair alike. Of each pair only the
ratio ``unsteered / steered`` counts, the gain. Its centre and its bounds come from Wilcoxon's signed-rank test (Hodges
and Lehmann's estimator: the median of the means of all pairs of logarithms, and its order statistics at the test's
exact critical value), which assumes nothing of the noise but that it is as likely to hit the one side as the other,
and of which a single odd run moves little. An arm that makes no difference passes for better with the probability
``Rules.alpha`` at each look, and not even then unless the gain also looks as large as asked for.

Pure; a verdict on 32 pairs takes about 0.2 ms.
"""

from __future__ import annotations

import enum
import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import truediv
from statistics import median
from typing import Any, Final

from planner.memory.records import MAX_LATENCIES, ArmRecord

MIN_MS: Final = 0.001
MAX_MS: Final = 1e12
"""Latencies are taken for something between these, so that their ratio is a number."""
FAILED_FACTOR: Final = 4.0
"""A run that failed counts as so many times the longer of what it took and what is usual."""
LARGE_GAIN: Final = 2.0
LARGE_LOSS: Final = 1.5
FEW_PAIRS: Final = 3
"""So few pairs are enough where even the best run of one side and the worst of the other are that far apart."""
HOPELESS_PAIRS: Final = 4
"""Of so many pairs not one showed the gain that is asked for: there are other arms to be tried."""
CLEARLY_SLOWER: Final = 0.9
"""An arm that was slower in each of those pairs, and by so much in the middle, has lost."""
MAX_WAITING: Final = 4
"""Runs of one side that wait for one of the other to be paired with."""


class Verdict(enum.StrEnum):
    OPEN = "open"
    WINS = "wins"
    LOSES = "loses"
    NO_GAIN = "no_gain"


@dataclass(frozen=True, slots=True)
class Rules:
    """What an arm must show. ``min_gain`` is a factor, ``min_ms`` what it must save in the median. ``alpha`` is the
    one-sided probability of error of a single look; ``max_pairs`` ends a trial that shows neither. ``early``: whether
    `FEW_PAIRS` may do where the gain is large. ``heavy``: half the gain will do where a run saves so many times
    ``min_ms``: a seventh of a second-long statement is worth more than half of a short one."""

    min_gain: float = 1.2
    min_ms: float = 5.0
    alpha: float = 1 / 128
    min_pairs: int = 7
    max_pairs: int = 16
    early: bool = True
    heavy: float = 10.0

    def asked(self, saved_ms: float) -> float:
        """The gain, as a factor, that an arm must show which saves so much in the median."""
        return 1.0 + (self.min_gain - 1.0) / 2 if saved_ms >= self.heavy * self.min_ms else self.min_gain


@dataclass(frozen=True, slots=True)
class Finding:
    """``gain`` is the estimated factor, between ``low`` and ``high`` with the rules' confidence on either side;
    ``saved_ms`` is what a run saves in the median."""

    verdict: Verdict
    gain: float = 0.0
    low: float = 0.0
    high: float = math.inf
    saved_ms: float = 0.0
    pairs: int = 0

    @property
    def why(self) -> str:
        """For people: what was found, with its figures."""
        if not self.pairs:
            return "no pairs of runs yet"
        high = "" if math.isinf(self.high) else f" to {self.high:.2f}"
        return f"{self.gain:.2f} times as fast ({self.low:.2f}{high}, {self.pairs} pairs), {self.saved_ms:.1f} ms saved"


def judge(steered: Sequence[float], baseline: Sequence[float], rules: Rules = Rules()) -> Finding:
    """``steered[i]`` and ``baseline[i]`` are the milliseconds of one pair; what has no partner is left out."""
    pairs = min(len(steered), len(baseline), MAX_LATENCIES)
    if not pairs:
        return Finding(Verdict.OPEN)
    ours = [min(max(took, MIN_MS), MAX_MS) for took in steered[-pairs:]]
    plain = [min(max(took, MIN_MS), MAX_MS) for took in baseline[-pairs:]]
    gain, low, high = bounds([math.log(b / s) for s, b in zip(ours, plain, strict=True)], rules.alpha)
    saved = median(b - s for s, b in zip(ours, plain, strict=True))
    verdict = Verdict.OPEN
    apart = pairs >= FEW_PAIRS and rules.early and max(ours) * max(LARGE_GAIN, rules.min_gain) <= min(plain)
    enough = pairs >= rules.min_pairs
    asked = rules.asked(saved)
    if saved >= rules.min_ms and (apart or (enough and gain >= asked and low > 1.0)):
        verdict = Verdict.WINS
    elif (high < 1.0 and enough) or (pairs >= FEW_PAIRS and min(ours) >= max(plain) * LARGE_LOSS):
        verdict = Verdict.LOSES
    elif enough and (high < asked or gain < 1.0 or pairs >= rules.max_pairs):
        # What does not look faster at all after that many pairs is not worth more of them.
        verdict = Verdict.NO_GAIN
    elif rules.early and pairs >= HOPELESS_PAIRS and (most := max(map(truediv, plain, ours))) < asked:
        verdict = Verdict.LOSES if most < 1.0 and gain < CLEARLY_SLOWER else Verdict.NO_GAIN
    return Finding(verdict, gain, low, high, saved, pairs)


def bounds(logs: Sequence[float], alpha: float) -> tuple[float, float, float]:
    """Hodges and Lehmann's estimate of the centre and its one-sided bounds at ``alpha``, as factors; the bounds are 0
    and infinity while there are too few values for any."""
    size = len(logs)
    means = sorted((logs[i] + logs[j]) / 2 for i in range(size) for j in range(i, size))
    centre = median(means)
    rank = _critical(size, alpha)
    if rank < 0:
        return math.exp(centre), 0.0, math.inf
    return math.exp(centre), math.exp(means[rank]), math.exp(means[-1 - rank])


@cache
def _critical(size: int, alpha: float) -> int:
    """The largest w with P(signed-rank sum <= w) <= alpha under no difference, -1 for none. The sums' distribution is
    counted exactly: each rank from 1 to ``size`` is in the sum or not."""
    counts = [1]
    for rank in range(1, size + 1):
        longer = counts + [0] * rank
        for total, count in enumerate(counts):
            longer[total + rank] += count
        counts = longer
    allowed = alpha * 2**size
    below = 0
    for total, count in enumerate(counts):
        below += count
        if below > allowed:
            return total - 1
    return len(counts) - 1


Pair = tuple[float, float, float]
"""When it was made, and the milliseconds of the steered and the unsteered run. Among the evidence for one arm no two
are equal, so that those of several instances can be put together as sets: in any order, and more than once."""


def pairs_of(record: ArmRecord) -> list[Pair]:
    """The pairs of a record, the oldest first. Where it was not noted when they were made, their order counts."""
    size = min(len(record.latencies), len(record.baseline), MAX_LATENCIES)
    moments = record.moments if len(record.moments) >= size else tuple(record.since + at * 1e-4 for at in range(size))
    return list(zip(moments[len(moments) - size :], record.latencies[len(record.latencies) - size :],
                    record.baseline[len(record.baseline) - size :], strict=True))  # fmt: skip


def latest(pairs: Iterable[Pair], since: float) -> list[Pair]:
    """Those that count, the oldest first."""
    return sorted({pair for pair in pairs if pair[0] >= since})[-MAX_LATENCIES:]


def together(one: ArmRecord, other: ArmRecord) -> dict[str, Any]:
    """The evidence of two records of one arm as one: the fields of a record."""
    since = max(one.since, other.since)
    pairs = latest([*pairs_of(one), *pairs_of(other)], since)
    return {
        "latencies": tuple(pair[1] for pair in pairs),
        "baseline": tuple(pair[2] for pair in pairs),
        "moments": tuple(pair[0] for pair in pairs),
        "since": since,
    }


class Pairs:
    """Pairs each run with the latest one of the other side that has no partner yet. Bounded."""

    __slots__ = ("_pairs", "_waiting_plain", "_waiting_steered", "fresh")

    def __init__(self, pairs: Iterable[Pair] = ()) -> None:
        self._pairs: deque[Pair] = deque(pairs, MAX_LATENCIES)
        self._waiting_steered: deque[float] = deque(maxlen=MAX_WAITING)
        self._waiting_plain: deque[float] = deque(maxlen=MAX_WAITING)
        #: Pairs made since this was set to 0.
        self.fresh = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def add_steered(self, took_ms: float, at: float) -> bool:
        """Whether that made a pair."""
        if self._waiting_plain:
            self.add(took_ms, self._waiting_plain.pop(), at)
            return True
        self._waiting_steered.append(took_ms)
        return False

    def add_plain(self, took_ms: float, at: float) -> bool:
        """Whether that made a pair."""
        if self._waiting_steered:
            self.add(self._waiting_steered.pop(), took_ms, at)
            return True
        self._waiting_plain.append(took_ms)
        return False

    def add(self, steered_ms: float, plain_ms: float, at: float) -> None:
        """Two runs that belong together."""
        self._pairs.append((at, steered_ms, plain_ms))
        self.fresh += 1

    def join(self, pairs: Iterable[Pair], since: float) -> None:
        """Takes up another instance's pairs; what was measured before ``since`` goes."""
        self._pairs = deque(latest([*self._pairs, *pairs], since), MAX_LATENCIES)

    def scale(self, factor: float) -> None:
        """The unsteered side was measured under something that is ``factor`` times as fast as unsteered."""
        self._pairs = deque([(at, ours, plain * factor) for at, ours, plain in self._pairs], MAX_LATENCIES)

    def clear(self) -> None:
        for one in (self._pairs, self._waiting_steered, self._waiting_plain):
            one.clear()
        self.fresh = 0

    @property
    def steered(self) -> tuple[float, ...]:
        return tuple(pair[1] for pair in self._pairs)

    @property
    def baseline(self) -> tuple[float, ...]:
        return tuple(pair[2] for pair in self._pairs)

    @property
    def moments(self) -> tuple[float, ...]:
        return tuple(pair[0] for pair in self._pairs)


WATCH_ALPHA: Final = 1 / 128
WATCHED: Final = (7, 12, MAX_LATENCIES)
"""Lengths of the latest past that are looked at: a change must show although the arm was good for long before."""


def slower(steered: Sequence[float], baseline: Sequence[float]) -> Finding | None:
    """The finding that an arm in use is slower than the statement as it was, with confidence; None when it is not."""
    pairs = min(len(steered), len(baseline))
    for length in WATCHED:
        size = min(length, pairs)
        finding = judge(steered[pairs - size : pairs], baseline[pairs - size : pairs], _WATCH)
        if finding.verdict is Verdict.LOSES:
            return finding
        if size == pairs:
            return None
    return None


_WATCH: Final = Rules(min_gain=1.0, min_ms=0.0, alpha=WATCH_ALPHA, min_pairs=WATCHED[0])
