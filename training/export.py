"""Boosted trees as an ONNX graph: several models over the same features in one TreeEnsembleRegressor.

Written out by hand and not by a converter for three reasons: all models of an ensemble are evaluated in one pass over
the rows; thresholds, which LightGBM has as doubles, are rounded so that every float32 input takes the very branch it
takes in LightGBM (converters round to nearest, and a value between goes the other way); and the outputs have the
names and shapes of the bundle contract.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 17
ML_OPSET: Final = 3
IR_VERSION: Final = 8
"""Old enough for every ONNX Runtime of the last years."""


@dataclass(slots=True)
class _Nodes:
    """The operator's attributes: parallel lists, one entry per node, and one per leaf."""

    tree: list[int] = field(default_factory=list)
    node: list[int] = field(default_factory=list)
    feature: list[int] = field(default_factory=list)
    mode: list[str] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    true: list[int] = field(default_factory=list)
    false: list[int] = field(default_factory=list)
    missing_true: list[int] = field(default_factory=list)
    leaf_tree: list[int] = field(default_factory=list)
    leaf_node: list[int] = field(default_factory=list)
    leaf_target: list[int] = field(default_factory=list)
    leaf_weight: list[float] = field(default_factory=list)


def tree_model(
    members: Sequence[Any], features: int, *, scale: float = 1.0, deviation: Any = None, floor: float = 0.0
) -> onnx.ModelProto:
    """The graph ``features`` float32 [n, features] -> ``log_ratio`` float32 [n], the mean over ``members`` (LightGBM
    boosters) times ``scale``. With ``deviation``, one more booster, also ``log_std`` [n], at least ``floor``."""
    nodes = _Nodes()
    targets = [*members] if deviation is None else [*members, deviation]
    for target, booster in enumerate(targets):
        for tree in booster.dump_model()["tree_info"]:
            _add_tree(nodes, tree["tree_structure"], target)
    count = len(members)
    trees = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["votes"],
        domain="ai.onnx.ml",
        n_targets=len(targets),
        aggregate_function="SUM",
        post_transform="NONE",
        nodes_treeids=nodes.tree,
        nodes_nodeids=nodes.node,
        nodes_featureids=nodes.feature,
        nodes_modes=nodes.mode,
        nodes_values=nodes.value,
        nodes_truenodeids=nodes.true,
        nodes_falsenodeids=nodes.false,
        nodes_missing_value_tracks_true=nodes.missing_true,
        target_treeids=nodes.leaf_tree,
        target_nodeids=nodes.leaf_node,
        target_ids=nodes.leaf_target,
        target_weights=nodes.leaf_weight,
    )
    weights = np.zeros((len(targets), 1), np.float32)
    weights[:count] = scale / count
    graph_nodes = [
        trees,
        helper.make_node("MatMul", ["votes", "weights"], ["mean"]),
        helper.make_node("Squeeze", ["mean", "axis"], ["log_ratio"]),
    ]
    constants = [
        numpy_helper.from_array(weights, "weights"),
        numpy_helper.from_array(np.array([1], np.int64), "axis"),
    ]
    outputs = [helper.make_tensor_value_info("log_ratio", TensorProto.FLOAT, ["rows"])]
    if deviation is not None:
        graph_nodes += [
            helper.make_node("Gather", ["votes", "last"], ["spread"], axis=1),
            helper.make_node("Max", ["spread", "floor"], ["log_std"]),
        ]
        constants += [
            numpy_helper.from_array(np.array(count, np.int64), "last"),
            numpy_helper.from_array(np.array(floor, np.float32), "floor"),
        ]
        outputs.append(helper.make_tensor_value_info("log_std", TensorProto.FLOAT, ["rows"]))
    graph = helper.make_graph(
        graph_nodes,
        "boosted_trees",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", features])],
        outputs,
        constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", ML_OPSET)],
        producer_name="pilotwire",
    )
    model.ir_version = IR_VERSION
    return model


def round_down(threshold: float) -> float:
    """The largest float32 that is not above a double: for every float32 x, ``x <= threshold`` says the same of both.
    Beyond the range of float32 its ends are the answer."""
    least, most = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
    rounded = np.float32(min(max(threshold, least), most))
    if least < float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-math.inf))
    return float(rounded)


def _add_tree(nodes: _Nodes, root: dict[str, Any], target: int) -> None:
    """One tree in depth-first order, as its node numbers have to be: from 0 without gaps."""
    tree = nodes.tree[-1] + 1 if nodes.tree else 0
    count = 0
    waiting: list[tuple[dict[str, Any], int, bool]] = [(root, -1, False)]
    start = len(nodes.tree)
    while waiting:
        structure, parent, is_left = waiting.pop()
        number = count
        count += 1
        if parent >= 0:
            (nodes.true if is_left else nodes.false)[start + parent] = number
        leaf = "split_index" not in structure
        nodes.tree.append(tree)
        nodes.node.append(number)
        nodes.mode.append("LEAF" if leaf else "BRANCH_LEQ")
        nodes.feature.append(0 if leaf else int(structure["split_feature"]))
        threshold = 0.0 if leaf else float(structure["threshold"])
        nodes.value.append(round_down(threshold))
        nodes.true.append(0)
        nodes.false.append(0)
        # Where no value was missing in training LightGBM takes a missing one for zero.
        missing = not leaf and (structure["default_left"] if structure["missing_type"] == "NaN" else threshold >= 0)
        nodes.missing_true.append(int(missing))
        if leaf:
            nodes.leaf_tree.append(tree)
            nodes.leaf_node.append(number)
            nodes.leaf_target.append(target)
            nodes.leaf_weight.append(float(structure["leaf_value"]))
        else:
            waiting.append((structure["right_child"], number, False))
            waiting.append((structure["left_child"], number, True))
