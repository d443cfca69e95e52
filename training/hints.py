"""A model that chooses planner settings: for each arm how much longer a statement takes than by default, and how sure
that is.

`train` makes a model of measured arms. They become rows of `planner.features.statement`, and for each arm one small
ensemble of boosted trees learns ln(arm's latency / the default's). The members of an ensemble have each seen most
statements of every join template. How far to trust them is learned from others, which have not seen the template at
all: what is new counts as the usual case. A statement whose default plan is known is learned from twice, with the plan
and without, since a model is asked both ways.

``log_std`` is what makes such a model usable: an arm is advised only where it is better even if it is as much worse
than predicted as one in twenty is (`planner.advise.best_arm`). A further ensemble expects the error for each arm, and
its answer is stretched until that holds for the arms that look worth taking, which are the ones that luck made look
better than they are. Then the choices are made as in serving, on statements not seen, and where the workload would be
slower for it the model is made to choose nothing.

What was measured is taken carefully. An arm that was stopped ran into the best time so far: it counts as no faster than
the default, and slower by what is known. An arm with the default's plan is exactly as fast.

Deterministic for one seed and one version of LightGBM.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_runtime.manifest import Abstention, Featurizer, Vocabulary
from planner.advise import ARM_CONFIDENCE, best_arm, largest_join, look
from planner.estimates import BlockEstimates
from planner.features import sets, statement
from planner.memory.arms import PORTFOLIO
from planner.snapshot import Snapshot
from planner.sql import read
from planner.templates import template
from training.dataset import Labelled
from training.errors import TooLittleError
from training.export import IR_VERSION, ML_OPSET, OPSET, tree_votes
from training.gbdt import ONE_AT_A_TIME, Stopped, lightgbm_module
from training.gbdt_scores import Split, folds, q_errors
from training.judging import evident_limit
from training.model_file import Built, some_rows

__all__ = ["ArmTime", "HintsDataset", "Measured", "Settings", "Stopped", "Trained", "assemble", "built", "fit", "train"]

Array = npt.NDArray[Any]
LEAST_STATEMENTS: Final = 20
"""With which arms were measured; fewer teach nothing."""
LEAST_OF_ARM: Final = 10
FAR: Final = 4.0
"""Ratios are cut off there: e**4 is 55 times."""
LEAST_DEVIATION: Final = 0.05
OF_ABSOLUTE: Final = 1.2533
"""The standard deviation of a normal distribution over its mean absolute deviation, sqrt(pi / 2)."""
STRETCHES: Final = (1.0, 1.5, 2.0, 3.0)
SLOWER: Final = 1.1
"""A statement counts as slower from so many times its default on."""


@dataclass(frozen=True, slots=True)
class ArmTime:
    """What one arm of a statement took, in milliseconds. ``stopped``: it was stopped then. ``same_plan``: it has the
    default's plan and was not run."""

    ms: float = 0.0
    stopped: bool = False
    same_plan: bool = False


@dataclass(frozen=True, slots=True)
class Measured:
    """One statement. ``arms`` are named as in the portfolio; ``plan`` is the object under "Plan" of the default plan's
    EXPLAIN (FORMAT JSON), if known."""

    text: str
    default_ms: float
    arms: Mapping[str, ArmTime]
    plan: Mapping[str, Any] | None = None
    query: int = 0


@dataclass(frozen=True, slots=True)
class HintsDataset:
    """One row per statement: ``features`` float32 [n, F] without the plan, ``planned`` with it where ``has_plan``,
    ``ratio`` ln(arm / default) [n, arms] with NaN for what is not known, ``default_ms`` [n], ``query`` its number,
    ``template`` the index of its join template. ``words`` are the tables and joins of all, ``left_out`` counts the
    statements that the planner would not steer."""

    arms: tuple[str, ...]
    features: Array
    planned: Array
    has_plan: Array
    ratio: Array
    default_ms: Array
    query: Array
    template: Array
    words: sets.Words
    left_out: int

    def __len__(self) -> int:
        return len(self.default_ms)

    @property
    def inputs(self) -> Array:
        """What is learned from: every statement without its plan, then those that have one with it, [m, F]."""
        return np.vstack([self.features, self.planned[self.has_plan]])

    @property
    def source(self) -> Array:
        """Which statement each row of `inputs` is, [m]."""
        return np.concatenate([np.arange(len(self)), np.flatnonzero(self.has_plan)])


