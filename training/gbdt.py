"""The baseline model: gradient-boosted trees on log(actual / native), and how good they are on joins not seen before.

The model is the mean of a few LightGBM ensembles. Each is trained without one part of the join templates, so that every
sub-plan is predicted by one member that has not seen its template: that is the honest error of the ``templates`` split.
How many trees they have is chosen for all together where that error is least. The loss is quadratic near zero and
linear beyond (Huber), which keeps a few wildly underestimated joins from bending everything else.

The same errors say when not to trust the model, by one rule: a correction is used where there is evidence that such
corrections were better than the native estimates on templates the member had not seen, for rows with that many features
outside of the ranges it was trained on, and for rows whose error a further small ensemble (``log_std``) expects to be
that large. And where full corrections are worse than none, all are shrunk.

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

from training.dataset import Dataset
from training.errors import TrainingError

Array = npt.NDArray[Any]
PERCENTILES: Final = (50, 90, 99)
LEAST_ROWS: Final = 40
SCALES: Final = (1.0, 0.75, 0.5, 0.25)
EVIDENCE_ROWS: Final = 20
EVIDENCE_GAIN: Final = 0.9
"""Corrections count as better when their mean error is at most so much of the native one's."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How the trees are grown. The values were chosen by cross-validation over join templates, and small enough
    that 26 sub-plans are predicted in 0.2 ms and 200 in 2 ms."""

    members: int = 5
    rounds: int = 160
    leaves: int = 15
    depth: int = 6
    rate: float = 0.08
    least_in_leaf: int = 30
    huber: float = 1.5
    features: float = 0.3
    rows: float = 0.8
    deviation_rounds: int = 60


@dataclass(frozen=True, slots=True)
class Split:
    """Percentiles (`PERCENTILES`) of the q-error over one way to divide the queries, native and model."""

    queries: int
    sub_plans: int
    native: tuple[float, ...]
    model: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Trained:
    """``members`` and ``deviation`` are LightGBM boosters; a prediction is the members' mean times ``scale``, within
    ``clip``. ``ranges`` are the least and the greatest value of each feature. A prediction is not to be used with more
    than ``outside_ranges`` features outside of them, or with a ``log_std`` above the one here, if there is one.
    ``splits`` has ``templates`` and ``random``, both of rows that the predicting member has not seen."""

    members: tuple[Any, ...]
    deviation: Any
    scale: float
    clip: tuple[float, float]
    ranges: tuple[tuple[float, float], ...]
    outside_ranges: int
    log_std: float | None
    splits: Mapping[str, Split]
    rounds: int

    def predict(self, features: Array) -> Array:
        """log(actual / native) [n] of features [n, F], not clipped; what the exported graph answers."""
        return np.asarray(np.mean([_answer(member, features) for member in self.members], axis=0) * self.scale)


_ONE_AT_A_TIME: Final = threading.Lock()


def _answer(booster: Any, features: Array) -> Array:
    return np.asarray(booster.predict(features, num_threads=1))


class Stopped(Exception):
    """The caller asked to stop."""


def folds(groups: Array, count: int, seed: int) -> Array:
    """A fold number [n] for each row: rows of a group stay together, and folds have about equally many rows. Fewer
    folds than ``count`` where there are fewer groups."""
    names, sizes = np.unique(groups, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    filled = np.zeros(min(count, len(names)))
    fold_of = {}
    for place in order:
        fold = int(np.argmin(filled))
        fold_of[names[place]] = fold
        filled[fold] += sizes[place]
    return np.array([fold_of[group] for group in groups], np.int64)


def q_errors(target: Array, prediction: Array | float = 0.0) -> tuple[float, ...]:
    """Percentiles of max(actual/estimate, estimate/actual) when log(actual / native) is predicted so."""
    error = np.abs(target - prediction)
    return tuple(float(value) for value in np.exp(np.minimum(np.percentile(error, PERCENTILES), 700)))


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
    groups = data.template if len(np.unique(data.template)) > 1 else data.query
    if len(np.unique(groups)) == 1:
        groups = np.arange(len(data))
    by_template = folds(groups, settings.members, seed)
    by_query = folds(data.query if data.queries > 1 else groups, settings.members, seed + 1)
    total = 2 * _count(by_template) + _count(by_query) + 1
    with _ONE_AT_A_TIME:
        trainer = _Trainer(data.features, data.target, settings, seed, stop or threading.Event(), progress, total)
        members, unseen, rounds = trainer.cross(by_template)
        _, random, _ = trainer.cross(by_query)
        native = np.abs(data.target)
        scale = next((scale for scale in SCALES if _no_worse(native, np.abs(data.target - scale * unseen))), 0.0)
        error = np.abs(data.target - scale * unseen)
        deviation, expected = trainer.deviations(error, by_template)
    outside = _outside(data.features, by_template)
    levels = np.unique(np.percentile(expected, np.arange(50, 100)))
    judged = [level for level in levels if (expected > level).sum() >= EVIDENCE_ROWS]
    log_std = _limit(expected, native, error, np.array([*judged, np.inf]))
    low, high = float(data.target.min()), float(data.target.max())
    return Trained(
        members=tuple(members),
        deviation=deviation,
        scale=scale,
        clip=(min(low, 0.0) - 0.5, max(high, 0.0) + 0.5),
        ranges=tuple(zip(data.features.min(axis=0).tolist(), data.features.max(axis=0).tolist(), strict=True)),
        outside_ranges=int(_limit(outside, native, error, np.arange(outside.max() + 1))),
        log_std=log_std if np.isfinite(log_std) else None,
        splits={
            "templates": _split(data, scale * unseen),
            "random": _split(data, scale * random),
        },
        rounds=rounds,
    )


def _count(fold: Array) -> int:
    return len(np.unique(fold))


def _split(data: Dataset, prediction: Array) -> Split:
    return Split(data.queries, len(data), q_errors(data.target), q_errors(data.target, prediction))


def _no_worse(native: Array, model: Array) -> bool:
    """Whether neither the median nor the tail got worse; errors of logarithms, [n]."""
    return bool(np.all(np.percentile(model, (50, 90)) <= np.percentile(native, (50, 90))))


def _limit(measure: Array, native: Array, model: Array, candidates: Array) -> float:
    """The least candidate for which there is no evidence that rows with a greater measure gain; the last one where
    there is such evidence for all. ``native`` and ``model`` are absolute errors of logarithms, [n]."""
    for limit in candidates[:-1]:
        beyond = measure > limit
        if beyond.sum() < EVIDENCE_ROWS or model[beyond].mean() > EVIDENCE_GAIN * native[beyond].mean():
            return float(limit)
    return float(candidates[-1])


def _outside(features: Array, fold: Array) -> Array:
    """How many features of each row are outside of the ranges of all rows of other folds, [n]."""
    outside = np.zeros(len(fold), np.int64)
    for number in np.unique(fold):
        out = fold == number
        low, high = features[~out].min(axis=0), features[~out].max(axis=0)
        outside[out] = ((features[out] < low) | (features[out] > high)).sum(axis=1)
    return outside


class _Trainer:
    """One training run: its data, settings, and count of what is done."""

    def __init__(
        self,
        features: Array,
        target: Array,
        settings: Settings,
        seed: int,
        stop: threading.Event,
        progress: Callable[[int, int], None] | None,
        total: int,
    ) -> None:
        try:
            import lightgbm
        except ImportError:
            raise TrainingError("training needs LightGBM: pip install 'pilotwire[train]'") from None
        self._lightgbm = lightgbm
        self._features = features
        self._target = target
        self._settings = settings
        self._seed = seed
        self._stop = stop
        self._progress = progress
        self._total = total
        self._done = 0
        if progress is not None:
            progress(0, total)

    def cross(self, fold: Array) -> tuple[list[Any], Array, int]:
        """One booster per fold, trained without it, what they predict for it [n], and how many trees each has: as many
        as give the least mean error over all folds."""
        rounds = self._settings.rounds
        parts = [fold == number for number in np.unique(fold)]
        grown = [self._grow(~out, self._target, rounds, out) for out in parts]
        error = sum(curve * out.sum() for (_, curve), out in zip(grown, parts, strict=True))
        best = int(np.argmin(error)) + 1
        members = [self._cut(booster, best) for booster, _ in grown]
        unseen = np.zeros(len(fold))
        for member, out in zip(members, parts, strict=True):
            unseen[out] = _answer(member, self._features[out])
        return members, unseen, best

    def deviations(self, error: Array, fold: Array) -> tuple[Any, Array]:
        """A booster that expects absolute errors, and what boosters without a fold expect of it [n]."""
        rounds = self._settings.deviation_rounds
        expected = np.zeros(len(fold))
        for out in (fold == number for number in np.unique(fold)):
            expected[out] = _answer(self._grow(~out, error, rounds)[0], self._features[out])
        return self._cut(self._grow(np.ones(len(fold), bool), error, rounds)[0], rounds), expected

    def _grow(self, rows: Array, target: Array, rounds: int, unseen: Array | None = None) -> tuple[Any, Array]:
        """A booster, and its mean error on the unseen rows after each round."""
        settings = self._settings
        parameters = {
            "objective": "huber",
            "alpha": settings.huber,
            "metric": "l1",
            "num_leaves": settings.leaves,
            "max_depth": settings.depth,
            "learning_rate": settings.rate,
            "min_data_in_leaf": min(settings.least_in_leaf, max(1, int(rows.sum()) // 8)),
            "feature_fraction": settings.features,
            "bagging_fraction": settings.rows,
            "bagging_freq": 1,
            "num_threads": 1,
            "seed": self._seed,
            "deterministic": True,
            "force_row_wise": True,
            "verbosity": -1,
        }
        data = self._lightgbm.Dataset(self._features[rows], target[rows], params=parameters)
        curve: dict[str, dict[str, list[float]]] = {}
        sets, callbacks = [], [self._look]
        if unseen is not None:
            sets.append(data.create_valid(self._features[unseen], target[unseen]))
            callbacks.append(self._lightgbm.record_evaluation(curve))
        booster = self._lightgbm.train(parameters, data, rounds, valid_sets=sets, callbacks=callbacks)
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)
        return booster, np.array(curve["valid_0"]["l1"] if curve else [])

    def _cut(self, booster: Any, rounds: int) -> Any:
        """The booster's first trees alone: an export takes all that are there."""
        return self._lightgbm.Booster(model_str=booster.model_to_string(num_iteration=rounds))

    def _look(self, _: Any) -> None:
        if self._stop.is_set():
            raise Stopped
