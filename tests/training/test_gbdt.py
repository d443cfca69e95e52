"""Training on made-up sub-plans whose truth is known."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.features import flat
from training.dataset import Dataset
from training.errors import TrainingError
from training.gbdt import Settings, Stopped, Trained, _Crossed, _rounds, folds, q_errors, train
from training.judging import no_worse

QUICK = Settings(folds=4, members=2, rounds=60, features=1.0)


def dataset(rows: int = 900, *, noise: float = 0.1, learnable: bool = True, templates: int = 12) -> Dataset:
    """The ratio is a function of two of five features, or nothing but noise."""
    random = np.random.default_rng(3)
    features = random.normal(size=(rows, 5)).astype(np.float32)
    truth = 2.0 * features[:, 0] + np.where(features[:, 1] > 0, 3.0, 0.0) if learnable else np.zeros(rows)
    native = np.exp(random.uniform(3, 12, rows))
    query = np.sort(random.integers(0, rows // 6, rows))
    return Dataset(
        features=features,
        native=native,
        actual=native * np.exp(truth + noise * random.normal(size=rows)),
        query=query,
        template=query % templates,
        queries=len(np.unique(query)),
        empty=0,
    )


@pytest.fixture(scope="module")
def trained() -> Trained:
    return train(dataset(), QUICK, seed=1)


def test_it_learns_and_says_how_well_on_what_it_has_not_seen(trained: Trained) -> None:
    for split in (trained.splits["templates"], trained.splits["random"]):
        assert (split.queries, split.sub_plans) == (dataset().queries, 900)
        assert split.native == q_errors(dataset().target)
        assert split.native[1] > 20
        assert split.model[0] < 1.5
        assert split.model[1] < 3
    assert trained.scale == 1
    assert trained.log_std is None
    assert trained.least_support is None
    assert 0.6 < trained.within < 0.75
    assert q_errors(dataset().target, trained.predict(dataset().features))[1] < 3


def test_what_it_has_seen_goes_into_the_bounds(trained: Trained) -> None:
    data = dataset()
    assert np.array(trained.ranges)[:, 0] == pytest.approx(data.features.min(axis=0))
    assert np.array(trained.ranges)[:, 1] == pytest.approx(data.features.max(axis=0))
    assert trained.clip[0] < data.target.min() < data.target.max() < trained.clip[1]
    assert trained.outside_ranges >= 0
    assert [member.num_trees() for member in trained.members] == [trained.rounds] * 2


def test_the_same_seed_gives_the_same_trees(trained: Trained) -> None:
    again = train(dataset(), QUICK, seed=1)
    other = train(dataset(), QUICK, seed=2)
    texts = [[member.model_to_string() for member in model.members] for model in (trained, again, other)]
    assert texts[0] == texts[1]
    assert texts[0] != texts[2]


def test_where_nothing_can_be_learned_nothing_is_corrected() -> None:
    trained = train(dataset(learnable=False, noise=1.0), QUICK, seed=1)
    split = trained.splits["templates"]
    assert all(model <= 1.05 * native for native, model in zip(split.native[:2], split.model[:2], strict=True))
    assert np.abs(trained.predict(dataset().features)).mean() < 0.3


def test_rows_whose_error_is_expected_to_be_large_are_given_up() -> None:
    """One template in four has ratios that go against what all others teach, and a feature that tells."""
    data = dataset(1600, templates=16)
    odd = np.random.default_rng(5).random(1600) < 0.25
    features = data.features.copy()
    features[:, 4] = odd
    ratio = np.where(
        odd, np.random.default_rng(6).choice([-0.3, 0.3], 1600) + 6 * (data.template % 4 == 0), data.target
    )
    mixed = Dataset(
        features, data.native, data.native * np.exp(ratio), data.query, data.template, data.queries, data.empty
    )
    trained = train(mixed, QUICK, seed=1)
    expected = trained.deviation.predict(features)
    assert expected[odd].mean() > expected[~odd].mean()


def test_new_values_of_templates_that_were_trained_on_are_believed_more() -> None:
    """Each template has a part of the ratio of its own, which a feature tells whoever has seen the template."""
    data = dataset(1600, templates=24)
    own = np.random.default_rng(5).choice([-4.0, 4.0], 24)[data.template]
    features = data.features.copy()
    features[:, 4] = data.template
    mixed = replace(data, features=features, actual=data.actual * np.exp(own))
    trained = train(mixed, QUICK, seed=1)
    assert trained.known is not None
    assert trained.known.used > trained.known.before
    assert trained.scale == trained.known.scale > 0
    assert not trained.general
    assert trained.splits["templates"].model == trained.splits["templates"].native
    assert trained.splits["random"].model[1] < trained.splits["random"].native[1] / 2
    assert train(replace(mixed, template=mixed.query), QUICK, seed=1).known is None


@pytest.mark.parametrize(("rows", "templates"), [(40, 1), (60, 2), (200, 1)])
def test_little_data_is_enough_to_go_on(rows: int, templates: int) -> None:
    data = dataset(rows, templates=templates)
    trained = train(data, QUICK, seed=1)
    assert len(trained.members) >= 2
    assert np.isfinite(trained.predict(data.features)).all()


def test_one_query_alone() -> None:
    data = dataset(60)
    same = np.zeros(60, np.int64)
    trained = train(Dataset(data.features, data.native, data.actual, same, same, 1, 0), QUICK, seed=1)
    assert np.isfinite(trained.predict(data.features)).all()


def test_generated_statements_help_and_are_not_judged_by() -> None:
    data = dataset(1200)
    own = data.query % 3 == 0
    mixed = replace(data, weight=np.where(own, 1.0, 0.5), queries=len(np.unique(data.query[own])))
    alone = replace(
        data,
        **{name: getattr(data, name)[own] for name in ("features", "native", "actual", "query", "template")},
        **{name: getattr(mixed, name)[own] for name in ("weight", "lower", "block", "place")},
    )
    trained, without = train(mixed, QUICK, seed=1), train(alone, QUICK, seed=1)
    assert trained.splits["random"].sub_plans == without.splits["random"].sub_plans == own.sum()
    assert trained.splits["random"].native == without.splits["random"].native
    assert trained.splits["random"].model[1] < without.splits["random"].model[1]


def test_where_the_workload_is_small_generated_statements_are_judged_by_too() -> None:
    data = dataset(300)
    few = replace(data, weight=np.where(np.arange(300) < 30, 1.0, 0.5))
    assert train(few, QUICK, seed=1).splits["random"].sub_plans == 300


def test_a_lower_bound_is_not_taken_for_the_truth() -> None:
    """Half of the labels say "at least so much", a hundred times too little: the median of the others is found."""
    data = dataset(1200)
    lower = np.random.default_rng(1).random(1200) < 0.5
    actual = np.where(lower, data.actual / 100, data.actual)
    bounded = train(replace(data, actual=actual, lower=lower), QUICK, seed=1)
    believed = train(replace(data, actual=actual), QUICK, seed=1)
    error = [np.abs(data.target - trained.predict(data.features)).mean() for trained in (bounded, believed)]
    assert error[0] < 0.5
    assert error[1] > 1.5


def test_another_quantile_lies_higher() -> None:
    data = dataset(1200, noise=1.0)
    low, high = (
        train(data, replace(QUICK, quantile=one, width=1.0, rounds=120, folds=2, members=1), seed=1)
        for one in (0.5, 0.85)
    )
    above = [(data.target > trained.predict(data.features)).mean() for trained in (low, high)]
    assert above[1] < above[0] - 0.2


def test_predictions_rise_with_what_was_measured() -> None:
    random = np.random.default_rng(2)
    features = random.normal(size=(500, len(flat.NAMES))).astype(np.float32)
    place = flat.NAMES.index("class_shift")
    data = dataset(500)
    # In the data it falls in a part, by chance.
    target = features[:, place] + np.where(np.abs(features[:, place]) < 0.3, -4 * features[:, place], 0)
    quick = replace(QUICK, folds=2, members=1)
    trained = train(replace(data, features=features, actual=data.native * np.exp(target)), quick, seed=1)
    line = np.repeat(features[:1], 200, axis=0)
    line[:, place] = np.linspace(-3, 3, 200)
    assert (np.diff(trained.predict(line)) >= -1e-9).all()
    assert np.ptp(trained.predict(line)) > 1


def test_rows_far_from_all_training_have_little_support() -> None:
    data = dataset(1200)
    features = data.features.copy()
    features[:, 0] = np.where(data.query < 5, features[:, 0] + 9, features[:, 0])
    trained = train(replace(data, features=features), QUICK, seed=1)
    support = trained.support(features)
    assert support[data.query < 5].mean() < support[data.query >= 5].mean() - 0.3
    assert support.max() <= np.log1p(data.queries)


def test_too_little_data() -> None:
    with pytest.raises(TrainingError, match="only 39 joins with rows were counted, at least 40 are needed"):
        train(dataset(39), QUICK, seed=1)


def test_it_stops_when_asked_to() -> None:
    stop = threading.Event()
    done: list[tuple[int, int]] = []

    def progress(*numbers: int) -> None:
        done.append((numbers[0], numbers[1]))
        if numbers[0]:
            stop.set()

    with pytest.raises(Stopped):
        train(dataset(), QUICK, seed=1, stop=stop, progress=progress)
    assert 2 <= len(done) < 4 * 4 + 3


def test_progress_reaches_its_end() -> None:
    done: list[tuple[int, int]] = []
    train(dataset(200), QUICK, seed=1, progress=lambda *numbers: done.append((numbers[0], numbers[1])))
    assert sorted(done) == [(number, 19) for number in range(20)]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=200), st.integers(1, 8), st.integers(0, 5))
def test_folds_keep_groups_together(groups: list[int], count: int, seed: int) -> None:
    fold = folds(np.array(groups), count, seed)
    place: dict[int, Any] = {}
    for group, number in zip(groups, fold.tolist(), strict=True):
        assert place.setdefault(group, number) == number
    assert set(fold.tolist()) == set(range(min(count, len(place))))


def test_a_slightly_worse_median_is_no_worse() -> None:
    native = np.array([0.0] * 8 + [2.0, 2.0])
    assert no_worse(native, np.where(native > 0, 0.5, 0.04))
    assert not no_worse(native, np.where(native > 0, 0.5, 0.06))
    assert not no_worse(native, np.where(native > 0, 2.1, 0.0))


def test_new_values_count_when_trees_are_counted() -> None:
    """Few trees are best for templates not seen; more are when new values of the others gain more than these lose."""

    def gain(*values: float) -> _Crossed:
        return _Crossed(np.zeros(0), {}, np.array(values))

    templates = gain(0.1, 0.05, -0.5)
    assert _rounds(templates, None) == 1
    assert _rounds(templates, gain(0.1, 0.3, 0.4)) == 3
    assert _rounds(templates, gain(-0.1, -0.3, -0.4)) == 1
    assert _rounds(gain(-0.3, -0.1), gain(-1.0, -1.0)) == 2
