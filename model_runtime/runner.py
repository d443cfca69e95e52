"""Runs one checked model on the CPU: float32 arrays in, float32 arrays out.

A session uses the calling thread and no other, allocates from the ordinary heap (an arena per session would be given
back late or never when models are swapped), and remembers no memory patterns, which would grow with each new number
of rows. What a prediction costs therefore depends on its own rows alone. Sessions may be used from several threads at
once. A `Model` never changes and lives as long as somebody holds it: after a swap, predictions under way end on the
model they began with.

One daemon thread per process stops predictions that take too long; it sleeps while none is under way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import onnxruntime as ort

from model_runtime.limits import Limits
from model_runtime.manifest import DEVIATION, Manifest
from model_runtime.verdict import plain

Array: TypeAlias = np.ndarray[Any, Any]
WATCH_INTERVAL: Final = 0.02
QUIET_ROUNDS: Final = 50
FATAL: Final = 4
ort.set_default_logger_severity(FATAL)  # What goes wrong is an exception; the library's own log would repeat it.


class ModelError(Exception):
    """A prediction that cannot be used: wrong inputs, an operator that failed, outputs that are not finite or not of
    their shape, or too slow. ``str()`` says which."""


class _Watch:
    """Ends runs at their deadline. ONNX Runtime looks at the flag between two operators."""

    def __init__(self) -> None:
        self._runs: dict[int, tuple[float, Any]] = {}
        self._begun = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, seconds: float) -> tuple[int, Any]:
        options = ort.RunOptions()
        options.log_severity_level = FATAL
        key = id(options)
        self._runs[key] = (time.monotonic() + seconds, options)
        # A forked process has the object but not the thread.
        if not self._begun.is_set() or self._thread is None or not self._thread.is_alive():
            self._wake()
        return key, options

    def end(self, key: int) -> None:
        del self._runs[key]

    def _wake(self) -> None:
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._watch, name="model-deadlines", daemon=True)
                self._thread.start()
            self._begun.set()

    def _watch(self) -> None:
        quiet = 0
        while True:
            self._begun.wait()
            time.sleep(WATCH_INTERVAL)
            now = time.monotonic()
            runs = list(self._runs.values())
            for deadline, options in runs:
                if now > deadline:
                    options.terminate = True
            # Waking this thread costs a prediction some 30 us: under load it stays awake.
            quiet = 0 if runs else quiet + 1
            if quiet > QUIET_ROUNDS:
                self._begun.clear()
                # A run that began between the look and the clear saw the event set and woke nobody.
                if self._runs:
                    self._begun.set()


_watch = _Watch()


def session(data: bytes) -> Any:
    """An ``InferenceSession`` for that file's bytes. Raises what ONNX Runtime raises."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.use_deterministic_compute = True
    options.log_severity_level = FATAL
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


@dataclass(frozen=True, slots=True)
class Stats:
    """Predictions since the model was loaded; times in milliseconds, percentiles over the last `RECENT`."""

    count: int
    failures: int
    mean_ms: float
    p50_ms: float
    p99_ms: float
    max_ms: float


RECENT: Final = 512


