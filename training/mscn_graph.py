"""MSCN as an ONNX graph: weights as plain arrays in, one graph with dynamic sizes out.

The network is that of Kipf et al. (2019): each set has two dense layers that are applied to every element, the mean
over the elements that are there is taken, the three means side by side go through another dense layer. Two numbers
come out: ln(actual / native), and how far off that is expected to be. A model is the mean of a few such networks
(members), which one graph holds: their first layers are one product, the others products of stacks of matrices.

Written out by hand, and not by torch's exporter, so that a file can be made without torch, the names and shapes are
the bundle contract's, and the same weights always give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from planner.features.sets import PARTS

Array = npt.NDArray[Any]
OPSET: Final = 17
IR_VERSION: Final = 8
FAR: Final = 5.0
"""Numbers further than so many standard deviations from their mean are taken as that far: a network that was never
trained there would answer anything."""


@dataclass(frozen=True, slots=True)
class SetLayers:
    """Of one set. ``center`` and ``scale`` [width] make raw numbers small: (x - center) * scale. The layers of K
    members with H hidden units: ``first`` [K, width, H], ``first_bias`` [K, H], ``second`` [K, H, H], ``second_bias``
    [K, H]."""

    center: Array
    scale: Array
    first: Array
    first_bias: Array
    second: Array
    second_bias: Array


@dataclass(frozen=True, slots=True)
class Network:
    """``sets`` by name; ``merge`` [K, 3H, H], ``merge_bias`` [K, H], ``out`` [K, H, 2], ``out_bias`` [K, 2]: the ratio,
    and the logarithm of its expected error."""

    sets: Mapping[str, SetLayers]
    merge: Array
    merge_bias: Array
    out: Array
    out_bias: Array

    @property
    def members(self) -> int:
        return len(self.merge)

    @property
    def parameters(self) -> int:
        """How many numbers were learned."""
        layers = [
            array
            for one in self.sets.values()
            for array in (one.first, one.first_bias, one.second, one.second_bias)
        ]  # fmt: skip
        return sum(array.size for array in (*layers, self.merge, self.merge_bias, self.out, self.out_bias))


class _Builder:
    """Nodes and constants of a graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, list(inputs), [output], **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def floats(self, name: str, value: Array | float) -> str:
        return self.constant(name, np.asarray(value, np.float32))

    def numbers(self, name: str, *values: int) -> str:
        return self.constant(name, np.array(values, np.int64))


def graph(network: Network, *, ratio_scale: float = 1.0, floor: float = 0.01) -> onnx.ModelProto:
    """``tables``, ``joins``, ``predicates`` [n, size, width] and their masks [n, size] -> ``log_ratio`` [n], times
    ``ratio_scale``, and ``log_std`` [n], at least ``floor``."""
    build = _Builder()
    members, hidden = network.merge_bias.shape
    build.numbers("two", 2)
    build.numbers("zero", 0)
    build.numbers("members", members)
    build.numbers("hidden", hidden)
    build.numbers("apart", -1, members, hidden)
    build.floats("far", FAR)
    build.floats("near", -FAR)
    build.floats("one", 1.0)
    pooled = [_pooled(build, part, network.sets[part]) for part in PARTS]
    merged = build.add("Concat", pooled, "merged", axis=2)
    layer = build.add("MatMul", [merged, build.floats("merge", network.merge)], "merge_product")
    layer = build.add("Add", [layer, build.floats("merge_bias", network.merge_bias[:, None, :])], "merge_sum")
    layer = build.add("Relu", [layer], "merge_layer")
    layer = build.add("MatMul", [layer, build.floats("out", network.out)], "out_product")
    votes = build.add("Add", [layer, build.floats("out_bias", network.out_bias[:, None, :])], "votes")
    for place, name in enumerate(("ratio", "spread")):
        build.constant(f"{name}_place", np.array(place, np.int64))
        build.add("Gather", [votes, f"{name}_place"], f"{name}_votes", axis=2)
    ratio = build.add("ReduceMean", ["ratio_votes"], "ratio", axes=[0], keepdims=0)
    build.add("Mul", [ratio, build.floats("ratio_scale", ratio_scale)], "log_ratio")
    # Beyond any error that means something, and far below where exp ends.
    limited = build.add("Clip", ["spread_votes", build.floats("least", -10.0), build.floats("most", 10.0)], "limited")
    spread = build.add("ReduceMean", [build.add("Exp", [limited], "spreads")], "spread", axes=[0], keepdims=0)
    build.add("Max", [spread, build.floats("floor", floor)], "log_std")
    return _model(build, {part: len(network.sets[part].center) for part in PARTS})


def _pooled(build: _Builder, part: str, layers: SetLayers) -> str:
    """The mean over a set's elements, [members, n, hidden]."""
    members, width, hidden = layers.first.shape
    small = build.add("Sub", [part, build.floats(f"{part}_center", layers.center)], f"{part}_moved")
    small = build.add("Mul", [small, build.floats(f"{part}_scale", layers.scale)], f"{part}_scaled")
    small = build.add("Clip", [small, "near", "far"], f"{part}_small")
    flat = build.add("Reshape", [small, build.numbers(f"{part}_width", -1, width)], f"{part}_flat")
    # All members' first layers side by side, [width, members * hidden].
    first = layers.first.transpose(1, 0, 2).reshape(width, members * hidden)
    layer = build.add("MatMul", [flat, build.floats(f"{part}_first", first)], f"{part}_product1")
    bias = build.floats(f"{part}_bias1", layers.first_bias.reshape(-1))
    layer = build.add("Relu", [build.add("Add", [layer, bias], f"{part}_sum1")], f"{part}_layer1")
    layer = build.add("Reshape", [layer, "apart"], f"{part}_apart")
    layer = build.add("Transpose", [layer], f"{part}_stacked", perm=[1, 0, 2])
    layer = build.add("MatMul", [layer, build.floats(f"{part}_second", layers.second)], f"{part}_product2")
    bias = build.floats(f"{part}_bias2", layers.second_bias[:, None, :])
    layer = build.add("Relu", [build.add("Add", [layer, bias], f"{part}_sum2")], f"{part}_layer2")
    mask = f"{part}_mask"
    shape = build.add(
        "Concat", ["members", build.add("Shape", [mask], f"{part}_size"), "hidden"], f"{part}_dims", axis=0
    )
    layer = build.add("Reshape", [layer, shape], f"{part}_elements")
    real = build.add("Unsqueeze", [mask, "two"], f"{part}_real")
    total = build.add(
        "ReduceSum", [build.add("Mul", [layer, real], f"{part}_kept"), "two"], f"{part}_total", keepdims=0
    )
    present = build.add("ReduceSum", [mask, build.numbers(f"{part}_axis", 1)], f"{part}_present", keepdims=1)
    count = build.add("Max", [present, "one"], f"{part}_count")
    return build.add("Div", [total, count], f"{part}_mean")


def _model(build: _Builder, widths: Mapping[str, int]) -> onnx.ModelProto:
    inputs = []
    for part, width in widths.items():
        inputs.append(helper.make_tensor_value_info(part, TensorProto.FLOAT, ["rows", f"{part}_size_", width]))
        inputs.append(helper.make_tensor_value_info(f"{part}_mask", TensorProto.FLOAT, ["rows", f"{part}_size_"]))
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows"]) for name in ("log_ratio", "log_std")]
    made = helper.make_graph(build.nodes, "mscn", inputs, outputs, build.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="pilotwire")
    model.ir_version = IR_VERSION
    return model
