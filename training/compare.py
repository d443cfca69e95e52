"""Two models side by side on a workload: what each would have the server believe, or choose, and who is right.

Asked exactly as serving asks (`planner.advise`), so that abstentions, clips and changed tables count: where a model
abstains the server's own estimate stands, which is what its q-error is then. Truth is taken from a training set where
it is there; nothing is counted or run for a comparison.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import asyncpg
import numpy as np

from model_runtime.runner import Model, ModelError
from planner.advise import Models, Options, Outcome, advise
from planner.catalog_load import load
from planner.snapshot import Snapshot
from planner.sql import read
from training.dataset import collect
from training.errors import TrainingError
from training.labels import connect
from training.queries import Workload, excerpt
from training.training_set import ArmTime, TrainingSet, statement_key

POINTS: Final = (50, 90, 99, 100)
ALIKE: Final = math.log(1.1)
LARGEST: Final = 10
"""Differences that are named."""


@dataclass(slots=True)
class Side:
    """One model over the workload. ``q_error`` by percentile over the sub-plans with a known truth, ``arms`` how often
    each set of settings is chosen, ``seconds_chosen`` what the statements with measured arms take with those.
    ``reasons`` counts the statements left alone. ``decision_ms`` is the mean time of a decision."""

    label: str
    steered: int = 0
    corrected: int = 0
    q_error: dict[str, float] = field(default_factory=dict)
    arms: dict[str, int] = field(default_factory=dict)
    seconds_chosen: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    failures: int = 0
    decision_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """One sub-plan, or one statement of a hints model, on which the models differ. ``truth`` is None where not known;
    ``first`` and ``second`` are rows, or names of arms."""

    line: int
    what: str
    native: float | None
    first: float | str
    second: float | str
    truth: float | None


@dataclass(slots=True)
class Comparison:
    """``labelled`` of the ``sub_plans`` have a known truth, ``native`` are the server's own q-errors on these,
    ``measured`` of the ``statements`` have measured arms, which took ``seconds_default`` by default. ``agreed``: how
    many sub-plans, or statements of hints models, both see alike (within 10 %)."""

    kind: str
    statements: int
    skipped: int
    sides: tuple[Side, Side]
    sub_plans: int = 0
    labelled: int = 0
    agreed: int = 0
    native: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    seconds_default: float = 0.0
    differences: list[Difference] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


async def compare(
    dsn: str,
    workload: Workload,
    models: tuple[Model, Model],
    sets: Sequence[Path] = (),
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Both models on every statement. ``sets`` are folders of training sets to take truth from. Raises TrainingError
    for a database that cannot be read, a set in use, and models of different kinds."""
    if models[0].kind != models[1].kind:
        raise TrainingError(f"a {models[0].kind} model and a {models[1].kind} model predict different things")
    snapshot, search_path = await _catalog(dsn)
    truth: dict[str, float] = {}
    arms: list[ArmTime] = []
    for folder in sets:
        with TrainingSet(folder) as known:
            truth |= known.rows
            arms += known.arms
    return await asyncio.to_thread(_compare, workload, models, snapshot, search_path, truth, arms, progress)


async def _catalog(dsn: str) -> tuple[Snapshot, tuple[str, ...]]:
    connection = await connect(dsn)
    try:
        snapshot = await load(connection)
        return snapshot, tuple(await connection.fetchval("SELECT current_schemas(false)::text[]"))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise TrainingError(f"the catalog cannot be read: {' '.join(str(error).split())}") from None
    finally:
        await connection.close(timeout=5)


def _compare(
    workload: Workload,
    models: tuple[Model, Model],
    snapshot: Snapshot,
    search_path: tuple[str, ...],
    truth: Mapping[str, float],
    arms: Sequence[ArmTime],
    progress: Callable[[int, int], None] | None,
) -> Comparison:
    hints = models[0].kind == "hints"
    sides = (Side(models[0].label), Side(models[1].label))
    found = Comparison(models[0].kind, len(workload.queries), len(workload.skipped), sides)
    rows = {} if hints else _truth(workload, snapshot, search_path, truth)
    joins = _Joins(found, rows)
    chosen = _Arms(found, arms)
    for number, query in enumerate(workload.queries):
        if progress is not None:
            progress(number, len(workload.queries))
        first = _asked(query.text, models[0], sides[0], snapshot, search_path)
        second = _asked(query.text, models[1], sides[1], snapshot, search_path)
        if first is None or second is None:
            continue
        both = (first, second)
        if hints:
            chosen.add(query.line, query.text, both)
        else:
            joins.add(number, query.line, both)
    for side in sides:
        side.decision_ms /= max(len(workload.queries), 1)
    joins.finish()
    chosen.finish()
    return found


