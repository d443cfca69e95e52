"""All checks of a model file's bytes, in the order of the bundle contract; the first that fails refuses the file.

The bytes may say anything. What they say is run here, so that this belongs in a process of its own with bounds on
memory and time (`model_runtime.check_process`); nothing here can tell a crash or an endless computation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, Final, NoReturn

import numpy as np
import onnx

from model_runtime import graph_rules
from model_runtime.limits import BATCH_ROWS, Limits
from model_runtime.manifest import DEVIATION, KIND_KEY, KINDS, MANIFEST_KEY, Manifest, parse
from model_runtime.runner import Array, ModelError, check_outputs, first_line, session
from model_runtime.verdict import Fact, Step, Verdict, plain

TIMED_RUNS: Final = 5
TIMED_SECONDS: Final = 1.0
SINGLE_ROWS: Final = 4


class _Refused(Exception):
    """A check failed. ``str()`` is the reason."""


class _Check:
    """The checks of one file; each method is a step and leaves what the next ones need."""

    def __init__(self, data: bytes, limits: Limits) -> None:
        self.data = data
        self.limits = limits
        self.facts: dict[str, Fact] = {"bytes": len(data)}
        self.kind = ""
        self.text = ""
        self.model: onnx.ModelProto
        self.manifest: Manifest
        self.session: Any
        self.inputs: dict[str, Array]

    def size(self) -> str:
        if len(self.data) > self.limits.file_bytes:
            refuse(f"{len(self.data)} bytes, more than {self.limits.file_bytes}")
        if not self.data:
            refuse("the file is empty")
        return f"{len(self.data)} bytes"

    def onnx(self) -> str:
        try:
            self.model = onnx.load_model_from_string(self.data)
        except Exception as error:
            # protobuf's exceptions depend on its implementation.
            refuse(f"not an ONNX file: {first_line(error)}")
        properties = [(entry.key, entry.value) for entry in self.model.metadata_props]
        for wanted in (KIND_KEY, MANIFEST_KEY):
            if len(values := [value for key, value in properties if key == wanted]) > 1:
                refuse(f"{wanted} stands in it {len(values)} times")
        self.kind = dict(properties).get(KIND_KEY, "")[:100]
        self.text = dict(properties).get(MANIFEST_KEY, "")
        # The checker looks for the files that tensors point to: what points outside is left to the next step.
        if self._points_outside():
            return "parsed"
        try:
            onnx.checker.check_model(self.data)
        except Exception as error:
            refuse(f"the ONNX checker: {first_line(error)}")
        opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in self.model.opset_import)
        self.facts |= {
            "ir_version": self.model.ir_version,
            "opsets": opsets[:500],
            "producer": self.model.producer_name[:100],
            "nodes": len(self.model.graph.node),
            "parameters": min(sum(math.prod(tensor.dims) for tensor in self.model.graph.initializer), 1 << 62),
        }
        return f"opsets {opsets[:100]}"

    def _points_outside(self) -> str:
        try:
            graph_rules.external_data(self.model)
        except graph_rules.Forbidden as error:
            return str(error)
        return ""

    def external(self) -> str:
        if reason := self._points_outside():
            refuse(reason)
        return "all data is in the file"

    def operators(self) -> str:
        try:
            used = sorted(graph_rules.operators(self.model))
        except graph_rules.Forbidden as error:
            refuse(str(error))
        self.facts["operators"] = used[:200]
        return f"{len(self.model.graph.node)} nodes of {len(used)} kinds"

    def manifest_(self) -> str:
        if not self.kind or not self.text:
            refuse(f"{MANIFEST_KEY if self.kind else KIND_KEY} is missing: not a pilotwire model")
        if self.kind not in KINDS:
            refuse(f"the kind {self.kind!r} is not known")
        if len(self.text.encode()) > self.limits.manifest_bytes:
            refuse(f"the manifest has {len(self.text.encode())} bytes, more than {self.limits.manifest_bytes}")
        try:
            self.manifest = parse(self.text)
        except ValueError as error:
            refuse(first_line(error))
        if self.manifest.kind != self.kind:
            refuse(f"{KIND_KEY} is {self.kind}, the manifest says {self.manifest.kind}")
        return f"{self.manifest.label}, format {self.manifest.format}"

    def interface(self) -> str:
        graph = self.model.graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = {value.name: value for value in graph.input if value.name not in constants}
        outputs = {value.name: value for value in graph.output}
        self.facts |= {
            "inputs": [_typed(value) for value in inputs.values()][:20],
            "outputs": [_typed(value) for value in outputs.values()][:20],
        }
        want = self.manifest.outputs()
        if DEVIATION not in outputs:
            limits = (self.manifest.abstention, self.manifest.abstention.known)
            if any(one is not None and one.log_std is not None for one in limits):
                refuse(f"the manifest has a threshold for {DEVIATION}, the graph has no such output")
            del want[DEVIATION]
        _compare("input", inputs, self.manifest.inputs())
        _compare("output", outputs, want)
        return f"{', '.join(inputs)} -> {', '.join(outputs)}"

    def self_test(self) -> str:
        self.inputs, expected = self.manifest.self_test.arrays()
        names = [value.name for value in self.model.graph.output]
        _match("inputs", self.inputs, self.manifest.inputs().keys())
        _match("outputs", expected, set(names))
        try:
            self.session = session(self.data)
        except Exception as error:
            refuse(f"ONNX Runtime cannot load it: {first_line(error)}")
        rows = len(next(iter(self.inputs.values())))
        first = self._run(self.inputs, rows)
        worst = self._distance(first, expected)
        for row in range(min(rows, SINGLE_ROWS)):
            alone = self._run({name: array[row : row + 1] for name, array in self.inputs.items()}, 1)
            self._distance(alone, {name: array[row : row + 1] for name, array in expected.items()})
        again = self._run(self.inputs, rows)
        if any(not np.array_equal(first[name], again[name]) for name in names):
            refuse("the same inputs gave other outputs the second time")
        return f"{rows} rows, at most {worst:.2g} off"

    def time(self) -> str:
        batch = {name: np.resize(array, (BATCH_ROWS, *array.shape[1:])) for name, array in self.inputs.items()}
        self._run(batch, BATCH_ROWS)
        best, ends = float("inf"), time.monotonic() + TIMED_SECONDS
        for number in range(TIMED_RUNS * 10):
            begun = time.perf_counter()
            self._run(batch, BATCH_ROWS)
            best = min(best, (time.perf_counter() - begun) * 1e3)
            # The best of some runs, and of more while none fits: a busy machine must not make a good model look slow.
            if (number + 1 >= TIMED_RUNS and best <= self.limits.batch_ms) or time.monotonic() > ends:
                break
        self.facts["batch_ms"] = round(best, 3)
        if best > self.limits.batch_ms:
            refuse(f"{BATCH_ROWS} rows take {best:.1f} ms, more than {self.limits.batch_ms:g}")
        return f"{BATCH_ROWS} rows in {best:.2f} ms"

    def _run(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        names = [value.name for value in self.model.graph.output]
        try:
            outputs = dict(zip(names, self.session.run(names, dict(inputs)), strict=True))
            check_outputs(outputs, self.manifest, rows)
        except ModelError as error:
            refuse(f"{rows} rows: {error}")
        except Exception as error:
            # ONNX Runtime's exceptions have no common base but Exception.
            refuse(f"{rows} rows: {first_line(error)}")
        return outputs

    def _distance(self, outputs: Mapping[str, Array], expected: Mapping[str, Array]) -> float:
        worst = 0.0
        for name, want in expected.items():
            have = outputs[name]
            if have.shape != want.shape:
                refuse(f"{name} has shape {list(have.shape)}, the self-test says {list(want.shape)}")
            off = np.abs(have.astype(np.float64) - want)
            worst = max(worst, float(off.max(initial=0.0)))
            if not (off <= self.limits.tolerance * (1 + np.abs(want))).all():
                refuse(f"{name} is {worst:.3g} off what the self-test says")
        return worst


def refuse(reason: str) -> NoReturn:
    raise _Refused(reason)


def check(data: bytes, limits: Limits) -> Verdict:
    """The verdict on a file's bytes; never raises for what they contain, as far as Python can tell."""
    work = _Check(data, limits)
    steps = {
        "size": work.size,
        "onnx": work.onnx,
        "external": work.external,
        "operators": work.operators,
        "manifest": work.manifest_,
        "interface": work.interface,
        "self_test": work.self_test,
        "time": work.time,
    }
    passed: list[Step] = []
    failed = reason = ""
    for name, step in steps.items():
        try:
            passed.append(Step(name, plain(step())))
        except _Refused as error:
            failed, reason = name, plain(str(error))
        except MemoryError:
            failed, reason = name, f"it needs more than {limits.check_memory_bytes >> 20} MB"
        except Exception as error:
            # Whatever odd bytes provoke in the libraries is a reason to refuse them.
            failed, reason = name, f"{type(error).__name__}: {first_line(error)}"
        if failed:
            break
    text = work.text if len(work.text) <= limits.manifest_bytes else ""
    facts = {key: _plain(value) for key, value in work.facts.items()}
    return Verdict(tuple(passed), failed, reason, plain(work.kind), text, facts)


