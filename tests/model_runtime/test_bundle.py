"""Writing a bundle and reading it once."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest

from model_runtime import bundle
from model_runtime.limits import Limits
from model_runtime.manifest import KIND_KEY, MANIFEST_KEY, parse
from tests.support.models import cardinality_model, flat_graph, manifest_for
from tests.support.waiting import wait_until


def graph() -> onnx.ModelProto:
    return flat_graph(0.5, np.zeros((3, 1), np.float32))


def test_what_is_written_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    model = graph()
    model.metadata_props.add(key="author", value="somebody")
    model.metadata_props.add(key=MANIFEST_KEY, value="an older one")
    manifest = manifest_for(model, "sales", "1.2.3", ranges={"joins": (0, 9)}, schema_hash="abc")
    bundle.write(model, manifest, path)
    loaded = bundle.load(path)
    assert loaded.manifest == manifest
    assert loaded.predict({"features": np.zeros((2, 3))})["log_ratio"].tolist() == [0.5, 0.5]
    written = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert written.keys() == {"author", KIND_KEY, MANIFEST_KEY}
    assert parse(written[MANIFEST_KEY]) == manifest
    # The graph that was given is as it was.
    assert [entry.key for entry in model.metadata_props] == ["author", MANIFEST_KEY]
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]


def test_a_file_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    with pytest.raises(bundle.Refused) as error:
        bundle.load(tmp_path / "m.onnx")
    assert error.value.step == "onnx"
    with pytest.raises(bundle.Refused, match="No such file"):
        bundle.load(tmp_path / "none.onnx")


def test_reading_is_bounded_whatever_the_size_says(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse.onnx"
    with sparse.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(bundle.Refused, match="more than 1000 bytes"):
        bundle.read(sparse, Limits(file_bytes=1000))
    # Of size zero in the directory, and endless.
    with pytest.raises(bundle.Refused, match="not an ordinary file"):
        bundle.read(Path("/dev/zero"), Limits())
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(bundle.Refused, match="not an ordinary file"):
        bundle.read(tmp_path / "pipe", Limits())
    with pytest.raises(bundle.Refused, match="not an ordinary file"):
        bundle.read(tmp_path, Limits())


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    cardinality_model(path)
    whole = path.read_bytes()
    stop = threading.Event()

    def rewrite() -> None:
        with path.open("r+b", buffering=0) as file:
            while not stop.is_set():
                file.seek(0)
                file.write(whole)

    def changing() -> bool:
        try:
            bundle.read(path, Limits())
        except bundle.Refused as refused:
            return refused.reason == bundle.CHANGING
        return False

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        wait_until(changing)
    finally:
        stop.set()
        writer.join()
    assert bundle.read(path, Limits()).data == whole


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    cardinality_model(path, version="1.0.0")
    before = path.read_bytes()
    (tmp_path / f".m.onnx.{os.getpid()}.tmp").mkdir()
    with pytest.raises(OSError, match=r"[Dd]irectory"):
        cardinality_model(path, version="2.0.0")
    assert path.read_bytes() == before
