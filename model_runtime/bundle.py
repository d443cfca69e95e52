"""One model file: writing it, reading it once, and loading it after all checks.

A file is read into memory in one go and everything after that (hash, checks, session) sees those bytes: a file that
changes meanwhile changes nothing. The order of the checks is the bundle contract's; see `model_runtime.checks`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from model_runtime.check_process import CheckProcess
from model_runtime.limits import Limits
from model_runtime.manifest import KIND_KEY, MANIFEST_KEY, Manifest, SelfTest, parse
from model_runtime.runner import Array, Model, ModelError, first_line, session
from model_runtime.verdict import Step, Verdict

if TYPE_CHECKING:
    import onnx


CHANGING: Final = "it changed while it was read"


class Refused(Exception):
    """A file that is not used. ``step`` is a stable label of the check that failed, ``reason`` a sentence."""

    def __init__(self, step: str, reason: str) -> None:
        super().__init__(reason)
        self.step = step
        self.reason = reason


class FileBytes(NamedTuple):
    """A file's content. ``signature`` changes when the file does."""

    data: bytes
    sha256: str
    signature: tuple[int, int, int]


def signature(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def read(path: Path, limits: Limits) -> FileBytes:
    """The whole file, read once. Raises `Refused` for what is no ordinary file, too large, or changes while it is
    read."""
    try:
        # Without O_NONBLOCK opening a FIFO would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise Refused("read", error.strerror or str(error)) from None
    try:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise Refused("read", "not an ordinary file")
        data = bytearray()
        # The size in the directory is not believed: one byte more than allowed is never held.
        while part := os.read(descriptor, min(1 << 20, limits.file_bytes + 1 - len(data))):
            data += part
        after = os.fstat(descriptor)
    except OSError as error:
        raise Refused("read", error.strerror or str(error)) from None
    finally:
        os.close(descriptor)
    if len(data) > limits.file_bytes:
        raise Refused("size", f"more than {limits.file_bytes} bytes")
    if signature(before) != signature(after):
        raise Refused("read", CHANGING)
    content = bytes(data)
    return FileBytes(content, hashlib.sha256(content).hexdigest(), signature(before))


def admit(content: FileBytes, verdict: Verdict, limits: Limits) -> Model:
    """A model for bytes with that good verdict, warmed by its self-test in this process. Raises `Refused`."""
    if not verdict.good:
        raise Refused(verdict.failed, verdict.reason)
    try:
        manifest = parse(verdict.manifest)
        model = Model(content.data, content.sha256, manifest, limits)
        inputs, _ = manifest.self_test.arrays()
        model.warm(inputs)
    except (ValueError, ModelError) as error:
        raise Refused("self_test", first_line(error)) from None
    except Exception as error:
        # ONNX Runtime's exceptions have no common base but Exception.
        raise Refused("self_test", f"ONNX Runtime cannot load it: {first_line(error)}") from None
    return model


def inspect(path: Path, limits: Limits, checker: CheckProcess) -> tuple[FileBytes | None, Verdict]:
    """The file's bytes and what all checks say of them; never raises for what the file is or contains."""
    try:
        content = read(path, limits)
    except Refused as error:
        return None, Verdict(failed=error.step, reason=error.reason)
    verdict = checker.check(content.data, limits)
    return content, Verdict(
        (Step("read", f"sha256 {content.sha256[:12]}"), *verdict.passed),
        verdict.failed,
        verdict.reason,
        verdict.kind,
        verdict.manifest,
        verdict.facts,
    )


def load(path: Path, limits: Limits | None = None, checker: CheckProcess | None = None) -> Model:
    """The model in that file after all checks. Raises `Refused`.

    Without a ``checker`` that several share, one is started for this file alone: about 0.6 s.
    """
    limits = limits or Limits()
    with CheckProcess() if checker is None else nullcontext(checker) as shared:
        content, verdict = inspect(path, limits, shared)
    if content is None:
        raise Refused(verdict.failed, verdict.reason)
    return admit(content, verdict, limits)


def self_test(model: onnx.ModelProto, inputs: Mapping[str, Array]) -> SelfTest:
    """What that graph answers to those inputs, as the manifest's self-test. Raises what ONNX Runtime raises."""
    running = session(model.SerializeToString())
    names = [output.name for output in running.get_outputs()]
    outputs = running.run(names, {name: array.astype("float32") for name, array in inputs.items()})
    return SelfTest(
        inputs={name: array.tolist() for name, array in inputs.items()},
        outputs={name: array.tolist() for name, array in zip(names, outputs, strict=True)},
    )


def write(model: onnx.ModelProto, manifest: Manifest, path: Path) -> None:
    """Write the graph with that manifest inside. The file appears complete or not at all. Raises OSError."""
    own = {KIND_KEY: manifest.kind, MANIFEST_KEY: manifest.model_dump_json()}
    bundled = type(model)()
    bundled.CopyFrom(model)
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key not in own]
    del bundled.metadata_props[:]
    for key, value in (*others, *own.items()):
        bundled.metadata_props.add(key=key, value=value)
    replace(path, bundled.SerializeToString())


def replace(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put a file's new content in place by renaming: a crash at any moment leaves the old or the new one, a power cut
    too if ``durable`` (which waits for the disk). Raises OSError."""
    # Hidden, so that nobody takes it for a model; the process in the name keeps two writers apart.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
