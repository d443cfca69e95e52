"""What an evaluation has found: every timing, every estimate, the SHA-256 of every input, as plain data.

Kinds of runs by name: ``default`` (PostgreSQL as configured), ``arm:NAME`` (one set of planner settings),
``true rows`` (true join cardinalities told), ``proxy off`` and ``proxy`` (through a running proxy), and each steering
model by its own name. Computed from them: ``best arm`` (the best arm of each query, default included) and
``one setting`` (the one arm with the least total, default included).
"""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from training.evaluate.measure import SLOWER, Series, Summary, percentile, q_error, slowdown, summarise
from training.evaluate.truth import SubPlan

FORMAT: Final = 1
DEFAULT: Final = "default"
ARM: Final = "arm:"
TRUE_ROWS: Final = "true rows"
PROXY_OFF: Final = "proxy off"
PROXY: Final = "proxy"
BEST_ARM: Final = "best arm"
ONE_SETTING: Final = "one setting"
POINTS: Final = (50, 90, 99)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@dataclass(slots=True)
class Steered:
    """What one model did to one statement. ``reason`` is why it was left alone, "" for advice; ``decision_ms`` what
    deciding took, which is added to every run. ``new_plan``: the advice gave another plan. Where it gave the same one,
    the default's runs count, and ``planning_ms`` is what planning under advice takes longer."""

    reason: str
    decision_ms: float
    new_plan: bool = False
    planning_ms: float = 0.0
    prefix: str = ""
    settings: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Measured:
    """One statement. ``series`` by kind; kinds with the default's plan share its series (``shared`` says of which).
    ``plans`` are texts for people, by kind, kept for statements that got slower."""

    name: str
    line: int
    sql: str
    template: str
    relations: int
    seen: str
    series: dict[str, Series] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    steered: dict[str, Steered] = field(default_factory=dict)
    plans: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, kind: str) -> Series | None:
        """The runs of a kind, its own or those it shares."""
        return self.series.get(self.shared.get(kind, kind))

    def ms(self, kind: str) -> float | None:
        """What the kind takes all in all: the median run and, for a model, the decision. None: not run, or refused by
        the server."""
        series = self.of(kind)
        if series is None or series.error:
            return None
        decision = self.steered.get(kind)
        return series.ms + (decision.decision_ms + decision.planning_ms if decision is not None else 0.0)

    @property
    def arms(self) -> list[str]:
        """Kinds that are one set of settings, the default first."""
        own = {kind for kind in (*self.series, *self.shared) if kind.startswith(ARM)}
        return [DEFAULT, *sorted(own)]

    def best_arm(self) -> tuple[str, float]:
        """The quickest of the arms and what it takes."""
        times = [(ms, kind != DEFAULT, kind) for kind in self.arms if (ms := self.ms(kind)) is not None]
        least, _, kind = min(times)
        return kind, least


@dataclass(slots=True)
class Split:
    """Statements judged together. ``kind`` is the model that steers them; ``cases`` their names."""

    name: str
    title: str
    kind: str
    cases: list[str]


