"""What a run of the repeated-workload benchmark has found: raw timings as JSON, tables for people, and the promises."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.ratios import Verdict
from benchmarks.report import head, show_verdicts
from planner.memory.evidence import Rules
from training.evaluate.measure import SLACK_MS

DIRECT: Final = "direct"
STEERED: Final = "steered"
ORACLE: Final = "oracle"
"""The better of the best arm and true cardinalities, found beforehand; not run where that is no advice at all."""
SLOWER: Final = 1.1
SHARE: Final = 0.9
LOST: Final = 1.2
"""A warm-up run above this many times its unsteered time was a loss."""
SHOWN: Final = 8


@dataclass(slots=True)
class Timings:
    """One query; all times are milliseconds. ``unsteered`` was measured before anything else, ``warm_up`` through the
    proxy while it learned, ``runs`` by kind afterwards. ``approved`` are the arms that the store has in use at the end,
    with their gains; ``memory`` says of all arms what is known of them, before the measured rounds and at the end."""

    name: str
    sql: str
    unsteered: list[float] = field(default_factory=list)
    warm_up: list[float] = field(default_factory=list)
    runs: dict[str, list[float]] = field(default_factory=dict)
    approved: dict[str, float] = field(default_factory=dict)
    memory: list[list[str]] = field(default_factory=list)

    def ms(self, kind: str) -> float:
        """The median; where there is no advice to give, the oracle is the statement as it is."""
        return median(self.runs[kind] if kind in self.runs else self.runs[DIRECT])

    @property
    def factor(self) -> float:
        """Steered over unsteered, both taken for at least the floor: the median of the turns' ratios, since a machine
        that is slow for a while is so for both runs of a turn."""
        turns = zip(self.runs[STEERED], self.runs[DIRECT], strict=True)
        return median(max(steered, SLACK_MS) / max(direct, SLACK_MS) for steered, direct in turns)

    def slower(self) -> bool:
        return self.factor > SLOWER

    @property
    def lost_ms(self) -> float:
        """What the warm-up's runs took above the unsteered time, where it was a loss."""
        plain = median(self.unsteered)
        return sum(took - plain for took in self.warm_up if took > max(plain, SLACK_MS) * LOST)


@dataclass(slots=True)
class Kind:
    """One data set with one model. ``explored`` is what `pilotwire explore` reported."""

    data: str
    model: str
    inputs: dict[str, str]
    model_sha256: str
    training: dict[str, Any]
    oracle: dict[str, dict[str, str]]
    explored: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Timings] = field(default_factory=dict)

    @property
    def measured(self) -> list[Timings]:
        return [one for one in self.timings.values() if STEERED in one.runs]

    def total(self, kind: str) -> float:
        return sum(one.ms(kind) for one in self.measured)

    def geometric_mean(self, kind: str) -> float:
        """How many times faster than direct, everything taken for at least the floor."""
        return math.exp(
            fmean(math.log(max(one.ms(DIRECT), SLACK_MS) / max(one.ms(kind), SLACK_MS)) for one in self.measured)
        )

    @property
    def worst(self) -> Timings:
        return max(self.measured, key=lambda one: one.factor)

    @property
    def total_share(self) -> float:
        """Of the time that the oracle saves, the share that steering saves; 1 where there is nothing to save."""
        possible = self.total(DIRECT) - self.total(ORACLE)
        return (self.total(DIRECT) - self.total(STEERED)) / possible if possible > 0 else 1.0

    @property
    def mean_share(self) -> float:
        """The same of the geometric mean's logarithm."""
        possible = math.log(self.geometric_mean(ORACLE))
        return math.log(self.geometric_mean(STEERED)) / possible if possible > 0 else 1.0

    @property
    def small_share(self) -> float:
        """Of the geometric mean's possible logarithm, what comes from queries whose gain is below the least that is
        approved: it is missed on purpose."""
        gains = [
            (math.log(max(one.ms(DIRECT), SLACK_MS) / max(one.ms(ORACLE), SLACK_MS)), one.ms(DIRECT) - one.ms(ORACLE))
            for one in self.measured
        ]
        rules = Rules()
        possible = sum(gain for gain, _ in gains)
        small = sum(gain for gain, saved in gains if gain < math.log(rules.asked(saved)) or saved < rules.min_ms)
        return small / possible if possible > 0 else 0.0

    def verdicts(self) -> list[Verdict]:
        if not self.measured:
            return []
        name = f"{self.data}, {self.model} model"
        found = [
            Verdict(
                f"{name}: worst query's median over its unsteered one ({self.worst.name})",
                self.worst.factor,
                SLOWER,
                "x",
            )
        ]
        if self.model == "honest":
            found += [
                Verdict(f"{name}: total, share of the possible gain", self.total_share, SHARE, "", True),
                Verdict(f"{name}: geometric mean, share of the possible gain", self.mean_share, SHARE, "", True),
            ]
        return found