def _plain(fact: Fact) -> Fact:
    if isinstance(fact, list):
        return [plain(item) for item in fact]
    return plain(fact) if isinstance(fact, str) else fact


def _compare(what: str, have: Mapping[str, onnx.ValueInfoProto], want: Mapping[str, tuple[int | None, ...]]) -> None:
    if missing := want.keys() - have.keys():
        refuse(f"{what} {min(missing)} is missing")
    if more := have.keys() - want.keys():
        refuse(f"{what} {min(more)[:100]!r} is not known")
    for name, shape in want.items():
        tensor = have[name].type.tensor_type
        if tensor.elem_type != onnx.TensorProto.FLOAT:
            refuse(f"{what} {name} is {_typed(have[name])}, not float32")
        dims = tensor.shape.dim
        shown = ", ".join("n" if size is None else str(size) for size in shape)
        if not tensor.HasField("shape") or len(dims) != len(shape):
            refuse(f"{what} {name} is {_typed(have[name])}, it has to be [{shown}]")
        if dims[0].HasField("dim_value"):
            refuse(f"{what} {name} has a fixed number of rows, {dims[0].dim_value}")
        for dim, size in zip(dims, shape, strict=True):
            if size is not None and dim.dim_value != size:
                refuse(f"{what} {name} is {_typed(have[name])}, it has to be [{shown}]")


def _match(what: str, have: Mapping[str, Array], want: Any) -> None:
    if have.keys() != set(want):
        refuse(f"the {what} of the self-test are {sorted(have)}, the graph's are {sorted(want)}")


def _typed(value: onnx.ValueInfoProto) -> str:
    """Name, type and dimensions, of bounded length."""
    tensor = value.type.tensor_type
    known = tensor.elem_type in onnx.TensorProto.DataType.values()
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type).lower() if known else str(tensor.elem_type)
    dims = [dim.dim_param[:20] or str(dim.dim_value or "?") for dim in tensor.shape.dim[:10]]
    return f"{value.name[:100]} {kind}[{', '.join(dims)}]"