def _truth(
    workload: Workload, snapshot: Snapshot, search_path: tuple[str, ...], known: Mapping[str, float]
) -> dict[tuple[int, int, int], float]:
    """True rows by statement, block and sub-plan."""
    if not known:
        return {}
    return {
        (block.query, block.resolved.block.index, mask): known[name]
        for block in collect(workload, snapshot, search_path).blocks
        for mask, name in zip(block.masks, block.digests, strict=True)
        if name in known
    }


def _asked(text: str, model: Model, side: Side, snapshot: Snapshot, search_path: tuple[str, ...]) -> Outcome | None:
    graph = read(text).graph
    if graph is None:
        return None
    asked = Models(model, None) if model.kind == "cardinality" else Models(None, model)
    begun = time.perf_counter()
    try:
        outcome = advise(graph, snapshot, asked, search_path=search_path, options=Options(estimate_anyway=True))
    except ModelError:
        side.failures += 1
        return None
    side.decision_ms += (time.perf_counter() - begun) * 1e3
    if outcome.reason:
        side.reasons[outcome.reason] = side.reasons.get(outcome.reason, 0) + 1
    else:
        side.steered += 1
    return outcome


class _Joins:
    """Collects what cardinality models say of each join."""

    def __init__(self, found: Comparison, truth: Mapping[tuple[int, int, int], float]) -> None:
        self._found = found
        self._truth = truth
        self._errors: tuple[list[float], list[float], list[float]] = ([], [], [])
        self._differences: list[tuple[float, Difference]] = []

    def add(self, number: int, line: int, outcomes: tuple[Outcome, Outcome]) -> None:
        found = self._found
        for one, two in zip(outcomes[0].sub_plans, outcomes[1].sub_plans, strict=True):
            found.sub_plans += 1
            rows = [one.native if one.rows is None else one.rows, two.native if two.rows is None else two.rows]
            for side, told in zip(found.sides, (one, two), strict=True):
                side.corrected += told.rows is not None
            apart = abs(math.log(rows[0] / rows[1]))
            found.agreed += apart <= ALIKE
            truth = self._truth.get((number, one.block, one.mask))
            if truth is not None and truth >= 1:
                found.labelled += 1
                for errors, value in zip(self._errors, (one.native, *rows), strict=True):
                    errors.append(max(value / truth, truth / value))
            if apart > 0:
                difference = Difference(line, " ".join(one.aliases), one.native, rows[0], rows[1], truth)
                self._differences.append((apart, difference))

    def finish(self) -> None:
        found = self._found
        if self._errors[0]:
            found.native, found.sides[0].q_error, found.sides[1].q_error = map(_percentiles, self._errors)
        largest = sorted(self._differences, key=lambda item: -item[0])[:LARGEST]
        found.differences += [difference for _, difference in largest]


class _Arms:
    """Collects what hints models choose for each statement."""

    def __init__(self, found: Comparison, arms: Sequence[ArmTime]) -> None:
        self._found = found
        self._times: dict[str, dict[str, ArmTime]] = {}
        for arm in arms:
            self._times.setdefault(arm.statement, {})[arm.arm] = arm
        self._chosen: tuple[Counter[str], Counter[str]] = (Counter(), Counter())

    def add(self, line: int, text: str, outcomes: tuple[Outcome, Outcome]) -> None:
        found = self._found
        names = [outcome.arm or "default" for outcome in outcomes]
        found.agreed += names[0] == names[1]
        for chosen, name in zip(self._chosen, names, strict=True):
            chosen[name] += 1
        times = self._times.get(statement_key(text), {})
        default = next((one.default_ms for one in times.values() if one.default_ms > 0), 0.0)
        if default > 0:
            found.measured += 1
            found.seconds_default += default / 1e3
            for side, name in zip(found.sides, names, strict=True):
                side.seconds_chosen += _took(times.get(name), default) / 1e3
        if names[0] != names[1] and len(found.differences) < LARGEST:
            found.differences.append(Difference(line, excerpt(text), None, names[0], names[1], None))

    def finish(self) -> None:
        for side, chosen in zip(self._found.sides, self._chosen, strict=True):
            side.arms = dict(chosen.most_common())


def _took(arm: ArmTime | None, default: float) -> float:
    """Milliseconds; an arm that was stopped took at least as long as the default, as far as is known."""
    if arm is None or arm.status not in ("timed", "stopped"):
        return default
    return max(arm.ms, default) if arm.status == "stopped" else arm.ms


def _percentiles(errors: Sequence[float]) -> dict[str, float]:
    values = np.percentile(errors, POINTS).tolist()
    return {("max" if point == 100 else f"p{point}"): value for point, value in zip(POINTS, values, strict=True)}
