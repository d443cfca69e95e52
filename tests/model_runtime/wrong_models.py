"""Model files that are wrong in one way each, with the step that has to refuse them and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_runtime.manifest import KIND_KEY, MANIFEST_KEY, SelfTest
from tests.support.models import FEATURES, OPSET, flat_graph, manifest_for

WEIGHTS = np.zeros((len(FEATURES), 1), np.float32)
TEST = SelfTest(inputs={"features": [[0.0] * len(FEATURES)]}, outputs={"log_ratio": [0.0]})


class Wrong(NamedTuple):
    data: bytes
    step: str
    words: str


def fields() -> dict[str, Any]:
    """A right manifest for `flat_graph(0, WEIGHTS)` as plain data."""
    made = manifest_for(flat_graph(0.0, WEIGHTS), trained_at=datetime(2025, 1, 1, tzinfo=UTC), self_test=TEST)
    return dict(json.loads(made.model_dump_json()))


def bundled(
    model: onnx.ModelProto, manifest: Mapping[str, Any] | str | None = None, kind: str = "cardinality"
) -> bytes:
    """Without any of the checks that writing a bundle would do."""
    text = manifest if isinstance(manifest, str) else json.dumps(fields() if manifest is None else manifest)
    for key, value in ((KIND_KEY, kind), (MANIFEST_KEY, text)):
        model.metadata_props.add(key=key, value=value)
    return bytes(model.SerializeToString())


def graph(
    nodes: list[onnx.NodeProto],
    constants: Mapping[str, Any] | None = None,
    inputs: Mapping[str, tuple[Any, ...]] | None = None,
    outputs: Mapping[str, tuple[Any, ...]] | None = None,
    kind: int = TensorProto.FLOAT,
    domains: tuple[str, ...] = ("", "ai.onnx.ml"),
) -> onnx.ModelProto:
    """Any graph, unchecked; by default it has the right inputs and outputs."""
    made = helper.make_graph(
        nodes,
        "wrong",
        [helper.make_tensor_value_info(n, kind, s) for n, s in (inputs or {"features": ("n", len(FEATURES))}).items()],
        [helper.make_tensor_value_info(n, kind, s) for n, s in (outputs or {"log_ratio": ("n",)}).items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid(domain, 3 if domain else OPSET) for domain in domains]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def row_sum(extra: list[onnx.NodeProto], last: str, constants: Mapping[str, Any] | None = None) -> onnx.ModelProto:
    """The sum of each row plus the sum of what ``extra`` computes under the name ``last``."""
    nodes = [
        *extra,
        helper.make_node("ReduceSum", [last], ["more"], keepdims=0),
        helper.make_node("ReduceSum", ["features", "one"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "more"], ["log_ratio"]),
    ]
    return graph(nodes, {"one": np.array([1]), **(constants or {})})


def outside() -> onnx.ModelProto:
    model = flat_graph(0.0, WEIGHTS)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    return model


def outside_in_a_branch() -> onnx.ModelProto:
    """In an attribute of a node in the branch of an If."""
    tensor = helper.make_tensor("hidden", TensorProto.FLOAT, [1], [0.0])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=tensor)],
        "branch",
        [],
        [helper.make_tensor_value_info("c", TensorProto.FLOAT, [1])],
    )
    chosen = helper.make_node("If", ["yes"], ["c2"], then_branch=branch, else_branch=branch)
    return row_sum([chosen], "c2", {"yes": np.array(True)})


def own_function() -> onnx.ModelProto:
    model = graph([helper.make_node("Mine", ["features"], ["log_ratio"], domain="own")], domains=("", "own"))
    body = [helper.make_node("ReduceSum", ["x", "one"], ["y"], keepdims=0)]
    one = helper.make_node("Constant", [], ["one"], value_ints=[1])
    model.functions.append(
        helper.make_function("own", "Mine", ["x"], ["y"], [one, *body], [helper.make_opsetid("", OPSET)])
    )
    return model


def loop() -> onnx.ModelProto:
    body = helper.make_graph(
        [helper.make_node("Identity", ["going"], ["on"]), helper.make_node("Identity", ["value"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, [1]),
        ],
    )
    node = helper.make_node("Loop", ["times", "yes", "start"], ["end"], body=body)
    constants = {"times": np.array(1 << 60), "yes": np.array(True), "start": np.zeros(1, np.float32)}
    return row_sum([node], "end", constants)


def sized_by_values() -> onnx.ModelProto:
    """As large as the first features say, which are small in the self-test."""
    nodes = [
        helper.make_node("ReduceMax", ["features"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["whole", "zero"], ["size"]),
        helper.make_node("ConstantOfShape", ["size"], ["big"]),
    ]
    return row_sum(nodes, "big", {"zero": np.array([0])})


def branch_by_values() -> onnx.ModelProto:
    def branch(name: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node("Constant", [], [name], value_floats=[0.0])],
            name,
            [],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])],
        )

    nodes = [
        helper.make_node("ReduceMax", ["features"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["yes"], to=TensorProto.BOOL),
        helper.make_node("If", ["yes"], ["c"], then_branch=branch("a"), else_branch=branch("b")),
    ]
    return row_sum(nodes, "c")


def random() -> onnx.ModelProto:
    return row_sum([helper.make_node("RandomNormalLike", ["features"], ["r"])], "r")


def constant_of(size: int) -> onnx.ModelProto:
    """Asks for that many floats, whatever the rows are."""
    return row_sum([helper.make_node("ConstantOfShape", ["size"], ["big"])], "big", {"size": np.array([size])})


def deep_tree(depth: int) -> onnx.ModelProto:
    """One tree that is a chain, which ONNX Runtime loads by recursion."""
    keys = ("treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids")
    rows: list[tuple[Any, ...]] = []
    for node in range(depth):
        rows.append((0, 2 * node, 0, "BRANCH_LEQ", -float(node), 2 * node + 1, 2 * node + 2))
        rows.append((0, 2 * node + 1, 0, "LEAF", 0.0, 0, 0))
    rows.append((0, 2 * depth, 0, "LEAF", 0.0, 0, 0))
    leaves = [row[1] for row in rows if row[3] == "LEAF"]
    attributes: dict[str, Any] = {
        f"nodes_{key}": list(column) for key, column in zip(keys, zip(*rows, strict=True), strict=True)
    }
    attributes |= {"target_treeids": [0] * len(leaves), "target_nodeids": leaves, "target_ids": [0] * len(leaves)}
    attributes |= {"target_weights": [0.0] * len(leaves), "n_targets": 1}
    tree = helper.make_node("TreeEnsembleRegressor", ["features"], ["column"], domain="ai.onnx.ml", **attributes)
    return graph([tree, helper.make_node("Squeeze", ["column", "one"], ["log_ratio"])], {"one": np.array([1])})


def endless(products: int = 3000) -> onnx.ModelProto:
    """Products of two matrices, one after the other, for half a minute."""
    nodes = [
        helper.make_node("ReduceSum", ["features"], ["s"], keepdims=0),
        helper.make_node("Expand", ["s", "square"], ["p0"]),
        *(helper.make_node("MatMul", [f"p{i}", f"p{i}"], [f"p{i + 1}"]) for i in range(products)),
    ]
    return row_sum(nodes, f"p{products}", {"square": np.array([512, 512])})


def not_a_number() -> onnx.ModelProto:
    nodes = [
        helper.make_node("ReduceSum", ["features", "one"], ["s"], keepdims=0),
        helper.make_node("Log", ["s"], ["log_ratio"]),
    ]
    return graph(nodes, {"one": np.array([1])})


def mixes_rows() -> onnx.ModelProto:
    """What a row gets depends on how many there are."""
    nodes = [
        helper.make_node("Shape", ["features"], ["shape"], end=1),
        helper.make_node("Cast", ["shape"], ["rows"], to=TensorProto.FLOAT),
    ]
    return row_sum(nodes, "rows")


def summed(inputs: Mapping[str, tuple[Any, ...]], output: tuple[Any, ...] = ("n",), **more: Any) -> onnx.ModelProto:
    node = helper.make_node("ReduceSum", [next(iter(inputs)), "one"], ["log_ratio"], keepdims=len(output) - 1)
    return graph([node], {"one": np.array([1])}, inputs, {"log_ratio": output}, **more)


def double() -> onnx.ModelProto:
    return summed({"features": ("n", 3)}, kind=TensorProto.DOUBLE)


def plain() -> onnx.ModelProto:
    return flat_graph(0.0, WEIGHTS)


def changed(**values: Any) -> Callable[[], bytes]:
    return lambda: bundled(plain(), fields() | values)


def without(name: str) -> Callable[[], bytes]:
    return lambda: bundled(plain(), {key: value for key, value in fields().items() if key != name})


def twice() -> bytes:
    model = plain()
    model.metadata_props.add(key=MANIFEST_KEY, value="{}")
    return bundled(model)


def no_metadata() -> bytes:
    return bytes(plain().SerializeToString())


def test_of(inputs: Any, outputs: Any) -> dict[str, Any]:
    return {"inputs": inputs, "outputs": outputs}


ROW = [[0.0, 0.0, 0.0]]
ARMS = {"kind": "hints", "output_meaning": "ln(arm_latency/default_latency)"}
CASES: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "empty": (lambda: b"", "size", "empty"),
    "text": (lambda: b"hello", "onnx", "not an ONNX file"),
    "cut short": (lambda: bundled(plain())[:400], "onnx", "not an ONNX file"),
    "half a graph": (lambda: bundled(graph([helper.make_node("Abs", ["nowhere"], ["log_ratio"])])), "onnx", "checker"),
    "two manifests": (twice, "onnx", "2 times"),
    "external data": (lambda: bundled(outside()), "external", "another file"),
    "external data in a branch": (lambda: bundled(outside_in_a_branch()), "external", "'hidden'"),
    "custom operator": (
        lambda: bundled(
            graph([helper.make_node("Mine", ["features"], ["log_ratio"], domain="own")], domains=("", "own"))
        ),
        "operators",
        "custom operator own.Mine",
    ),
    "contributed operator": (
        lambda: bundled(
            graph(
                [helper.make_node("Inverse", ["features"], ["log_ratio"], domain="com.microsoft")],
                domains=("", "com.microsoft"),
            )
        ),
        "operators",
        "com.microsoft.Inverse",
    ),
    "own function": (lambda: bundled(own_function()), "operators", "of its own"),
    "loop": (lambda: bundled(loop()), "operators", "Loop"),
    "random": (lambda: bundled(random()), "operators", "RandomNormalLike"),
    "size by values": (lambda: bundled(sized_by_values()), "operators", "ConstantOfShape: the values of an input"),
    "branch by values": (lambda: bundled(branch_by_values()), "operators", "If: the values of an input"),
    "no manifest": (no_metadata, "manifest", "pilotwire.kind is missing"),
    "unknown kind": (lambda: bundled(plain(), kind="magic"), "manifest", "'magic'"),
    "another kind": (lambda: bundled(plain(), kind="hints"), "manifest", "the manifest says cardinality"),
    "no JSON": (lambda: bundled(plain(), "{"), "manifest", "JSON"),
    "later format": (changed(format=2), "manifest", "format"),
    "unknown field": (changed(surprise=1), "manifest", "surprise"),
    "no name": (without("name"), "manifest", "name"),
    "a path as name": (changed(name="../../etc"), "manifest", "name"),
    "no version": (changed(version="latest"), "manifest", "version"),
    "naive time": (changed(trained_at="2025-01-01T00:00:00"), "manifest", "trained_at"),
    "clip upside down": (changed(clip=[1, -1]), "manifest", "clip"),
    "clip not finite": (changed(clip=[-1, float("inf")]), "manifest", "clip"),
    "feature twice": (changed(features=["a", "a", "b"]), "manifest", "twice"),
    "range of no feature": (changed(ranges={"other": [0, 1]}), "manifest", "'other'"),
    "other meaning": (changed(output_meaning="log10(rows)"), "manifest", "ln(actual_rows/native_rows)"),
    "escape sequence": (changed(schema_hash="\x1b[31m"), "manifest", "schema_hash"),
    "arms for cardinality": (changed(arms={"a": {}}), "manifest", "no arms"),
    "test without rows": (changed(self_test=test_of({"features": []}, {"log_ratio": []})), "manifest", "rows"),
    "test of words": (changed(self_test=test_of({"features": [["a"]]}, {"log_ratio": [0]})), "manifest", "number"),
    "test ragged": (
        changed(self_test=test_of({"features": [[1, 2], [3]]}, {"log_ratio": [0, 0]})),
        "manifest",
        "array",
    ),
    "test not finite": (
        changed(self_test=test_of({"features": [[1e39, 0, 0]]}, {"log_ratio": [0]})),
        "manifest",
        "finite",
    ),
    "hints without arms": (lambda: bundled(plain(), fields() | ARMS, "hints"), "manifest", "needs arms"),
    "arm that sets a role": (
        lambda: bundled(plain(), fields() | ARMS | {"arms": {"a": {"role": "postgres"}}}, "hints"),
        "manifest",
        "role is not a planner setting",
    ),
    "arm that ends the comment": (
        lambda: bundled(plain(), fields() | ARMS | {"arms": {"a": {"geqo": "on*/; DROP"}}}, "hints"),
        "manifest",
        "plain setting value",
    ),
    "other input": (lambda: bundled(summed({"x": ("n", 3)})), "interface", "input features is missing"),
    "two inputs": (lambda: bundled(summed({"features": ("n", 3), "x": ("n", 3)})), "interface", "'x'"),
    "wider": (lambda: bundled(summed({"features": ("n", 4)})), "interface", "[n, 3]"),
    "double": (lambda: bundled(double()), "interface", "not float32"),
    "fixed rows": (lambda: bundled(summed({"features": (5, 3)}, (5,))), "interface", "fixed number of rows, 5"),
    "column": (lambda: bundled(summed({"features": ("n", 3)}, ("n", 1))), "interface", "output log_ratio"),
    "threshold without deviation": (changed(abstention={"log_std": 0.5}), "interface", "no such output"),
    "test of other inputs": (changed(self_test=test_of({"x": ROW}, {"log_ratio": [0]})), "self_test", "['x']"),
    "test too narrow": (changed(self_test=test_of({"features": [[0, 0]]}, {"log_ratio": [0]})), "self_test", "1 rows"),
    "lying test": (changed(self_test=test_of({"features": ROW}, {"log_ratio": [0.5]})), "self_test", "0.5 off"),
    "not a number": (lambda: bundled(not_a_number()), "self_test", "not finite"),
    "mixes rows": (
        lambda: bundled(
            mixes_rows(), fields() | {"self_test": test_of({"features": ROW * 2}, {"log_ratio": [2.0, 2.0]})}
        ),
        "self_test",
        "off what the self-test says",
    ),
    "slow": (lambda: bundled(endless(15)), "time", "200 rows take"),
}


def wrong(name: str) -> Wrong:
    make, step, words = CASES[name]
    return Wrong(make(), step, words)