class Model:
    """One loaded model. Made by `model_runtime.bundle.load` and by the store, after the file was checked."""

    __slots__ = (
        "_count",
        "_failures",
        "_high",
        "_low",
        "_max_ms",
        "_recent",
        "_session",
        "_shapes",
        "_total_ms",
        "kind",
        "limits",
        "manifest",
        "name",
        "outputs",
        "sha256",
        "version",
    )

    def __init__(self, data: bytes, sha256: str, manifest: Manifest, limits: Limits) -> None:
        self.manifest = manifest
        self.name = manifest.name
        self.version = manifest.version
        self.kind = manifest.kind
        self.sha256 = sha256
        self.limits = limits
        self._session = session(data)
        self._shapes = manifest.inputs()
        self.outputs = tuple(output.name for output in self._session.get_outputs())
        unbounded = (-np.inf, np.inf)
        bounds = [manifest.ranges.get(name, unbounded) for name in manifest.features]
        self._low = np.array([low for low, _ in bounds], dtype=np.float32)
        self._high = np.array([high for _, high in bounds], dtype=np.float32)
        self._count = self._failures = 0
        self._total_ms = self._max_ms = 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def __repr__(self) -> str:
        return f"<Model {self.kind} {self.label} {self.sha256[:12]} predictions={self._count}>"

    @property
    def label(self) -> str:
        return self.manifest.label

    def predict(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name (see `model_runtime.manifest.Manifest.inputs`), all of the same n rows;
        further inputs are ignored. ``log_ratio`` is float32 [n], not clipped, and ``log_std`` [n] where the model has
        one; of a hints model ``log_latency_ratio`` and ``log_std`` are [n, arms]. Raises `ModelError`.

        Costs about 10 us beyond what the operators take.
        """
        begun = time.perf_counter()
        try:
            feed, rows = self._feed(inputs)
            outputs = self._run(feed, rows, self.limits.predict_ms / 1e3) if rows else self._nothing()
        except ModelError:
            self._failures += 1
            raise
        took = (time.perf_counter() - begun) * 1e3
        # Not locked: under a race of threads a count may miss one, which statistics can bear.
        self._count += 1
        self._total_ms += took
        self._max_ms = max(self._max_ms, took)
        self._recent.append(took)
        return outputs

    def warm(self, inputs: Mapping[str, Array]) -> None:
        """One run that does not count and is not hurried, so that the first real one pays for nothing. Raises
        `ModelError`."""
        self._run(*self._feed(inputs), self.limits.check_seconds)

    def _feed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], int]:
        feed = {}
        rows = -1
        for name, shape in self._shapes.items():
            array = inputs.get(name)
            if array is None:
                raise ModelError(f"input {name} is missing")
            array = np.ascontiguousarray(array, dtype=np.float32)
            if array.ndim != len(shape) or any(
                want is not None and want != have for want, have in zip(shape, array.shape, strict=True)
            ):
                raise ModelError(f"input {name} has shape {list(array.shape)}, the model takes {_shown(shape)}")
            if rows not in (-1, len(array)):
                raise ModelError("the inputs differ in their number of rows")
            rows = len(array)
            feed[name] = array
        if rows > self.limits.predict_rows:
            raise ModelError(f"{rows} rows at once, more than {self.limits.predict_rows}")
        return feed, rows

    def _run(self, feed: dict[str, Array], rows: int, seconds: float) -> dict[str, Array]:
        key, options = _watch.begin(seconds)
        try:
            values = self._session.run(self.outputs, feed, options)
        except Exception as error:
            # ONNX Runtime's exceptions have no common base but Exception.
            if options.terminate:
                raise ModelError(f"stopped after {seconds * 1e3:g} ms") from None
            raise ModelError(f"ONNX Runtime: {first_line(error)}") from None
        finally:
            _watch.end(key)
        outputs = dict(zip(self.outputs, values, strict=True))
        check_outputs(outputs, self.manifest, rows)
        return outputs

    def _nothing(self) -> dict[str, Array]:
        shapes = self.manifest.outputs()
        return {name: np.zeros((0, *(size or 0 for size in shapes[name][1:])), np.float32) for name in self.outputs}

    def outside_ranges(self, features: Array) -> Array:
        """How many features of each row of flat ``features`` [n, F] lie outside of the manifest's ranges, int64 [n]."""
        outside: Array = (features < self._low) | (features > self._high) | np.isnan(features)
        counts: Array = outside.sum(axis=1)
        return counts

    def stats(self) -> Stats:
        recent = sorted(self._recent)
        return Stats(
            count=self._count,
            failures=self._failures,
            mean_ms=self._total_ms / max(self._count, 1),
            p50_ms=_percentile(recent, 0.5),
            p99_ms=_percentile(recent, 0.99),
            max_ms=self._max_ms,
        )


def check_outputs(outputs: Mapping[str, Array], manifest: Manifest, rows: int) -> None:
    """`ModelError` unless every output is finite float32 of its declared shape for that many rows, and no deviation is
    negative."""
    shapes = manifest.outputs()
    for name, value in outputs.items():
        want = (rows, *shapes[name][1:])
        if not isinstance(value, np.ndarray) or value.dtype != np.float32 or value.shape != want:
            kind = f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
            raise ModelError(f"output {name} is {kind}, not float32{list(want)}")
        if not np.isfinite(value).all():
            raise ModelError(f"output {name} is not finite")
        if name == DEVIATION and (value < 0).any():
            raise ModelError(f"output {name} is negative")


def first_line(error: BaseException) -> str:
    """What an exception says, as one line of bounded length."""
    return plain(str(error) or type(error).__name__)


def _shown(shape: Iterable[int | None]) -> str:
    return "[" + ", ".join("n" if size is None else str(size) for size in shape) + "]"


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0
