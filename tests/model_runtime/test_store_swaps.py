"""Swaps while predictions go on: none fails, none is mixed up, and memory stays."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from model_runtime.limits import MIB
from model_runtime.store import ModelStore
from tests.support.models import cardinality_model
from tests.support.scale import scale

VERSIONS, WARM = 50, 100


class Load(threading.Thread):
    """Predicts on whatever serves; each answer has to be that of the version it names."""

    def __init__(self, store: ModelStore) -> None:
        super().__init__()
        self.store = store
        self.stopping = False
        self.predictions = 0
        self.versions: set[str] = set()
        self.wrong: list[str] = []

    def run(self) -> None:
        rows = {"features": np.ones((30, 3), np.float32)}
        while not self.stopping:
            model = self.store.current("cardinality")
            assert model is not None
            try:
                answers = model.predict(rows)["log_ratio"]
            except Exception as error:
                self.wrong.append(f"{model.label}: {error!r}")
                continue
            if not np.allclose(answers, int(model.version.split(".")[1]) / 10, atol=1e-5):
                self.wrong.append(f"{model.label}: {answers[0]}")
            self.predictions += 1
            self.versions.add(model.version)
            # The one who swaps needs the interpreter too.
            time.sleep(0.001)


@pytest.fixture
def memory_folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where there is such a place: how fast a disk writes is not what is tried here."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize("swaps", scale(300, 1000))
def test_swaps_under_load(tmp_path: Path, memory_folder: Path, swaps: int) -> None:
    source, folder = tmp_path, memory_folder
    for number in range(VERSIONS):
        cardinality_model(source / str(number), version=f"1.{number}.0", log_ratio=number / 10)
    shutil.copy(source / "0", folder / "m.onnx")
    store = ModelStore(folder)
    store.reload()
    threads = [Load(store) for _ in range(2)]
    process = psutil.Process()
    before = 0
    try:
        for thread in threads:
            thread.start()
        for number in range(1, swaps + 1):
            shutil.copy(source / str(number % VERSIONS), folder / ".next")
            os.replace(folder / ".next", folder / "m.onnx")
            assert [outcome.accepted for outcome in store.reload()] == [True]
            model = store.current("cardinality")
            assert model is not None
            assert model.version == f"1.{number % VERSIONS}.0"
            if number == WARM:
                before = process.memory_info().rss
        grown = process.memory_info().rss - before
    finally:
        for thread in threads:
            thread.stopping = True
        for thread in threads:
            thread.join()
        store.close()
    assert [thread.wrong for thread in threads] == [[], []]
    assert store.generation == swaps + 1
    assert min(thread.predictions for thread in threads) > swaps / 2
    assert all(len(thread.versions) == VERSIONS for thread in threads)
    # One leaked session of this model is about 40 kB: all of them would be 8 or 32 MB.
    assert grown < swaps / 125 * MIB
