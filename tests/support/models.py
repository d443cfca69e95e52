"""Small real model files for tests.

``cardinality_model(path, "sales", "1.2.0", log_ratio=0.7)`` writes a model that answers 0.7 for everything, with
``weights={"feature": 0.5}`` one that is linear in its features; ``sets_model`` and ``hints_model`` are the other kinds.
``saboteur_model`` misbehaves after it has passed the checks. All return the manifest. Further keywords go into the
manifest (``schema_hash``, ``ranges``, ``clip``, ``abstention``, ``vocabulary``, ``trained_at``). ``flat_graph`` and
``manifest_for`` are the two halves, for a file that is wrong on purpose. ``load_model(path)`` loads any.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_runtime import bundle
from model_runtime.check_process import CheckProcess
from model_runtime.limits import Limits
from model_runtime.manifest import MEANINGS, Featurizer, Kind, Manifest, SetFeatures
from model_runtime.runner import Model

FEATURES = ("tables", "joins", "filters")
Behaviour = Literal["random", "nan", "slow"]
OPSET = 21
PATIENT = Limits(batch_ms=60_000, check_seconds=60)


def load_model(path: Path) -> Model:
    """``bundle.load`` with all its checks, in one checking process for all tests: starting one takes longer."""
    return bundle.load(path, checker=_checker())


@cache
def _checker() -> CheckProcess:
    checker = CheckProcess()
    atexit.register(checker.close)
    return checker


def cardinality_model(
    path: Path,
    name: str = "model",
    version: str = "1.0.0",
    log_ratio: float = 0.0,
    *,
    features: Sequence[str] = FEATURES,
    weights: Mapping[str, float] | None = None,
    featurizer: tuple[str, str] = ("flat", "1"),
    log_std: float | None = None,
    **manifest: Any,
) -> Manifest:
    """``log_ratio + sum(weight * feature)``; with ``log_std`` that constant as a second output."""
    column = np.array([[(weights or {}).get(feature, 0.0)] for feature in features], np.float32)
    return save(path, flat_graph(log_ratio, column, log_std), name, version, features, featurizer, **manifest)


def hints_model(
    path: Path,
    name: str = "arms",
    version: str = "1.0.0",
    *,
    arms: Mapping[str, Mapping[str, str]],
    log_latency_ratios: Sequence[float],
    log_std: Sequence[float] | None = None,
    weights: np.ndarray[Any, Any] | None = None,
    features: Sequence[str] = FEATURES,
    featurizer: tuple[str, str] = ("flat", "1"),
    **manifest: Any,
) -> Manifest:
    """The same ratio for each arm, plus features @ ``weights`` [F, arms]; with ``log_std`` the same deviations too."""
    outputs: dict[str, tuple[str | int, ...]] = {"y": ("n", len(arms))}
    constants: dict[str, np.ndarray[Any, Any]] = {
        "w": np.zeros((len(features), len(arms)), np.float32) if weights is None else weights,
        "b": np.array(log_latency_ratios, np.float32),
    }
    nodes = [helper.make_node("MatMul", ["features", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    if log_std is not None:
        nodes.append(helper.make_node("Mul", ["p", "nothing"], ["none"]))
        nodes.append(helper.make_node("Add", ["none", "std"], ["log_std"]))
        constants["nothing"] = np.array(0, np.float32)
        outputs["log_std"] = ("n", len(arms))
        constants["std"] = np.array(log_std, np.float32)
    graph = _model(nodes, {"features": ("n", len(features))}, outputs, constants)
    _rename_output(graph, "y", "log_latency_ratio")
    return save(path, graph, name, version, features, featurizer, kind="hints", arms=dict(arms), **manifest)


def sets_model(
    path: Path,
    name: str = "sets",
    version: str = "1.0.0",
    log_ratio: float = 0.0,
    *,
    tables: Sequence[str] = ("table",),
    joins: Sequence[str] = ("join",),
    predicates: Sequence[str] = ("predicate",),
    featurizer: tuple[str, str] = ("sets", "1"),
    **manifest: Any,
) -> Manifest:
    """A sum over the real elements of all three sets, plus ``log_ratio``: pooling as in MSCN, without the layers."""
    names = {"tables": tuple(tables), "joins": tuple(joins), "predicates": tuple(predicates)}
    nodes: list[onnx.NodeProto] = []
    inputs: dict[str, tuple[str | int, ...]] = {}
    for part, features in names.items():
        inputs[part] = ("n", f"{part}_size", len(features))
        inputs[f"{part}_mask"] = ("n", f"{part}_size")
        nodes += [
            helper.make_node("Unsqueeze", [f"{part}_mask", "last"], [f"{part}_m"]),
            helper.make_node("Mul", [part, f"{part}_m"], [f"{part}_real"]),
            helper.make_node("ReduceSum", [f"{part}_real", "inner"], [f"{part}_sum"], keepdims=0),
        ]
    nodes += [
        helper.make_node("Sum", [f"{part}_sum" for part in names], ["all"]),
        helper.make_node("Add", ["all", "b"], ["log_ratio"]),
    ]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "last": np.array([2], np.int64),
        "inner": np.array([1, 2], np.int64),
        "b": np.array([log_ratio], np.float32),
    }
    graph = _model(nodes, inputs, {"log_ratio": ("n",)}, constants)
    manifest = {"sets": SetFeatures(**names), **manifest}
    return save(path, graph, name, version, (), featurizer, **manifest)


def saboteur_model(
    path: Path,
    behaviour: Behaviour,
    name: str = "saboteur",
    version: str = "6.6.6",
    *,
    features: Sequence[str] = FEATURES,
    featurizer: tuple[str, str] = ("flat", "1"),
    **manifest: Any,
) -> Manifest:
    """``random`` (between -8 and 8 without reason) and ``nan`` (not a number) answer 0 for rows of zeros, which is all
    that their self-test has, and pass every check. ``slow`` takes some 0.2 s for any rows and needs `PATIENT` limits to
    get in.
    """
    if behaviour == "slow":
        graph = _slow(len(features), 20)
    else:
        steps = {
            "random": [("Mul", ["s", "large"], "m"), ("Sin", ["m"], "i"), ("Mul", ["i", "eight"], "log_ratio")],
            "nan": [("Neg", ["s"], "m"), ("Sqrt", ["m"], "log_ratio")],
        }[behaviour]
        nodes = [
            helper.make_node("Abs", ["features"], ["a"]),
            helper.make_node("ReduceSum", ["a", "one"], ["s"], keepdims=0),
        ]
        nodes += [helper.make_node(operator, inputs, [output]) for operator, inputs, output in steps]
        constants = {"one": np.array([1], np.int64)}
        if behaviour == "random":
            constants |= {"large": np.array([1e4], np.float32), "eight": np.array([8], np.float32)}
        graph = _model(nodes, {"features": ("n", len(features))}, {"log_ratio": ("n",)}, constants)
    rows = np.zeros((2, len(features)), np.float32)
    return save(path, graph, name, version, features, featurizer, rows=rows, **manifest)


def flat_graph(log_ratio: float, weights: np.ndarray[Any, Any], log_std: float | None = None) -> onnx.ModelProto:
    """``features`` @ ``weights`` [F, 1] + ``log_ratio`` as a vector."""
    nodes = [
        helper.make_node("MatMul", ["features", "w"], ["product"]),
        helper.make_node("Squeeze", ["product", "one"], ["vector"]),
        helper.make_node("Add", ["vector", "b"], ["log_ratio"]),
    ]
    outputs: dict[str, tuple[str | int, ...]] = {"log_ratio": ("n",)}
    constants = {"w": weights, "one": np.array([1], np.int64), "b": np.array([log_ratio], np.float32)}
    if log_std is not None:
        nodes += [
            helper.make_node("Mul", ["vector", "zero"], ["none"]),
            helper.make_node("Add", ["none", "std"], ["log_std"]),
        ]
        constants |= {"zero": np.array([0], np.float32), "std": np.array([log_std], np.float32)}
        outputs["log_std"] = ("n",)
    return _model(nodes, {"features": ("n", len(weights))}, outputs, constants)


def manifest_for(
    graph: onnx.ModelProto,
    name: str = "model",
    version: str = "1.0.0",
    features: Sequence[str] = FEATURES,
    featurizer: tuple[str, str] = ("flat", "1"),
    kind: Kind = "cardinality",
    rows: np.ndarray[Any, Any] | None = None,
    **fields: Any,
) -> Manifest:
    """A right manifest for a graph, its self-test run on ``rows`` (three of them, made up, if not given)."""
    values: dict[str, Any] = {
        "kind": kind,
        "name": name,
        "version": version,
        "trained_at": datetime(2025, 1, 1, tzinfo=UTC),
        "featurizer": Featurizer(name=featurizer[0], version=featurizer[1]),
        "features": tuple(features),
        "clip": (-12.0, 12.0),
        "output_meaning": MEANINGS[kind],
        **fields,
    }
    if "self_test" not in values:
        random = np.random.default_rng(7)
        inputs = {}
        for value in graph.graph.input:
            shape = [3, *(dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim[1:])]
            inputs[value.name] = random.random(shape, np.float32) if rows is None else rows
        values["self_test"] = bundle.self_test(graph, inputs)
    return Manifest(**values)


def save(
    path: Path,
    graph: onnx.ModelProto,
    name: str,
    version: str,
    features: Sequence[str],
    featurizer: tuple[str, str],
    **fields: Any,
) -> Manifest:
    manifest = manifest_for(graph, name, version, **{"features": features, "featurizer": featurizer, **fields})
    bundle.write(graph, manifest, path)
    return manifest


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[str | int, ...]],
    outputs: Mapping[str, tuple[str | int, ...]],
    constants: Mapping[str, np.ndarray[Any, Any]],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "model",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    return model


def _rename_output(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
    for value in model.graph.output:
        value.name = new if value.name == old else value.name


def _slow(features: int, products: int) -> onnx.ModelProto:
    """So many products of two matrices, whatever the rows are: some 5 to 20 ms each."""
    nodes = [
        helper.make_node("ReduceSum", ["features"], ["sum"], keepdims=0),
        helper.make_node("Expand", ["sum", "square"], ["p0"]),
        *(helper.make_node("MatMul", [f"p{i}", f"p{i}"], [f"p{i + 1}"]) for i in range(products)),
        helper.make_node("ReduceMax", [f"p{products}"], ["most"], keepdims=0),
        helper.make_node("Clip", ["most", "zero", "zero"], ["nothing"]),
        helper.make_node("ReduceSum", ["features", "one"], ["rows"], keepdims=0),
        helper.make_node("Mul", ["rows", "nothing"], ["zeros"]),
        helper.make_node("Abs", ["zeros"], ["log_ratio"]),
    ]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "square": np.array([512, 512], np.int64),
        "one": np.array([1], np.int64),
        "zero": np.array(0, np.float32),
    }
    return _model(nodes, {"features": ("n", features)}, {"log_ratio": ("n",)}, constants)
