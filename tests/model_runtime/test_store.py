"""Which model of a folder serves: arrivals, overwriting, removal, an operator's choice, restarts, refusals."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import numpy as np
import pytest

from model_runtime.limits import Limits
from model_runtime.manifest import Kind
from model_runtime.runner import Model
from model_runtime.store import ModelStore, Outcome
from tests.model_runtime.conftest import Open
from tests.model_runtime.wrong_models import wrong
from tests.support.models import cardinality_model, hints_model
from tests.support.waiting import eventually


def drop(folder: Path, name: str, version: str, model: str = "model", log_ratio: float = 0.0) -> None:
    cardinality_model(folder / f"{name}.onnx", model, version, log_ratio)


def serving(store: ModelStore, kind: Kind = "cardinality") -> str | None:
    model = store.current(kind)
    return None if model is None else model.version


def rows(store: ModelStore) -> dict[str, str]:
    return {f"{row.file}:{row.version}": row.status for row in store.listing()}


def test_an_empty_folder_and_none_at_all(start: Open, folder: Path) -> None:
    store = start()
    assert (store.reload(), serving(store), store.listing()) == ([], None, [])
    folder.rename(folder.with_name("away"))
    assert "cannot be read" in start().reload()[0].reason


def test_what_is_dropped_serves_after_two_looks(start: Open, folder: Path) -> None:
    swaps: list[tuple[Kind, Model | None]] = []
    events: list[Outcome] = []
    store = start(on_event=events.append, on_swap=lambda kind, model: swaps.append((kind, model)))
    store.reload()
    drop(folder, "a", "1.0.0", log_ratio=1.5)
    assert (store.poll(), serving(store)) == ([], None)
    assert [(o.file, o.accepted, o.name, o.version, o.kind) for o in store.poll()] == [
        ("a.onnx", True, "model", "1.0.0", "cardinality")
    ]
    model = store.current("cardinality")
    assert model is not None
    assert model.predict({"features": np.zeros((1, 3))})["log_ratio"].tolist() == [1.5]
    assert (swaps, events, store.generation) == ([("cardinality", model)], store.outcomes, 1)
    assert (store.poll(), store.poll(), store.generation) == ([], [], 1)


def test_kinds_do_not_disturb_each_other(start: Open, folder: Path) -> None:
    drop(folder, "c", "1.0.0")
    hints_model(folder / "h.onnx", version="2.0.0", arms={"a": {"geqo": "off"}}, log_latency_ratios=[0])
    store = start()
    store.reload()
    assert (serving(store), serving(store, "hints")) == ("1.0.0", "2.0.0")
    (folder / "c.onnx").unlink()
    store.reload()
    assert (serving(store), serving(store, "hints")) == (None, "2.0.0")


def test_the_last_to_come_serves_whatever_times_and_versions_say(start: Open, folder: Path) -> None:
    drop(folder, "a", "2.0.0")
    store = start()
    store.reload()
    drop(folder, "b", "1.0.0")
    os.utime(folder / "b.onnx", (1, 1))
    store.reload()
    assert serving(store) == "1.0.0"
    os.utime(folder / "a.onnx")
    assert (store.reload(), serving(store)) == ([], "1.0.0")
    store = start()
    store.reload()
    assert serving(store) == "1.0.0"


def test_overwriting_and_removing(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    store = start()
    store.reload()
    drop(folder, "b", "2.0.0")
    store.reload()
    drop(folder, "a", "3.0.0")
    store.reload()
    assert serving(store) == "3.0.0"
    (folder / "a.onnx").unlink()
    # A file that is replaced by removing it first is missed once.
    assert (store.poll(), serving(store)) == ([], "3.0.0")
    assert [(o.file, o.step) for o in store.poll()] == [("a.onnx", "removed")]
    assert serving(store) == "2.0.0"
    (folder / "b.onnx").unlink()
    store.reload()
    assert serving(store) is None
    assert rows(start()) == {}


def test_a_bad_file_leaves_the_old_model_serving(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    store = start(limits=Limits(file_bytes=100_000))
    store.reload()
    for name in ("cut short", "text", "external data", "custom operator", "wider", "lying test", "random"):
        data, step, words = wrong(name)
        (folder / "a.onnx").write_bytes(data)
        (outcome,) = store.reload()
        assert (outcome.file, outcome.accepted, outcome.step) == ("a.onnx", False, step)
        assert words in outcome.reason
        assert serving(store) == "1.0.0"
    (folder / "a.onnx").write_bytes(bytes(100_001))
    assert [(o.step, o.reason) for o in store.reload()] == [("size", "more than 100000 bytes")]
    assert rows(store) == {"a.onnx:1.0.0": "active"}
    assert "present content is refused: more than" in store.listing()[0].reason
    # What the file held last is remembered, over a restart too.
    store = start()
    assert not any(outcome.accepted for outcome in store.reload())
    assert serving(store) == "1.0.0"
    drop(folder, "a", "1.0.1")
    store.reload()
    assert (serving(store), store.listing()[0].reason) == ("1.0.1", "")


def test_what_is_no_file_is_refused_and_hidden_ones_are_not_looked_at(start: Open, folder: Path) -> None:
    os.mkfifo(folder / "pipe.onnx")
    (folder / "link.onnx").symlink_to(folder / "nothing")
    (folder / "folder.onnx").mkdir()
    (folder / ".hidden.onnx").write_bytes(b"x")
    Path(os.fsdecode(bytes(folder) + b"/\xff.onnx")).write_bytes(b"x")
    store = start()
    assert {(o.file, o.reason) for o in store.reload()} == {
        ("pipe.onnx", "not an ordinary file"),
        ("\\udcff.onnx", "its name is not UTF-8"),
    }


def test_a_link_is_followed_and_its_change_seen(start: Open, folder: Path, tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0"):
        cardinality_model(tmp_path / f"{version}.onnx", version=version)
    (folder / "m.onnx").symlink_to(tmp_path / "1.0.0.onnx")
    store = start()
    store.reload()
    (folder / ".new").symlink_to(tmp_path / "2.0.0.onnx")
    (folder / ".new").replace(folder / "m.onnx")
    store.reload()
    assert serving(store) == "2.0.0"


def test_too_many_files(start: Open, folder: Path) -> None:
    for number in range(4):
        drop(folder, f"m{number}", f"1.0.{number}")
        os.utime(folder / f"m{number}.onnx", (number + 1, number + 1))
    store = start(limits=Limits(files=2))
    assert [o.reason for o in store.reload() if not o.accepted] == [
        "2 of the oldest files are not looked at: more than 2"
    ]
    assert (serving(store), len(store.listing())) == ("1.0.3", 2)


def test_a_file_written_slowly_in_place(start: Open, folder: Path, tmp_path: Path) -> None:
    drop(folder, "m", "1.0.0")
    store = start()
    store.reload()
    drop(tmp_path, "whole", "2.0.0")
    whole = (tmp_path / "whole.onnx").read_bytes()
    with (folder / "m.onnx").open("r+b", buffering=0) as file:
        file.truncate()
        for begin in range(0, len(whole), 200):
            file.write(whole[begin : begin + 200])
            assert store.poll() == []
            assert serving(store) == "1.0.0"
    found = store.poll() + store.poll()
    assert [outcome.accepted for outcome in found] == [True]
    assert serving(store) == "2.0.0"


def test_a_half_written_file_found_by_reload_is_read_again(start: Open, folder: Path, tmp_path: Path) -> None:
    drop(tmp_path, "whole", "2.0.0")
    whole = (tmp_path / "whole.onnx").read_bytes()
    store = start()
    (folder / "m.onnx").write_bytes(whole[:500])
    assert [outcome.step for outcome in store.reload()] == ["onnx"]
    assert rows(store) == {"m.onnx:": "refused"}
    (folder / "m.onnx").write_bytes(whole)
    store.poll()
    store.poll()
    assert (serving(store), rows(store)) == ("2.0.0", {"m.onnx:2.0.0": "active"})


async def test_watch_follows_the_folder(start: Open, folder: Path) -> None:
    store = start()
    watching = asyncio.create_task(store.watch(0.02))
    drop(folder, "a", "1.0.0")
    await eventually(lambda: serving(store) == "1.0.0")
    (folder / "a.onnx").write_bytes(b"broken")
    await eventually(lambda: store.outcomes[-1].step == "onnx")
    drop(folder, "a", "2.0.0")
    await eventually(lambda: serving(store) == "2.0.0")
    watching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await watching


def test_a_store_of_its_own_checks_until_it_is_closed(folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    store = ModelStore(folder)
    store.reload()
    model = store.current("cardinality")
    store.close()
    drop(folder, "a", "2.0.0")
    assert [outcome.step for outcome in store.reload()] == ["process"]
    assert store.current("cardinality") is model
    assert model is not None
    assert len(model.predict({"features": np.zeros((2, 3))})["log_ratio"]) == 2


def test_reload_gives_a_refused_file_another_chance(start: Open, folder: Path) -> None:
    drop(folder, "a", "1.0.0")
    store = start(limits=Limits(batch_ms=1e-9))
    assert [outcome.step for outcome in store.reload()] == ["time"]
    assert (store.poll(), store.poll()) == ([], [])
    store.limits = Limits()
    assert [outcome.accepted for outcome in store.reload()] == [True]
    assert serving(store) == "1.0.0"


def test_a_callback_that_fails_is_a_reason_and_no_more(start: Open, folder: Path) -> None:
    def fail(outcome: Outcome) -> None:
        raise RuntimeError("no")

    drop(folder, "a", "1.0.0")
    store = start(on_event=fail)
    assert store.reload()[-1].reason == "RuntimeError: no"
    assert serving(store) == "1.0.0"
