"""What of a folder is told, and when. Hypothesis plays writers against it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_runtime.folder import Folder

NAMES = ("a.onnx", "b.onnx", "c.onnx")


def test_a_change_is_told_once_and_only_when_it_has_settled(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 10)
    (tmp_path / "a.onnx").write_bytes(b"1")
    assert folder.changes(settled_only=True).changed == []
    assert folder.changes(settled_only=True).changed == ["a.onnx"]
    assert folder.changes(settled_only=True).changed == []
    (tmp_path / "a.onnx").write_bytes(b"22")
    assert folder.changes(settled_only=False).changed == ["a.onnx"]
    folder.forget("a.onnx")
    assert folder.changes(settled_only=True).changed == []
    assert folder.changes(settled_only=True).changed == ["a.onnx"]


def test_a_gap_is_not_an_end(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 10)
    path = tmp_path / "a.onnx"
    path.write_bytes(b"1")
    folder.changes(settled_only=False)
    path.unlink()
    assert folder.changes(settled_only=True).gone == []
    path.write_bytes(b"22")
    assert folder.changes(settled_only=True).gone == []
    assert folder.changes(settled_only=True).changed == ["a.onnx"]
    path.unlink()
    assert [folder.changes(settled_only=True).gone for _ in range(3)] == [[], ["a.onnx"], []]


def test_the_oldest_come_first_and_those_beyond_the_limit_not_at_all(tmp_path: Path) -> None:
    folder = Folder(tmp_path, 2)
    for age, name in enumerate(("b", "c", "a")):
        (tmp_path / f"{name}.onnx").write_bytes(b"1")
        os.utime(tmp_path / f"{name}.onnx", (1000 + age, 1000 + age))
    changes = folder.changes(settled_only=False)
    assert (changes.changed, changes.ignored) == (["c.onnx", "a.onnx"], 1)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        Folder(tmp_path / "none", 10).changes(settled_only=True)


WRITES = st.tuples(st.sampled_from(NAMES), st.sampled_from(["write", "append", "replace", "remove", "look", "look"]))


@settings(max_examples=60, deadline=None)
@given(st.lists(WRITES, max_size=30))
def test_after_quiet_all_that_happened_was_told(steps: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place)
        folder = Folder(path, 10)
        told: dict[str, bytes] = {}

        def look() -> None:
            changes = folder.changes(settled_only=True)
            for name in changes.gone:
                told.pop(name, None)
            for name in changes.changed:
                told[name] = (path / name).read_bytes()

        for number, (name, step) in enumerate(steps):
            file = path / name
            if step == "write":
                file.write_bytes(bytes(number + 1))
            elif step == "append":
                with file.open("ab") as out:
                    out.write(b"more")
            elif step == "replace":
                (path / "next").write_bytes(bytes(number + 1))
                (path / "next").replace(file)
            elif step == "remove":
                file.unlink(missing_ok=True)
            else:
                look()
        look()
        look()
        assert told == {file.name: file.read_bytes() for file in path.glob("*.onnx")}
