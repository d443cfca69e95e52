"""The arithmetic of the comparison and its targets; no I/O.

Machines drift: a neighbour wakes up, a clock throttles. So each round runs every target once, a ratio is taken within
one round, and a cell's figure is the median of its rounds' ratios, never a ratio of averages.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Mode = Literal["simple", "extended", "prepared"]

TPS_MEDIAN_AT_LEAST = 0.9
TPS_CELL_AT_LEAST = 0.8
CPU_AT_MOST = 1.3


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One point of the grid: so many clients in one of pgbench's query modes."""

    clients: int
    mode: Mode

    def __str__(self) -> str:
        return f"{self.clients} {self.mode}"


@dataclass(frozen=True, slots=True)
class Sample:
    """One pgbench run: transactions per second, their number, the proxy's CPU in seconds (0 when direct), and the share
    of the processors that other guests of the machine took meanwhile."""

    target: str
    cell: Cell
    round: int
    tps: float
    transactions: int
    cpu_seconds: float
    stolen: float = 0.0

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU that the proxy's processes spent per query."""
        return self.cpu_seconds / self.transactions * 1e6 if self.transactions else 0.0


@dataclass(frozen=True, slots=True)
class CellRatio:
    """One cell of one target against its baseline: medians over the rounds, and the extremes of the tps ratio."""

    cell: Cell
    tps: float
    tps_ratio: float
    tps_ratio_low: float
    tps_ratio_high: float
    cpu_us: float
    cpu_ratio: float | None
    rounds: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """A target of ours, what was measured, and whether it was reached."""

    name: str
    value: float
    limit: float
    unit: str
    higher_is_better: bool = False

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.higher_is_better else self.value <= self.limit


def per_round(samples: Iterable[Sample], target: str, cell: Cell) -> dict[int, Sample]:
    """The runs of `target` in `cell` by round."""
    return {sample.round: sample for sample in samples if sample.target == target and sample.cell == cell}


def compare(samples: Sequence[Sample], target: str, baseline: str) -> list[CellRatio]:
    """`target` against `baseline` in every cell where both have run in at least one common round."""
    cells = sorted({sample.cell for sample in samples})
    found = [_compare_cell(samples, target, baseline, cell) for cell in cells]
    return [ratio for ratio in found if ratio is not None]


def _compare_cell(samples: Sequence[Sample], target: str, baseline: str, cell: Cell) -> CellRatio | None:
    ours, theirs = per_round(samples, target, cell), per_round(samples, baseline, cell)
    pairs = [(ours[number], theirs[number]) for number in sorted(ours.keys() & theirs.keys()) if theirs[number].tps]
    if not pairs:
        return None
    tps = [mine.tps / other.tps for mine, other in pairs]
    cpu = [mine.cpu_us / other.cpu_us for mine, other in pairs if mine.cpu_us and other.cpu_us]
    return CellRatio(
        cell=cell,
        tps=statistics.median(mine.tps for mine, _ in pairs),
        tps_ratio=statistics.median(tps),
        tps_ratio_low=min(tps),
        tps_ratio_high=max(tps),
        cpu_us=statistics.median(mine.cpu_us for mine, _ in pairs),
        cpu_ratio=statistics.median(cpu) if cpu else None,
        rounds=len(pairs),
    )


def verdicts(name: str, ratios: Sequence[CellRatio]) -> list[Verdict]:
    """The three promises about speed for one target: median of the cells, worst cell, CPU in the median."""
    if not ratios:
        return []
    worst = min(ratios, key=_tps_ratio)
    found = [
        Verdict(f"{name}: tps, median of the cells", median_of(ratios, _tps_ratio), TPS_MEDIAN_AT_LEAST, "x", True),
        Verdict(f"{name}: tps, worst cell ({worst.cell})", worst.tps_ratio, TPS_CELL_AT_LEAST, "x", True),
    ]
    cpu = [ratio.cpu_ratio for ratio in ratios if ratio.cpu_ratio is not None]
    if cpu:
        found.append(Verdict(f"{name}: CPU per query, median of the cells", statistics.median(cpu), CPU_AT_MOST, "x"))
    return found


def median_of(ratios: Sequence[CellRatio], value: Callable[[CellRatio], float]) -> float:
    """The median of one figure over the cells."""
    return statistics.median(value(ratio) for ratio in ratios)


def _tps_ratio(ratio: CellRatio) -> float:
    return ratio.tps_ratio


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` of `values` lie (nearest rank); raises ValueError when there are none."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]