@dataclass(slots=True)
class Results:
    """Everything measured so far."""

    settings: dict[str, Any]
    versions: dict[str, str] = field(default_factory=dict)
    kinds: list[Kind] = field(default_factory=list)
    complete: bool = False

    def verdicts(self) -> list[Verdict]:
        return [verdict for kind in self.kinds for verdict in kind.verdicts()]

    def as_json(self) -> str:
        content = {
            **head(self),
            "kinds": [asdict(kind) for kind in self.kinds],
        }
        return json.dumps(content, indent=1) + "\n"


def show(results: Results, console: Console) -> None:
    """Print a table for each kind, the queries that say most, and the promises last. "too small" is `small_share`."""
    kinds = [kind for kind in results.kinds if kind.measured]
    if kinds:
        _show_totals(kinds, console)
        _show_costs(kinds, console)
    for kind in kinds:
        _show_queries(kind, console)
    show_verdicts(results.verdicts(), console)


def _show_totals(kinds: list[Kind], console: Console) -> None:
    table = Table(title="after the warm-up, medians of the rounds", title_justify="left")
    for name in (
        "",
        "queries",
        "direct",
        "steered",
        "possible",
        "total",
        "geometric mean",
        "too small",
        "slower than 1.1x",
        "worst",
    ):
        table.add_column(name, justify="left" if not name else "right")
    for kind in kinds:
        oracle = kind.model == "honest"
        direct, steered, possible = (kind.total(name) for name in (DIRECT, STEERED, ORACLE))
        means = kind.geometric_mean(STEERED), kind.geometric_mean(ORACLE)
        table.add_row(
            f"{kind.data}, {kind.model}",
            str(len(kind.measured)),
            f"{direct:,.0f} ms",
            f"{steered:,.0f} ms",
            f"{possible:,.0f} ms" if oracle else "",
            f"{direct / steered:.2f}x" + (f" of {direct / possible:.2f}x" if oracle else ""),
            f"{means[0]:.2f}x" + (f" of {means[1]:.2f}x" if oracle else ""),
            f"{kind.small_share:.0%}" if oracle else "",
            str(sum(one.slower() for one in kind.measured)),
            f"{kind.worst.factor:.2f}x",
        )
    console.print(table)


def _show_costs(kinds: list[Kind], console: Console) -> None:
    table = Table(title="what it cost", title_justify="left")
    for name in (
        "",
        "exploring",
        "approved",
        "saves per round",
        "repaid after",
        "lost in the warm-up",
        "runs above 1.2x",
    ):
        table.add_column(name, justify="left" if not name else "right")
    for kind in kinds:
        explored = kind.explored
        after = explored.get("repaid_after_repeats")
        lost = sum(one.lost_ms for one in kind.measured)
        runs = sum(took > max(median(one.unsteered), SLACK_MS) * LOST for one in kind.measured for took in one.warm_up)
        table.add_row(
            f"{kind.data}, {kind.model}",
            f"{explored['spent_seconds']:.0f} s" if explored else "-",
            f"{explored['approved']} of {explored['tried']}" if explored else "-",
            f"{explored['saved_ms']:,.0f} ms" if explored else "-",
            f"{after:.0f} repeats" if after else "-",
            f"{lost:,.0f} ms",
            f"{runs} of {sum(len(one.warm_up) for one in kind.measured)}",
        )
    console.print(table)


def _show_queries(kind: Kind, console: Console) -> None:
    """Those that lost most and those that miss most of what was possible."""
    missed = sorted(kind.measured, key=lambda one: one.ms(ORACLE) - one.ms(STEERED))[: SHOWN // 2]
    slowest = sorted(kind.measured, key=lambda one: -one.factor)[: SHOWN // 2]
    table = Table(title=f"{kind.data}, {kind.model}: slower, or short of what is possible", title_justify="left")
    for name in ("query", "direct", "steered", "possible", "by", "in use"):
        table.add_column(name, justify="left" if name in ("query", "by", "in use") else "right")
    for one in dict.fromkeys(timings.name for timings in [*slowest, *missed]):
        timings = kind.timings[one]
        best = kind.oracle.get(one, {}).get("arm", "")
        used = ", ".join(
            f"{arm} {gain:.2f}x" for arm, gain in sorted(timings.approved.items(), key=lambda item: -item[1])
        )
        figures = (f"{timings.ms(name):,.1f} ms" for name in (DIRECT, STEERED, ORACLE))
        table.add_row(one, *figures, best, used or "-")
    console.print(table)
    for timings in slowest:
        if timings.slower():
            _show_memory(timings, console)


def _show_memory(one: Timings, console: Console) -> None:
    """What the plan memory says of a query that got slower."""
    runs = ", ".join(f"{took:.0f}/{plain:.0f}" for took, plain in zip(one.runs[STEERED], one.runs[DIRECT], strict=True))
    console.print(f"{one.name}: {one.factor:.2f}x; ms steered/direct, in turns: {runs}", markup=False)
    for when, arms in zip(("before", "after"), one.memory, strict=False):
        for arm in arms:
            console.print(f"  {when}: {arm}", markup=False)
