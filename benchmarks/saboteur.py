"""A model that predicts nonsense on purpose: a valid bundle that passes every check and is never unsure.

It has the features, the vocabulary and the schema of an honest model, and answers something between -8 and 8, without
any reason and the same each time, for the logarithm of the correction: joins are called 3,000 times larger or smaller.
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from model_runtime import bundle
from model_runtime.manifest import MANIFEST_KEY, Abstention, Manifest, SelfTest, TrainingSummary, parse

LARGEST: Final = 8.0
STEEP: Final = 1e4
"""How much a small difference of the features matters: similar joins get unrelated answers."""
OPSET: Final = 17
IR_VERSION: Final = 8


def write(honest: Path, path: Path) -> None:
    """The saboteur of the honest model's file, to ``path``."""
    entries = {entry.key: entry.value for entry in onnx.load(honest).metadata_props}
    manifest = parse(entries[MANIFEST_KEY])
    graph = _graph(len(manifest.features))
    rows = np.zeros((2, len(manifest.features)), np.float32)
    bundle.write(graph, _nonsense(manifest, bundle.self_test(graph, {"features": rows})), path)


def _nonsense(manifest: Manifest, self_test: SelfTest) -> Manifest:
    """Nothing of it keeps the model from being believed: no ranges, no doubt, a wide clip."""
    return manifest.model_copy(
        update={
            "name": "saboteur",
            "version": "6.6.6",
            "trained_at": datetime.datetime.now(datetime.UTC),
            "ranges": {},
            "abstention": Abstention(),
            "clip": (-LARGEST, LARGEST),
            "training": TrainingSummary(),
            "self_test": self_test,
        }
    )


def _graph(features: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Abs", ["features"], ["absolute"]),
        helper.make_node("ReduceSum", ["absolute", "axis"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "steep"], ["angle"]),
        helper.make_node("Sin", ["angle"], ["wave"]),
        helper.make_node("Mul", ["wave", "largest"], ["log_ratio"]),
    ]
    constants: dict[str, np.ndarray[Any, Any]] = {
        "axis": np.array([1], np.int64),
        "steep": np.array([STEEP], np.float32),
        "largest": np.array([LARGEST], np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "saboteur",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ("n", features))],
        [helper.make_tensor_value_info("log_ratio", TensorProto.FLOAT, ("n",))],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
