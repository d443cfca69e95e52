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
UNSUPPORTED: Final = 100.0
"""What is added to the expected error of a row that too little is known of: more than any limit."""


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


def tree_votes(
    boosters: Sequence[Any],
    output: str = "votes",
    *,
    targets: Sequence[tuple[int, float]] | None = None,
    more: Sequence[tuple[int, Sequence[Sequence[float]]]] | None = None,
) -> onnx.NodeProto:
    """The operator alone: ``features`` float32 [n, F] -> ``output`` [n, targets]. Each of the LightGBM boosters votes
    for its target, an output column, with a factor; without ``targets`` for one of its own. ``more`` gives each
    booster's leaves a second say: a target and, by tree and leaf, what the leaf adds there."""
    targets = targets or [(number, 1.0) for number in range(len(boosters))]
    nodes = _Nodes()
    for number, (booster, (target, factor)) in enumerate(zip(boosters, targets, strict=True)):
        for place, tree in enumerate(booster.dump_model()["tree_info"]):
            second = None
            if more is not None and number < len(more):
                second = (more[number][0], more[number][1][place])
            _add_tree(nodes, tree["tree_structure"], target, factor, second)
    return helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        [output],
        domain="ai.onnx.ml",
        n_targets=max(nodes.leaf_target) + 1,
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


def tree_model(
    members: Sequence[Any],
    features: int,
    *,
    scale: float = 1.0,
    deviation: Any = None,
    deviation_scale: float = 1.0,
    floor: float = 0.0,
    supports: Sequence[Sequence[Sequence[float]]] = (),
    least_support: float | None = None,
) -> onnx.ModelProto:
    """The graph ``features`` float32 [n, features] -> ``log_ratio`` float32 [n], the mean over ``members`` (LightGBM
    boosters) times ``scale``. With ``deviation``, one more booster, also ``log_std`` [n], that times
    ``deviation_scale``, at least ``floor``. With ``least_support`` it is raised by `UNSUPPORTED` for rows whose mean
    over all members' trees of ``supports`` (by member, tree and leaf) is below."""
    supported = least_support is not None and deviation is not None
    targets = [(0, scale / len(members))] * len(members)
    more = None
    if supported:
        count = sum(len(own) for own in supports)
        more = [(2, [[value / count for value in leaves] for leaves in own]) for own in supports]
    boosters = list(members)
    if deviation is not None:
        boosters.append(deviation)
        targets.append((1, deviation_scale))
    graph_nodes = [
        tree_votes(boosters, targets=targets, more=more),
        helper.make_node("Gather", ["votes", "first"], ["log_ratio"], axis=1),
    ]
    constants = [numpy_helper.from_array(np.array(0, np.int64), "first")]
    outputs = [helper.make_tensor_value_info("log_ratio", TensorProto.FLOAT, ["rows"])]
    if deviation is not None:
        graph_nodes += [
            helper.make_node("Gather", ["votes", "second"], ["spread"], axis=1),
            helper.make_node("Max", ["spread", "floor"], ["error" if supported else "log_std"]),
        ]
        constants += [
            numpy_helper.from_array(np.array(1, np.int64), "second"),
            numpy_helper.from_array(np.array(floor, np.float32), "floor"),
        ]
        outputs.append(helper.make_tensor_value_info("log_std", TensorProto.FLOAT, ["rows"]))
    if supported:
        graph_nodes += [
            helper.make_node("Gather", ["votes", "third"], ["support"], axis=1),
            helper.make_node("Less", ["support", "least"], ["unsupported"]),
            helper.make_node("Cast", ["unsupported"], ["penalty"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["penalty", "much"], ["added"]),
            helper.make_node("Add", ["error", "added"], ["log_std"]),
        ]
        constants += [
            numpy_helper.from_array(np.array(2, np.int64), "third"),
            numpy_helper.from_array(np.array(least_support, np.float32), "least"),
            numpy_helper.from_array(np.array(UNSUPPORTED, np.float32), "much"),
        ]
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


def _add_tree(
    nodes: _Nodes, root: dict[str, Any], target: int, factor: float, second: tuple[int, Sequence[float]] | None
) -> None:
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
            says = [(target, factor * float(structure["leaf_value"]))]
            if second is not None:
                # A tree that is nothing but a leaf has no index for it.
                says.append((second[0], float(second[1][structure.get("leaf_index", 0)])))
            for to, weight in says:
                nodes.leaf_tree.append(tree)
                nodes.leaf_node.append(number)
                nodes.leaf_target.append(to)
                nodes.leaf_weight.append(weight)
        else:
            waiting.append((structure["right_child"], number, False))
            waiting.append((structure["left_child"], number, True))