@dataclass(frozen=True, slots=True)
class Settings:
    """How the trees are grown: few and small, since there are a few hundred statements at most."""

    members: int = 5
    rounds: int = 40
    leaves: int = 7
    rate: float = 0.1
    huber: float = 1.0
    features: float = 0.3
    rows: float = 0.8
    deviation_rounds: int = 25


@dataclass(frozen=True, slots=True)
class Choices:
    """What the model would have chosen for statements it has not seen, without their plans, as the proxy asks: seconds
    of all of them by default, with the chosen arms, and with the best arm of each; how many were steered, how many of
    these got slower, and the worst factor."""

    before: float = 0.0
    after: float = 0.0
    best: float = 0.0
    steered: int = 0
    slower: int = 0
    worst: float = 1.0


@dataclass(frozen=True, slots=True)
class Trained:
    """``members`` and ``deviations`` are LightGBM boosters by arm; ``stretch`` is what a deviation is multiplied with.
    ``scale`` is 0 for a model that is to choose nothing. ``splits`` has ``templates`` and ``random``: q-errors of the
    latency ratio, native meaning "as long as the default"."""

    arms: tuple[str, ...]
    members: Mapping[str, tuple[Any, ...]]
    deviations: Mapping[str, Any]
    scale: float
    stretch: float
    clip: tuple[float, float]
    ranges: tuple[tuple[float, float], ...]
    outside_ranges: int
    splits: Mapping[str, Split]
    choices: Choices

    def predict(self, features: Array) -> tuple[Array, Array]:
        """Ratios and their deviations [n, arms], as the exported graph answers."""
        ratios = [np.mean([_answer(one, features) for one in self.members[arm]], axis=0) for arm in self.arms]
        spreads = [_answer(self.deviations[arm], features) * self.stretch for arm in self.arms]
        return np.stack(ratios, axis=1) * self.scale, np.maximum(np.stack(spreads, axis=1), LEAST_DEVIATION)


