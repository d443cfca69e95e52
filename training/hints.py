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
slower for it the model is made to choose nothing. Join templates that were trained on need less doubt: how much less is
found by statements of theirs that were kept out (`training.hints_choices`), and the manifest names them.

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

from model_runtime.manifest import NEVER, Abstention, Featurizer, KnownTemplates, Vocabulary
from planner.advise import largest_join, look
from planner.estimates import BlockEstimates
from planner.features import sets, statement
from planner.memory.arms import PORTFOLIO
from planner.snapshot import Snapshot
from planner.sql import read
from planner.templates import digest, template
from training.dataset import Labelled
from training.errors import TooLittleError
from training.export import IR_VERSION, ML_OPSET, OPSET, tree_votes
from training.gbdt import ONE_AT_A_TIME, Stopped, lightgbm_module
from training.gbdt_scores import Split, folds, q_errors
from training.hints_choices import (
    LEAST_DEVIATION,
    LEAST_STATEMENTS,
    Choices,
    Known,
    Unseen,
    find_known,
    general_stretch,
)
from training.judging import evident_limit
from training.model_file import Built, some_rows

__all__ = ["ArmTime", "HintsDataset", "Measured", "Settings", "Stopped", "Trained", "assemble", "built", "fit", "train"]

Array = npt.NDArray[Any]
LEAST_OF_ARM: Final = 10
FAR: Final = 4.0
"""Ratios are cut off there: e**4 is 55 times."""
OF_ABSOLUTE: Final = 1.2533
"""The standard deviation of a normal distribution over its mean absolute deviation, sqrt(pi / 2)."""


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
    ``template`` the index of its join template in ``templates``, their digests. ``words`` are the tables and joins of
    all, ``left_out`` counts the statements that the planner would not steer."""

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
    templates: tuple[str, ...] = ()

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
    """How the trees are grown: few and small, since there are a few hundred statements at most. ``repeats``: how often
    the statements are divided anew to judge new values of known templates."""

    members: int = 5
    repeats: int = 3
    rounds: int = 40
    leaves: int = 7
    rate: float = 0.1
    huber: float = 1.0
    features: float = 0.3
    rows: float = 0.8
    deviation_rounds: int = 25


@dataclass(frozen=True, slots=True)
class Trained:
    """``members`` and ``deviations`` are LightGBM boosters by arm; ``stretch`` is what a deviation is multiplied with.
    ``scale`` is 0 for a model that is to choose nothing, ``general`` False for one that is to choose nothing on join
    templates that it was not trained on. ``choices`` are made on such, ``known`` has what holds for the others, which
    are ``templates``. ``splits`` has ``templates`` and ``random``: q-errors of the
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
    known: Known | None = None
    general: bool = True
    templates: tuple[str, ...] = ()

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
        templates=tuple(digest(name) for name in templates),
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
    by_query = [
        folds(np.arange(len(data)), settings.members, seed + 1 + repeat)[data.source]
        for repeat in range(settings.repeats)
    ]
    truth = data.ratio[:, places][data.source]
    inputs = data.inputs
    with ONE_AT_A_TIME:
        kept_out = 2 * len(np.unique(by_template)) + sum(len(np.unique(fold)) for fold in by_query)
        total = len(arms) * (kept_out + len(np.unique(by_query[0])) + 1)
        grower = _Grower(inputs, settings, seed, stop or threading.Event(), progress, total)
        grown = [grower.arm(truth[:, place], by_template, by_query) for place in range(len(arms))]
    unseen = np.stack([one.unseen for one in grown], axis=1)
    random = np.stack([one.random for one in grown], axis=1)
    spread = np.stack([one.expected for one in grown], axis=1)
    sets_of = [PORTFOLIO[arm] for arm in arms]
    known = np.isfinite(truth)
    worse = (truth - unseen) / np.maximum(spread, LEAST_DEVIATION)
    count = len(data)
    asked = Unseen(truth[:count], unseen[:count], spread[:count], data.default_ms)
    stretch, scale, choices = general_stretch(asked, worse[known], (unseen < 0)[known], sets_of)
    outside = _outside(inputs, by_template)
    limit = _outside_limit(outside, truth, unseen)
    again = _with_others(data)
    of_known = np.stack([one.random_expected for one in grown], axis=1)
    held_out = Unseen(truth[:count], random[:count], of_known[:count], data.default_ms).of(again)
    wider = max(_outside_limit(_outside(inputs, by_query[0]), truth, random), limit)
    templates = find_known(held_out, stretch, wider, sets_of)
    # A model that chooses nothing on templates not seen still speaks for those that it was trained on.
    speaking = scale or float(templates is not None)
    return Trained(
        arms=arms,
        members={arm: one.members for arm, one in zip(arms, grown, strict=True)},
        deviations={arm: one.deviation for arm, one in zip(arms, grown, strict=True)},
        scale=speaking,
        stretch=stretch,
        clip=(-FAR, FAR),
        ranges=tuple(zip(inputs.min(axis=0).tolist(), inputs.max(axis=0).tolist(), strict=True)),
        outside_ranges=limit,
        splits={
            "templates": _split(len(data), truth[known], scale * unseen[known]),
            "random": _split(len(data), truth[known], speaking * random[known]),
        },
        choices=choices,
        known=templates,
        general=scale > 0,
        templates=tuple(sorted({data.templates[number] for number in data.template[again].tolist()})),
    )


