"""Boosted trees on log(actual / native): LightGBM with a quantile loss, and by which evidence they are believed.

**The loss** is that of a quantile, the median by default, smoothed near zero (the quantile Huber loss of Dabney et al.
2018). LightGBM's own ``quantile`` objective is its limit for a width of 0; it sets leaves to quantiles of their rows
afterwards, which rules out monotone constraints, and in cross-validation over join templates its 99th percentile of the
q-error was 1.7 times as high. The smoothed one is given to LightGBM as gradients, which also lets a lower bound be what
it is: a prediction above it costs nothing.

**Monotone** are the features that are measurements of the very ratio that is predicted: the more rows a table's sample
or the common keys show than the native estimate expects, the higher the prediction.

**Evidence.** Boosters trained without one part of the join templates predict that part: the honest error of the
``templates`` split. The number of trees is the one that gains most there and on new values of templates that were
trained on, in equal parts. The model itself is then trained on all rows,
the mean of a few boosters that differ in their seeds. The honest errors also say when not to trust it. A correction is
used where there is evidence that such corrections were better than the native estimates on templates not seen before:
for rows with that many features outside of the ranges trained on; for rows whose leaves have that much **support** (the
number of different queries whose sub-plans ended there, as a mean over all trees of its logarithm); and for rows whose
error is expected to be that large. What error is expected (``log_std``) is a further small ensemble's 68 % quantile of
the honest errors, scaled so that 68 % of these are below it. Where full corrections are worse than none, all are
shrunk.

Sub-plans of generated statements count half, are judged by only where there are few others, and are left out together
with the templates that they share.

Everything is deterministic for one seed and one version of LightGBM. One thread does all of it: LightGBM keeps the
number of threads in one place for the whole process, and two trainings at once with different numbers crash; its own
threads wait busily for each other, which on a busy machine takes ten times as long as one alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from model_runtime.manifest import NEVER
from planner.features import flat
from training.dataset import Dataset
from training.errors import TrainingError
from training.export import UNSUPPORTED
from training.gbdt_known import LEAST_KNOWN, HeldOut, Known, find_known, with_others
from training.gbdt_scores import PERCENTILES, Split, folds, folds_of, q_errors
from training.judging import deviation_limit, evident_limit, no_worse

__all__ = ["PERCENTILES", "Settings", "Split", "Stopped", "Trained", "folds", "q_errors", "train"]

Array = npt.NDArray[Any]
LEAST_ROWS: Final = 40
LEAST_JUDGED: Final = 100
"""With fewer exact rows of the workload's own, generated ones are judged by too."""
SCALES: Final = (1.0, 0.75, 0.5, 0.25)
WITHIN: Final = 0.6827
"""The share of errors that are below one standard deviation."""
MONOTONE: Final = frozenset({
    "sample_shift", "class_shift", "informed_shift", "bare_shift_sum", "filter_shift_sum", "pair_shift_sum",
    "path_shift_sum",
})  # fmt: skip
"""Features that measure ln(actual / native) from one side: the prediction never falls when one rises."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the trees are grown. The values were chosen by cross-validation over join templates, and small enough
    that 26 sub-plans are predicted in 0.3 ms and 200 in 2 ms. ``quantile`` is the one that is predicted, ``width``
    where the loss becomes linear."""

    folds: int = 5
    members: int = 2
    rounds: int = 500
    leaves: int = 15
    depth: int = 6
    rate: float = 0.08
    least_in_leaf: int = 20
    quantile: float = 0.5
    width: float = 1.5
    features: float = 0.3
    rows: float = 0.8
    deviation_rounds: int = 60


@dataclass(frozen=True, slots=True)
class Trained:
    """``members`` and ``deviation`` are LightGBM boosters; a prediction is the members' mean times ``scale``, within
    ``clip``. ``supports`` has for each member and tree what each leaf adds to a row's support. ``ranges`` are the least
    and the greatest value of each feature. A prediction is not to be used with more than ``outside_ranges`` features
    outside of them, with a support below ``least_support``, or with a ``log_std`` (``deviation`` times
    ``deviation_scale``) above the one here; None: there is no such limit. ``splits`` has ``templates`` and ``random``,
    both of rows that the predicting booster has not seen; ``within`` is the share of the former that is no further off
    than its ``log_std``. ``known`` are the limits of templates that were trained on, in whose rows ``random`` has their
    scale; ``general``: templates that were not are corrected too."""

    members: tuple[Any, ...]
    supports: tuple[tuple[Array, ...], ...]
    deviation: Any
    deviation_scale: float
    scale: float
    clip: tuple[float, float]
    ranges: tuple[tuple[float, float], ...]
    outside_ranges: int
    least_support: float | None
    log_std: float | None
    splits: Mapping[str, Split]
    rounds: int
    within: float
    known: Known | None = None
    general: bool = True

    def predict(self, features: Array) -> Array:
        """log(actual / native) [n] of features [n, F], not clipped; what the exported graph answers."""
        return np.asarray(np.mean([_answer(member, features) for member in self.members], axis=0) * self.scale)

    def support(self, features: Array) -> Array:
        """The support [n] of rows."""
        each = [_support(member, own, features) for member, own in zip(self.members, self.supports, strict=True)]
        return np.asarray(np.mean(each, axis=0))


