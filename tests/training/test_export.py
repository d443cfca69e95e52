"""Exported trees answer as LightGBM does, on every float32 there is."""

from __future__ import annotations

import math
from typing import Any

import lightgbm
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.export import UNSUPPORTED, round_down, tree_model, tree_votes

FEATURES = 6


def rows(seed: int, count: int = 600) -> np.ndarray[Any, Any]:
    """Features with many equal values, neighbouring floats and negative numbers."""
    random = np.random.default_rng(seed)
    features = random.normal(size=(count, FEATURES)).astype(np.float32)
    features[:, 1] = np.round(features[:, 1])
    features[:, 2] = np.nextafter(np.float32(1), np.float32(2)) * (features[:, 2] > 0) + 1 * (features[:, 2] <= 0)
    return features


def booster(seed: int, *, missing: bool = False, rounds: int = 40) -> Any:
    features = rows(seed)
    target = 3 * features[:, 0] + np.where(features[:, 2] > 1, 2.0, -1.0) + features[:, 1]
    if missing:
        features[::5, 0] = np.nan
    parameters = {"objective": "l1", "num_leaves": 8, "verbosity": -1, "seed": seed, "num_threads": 1}
    return lightgbm.train(parameters, lightgbm.Dataset(features, target), rounds)


def run(model: onnx.ModelProto, features: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert all(value.shape == ["rows"] for value in session.get_outputs())
    return list(session.run(None, {"features": features}))


def test_the_mean_of_several_ensembles() -> None:
    members = [booster(1), booster(2), booster(3, rounds=7)]
    features = rows(9)
    (answer,) = run(tree_model(members, FEATURES, scale=0.75), features)
    wanted = np.mean([member.predict(features) for member in members], axis=0) * 0.75
    assert answer.shape == (len(features),)
    assert answer.dtype == np.float32
    assert np.abs(answer - wanted).max() < 1e-4
    assert np.ptp(answer) > 3


def test_the_deviation_is_a_second_output_with_a_floor() -> None:
    member, deviation = booster(1), booster(4)
    features = rows(9)
    answer, spread = run(tree_model([member], FEATURES, deviation=deviation, floor=0.25), features)
    assert np.abs(answer - member.predict(features)).max() < 1e-4
    wanted = np.maximum(deviation.predict(features), 0.25)
    assert np.abs(spread - wanted).max() < 1e-4
    assert (spread == 0.25).any()


def test_rows_of_little_support_are_given_a_large_error() -> None:
    members, deviation, features = [booster(1), booster(2)], booster(4), rows(9)
    leaves = [member.predict(features, pred_leaf=True) for member in members]
    random = np.random.default_rng(3)
    supports = [[random.random(8).tolist() for _ in range(40)] for _ in members]
    support = np.mean(
        [[supports[m][tree][leaf] for tree, leaf in enumerate(row)] for m in range(2) for row in leaves[m]], axis=1
    )
    support = support.reshape(2, -1).mean(axis=0)
    least = float(np.median(support))
    model = tree_model(
        members, FEATURES, deviation=deviation, deviation_scale=1.5, floor=0.1, supports=supports, least_support=least
    )
    answer, spread = run(model, features)
    assert np.abs(answer - np.mean([member.predict(features) for member in members], axis=0)).max() < 1e-4
    clear = np.abs(support - least) > 1e-4
    assert ((spread > UNSUPPORTED / 2) == (support < least))[clear].all()
    good = spread < UNSUPPORTED / 2
    assert np.abs(spread - np.maximum(1.5 * deviation.predict(features), 0.1))[good].max() < 1e-4
    assert 0.3 < good.mean() < 0.7


def test_the_votes_alone() -> None:
    node = tree_votes([booster(1), booster(2)], "both")
    assert (list(node.input), list(node.output)) == (["features"], ["both"])
    assert next(one.i for one in node.attribute if one.name == "n_targets") == 2


def test_no_rows_and_one_row() -> None:
    model = tree_model([booster(1)], FEATURES)
    assert run(model, np.zeros((0, FEATURES), np.float32))[0].shape == (0,)
    assert run(model, np.zeros((1, FEATURES), np.float32))[0].shape == (1,)


@pytest.mark.parametrize("missing", [False, True])
def test_missing_values_go_where_lightgbm_sends_them(missing: bool) -> None:
    member = booster(5, missing=missing)
    features = rows(8)
    features[::3, 0] = np.nan
    features[::7, 1] = np.nan
    (answer,) = run(tree_model([member], FEATURES), features)
    assert np.abs(answer - member.predict(features)).max() < 1e-4


def test_a_tree_of_one_leaf() -> None:
    member = lightgbm.train(
        {"verbosity": -1, "min_data_in_leaf": 20, "num_threads": 1},
        lightgbm.Dataset(rows(1)[:20], np.full(20, 2.5)),
        3,
    )
    (answer,) = run(tree_model([member], FEATURES), rows(2))
    assert answer == pytest.approx(2.5)


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_thresholds_divide_all_floats_alike(threshold: float, value: float) -> None:
    for one in (value, float(np.float32(max(min(threshold, 3e38), -3e38)))):
        if abs(threshold) <= 3.4e38:
            assert (one <= round_down(threshold)) == (one <= threshold)
    assert math.isfinite(round_down(threshold))