@dataclass(slots=True)
class Results:
    """A whole evaluation. ``inputs`` are SHA-256 by name. ``models`` are the steering kinds, the one that matters most
    first; of those that were made by cross-validation only the statements of their split count."""

    database: str
    server: str = ""
    started: str = field(default_factory=now)
    finished: str = ""
    complete: bool = False
    stopped: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    tables: dict[str, float] = field(default_factory=dict)
    models: list[str] = field(default_factory=list)
    splits: list[Split] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    statements: int = 0
    skipped: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    unmeasured: int = 0
    without_arms: int = 0
    queries: list[Measured] = field(default_factory=list)
    sub_plans: list[SubPlan] = field(default_factory=list)
    uncounted: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    # ------------------------------------------------------------------ times

    def one_setting(self) -> str | None:
        """The arm with the least total over all statements that ran under every arm; None without arms."""
        names = {kind for query in self.queries for kind in query.arms}
        if len(names) < 2:
            return None
        common = [query for query in self.queries if all(query.ms(kind) is not None for kind in names)]
        totals = {kind: sum(query.ms(kind) or 0.0 for query in common) for kind in names}
        return min(sorted(names), key=lambda kind: (totals[kind], kind != DEFAULT))

    def pairs(self, kind: str, cases: Sequence[str] | None = None) -> list[tuple[Measured, float, float]]:
        """Statements that ran both by default and under ``kind``, with both times in milliseconds."""
        wanted = None if cases is None else set(cases)
        under_arms = kind in (BEST_ARM, ONE_SETTING)
        kind = (self.one_setting() or DEFAULT) if kind == ONE_SETTING else kind
        found = []
        for query in self.queries:
            if (wanted is not None and query.name not in wanted) or (under_arms and len(query.arms) < 2):
                continue
            before = query.ms(DEFAULT)
            if before is not None:
                after = query.best_arm()[1] if kind == BEST_ARM else query.ms(kind)
                if after is not None:
                    found.append((query, before, after))
        return found

    def summary(self, kind: str, cases: Sequence[str] | None = None) -> Summary | None:
        """Of one kind against the default; None when no statement ran under both."""
        pairs = self.pairs(kind, cases)
        if not pairs:
            return None
        kind = (self.one_setting() or DEFAULT) if kind == ONE_SETTING else kind
        chosen = [query.of(query.best_arm()[0] if kind == BEST_ARM else kind) for query, _, _ in pairs]
        timeouts = sum(series is not None and series.timeouts > 0 for series in chosen)
        return summarise([(before, after) for _, before, after in pairs], timeouts)

    def regressions(self, kind: str, cases: Sequence[str] | None = None) -> list[tuple[Measured, float]]:
        """Statements that got slower by more than a tenth and then take more than `measure.SLACK_MS`, the worst first,
        with the factor."""
        found = [(query, slowdown(before, after)) for query, before, after in self.pairs(kind, cases)]
        return sorted((one for one in found if one[1] > SLOWER), key=lambda one: -one[1])

    def kinds(self) -> list[str]:
        """Every kind that can be compared with the default on all statements, baselines first."""
        ran = {kind for query in self.queries for kind in (*query.series, *query.shared)}
        computed = [ONE_SETTING, BEST_ARM] if any(kind.startswith(ARM) for kind in ran) else []
        whole = [kind for kind in self.models if not self.folded(kind)]
        return [
            *computed,
            *(kind for kind in (TRUE_ROWS, PROXY_OFF, *whole, PROXY) if kind in ran),
        ]

    def folded(self, kind: str) -> bool:
        """Whether the kind is made of several models, each judged by what it was not trained on."""
        return kind in self.training

    def reasons(self, kind: str) -> Counter[str]:
        """What became of the statements under a model."""
        return Counter(
            (decision.reason or ("new plan" if decision.new_plan else "same plan"))
            for query in self.queries
            if (decision := query.steered.get(kind)) is not None
        )

    def main(self) -> tuple[str, list[str] | None]:
        """The model that the report is about, and the cases that it is judged by: what the proxy did when it ran
        through one, else the first model, else the statements of the first split. ("", None) without any."""
        for kind in (PROXY, *self.models):
            if kind in self.kinds():
                return kind, None
        for split in self.splits:
            return split.kind, split.cases
        return "", None

    # ------------------------------------------------------------------ estimates

    def q_errors(self, kind: str, cases: Sequence[str] | None = None) -> tuple[int, dict[str, tuple[float, float]]]:
        """How many sub-plans with rows there are, and percentiles of the q-error (native, model). Empty joins are left
        out, as nobody can say how far off they are."""
        chosen = [one for one in self._judged(kind, cases) if one.true >= 1]
        if not chosen:
            return 0, {}
        native = [q_error(one.native, one.true) for one in chosen]
        model = [q_error(one.predicted[kind], one.true) for one in chosen]
        return len(chosen), {f"p{at}": (percentile(native, at), percentile(model, at)) for at in POINTS}

    def q_errors_by_joins(self, kind: str, cases: Sequence[str] | None = None) -> dict[int, dict[str, list[float]]]:
        """By the number of joins (relations less one): the q-errors ``native`` and ``model`` of the sub-plans."""
        found: dict[int, dict[str, list[float]]] = {}
        for one in self._judged(kind, cases):
            if one.true >= 1:
                errors = found.setdefault(len(one.aliases) - 1, {"native": [], "model": []})
                errors["native"].append(q_error(one.native, one.true))
                errors["model"].append(q_error(one.predicted[kind], one.true))
        return dict(sorted(found.items()))

    def _judged(self, kind: str, cases: Sequence[str] | None) -> list[SubPlan]:
        wanted = None if cases is None else set(cases)
        return [one for one in self.sub_plans if kind in one.predicted and (wanted is None or one.case in wanted)]

    # ------------------------------------------------------------------ out

    def as_json(self) -> dict[str, Any]:
        """Everything, with the tables computed from it."""
        kinds = self.kinds()
        return {
            "format": FORMAT,
            **{name: value for name, value in asdict(self).items() if name not in ("queries", "sub_plans")},
            "summaries": {kind: _summary(self.summary(kind)) for kind in kinds},
            "one_setting": self.one_setting(),
            "split_summaries": [
                {
                    "name": split.name,
                    "kind": split.kind,
                    "title": split.title,
                    "times": _summary(self.summary(split.kind, split.cases)),
                    "q_error": dict(
                        zip(("sub_plans", "percentiles"), self.q_errors(split.kind, split.cases), strict=True)
                    ),
                }
                for split in self.splits
            ],
            "q_errors": {kind: _errors(self.q_errors(kind)) for kind in self.models},
            "regressions": {
                kind: [{"query": query.name, "factor": factor} for query, factor in self.regressions(kind)]
                for kind in kinds
            },
            "reasons": {kind: dict(self.reasons(kind)) for kind in self.models},
            "queries": [asdict(query) for query in self.queries],
            "sub_plans": [asdict(one) for one in self.sub_plans],
        }

    def dumps(self) -> str:
        return json.dumps(self.as_json(), indent=1) + "\n"


def _summary(found: Summary | None) -> dict[str, Any] | None:
    return None if found is None else asdict(found)


def _errors(found: tuple[int, dict[str, tuple[float, float]]]) -> dict[str, Any]:
    count, percentiles = found
    return {
        "sub_plans": count,
        "percentiles": {name: {"native": native, "model": model} for name, (native, model) in percentiles.items()},
    }


def sha256(path: Path) -> str:
    """Of a file's content. OSError passes through."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
