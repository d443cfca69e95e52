"""What a graph may do that looks like what it may not; what it may not is in `wrong_models`."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from model_runtime.checks import check
from model_runtime.graph_rules import Forbidden, external_data, operators
from model_runtime.limits import Limits
from tests.model_runtime.wrong_models import bundled, plain, row_sum


def branch(name: str) -> onnx.GraphProto:
    node = helper.make_node("Constant", [], [name], value_floats=[0.0])
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])])


def by_shape() -> onnx.ModelProto:
    """As exported networks do it: a tensor as long as there are rows, and a branch by the number of features."""
    nodes = [
        helper.make_node("Shape", ["features"], ["shape"]),
        helper.make_node("Expand", ["zero", "shape"], ["zeros"]),
        helper.make_node("Size", ["features"], ["size"]),
        helper.make_node("Cast", ["size"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["c"], then_branch=branch("a"), else_branch=branch("b")),
        helper.make_node("Add", ["zeros", "c"], ["all"]),
    ]
    return row_sum(nodes, "all", {"zero": np.zeros((1, 1), np.float32)})


def test_shapes_may_decide() -> None:
    assert {"Expand", "If", "Shape"} <= operators(by_shape())
    verdict = check(bundled(by_shape()), Limits())
    assert verdict.good, verdict.reason


def test_values_that_reach_a_size_through_a_branch_are_seen() -> None:
    inner = helper.make_graph(
        [helper.make_node("Identity", ["whole"], ["i"])],
        "inner",
        [],
        [helper.make_tensor_value_info("i", TensorProto.INT64, [1])],
    )
    nodes = [
        helper.make_node("Cast", ["features"], ["whole"], to=TensorProto.INT64),
        helper.make_node("If", ["yes"], ["size"], then_branch=inner, else_branch=inner),
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
    ]
    with pytest.raises(Forbidden, match="ConstantOfShape"):
        operators(row_sum(nodes, "big", {"yes": np.array(True)}))


def test_graphs_inside_graphs_are_bounded() -> None:
    graph = branch("c")
    for _ in range(30):
        node = helper.make_node("If", ["yes"], ["c"], then_branch=graph, else_branch=branch("c"))
        graph = helper.make_graph([node], "g", [], [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])])
    with pytest.raises(Forbidden, match="deep"):
        operators(row_sum(list(graph.node), "c", {"yes": np.array(True)}))


def test_training_steps_are_looked_at_too() -> None:
    model = plain()
    step = model.training_info.add()
    tensor = step.initialization.initializer.add(name="t", data_type=TensorProto.FLOAT, dims=[1])
    with pytest.raises(Forbidden, match="training"):
        operators(model)
    external_data(model)
    tensor.data_location = TensorProto.EXTERNAL
    with pytest.raises(Forbidden, match="'t'"):
        external_data(model)
