"""An operator's choice: pinning, going back, releasing; over restarts, from another process, and when it cannot be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from model_runtime.limits import Limits
from model_runtime.state import FOLDER
from model_runtime.store import ModelStore, StoreError
from tests.model_runtime.conftest import Open
from tests.support.models import cardinality_model
from tests.support.waiting import wait_until


@pytest.fixture
def start(start: Open) -> Open:
    """Opens stores that have looked at the folder."""

    def looked(**options: Any) -> ModelStore:
        store = start(**options)
        store.reload()
        return store

    return looked


def drop(folder: Path, name: str, version: str, model: str = "model") -> None:
    cardinality_model(folder / f"{name}.onnx", model, version)


def serving(store: ModelStore) -> str | None:
    model = store.current("cardinality")
    return None if model is None else model.version


def test_a_pin_holds_against_what_comes(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    store = start()
    drop(folder, "b", "2.0.0")
    store.reload()
    assert store.activate("model-1.0.0").version == "1.0.0"
    assert store.activate("model", "1.0.0").version == "1.0.0"
    drop(folder, "c", "3.0.0")
    store.reload()
    assert serving(store) == serving(start()) == "1.0.0"
    assert [(row.version, row.status, row.pinned) for row in store.listing()] == [
        ("3.0.0", "valid", False),
        ("2.0.0", "valid", False),
        ("1.0.0", "active", True),
    ]
    # Overwriting the pinned file does not end the pin: its copy serves.
    drop(folder, "a", "4.0.0")
    store.reload()
    assert serving(store) == serving(start()) == "1.0.0"
    released = store.release()
    assert released is not None
    assert released.version == serving(start()) == "4.0.0"


def test_removing_the_pinned_file_ends_the_pin(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    drop(folder, "b", "2.0.0")
    store = start()
    store.activate("a.onnx")
    assert serving(store) == "1.0.0"
    (folder / "a.onnx").unlink()
    store.reload()
    assert serving(store) == "2.0.0"
    (folder / "b.onnx").unlink()
    store.reload()
    assert serving(store) is None
    with pytest.raises(StoreError, match="no cardinality file is left"):
        store.activate("model", "2.0.0")
    with pytest.raises(StoreError, match="no cardinality model serves"):
        store.rollback()


def test_rollback_goes_back_until_something_newer_comes(start: Open, folder: Path) -> None:
    store = start()
    for version in ("1.0.0", "2.0.0", "3.0.0"):
        drop(folder, "m", version)
        store.reload()
    assert store.rollback().version == "2.0.0"
    assert serving(start()) == "2.0.0"
    assert store.rollback().version == "1.0.0"
    with pytest.raises(StoreError, match="no earlier"):
        store.rollback()
    assert serving(store) == "1.0.0"
    drop(folder, "m", "4.0.0")
    store.reload()
    assert serving(store) == serving(start()) == "4.0.0"
    # What was rolled back is not gone back to; what it was rolled back to is.
    assert store.rollback().version == "1.0.0"
    # But it can be asked for by name.
    assert store.activate("model", "3.0.0").version == "3.0.0"


def test_copies_are_bounded(start: Open, folder: Path) -> None:
    store = start(limits=Limits(kept=3))
    for number in range(8):
        drop(folder, "m", f"1.0.{number}")
        store.reload()
    assert len(list((folder / FOLDER).glob("*.onnx"))) == 3
    assert [row.version for row in store.listing()] == ["1.0.7", "1.0.6", "1.0.5"]


def test_what_cannot_be_activated_changes_nothing(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    (folder / "bad.onnx").write_bytes(b"bad")
    store = start()
    with pytest.raises(StoreError, match=r"bad.onnx is refused: not an ONNX file"):
        store.activate("bad.onnx")
    with pytest.raises(StoreError, match="no model other"):
        store.activate("other")
    with pytest.raises(StoreError, match=r"no model model 9.9.9"):
        store.activate("model", "9.9.9")
    drop(folder, "a", "2.0.0")
    store.reload()
    # A copy that somebody damaged is not served.
    for copy in (folder / FOLDER).glob("*.onnx"):
        copy.write_bytes(copy.read_bytes()[:-1] + b"!")
    with pytest.raises(StoreError, match="its content is gone"):
        store.activate("model", "1.0.0")
    with pytest.raises(StoreError, match="no earlier"):
        store.rollback()
    assert serving(store) == serving(start()) == "2.0.0"


def test_a_running_store_follows_another_process(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    running, other = start(), start()
    drop(folder, "a", "2.0.0")
    running.reload()
    other.reload()
    other.rollback()
    assert running.poll() == []
    assert serving(running) == "1.0.0"
    other.release()
    running.poll()
    assert serving(running) == "2.0.0"


def test_looking_without_recording_writes_nothing(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    assert serving(start(record=False)) == "1.0.0"
    assert [path.name for path in folder.iterdir()] == ["a.onnx"]


def test_a_state_that_is_not_ours_is_not_believed(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    start()
    state = folder / FOLDER / "state.json"
    good = state.read_text()
    outside = json.loads(good)
    outside["files"]["gone.onnx"] = outside["files"]["a.onnx"] | {"sha256": "../../a"}
    outside["pins"]["cardinality"] = {"sha256": "../../a", "at": 0, "hold": True}
    for text in ("", "{", "[]", '{"files": 3}', json.dumps(outside), "x" * (5 << 20)):
        state.write_text(text)
        store = start()
        assert serving(store) == "1.0.0", text[:50]
    state.write_text("{")
    assert any("starts anew" in outcome.reason for outcome in start().outcomes)


def test_a_folder_that_cannot_be_written_is_served(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    # A file where the hidden folder would be: nobody can write there, root neither.
    (folder / FOLDER).write_bytes(b"")
    store = start()
    assert serving(store) == "1.0.0"
    assert any("cannot be written" in outcome.reason for outcome in store.outcomes)
    drop(folder, "b", "2.0.0")
    store.reload()
    assert store.activate("model", "1.0.0").version == "1.0.0"
    assert store.rollback().version == "2.0.0"


def test_a_process_that_holds_the_lock_does_not_stop_the_others(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    start()
    script = (
        "import fcntl, sys, time\nfile = open(sys.argv[1])\nfcntl.flock(file, fcntl.LOCK_EX)\n"
        "print('ok', flush=True)\ntime.sleep(60)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(folder / FOLDER / "lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ok\n"
        holder.send_signal(signal.SIGSTOP)
        drop(folder, "a", "2.0.0")
        begun = time.monotonic()
        assert serving(start()) == "2.0.0"
        assert time.monotonic() - begun < 20
    finally:
        holder.kill()
        holder.communicate()


WRITER = """
import sys
from pathlib import Path
from model_runtime.limits import Limits
from model_runtime.state import Memory, Pin, Seen
memory = Memory(Path(sys.argv[1]), Limits())
number = 0
while True:
    number += 1
    with memory.change() as state:
        seen = Seen(str(number), "cardinality", "x" * 50, "1.0.0", number)
        state.files = {f"{number}-{i}.onnx": seen for i in range(200)}
        state.pins = {"cardinality": Pin(str(number), number, False)}
    print(number, flush=True)
"""


def test_a_kill_while_the_state_is_written_leaves_a_whole_one(start: Open, folder: Path) -> None:
    state = folder / FOLDER / "state.json"
    seen = 0
    for round_ in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        for _ in range(3 + 2 * round_):
            writer.stdout.readline()
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        content = json.loads(state.read_text())
        number = int(content["pins"]["cardinality"]["sha256"])
        assert {entry["arrived"] for entry in content["files"].values()} == {number}
        seen += number
    assert seen > 0
    drop(folder, "a", "1.0.0")
    store = start()
    assert serving(store) == "1.0.0"
    # What the killed writer left half-written goes in time.
    for path in (folder / FOLDER).glob(".*.tmp"):
        os.utime(path, (1, 1))
    drop(folder, "a", "1.0.1")
    store.reload()
    assert wait_until(lambda: not list((folder / FOLDER).glob(".*.tmp")))