def _with_others(data: HintsDataset) -> Array:
    """bool [n]: another statement has the same template, so that trees without the one have seen the template."""
    return np.asarray(np.bincount(data.template)[data.template] > 1)


def _outside_limit(outside: Array, truth: Array, predicted: Array) -> int:
    """With how many features outside of their ranges predictions are still better than none."""
    known = np.isfinite(truth)
    rows = np.repeat(outside[:, None], truth.shape[1], axis=1)[known]
    native, model = np.abs(truth[known]), np.abs(truth - predicted)[known]
    return int(evident_limit(rows, native, model, np.arange(int(outside.max()) + 1)))


def _split(queries: int, truth: Array, prediction: Array) -> Split:
    return Split(queries, len(truth), q_errors(truth), q_errors(truth, prediction))


def _outside(inputs: Array, fold: Array) -> Array:
    """How many features of each row are outside of the ranges of all of other folds, [m]."""
    found = np.zeros(len(fold), np.int64)
    for out in (fold == number for number in np.unique(fold)):
        low, high = inputs[~out].min(axis=0), inputs[~out].max(axis=0)
        found[out] = ((inputs[out] < low) | (inputs[out] > high)).sum(axis=1)
    return found


def _answer(booster: Any, features: Array) -> Array:
    return np.asarray(booster.predict(features, num_threads=1))


@dataclass(frozen=True, slots=True)
class _Grown:
    """One arm's members, the booster that expects their error, and of each row what boosters without its template,
    and without its statement, predict, [m] each. ``expected`` and ``random_expected`` are standard deviations by
    boosters without the same."""

    members: tuple[Any, ...]
    deviation: Any
    unseen: Array
    random: Array
    expected: Array
    random_expected: Array


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

    def arm(self, ratio: Array, by_template: Array, by_query: Sequence[Array]) -> _Grown:
        """Everything for one arm; ``ratio`` [m] with NaN where it was not measured, and folds of each row, several by
        query: the boosters of the first of these are the model, and the mean over all is what such a model predicts."""
        _, unseen = self._cross(ratio, by_template)
        crossed = [self._cross(ratio, fold) for fold in by_query]
        members = tuple(crossed[0][0])
        random = np.mean([predicted for _, predicted in crossed], axis=0)
        off = np.abs(ratio - unseen) * OF_ABSOLUTE
        expected, random_expected = self._expected(off, by_template), self._expected(off, by_query[0])
        everything = np.ones(len(off), bool)
        deviation = self._grow(off, everything, self._settings.deviation_rounds)
        return _Grown(members, deviation, unseen, random, expected, random_expected)

    def _expected(self, off: Array, fold: Array) -> Array:
        """What errors boosters without a fold expect of it [m]."""
        expected = np.zeros(len(off))
        for out in (fold == number for number in np.unique(fold)):
            expected[out] = _answer(self._grow(off, ~out, self._settings.deviation_rounds), self._inputs[out])
        return expected

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
    words = data.words
    notes: dict[str, bool | int | float | str] = {
        "algorithm": "hints",
        "statements": len(data),
        "statements_left_out": data.left_out,
        "scale": trained.scale if trained.general else 0.0,
        "stretch": trained.stretch,
        **trained.choices.notes(),
    }
    if trained.known is not None:
        notes |= {"known_stretch": trained.known.stretch, **trained.known.choices.notes("known_")}
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
        abstention=Abstention(
            outside_ranges=trained.outside_ranges,
            log_std=None if trained.general else NEVER,
            known=_known(trained),
        ),
        self_test={"features": some_rows(data.inputs)},
        splits=trained.splits,
        arms={arm: dict(PORTFOLIO[arm]) for arm in trained.arms},
        notes=notes,
        native_only=trained.scale == 0,
    )


def _known(trained: Trained) -> KnownTemplates | None:
    """The templates that were trained on, and how much surer the model is of them."""
    if trained.known is None:
        return None
    return KnownTemplates(
        outside_ranges=trained.known.outside_ranges,
        spread=trained.known.stretch / trained.stretch,
        templates=trained.templates,
    )