ONE_AT_A_TIME: Final = threading.Lock()


def _answer(booster: Any, features: Array) -> Array:
    return np.asarray(booster.predict(features, num_threads=1))


def _leaves(booster: Any, features: Array) -> Array:
    """The leaf of each row in each tree, [n, trees]."""
    return np.asarray(booster.predict(features, pred_leaf=True, num_threads=1), np.int64).reshape(len(features), -1)


def _support(booster: Any, supports: tuple[Array, ...], features: Array) -> Array:
    leaves = _leaves(booster, features)
    return np.asarray(np.mean([own[leaves[:, tree]] for tree, own in enumerate(supports)], axis=0))


def _supports(booster: Any, features: Array, queries: Array) -> tuple[Array, ...]:
    """For each tree ln(1 + number of different queries) by leaf, of the rows it was trained on."""
    leaves = _leaves(booster, features)
    width = int(queries.max()) + 1
    found = []
    for tree in range(leaves.shape[1]):
        pairs = np.unique(leaves[:, tree] * width + queries)
        found.append(np.log1p(np.bincount(pairs // width, minlength=int(leaves[:, tree].max()) + 1)))
    return tuple(found)


class Stopped(Exception):
    """The caller asked to stop."""


def train(
    data: Dataset,
    settings: Settings,
    *,
    seed: int,
    stop: threading.Event | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train on all of the data. Raises TrainingError when it is too little or LightGBM is missing, `Stopped` soon
    after ``stop`` is set. ``progress`` is told how many ensembles of how many are done."""
    if len(data) < LEAST_ROWS:
        raise TrainingError(
            f"only {len(data)} joins with rows were counted, at least {LEAST_ROWS} are needed: give more queries with "
            "joins, or more time with --budget"
        )
    judged = data.judged if data.judged.sum() >= LEAST_JUDGED else ~data.lower
    if judged.sum() < LEAST_ROWS:
        raise TrainingError(f"only {judged.sum()} joins were counted to the end, at least {LEAST_ROWS} are needed")
    groups = data.template if len(np.unique(data.template[judged])) > 1 else data.query
    if len(np.unique(groups[judged])) == 1:
        groups = np.arange(len(data))
    by_template = folds_of(groups, judged, settings.folds, seed)
    queries = data.query if len(np.unique(data.query[judged])) > 1 else groups
    by_query = folds_of(queries, judged, settings.folds, seed + 1)
    target, kept = data.target[judged], data.features[judged]
    total = 2 * _count(by_template) + 2 * _count(by_query) + 1 + settings.members
    with ONE_AT_A_TIME:
        trainer = _Trainer(data, judged, settings, seed, stop or threading.Event(), progress, total)
        of_templates, of_queries = trainer.cross(by_template), trainer.cross(by_query)
        again = with_others(data.template, data.judged, by_query)[judged] & (queries is data.query)
        rounds = _rounds(of_templates, of_queries if again.sum() >= LEAST_KNOWN else None)
        unseen, support = trainer.unseen(of_templates, rounds)
        random, random_support = trainer.unseen(of_queries, rounds)
        native = np.abs(target)
        scale = next((scale for scale in SCALES if no_worse(native, np.abs(target - scale * unseen))), 0.0)
        error = np.abs(target - scale * unseen)
        expected = trainer.deviations(error, by_template[judged])
        random_expected = trainer.deviations(error, by_query[judged])
        deviation = trainer.deviation(error)
        members = [trainer.member(number, rounds) for number in range(settings.members)]
        supports = tuple(_supports(member, data.features, data.query) for member in members)
    stretch = float(np.percentile(error / np.maximum(expected, 1e-3), 100 * WITHIN))
    expected = expected * stretch
    outside = _outside(kept, by_template[judged])
    unsupported = deviation_limit(-support, native, error)
    limit = deviation_limit(expected, native, error) or (None if unsupported is None else UNSUPPORTED / 2)
    outside_ranges = int(evident_limit(outside, native, error, np.arange(outside.max() + 1)))
    if not scale:  # the graph may still have the scale of known templates
        limit, outside_ranges = NEVER, 0
    doubt = random_expected * stretch
    if unsupported is not None:
        doubt = doubt + UNSUPPORTED * (random_support < -unsupported)
    held_out = HeldOut(target, random, _outside(kept, by_query[judged]), doubt)
    known = find_known(held_out.of(again), scale, outside_ranges, limit, SCALES)
    served = np.where(again, known.scale if known is not None else scale, scale) * random
    low, high = float(data.target[~data.lower].min()), float(data.target.max())
    return Trained(
        members=tuple(members),
        supports=supports,
        deviation=deviation,
        deviation_scale=stretch,
        scale=scale or (known.scale if known is not None else 0.0),
        general=scale > 0,
        clip=(min(low, 0.0) - 0.5, max(high, 0.0) + 0.5),
        ranges=tuple(zip(data.features.min(axis=0).tolist(), data.features.max(axis=0).tolist(), strict=True)),
        outside_ranges=outside_ranges,
        least_support=None if unsupported is None else -unsupported,
        log_std=limit,
        splits={
            "templates": _split(data, judged, scale * unseen),
            "random": _split(data, judged, served),
        },
        rounds=rounds,
        within=float((error <= expected).mean()),
        known=known,
    )


@dataclass(frozen=True, slots=True)
class _Crossed:
    """Boosters by the ``fold`` [n] that each was trained without, and by how much their mean loss on it is less than
    that of no correction after each tree, ``gain`` [rounds]."""

    fold: Array
    boosters: Mapping[int, Any]
    gain: Array


def _rounds(of_templates: _Crossed, of_queries: _Crossed | None) -> int:
    """How many trees are best for templates not seen and for new values of those that were, where there are such. The
    former gain nothing rather than lose: corrections that are worse than none are shrunk."""
    if of_queries is None:
        return int(np.argmax(of_templates.gain)) + 1
    gain = np.maximum(of_templates.gain, 0.0) + np.maximum(of_queries.gain, 0.0)
    return int(np.argmax(gain if gain.max() > 0 else of_templates.gain)) + 1


def _count(fold: Array) -> int:
    return len(np.unique(fold[fold >= 0]))


def _split(data: Dataset, judged: Array, prediction: Array) -> Split:
    target = data.target[judged]
    return Split(len(np.unique(data.query[judged])), len(target), q_errors(target), q_errors(target, prediction))


def _outside(features: Array, fold: Array) -> Array:
    """How many features of each row are outside of the ranges of all rows of other folds, [n]."""
    outside = np.zeros(len(fold), np.int64)
    for number in np.unique(fold):
        out = fold == number
        if out.all():
            break
        low, high = features[~out].min(axis=0), features[~out].max(axis=0)
        outside[out] = ((features[out] < low) | (features[out] > high)).sum(axis=1)
    return outside


def lightgbm_module() -> Any:
    """LightGBM, which comes with an extra. Raises TrainingError without it."""
    try:
        import lightgbm
    except ImportError:
        raise TrainingError("training needs LightGBM: pip install 'pilotwire[train]'") from None
    return lightgbm


class _Trainer:
    """One training run: its data, settings, and count of what is done."""

    def __init__(
        self,
        data: Dataset,
        judged: Array,
        settings: Settings,
        seed: int,
        stop: threading.Event,
        progress: Callable[[int, int], None] | None,
        total: int,
    ) -> None:
        self._lightgbm = lightgbm_module()
        self._data = data
        self._target = data.target
        self._judged = judged
        self._settings = settings
        self._seed = seed
        self._stop = stop
        self._progress = progress
        self._total = total
        self._done = 0
        if progress is not None:
            progress(0, total)

    def cross(self, fold: Array) -> _Crossed:
        """A booster without each fold, and how good they are on it after each tree."""
        judged = self._judged
        boosters, loss = {}, np.zeros(self._settings.rounds)
        for out in np.unique(fold[fold >= 0]).tolist():
            rows = (fold == out) & judged
            boosters[out], curve = self._median(fold != out, rows)
            loss += curve * rows.sum() / judged.sum()
        return _Crossed(fold, boosters, self._loss(self._target[judged]) - loss)

    def unseen(self, crossed: _Crossed, rounds: int) -> tuple[Array, Array]:
        """For all judged rows what boosters trained without their fold predict with so many trees, and how much support
        they have there, [judged] each."""
        data, judged, fold = self._data, self._judged, crossed.fold
        unseen, support = np.zeros(len(fold)), np.zeros(len(fold))
        for out, booster in crossed.boosters.items():
            member, rows = self._cut(booster, rounds), (fold == out) & judged
            unseen[rows] = _answer(member, data.features[rows])
            own = _supports(member, data.features[fold != out], data.query[fold != out])
            support[rows] = _support(member, own, data.features[rows])
        return unseen[judged], support[judged]

    def member(self, number: int, rounds: int) -> Any:
        """One booster of the model: on all rows."""
        every = np.ones(len(self._data), bool)
        return self._cut(self._median(every, None, rounds, self._seed + 101 * number)[0], rounds)

    def deviation(self, error: Array, rows: Array | None = None) -> Any:
        """A booster that expects a quantile of absolute errors [judged]; of ``rows`` (bool [judged]) alone."""
        rows = np.ones(len(error), bool) if rows is None else rows
        rounds = self._settings.deviation_rounds
        parameters = {"objective": "quantile", "alpha": WITHIN}
        return self._cut(self._grow(parameters, self._data.features[self._judged][rows], error[rows], rounds), rounds)

    def deviations(self, error: Array, fold: Array) -> Array:
        """What errors boosters without a fold expect of it, [judged]."""
        expected = np.zeros(len(fold))
        for out in (fold == number for number in np.unique(fold)):
            expected[out] = _answer(self.deviation(error, ~out), self._data.features[self._judged][out])
        return expected

    def _median(
        self, rows: Array, unseen: Array | None, rounds: int | None = None, seed: int | None = None
    ) -> tuple[Any, Array]:
        """A booster of the quantile that is predicted, and its mean loss on the unseen rows after each round."""
        data = self._data
        parameters = {
            "objective": _quantile_loss(
                self._target[rows], data.weight[rows], data.lower[rows], self._settings.quantile, self._settings.width
            ),
            "metric": "none",
        }
        if data.features.shape[1] == len(flat.NAMES):
            parameters["monotone_constraints"] = [int(name in MONOTONE) for name in flat.NAMES]
            parameters["monotone_constraints_method"] = "advanced"
        curve: list[float] = []
        seen = None if unseen is None else (data.features[unseen], self._target[unseen])
        booster = self._grow(
            parameters, data.features[rows], self._target[rows], rounds or self._settings.rounds, seen, curve, seed
        )
        return booster, np.array(curve)

    def _grow(
        self,
        parameters: Mapping[str, Any],
        features: Array,
        target: Array,
        rounds: int,
        unseen: tuple[Array, Array] | None = None,
        curve: list[float] | None = None,
        seed: int | None = None,
    ) -> Any:
        settings = self._settings
        whole = {
            "num_leaves": settings.leaves,
            "max_depth": settings.depth,
            "learning_rate": settings.rate,
            "min_data_in_leaf": min(settings.least_in_leaf, max(1, len(target) // 8)),
            "feature_fraction": settings.features,
            "bagging_fraction": settings.rows,
            "bagging_freq": 1,
            "num_threads": 1,
            "seed": self._seed if seed is None else seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
            **parameters,
        }
        plain = {name: value for name, value in whole.items() if not callable(value)}
        data = self._lightgbm.Dataset(features, target, params=plain)
        scores: dict[str, dict[str, list[float]]] = {}
        sets, callbacks = [], [self._look]
        if unseen is not None:
            sets.append(data.create_valid(*unseen))
            callbacks.append(self._lightgbm.record_evaluation(scores))
        booster = self._lightgbm.train(whole, data, rounds, valid_sets=sets, callbacks=callbacks, feval=self._error)
        if curve is not None and scores:
            curve += scores["valid_0"]["error"]
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        return booster

    def _cut(self, booster: Any, rounds: int) -> Any:
        """The booster's first trees alone: an export takes all that are there."""
        return self._lightgbm.Booster(model_str=booster.model_to_string(num_iteration=rounds))

    def _error(self, prediction: Array, data: Any) -> tuple[str, float, bool]:
        """For LightGBM."""
        return "error", self._loss(data.get_label() - prediction), False

    def _loss(self, difference: Array) -> float:
        """The loss of the quantile, without the smoothing: what the number of trees is chosen by."""
        quantile = self._settings.quantile
        return float(np.maximum(quantile * difference, (quantile - 1) * difference).mean())

    def _look(self, _: Any) -> None:
        if self._stop.is_set():
            raise Stopped


def _quantile_loss(
    target: Array, weight: Array, lower: Array, quantile: float, width: float
) -> Callable[[Array, Any], tuple[Array, Array]]:
    """The gradients of the quantile Huber loss for LightGBM. For rows of which only a lower bound is known, a
    prediction above it is right."""
    too_low, too_high = 2 * quantile * weight, 2 * (1 - quantile) * weight

    def gradients(prediction: Array, _: Any) -> tuple[Array, Array]:
        difference = prediction - target
        slope = np.where(difference < 0, too_low, too_high)
        slope = np.where(lower & (difference > 0), 1e-6, slope)
        return slope * np.clip(difference, -width, width), slope

    return gradients