def train(
    labelled: Labelled,
    *,
    seed: int,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Built:
    """A model of all measured arms. Raises as `fit` does."""
    data = assemble(measured(labelled), labelled.snapshot, labelled.search_path)
    return built(fit(data, seed=seed, stop=stop, progress=progress), data)


def measured(labelled: Labelled) -> list[Measured]:
    """The statements with measured arms."""
    arms: dict[int, dict[str, ArmTime]] = {}
    default_ms: dict[int, float] = {}
    plans: dict[int, Mapping[str, Any]] = {}
    for run in labelled.arms:
        if run.default_ms > 0:
            default_ms[run.query] = run.default_ms
        if run.plan is not None:
            # EXPLAIN's whole answer, or the step under "Plan" of it.
            plans[run.query] = run.plan.get("Plan", run.plan)
        if run.arm in PORTFOLIO and run.status in ("timed", "stopped", "same_plan"):
            time = ArmTime(run.ms, stopped=run.status == "stopped", same_plan=run.status == "same_plan")
            arms.setdefault(run.query, {})[run.arm] = time
    return [
        Measured(labelled.workload.queries[query].text, default_ms[query], times, plans.get(query), query)
        for query, times in arms.items()
        if query in default_ms
    ]


def assemble(statements: Sequence[Measured], snapshot: Snapshot, search_path: tuple[str, ...] = ()) -> HintsDataset:
    """What can be learned from these statements."""
    arms = tuple(arm for arm in PORTFOLIO if any(arm in one.arms for one in statements))
    encoder = statement.Statement()
    kept: list[Measured] = []
    joins: list[BlockEstimates] = []
    rows: list[tuple[Array, Array]] = []
    templates: dict[str, int] = {}
    for one in statements:
        graph = read(one.text).graph
        looked = look(graph, snapshot, search_path) if graph is not None else None
        if looked is None or looked.reason or looked.resolved is None or one.default_ms <= 0:
            continue
        found = largest_join(looked.resolved, snapshot)
        if found is None:
            continue
        estimates, mask = found
        plain, planned = (encoder.inputs(estimates, [mask], plan)["features"][0] for plan in (None, one.plan))
        kept.append(one)
        joins.append(estimates)
        rows.append((plain, planned))
    width = len(statement.NAMES)
    return HintsDataset(
        arms=arms,
        features=np.array([plain for plain, _ in rows], np.float32).reshape(len(rows), width),
        planned=np.array([planned for _, planned in rows], np.float32).reshape(len(rows), width),
        has_plan=np.array([one.plan is not None for one in kept], bool),
        ratio=np.array([[_ratio(one, arm) for arm in arms] for one in kept]).reshape(len(rows), len(arms)),
        default_ms=np.array([one.default_ms for one in kept], np.float64),
        query=np.array([one.query for one in kept], np.int64),
        template=np.array(
            [templates.setdefault(template(estimates.resolved), len(templates)) for estimates in joins], np.int64
        ),
        words=sets.vocabulary(joins),
        left_out=len(statements) - len(rows),
    )


def _ratio(one: Measured, arm: str) -> float:
    """ln(arm / default), NaN for not known."""
    time = one.arms.get(arm)
    if time is None or (time.ms <= 0 and not time.same_plan):
        return float("nan")
    if time.same_plan:
        return 0.0
    ratio = float(np.clip(np.log(time.ms / one.default_ms), -FAR, FAR))
    return max(ratio, 0.0) if time.stopped else ratio


# ---------------------------------------------------------------------- training


def fit(
    data: HintsDataset,
    settings: Settings | None = None,
    *,
    seed: int,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train on all of the data. Raises TrainingError when it is too little or LightGBM is missing, `Stopped` soon
    after ``stop`` is set. ``progress`` is told how many ensembles of how many are done."""
    settings = settings or Settings()
    measured = np.isfinite(data.ratio)
    arms = tuple(arm for place, arm in enumerate(data.arms) if measured[:, place].sum() >= LEAST_OF_ARM)
    if len(data) < LEAST_STATEMENTS or not arms:
        raise TooLittleError(
            f"only {len(data)} statements have measured arms, at least {LEAST_STATEMENTS} are needed, and "
            f"{LEAST_OF_ARM} for each arm"
        )
    places = [data.arms.index(arm) for arm in arms]
    groups = data.template if len(np.unique(data.template)) > 1 else np.arange(len(data))
    by_template = folds(groups, settings.members, seed)[data.source]
    by_query = folds(np.arange(len(data)), settings.members, seed + 1)[data.source]
    truth = data.ratio[:, places][data.source]
    inputs = data.inputs
    with ONE_AT_A_TIME:
        total = len(arms) * (2 * len(np.unique(by_template)) + len(np.unique(by_query)) + 1)
        grower = _Grower(inputs, settings, seed, stop or threading.Event(), progress, total)
        grown = [grower.arm(truth[:, place], by_template, by_query) for place in range(len(arms))]
    unseen = np.stack([one.unseen for one in grown], axis=1)
    random = np.stack([one.random for one in grown], axis=1)
    spread = np.stack([one.expected for one in grown], axis=1)
    stretch, scale, choices = _stretched(truth, unseen, spread, data.default_ms, [PORTFOLIO[arm] for arm in arms])
    known = np.isfinite(truth)
    outside = _outside(inputs, by_template)
    limit = evident_limit(
        np.repeat(outside[:, None], len(arms), axis=1)[known],
        np.abs(truth[known]),
        np.abs(truth - unseen)[known],
        np.arange(int(outside.max()) + 1),
    )
    return Trained(
        arms=arms,
        members={arm: one.members for arm, one in zip(arms, grown, strict=True)},
        deviations={arm: one.deviation for arm, one in zip(arms, grown, strict=True)},
        scale=scale,
        stretch=stretch,
        clip=(-FAR, FAR),
        ranges=tuple(zip(inputs.min(axis=0).tolist(), inputs.max(axis=0).tolist(), strict=True)),
        outside_ranges=int(limit),
        splits={
            "templates": _split(len(data), truth[known], scale * unseen[known]),
            "random": _split(len(data), truth[known], scale * random[known]),
        },
        choices=choices,
    )


def _split(queries: int, truth: Array, prediction: Array) -> Split:
    return Split(queries, len(truth), q_errors(truth), q_errors(truth, prediction))


def _outside(inputs: Array, fold: Array) -> Array:
    """How many features of each row are outside of the ranges of all of other folds, [m]."""
    found = np.zeros(len(fold), np.int64)
    for out in (fold == number for number in np.unique(fold)):
        low, high = inputs[~out].min(axis=0), inputs[~out].max(axis=0)
        found[out] = ((inputs[out] < low) | (inputs[out] > high)).sum(axis=1)
    return found


def _stretched(
    truth: Array, ratios: Array, spreads: Array, default_ms: Array, settings: Sequence[Mapping[str, str]]
) -> tuple[float, float, Choices]:
    """By how much deviations are stretched, the scale of the ratios, and what is chosen then. ``truth``, ``ratios`` and
    ``spreads`` [m, arms] are of predictions for rows not seen, ``default_ms`` [n] of the statements, which are the
    first rows."""
    worse = (truth - ratios) / np.maximum(spreads, LEAST_DEVIATION)
    tempting = np.isfinite(truth) & (ratios < 0)
    judged = worse[tempting] if tempting.sum() >= LEAST_STATEMENTS else worse[np.isfinite(truth)]
    least = max(float(np.quantile(judged, 0.95)) / ARM_CONFIDENCE, 1.0)
    count = len(default_ms)
    truth, ratios, spreads = truth[:count], ratios[:count], spreads[:count]
    for factor in STRETCHES:
        stretch = least * factor
        choices = _choices(truth, ratios, np.maximum(spreads * stretch, LEAST_DEVIATION), default_ms, settings)
        if choices.after <= choices.before:
            return stretch, 1.0, choices
    return least, 0.0, _choices(truth, np.zeros_like(ratios), spreads, default_ms, settings)


def _choices(
    truth: Array, ratios: Array, spreads: Array, default_ms: Array, settings: Sequence[Mapping[str, str]]
) -> Choices:
    chosen = np.ones(len(truth))
    steered = 0
    for row in range(len(truth)):
        best, _ = best_arm(ratios[row], spreads[row], settings)
        if best is not None and np.isfinite(truth[row, best]):
            chosen[row] = np.exp(truth[row, best])
            steered += 1
    possible = np.exp(np.minimum(np.nanmin(np.where(np.isfinite(truth), truth, 0.0), axis=1), 0.0))
    return Choices(
        before=float(default_ms.sum()) / 1e3,
        after=float((default_ms * chosen).sum()) / 1e3,
        best=float((default_ms * possible).sum()) / 1e3,
        steered=steered,
        slower=int((chosen > SLOWER).sum()),
        worst=float(chosen.max(initial=1.0)),
    )


def _answer(booster: Any, features: Array) -> Array:
    return np.asarray(booster.predict(features, num_threads=1))


@dataclass(frozen=True, slots=True)
class _Grown:
    """One arm's members, the booster that expects their error, and of each row what boosters without its template,
    and without its statement, predict, [m] each. ``expected`` is a standard deviation."""

    members: tuple[Any, ...]
    deviation: Any
    unseen: Array
    random: Array
    expected: Array


class _Grower:
    """One training run."""

    def __init__(
        self,
        inputs: Array,
        settings: Settings,
        seed: int,
        stop: threading.Event,
        progress: Callable[[int, int], None] | None,
        total: int,
    ) -> None:
        self._lightgbm = lightgbm_module()
        self._inputs = inputs
        self._settings = settings
        self._seed = seed
        self._stop = stop
        self._progress = progress
        self._done, self._total = 0, total
        if progress is not None:
            progress(0, total)

    def arm(self, ratio: Array, by_template: Array, by_query: Array) -> _Grown:
        """Everything for one arm; ``ratio`` [m] with NaN where it was not measured, and two folds of each row."""
        _, unseen = self._cross(ratio, by_template)
        members, random = self._cross(ratio, by_query)
        off = np.abs(ratio - unseen) * OF_ABSOLUTE
        rounds = self._settings.deviation_rounds
        expected = np.zeros(len(ratio))
        for out in (by_template == number for number in np.unique(by_template)):
            expected[out] = _answer(self._grow(off, ~out, rounds), self._inputs[out])
        everything = np.ones(len(off), bool)
        return _Grown(tuple(members), self._grow(off, everything, rounds), unseen, random, expected)

    def _cross(self, ratio: Array, fold: Array) -> tuple[list[Any], Array]:
        """One booster per fold, trained without it, and what they predict for it [m]."""
        members = []
        unseen = np.zeros(len(ratio))
        for out in (fold == number for number in np.unique(fold)):
            members.append(self._grow(ratio, ~out, self._settings.rounds))
            unseen[out] = _answer(members[-1], self._inputs[out])
        return members, unseen

    def _grow(self, target: Array, rows: Array, rounds: int) -> Any:
        """A booster on those of the rows whose target is known; one that answers 0 where there are none."""
        settings = self._settings
        rows = rows & np.isfinite(target)
        features, wanted = self._inputs[rows], target[rows]
        if not len(wanted):
            features, wanted = self._inputs, np.zeros(len(self._inputs))
        parameters = {
            "objective": "huber",
            "alpha": settings.huber,
            "num_leaves": settings.leaves,
            "learning_rate": settings.rate,
            "min_data_in_leaf": max(2, min(20, len(wanted) // 12)),
            "feature_fraction": settings.features,
            "bagging_fraction": settings.rows,
            "bagging_freq": 1,
            "num_threads": 1,
            "seed": self._seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        made = self._lightgbm.Dataset(features, wanted, params=parameters)
        booster = self._lightgbm.train(parameters, made, rounds, callbacks=[self._look])
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        return booster

    def _look(self, _: Any) -> None:
        if self._stop.is_set():
            raise Stopped


# ---------------------------------------------------------------------- the bundle


def graph(trained: Trained) -> onnx.ModelProto:
    """``features`` float32 [n, F] -> ``log_latency_ratio`` and ``log_std`` float32 [n, arms]."""
    count = len(trained.arms)
    boosters: list[Any] = []
    targets: list[tuple[int, float]] = []
    for place, arm in enumerate(trained.arms):
        members = trained.members[arm]
        boosters += [*members, trained.deviations[arm]]
        targets += [(place, trained.scale / len(members))] * len(members) + [(count + place, trained.stretch)]
    nodes = [
        tree_votes(boosters, targets=targets),
        helper.make_node("Gather", ["votes", "ratios"], ["log_latency_ratio"], axis=1),
        helper.make_node("Gather", ["votes", "spreads"], ["spread"], axis=1),
        helper.make_node("Max", ["spread", "floor"], ["log_std"]),
    ]
    constants = [
        numpy_helper.from_array(np.arange(count), "ratios"),
        numpy_helper.from_array(np.arange(count, 2 * count), "spreads"),
        numpy_helper.from_array(np.array(LEAST_DEVIATION, np.float32), "floor"),
    ]
    made = helper.make_graph(
        nodes,
        "arms",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", len(statement.NAMES)])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", len(trained.arms)])
            for name in ("log_latency_ratio", "log_std")
        ],
        constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
    model = helper.make_model(made, opset_imports=opsets, producer_name="pilotwire")
    model.ir_version = IR_VERSION
    return model


def built(trained: Trained, data: HintsDataset) -> Built:
    """The trees as a model."""
    words, choices = data.words, trained.choices
    return Built(
        graph=graph(trained),
        kind="hints",
        featurizer=Featurizer(name=statement.Statement.name, version=statement.VERSION),
        features=statement.NAMES,
        vocabulary=Vocabulary(
            schemas=tuple(sorted({table.split(".")[0] for table in words.tables})),
            tables=words.tables,
            joins=words.joins,
        ),
        ranges=dict(zip(statement.NAMES, trained.ranges, strict=True)),
        clip=trained.clip,
        abstention=Abstention(outside_ranges=trained.outside_ranges),
        self_test={"features": some_rows(data.inputs)},
        splits=trained.splits,
        arms={arm: dict(PORTFOLIO[arm]) for arm in trained.arms},
        notes={
            "algorithm": "hints",
            "statements": len(data),
            "statements_left_out": data.left_out,
            "scale": trained.scale,
            "stretch": trained.stretch,
            "steered": choices.steered,
            "slower": choices.slower,
            "worst": choices.worst,
            "seconds_default": choices.before,
            "seconds_chosen": choices.after,
            "seconds_best": choices.best,
        },
        native_only=trained.scale == 0,
    )
