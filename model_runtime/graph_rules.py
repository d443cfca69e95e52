"""What an ONNX graph may contain, told from the graph alone, before anything of it is run.

- All data is inside the file: a tensor that points to another file would read what the file's author chose.
- Operators come from the ONNX standard (domains ``ai.onnx`` and ``ai.onnx.ml``): no functions and no code of its own.
- The same input gives the same output: nothing random.
- What a run costs follows from the number of rows. Loops are not allowed, and the *values* of inputs may decide
  neither the size of a tensor nor which branch is taken (their shapes may, as exported networks do). Otherwise a file
  could be small and quick in every check and ask for any amount of memory or time on the first real query.

What remains is the way a row takes through a decision tree, which the size of the file bounds. The last rule is a
walk in the order of the graph, marking each value that descends from an input's values; ``Shape`` and ``Size`` end the
descent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

import onnx

DOMAINS: Final = frozenset({"", "ai.onnx", "ai.onnx.ml"})
RANDOM: Final = frozenset({
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
})  # fmt: skip
LOOPS: Final = frozenset({"Loop", "Scan", "SequenceMap"})
SIZED_BY: Final[dict[str, tuple[int, ...] | None]] = {
    "AffineGrid": (1,), "BlackmanWindow": (0,), "CenterCropPad": (1,), "Col2Im": (1, 2), "Compress": (1,),
    "ConstantOfShape": (0,), "DFT": (1,), "Expand": (1,), "HammingWindow": (0,), "HannWindow": (0,), "If": (0,),
    "MaxUnpool": (2,), "MelWeightMatrix": None, "NonMaxSuppression": None, "NonZero": (0,), "OneHot": (1,),
    "Pad": (1,), "Range": None, "Reshape": (1,), "Resize": (1, 2, 3), "STFT": (1, 3), "Slice": (1, 2, 3, 4),
    "Split": (1,), "SplitToSequence": (1,), "Tile": (1, 2), "TopK": (1,), "Unique": (0,), "Upsample": (1,),
}  # fmt: skip
"""Which inputs of an operator decide a size or a branch; None: all."""
SHAPE_OF: Final = frozenset({"Shape", "Size"})
MAX_DEPTH: Final = 20


class Forbidden(Exception):
    """The graph breaks a rule. ``str()`` says which and where."""


def external_data(model: onnx.ModelProto) -> None:
    """Raises `Forbidden` for a tensor that lies outside of the file."""
    for tensor in _tensors(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
            raise Forbidden(f"tensor {tensor.name[:100]!r} has its data in another file")


def operators(model: onnx.ModelProto) -> set[str]:
    """Raises `Forbidden` for an operator or a use of one that is not allowed; returns the names of all used."""
    if model.functions:
        raise Forbidden(f"it defines an operator of its own, {model.functions[0].name[:100]!r}")
    if model.training_info:
        raise Forbidden("it carries training steps")
    used = set()
    for node in _nodes(model.graph.node):
        if node.domain not in DOMAINS:
            raise Forbidden(f"custom operator {node.domain[:100]}.{node.op_type[:100]}")
        if node.op_type in RANDOM:
            raise Forbidden(f"{node.op_type} gives other outputs for the same inputs")
        if node.op_type in LOOPS:
            raise Forbidden(f"{node.op_type} runs for as long as it likes")
        used.add(node.op_type)
    constants = {tensor.name for tensor in model.graph.initializer}
    _walk(model.graph, {value.name for value in model.graph.input if value.name not in constants})
    return used


def _walk(graph: onnx.GraphProto, marked: set[str]) -> set[str]:
    """``marked`` has the names of outer values that descend from input values; returns them with this graph's own."""
    marked = set(marked)
    for node in graph.node:
        places = SIZED_BY.get(node.op_type, ())
        deciding = node.input if places is None else [node.input[place] for place in places if place < len(node.input)]
        if any(name in marked for name in deciding):
            raise Forbidden(f"{node.op_type}: the values of an input decide how much is computed")
        descends = node.op_type not in SHAPE_OF and any(name in marked for name in node.input)
        for inner in _inner(node):
            inside = _walk(inner, marked)
            descends = descends or any(value.name in inside for value in inner.output)
        if descends:
            marked.update(node.output)
    return marked


def _nodes(nodes: Iterable[onnx.NodeProto], depth: int = 0) -> Iterator[onnx.NodeProto]:
    """The nodes with all that are in graphs inside of them."""
    if depth > MAX_DEPTH:
        raise Forbidden(f"graphs inside graphs, more than {MAX_DEPTH} deep")
    for node in nodes:
        yield node
        for graph in _inner(node):
            yield from _nodes(graph.node, depth + 1)


def _inner(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = [model.graph]
    for training in model.training_info:
        graphs += (training.initialization, training.algorithm)
    functions = (function.node for function in model.functions)
    for node in _nodes(chain(*(graph.node for graph in graphs), *functions)):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)
        graphs += _inner(node)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
