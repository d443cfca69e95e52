"""A loaded model: what it answers, what it refuses, and that it stops."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_runtime import bundle
from model_runtime.check_process import CheckProcess
from model_runtime.limits import Limits
from model_runtime.runner import Model, ModelError
from tests.support.models import PATIENT, cardinality_model, hints_model, saboteur_model, sets_model


@pytest.fixture
def load(checker: CheckProcess, tmp_path: Path) -> Any:
    def loaded(make: Any, *arguments: Any, limits: Limits = PATIENT, **options: Any) -> Model:
        path = tmp_path / "m.onnx"
        make(path, *arguments, **options)
        content, verdict = bundle.inspect(path, limits, checker)
        assert content is not None
        return bundle.admit(content, verdict, limits)

    return loaded


def test_a_linear_model(load: Any) -> None:
    model = load(cardinality_model, "sales", "2.1.0", log_ratio=1.0, weights={"joins": 2.0}, log_std=0.25)
    assert (model.name, model.version, model.label, model.kind) == ("sales", "2.1.0", "sales-2.1.0", "cardinality")
    features = np.array([[0, 0, 0], [5, 1, 5], [0, -1.5, 0]], np.float32)
    outputs = model.predict({"features": features, "something else": features})
    np.testing.assert_allclose(outputs["log_ratio"], [1, 3, -2])
    np.testing.assert_allclose(outputs["log_std"], [0.25] * 3)
    assert outputs["log_ratio"].dtype == np.float32


def test_sets_of_any_size(load: Any) -> None:
    model = load(sets_model, log_ratio=0.5)
    for tables, joins in ((2, 1), (5, 4), (3, 0)):
        sizes = {"tables": tables, "joins": joins, "predicates": 2}
        inputs = {name: np.ones((4, size, 1), np.float32) for name, size in sizes.items()}
        inputs |= {f"{name}_mask": np.ones((4, size), np.float32) for name, size in sizes.items()}
        inputs["predicates_mask"][:, 1] = 0
        np.testing.assert_allclose(model.predict(inputs)["log_ratio"], [0.5 + tables + joins + 1] * 4)


def test_arms(load: Any) -> None:
    model = load(hints_model, arms={"a": {"geqo": "off"}, "b": {"enable_sort": "off"}}, log_latency_ratios=[0.1, -0.2])
    outputs = model.predict({"features": np.zeros((3, 3), np.float32)})
    np.testing.assert_allclose(outputs["log_latency_ratio"], [[0.1, -0.2]] * 3, rtol=1e-6)
    assert list(model.manifest.arms) == ["a", "b"]


def test_no_rows_need_no_model(load: Any) -> None:
    assert load(cardinality_model).predict({"features": np.zeros((0, 3))})["log_ratio"].shape == (0,)
    arms = load(hints_model, arms={"a": {}, "b": {}}, log_latency_ratios=[0, 0])
    assert arms.predict({"features": np.zeros((0, 3))})["log_latency_ratio"].shape == (0, 2)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "features is missing"),
        ({"features": np.zeros((2, 4))}, "[2, 4], the model takes [n, 3]"),
        ({"features": np.zeros(3)}, "the model takes [n, 3]"),
        ({"features": np.zeros((10_001, 3))}, "more than 10000"),
    ],
)
def test_wrong_inputs(load: Any, inputs: dict[str, Any], words: str) -> None:
    model = load(cardinality_model)
    with pytest.raises(ModelError) as error:
        model.predict(inputs)
    assert words in str(error.value)
    assert model.stats().failures == 1


def test_sets_of_different_numbers_of_rows(load: Any) -> None:
    model = load(sets_model)
    inputs = {name: np.ones((2, 1, 1)) for name in ("tables", "joins", "predicates")}
    inputs |= {f"{name}_mask": np.ones((2, 1)) for name in ("tables", "joins", "predicates")}
    with pytest.raises(ModelError, match="number of rows"):
        model.predict(inputs | {"joins": np.ones((3, 1, 1))})
    with pytest.raises(ModelError, match="ONNX Runtime"):
        model.predict(inputs | {"joins": np.ones((2, 3, 1)), "joins_mask": np.ones((2, 2))})


def test_what_is_not_a_number_is_not_given_on(load: Any) -> None:
    model = load(saboteur_model, "nan")
    assert model.predict({"features": np.zeros((2, 3))})["log_ratio"].tolist() == [0, 0]
    with pytest.raises(ModelError, match="not finite"):
        model.predict({"features": np.ones((2, 3))})


def test_nonsense_is_given_on(load: Any) -> None:
    answers = load(saboteur_model, "random").predict({"features": np.random.default_rng(1).random((100, 3))})
    assert np.abs(answers["log_ratio"]).max() > 4


def test_a_slow_prediction_is_stopped(checker: CheckProcess, tmp_path: Path) -> None:
    saboteur_model(tmp_path / "m.onnx", "slow")
    content, verdict = bundle.inspect(tmp_path / "m.onnx", PATIENT, checker)
    assert content is not None
    rows = {"features": np.zeros((2, 3))}
    hasty = bundle.admit(content, verdict, PATIENT.model_copy(update={"predict_ms": 15}))
    with pytest.raises(ModelError, match="stopped after 15 ms"):
        hasty.predict(rows)
    # The next run has a deadline of its own.
    patient = bundle.admit(content, verdict, PATIENT.model_copy(update={"predict_ms": 5000}))
    assert patient.predict(rows)["log_ratio"].tolist() == [0, 0]


def test_rows_out_of_range_are_counted(load: Any) -> None:
    model = load(cardinality_model, ranges={"tables": (2, 8), "filters": (0, 1)})
    rows = np.array([[2, 99, 0], [1, 0, 2], [9, 0, 0.5], [np.nan, 0, 0]], np.float32)
    assert model.outside_ranges(rows).tolist() == [0, 2, 1, 1]


def test_answers_do_not_depend_on_the_batch_or_the_thread(load: Any) -> None:
    model = load(cardinality_model, weights={"tables": 0.37, "joins": -1.93, "filters": 0.11})
    rows = np.random.default_rng(3).random((64, 3), np.float32)
    whole = model.predict({"features": rows})["log_ratio"]
    found: list[Any] = []
    threads = [
        threading.Thread(target=lambda: found.append(model.predict({"features": rows})["log_ratio"])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(whole, other) for other in found)
    alone = np.concatenate([model.predict({"features": row[None]})["log_ratio"] for row in rows])
    np.testing.assert_allclose(alone, whole, rtol=1e-5)


def test_times_are_counted(load: Any) -> None:
    model = load(cardinality_model)
    assert model.stats().count == 0
    for _ in range(10):
        model.predict({"features": np.zeros((5, 3))})
    stats = model.stats()
    assert (stats.count, stats.failures) == (10, 0)
    assert 0 < stats.p50_ms <= stats.p99_ms <= stats.max_ms
    assert 0 < stats.mean_ms <= stats.max_ms
