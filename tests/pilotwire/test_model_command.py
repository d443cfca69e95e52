"""``pilotwire model`` as a command: what it prints, in colour or not, and with which code it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_runtime.store import ModelStore
from tests.model_runtime.wrong_models import bundled, fields, plain
from tests.support.models import cardinality_model, hints_model


def model(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PILOTWIRE_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pilotwire", "model", *map(str, arguments)],
        check=False,
        env=environment | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def as_json(result: subprocess.CompletedProcess[str], code: int = 0) -> Any:
    assert (result.returncode, result.stderr) == (code, "")
    return json.loads(result.stdout)


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (code, "", 1)
    assert result.stderr.startswith("pilotwire: ")
    return result.stderr


def test_inspect(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    both = {"before": 115, "after": 7.4}
    training = {"queries": 70, "sub_plans": 3777, "splits": {"held out": {"queries": 20, "q_error": {"p90": both}}}}
    hints_model(path, arms={"no_hash": {"enable_hashjoin": "off"}}, log_latency_ratios=[0.5], training=training)
    shown = model("inspect", path)
    assert (shown.returncode, shown.stderr, "\x1b" in shown.stdout) == (0, "", False)
    words = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "kind hints: ln(arm_latency/default_latency)" in words
    assert "held out 20 queries; q-error p90 115 -> 7.4" in words
    assert "arm no_hash enable_hashjoin = off" in words
    assert words[-1] == "All checks pass."
    facts = as_json(model("inspect", path, "--json"))
    assert (facts["ok"], facts["kind"], facts["bytes"]) == (True, "hints", path.stat().st_size)
    assert facts["manifest"]["training"]["sub_plans"] == 3777
    path.write_bytes(path.read_bytes()[:100])
    assert as_json(model("inspect", path, "--json"), 1)["manifest"] is None


def test_inspect_shows_a_file_that_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    lie = {"inputs": {"features": [[0, 0, 0]]}, "outputs": {"log_ratio": [9]}}
    path.write_bytes(bundled(plain(), fields() | {"self_test": lie}))
    shown = model("inspect", path)
    assert shown.returncode == 0
    assert "refused: self_test: log_ratio is 9 off what the self-test says" in shown.stdout


def test_validate(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    cardinality_model(good)
    bad.write_bytes(b"\x1b[31m")
    assert as_json(model("validate", good, "--json"))["ok"] is True
    both = model("validate", good, bad, tmp_path / "none.onnx")
    assert (both.returncode, both.stderr, "\x1b" in both.stdout) == (1, "", False)
    lines = [" ".join(line.split()) for line in both.stdout.splitlines()]
    assert "ok self_test 3 rows, at most 0 off" in lines
    assert any(line.startswith("refused onnx not an ONNX file") for line in lines)
    assert "refused read No such file or directory" in lines


def test_list_activate_rollback(tmp_path: Path) -> None:
    cardinality_model(tmp_path / "m.onnx", "sales", "1.0.0")
    store = ModelStore(tmp_path)
    try:
        store.reload()
        cardinality_model(tmp_path / "m.onnx", "sales", "2.0.0")
        store.reload()
        (tmp_path / "bad.onnx").write_bytes(b"bad")
        folder = ("--models", tmp_path)
        listed = as_json(model("list", "--json", PILOTWIRE_MODELS=str(tmp_path)))["models"]
        assert {(row["file"], row["version"], row["status"]) for row in listed} == {
            ("bad.onnx", "", "refused"),
            ("m.onnx", "2.0.0", "active"),
            ("m.onnx", "1.0.0", "kept"),
        }
        lines = [" ".join(line.split()) for line in model("list", *folder).stdout.splitlines()]
        assert lines[0] == "status kind model came file"
        assert any(line.startswith("active cardinality sales 2.0.0 ") and line.endswith(" m.onnx") for line in lines)
        assert any(line.startswith("refused - -") and "not an ONNX file" in line for line in lines)

        def serving() -> str:
            store.poll()
            present = store.current("cardinality")
            assert present is not None
            return present.version

        assert model("rollback", *folder).stdout == "sales 1.0.0 serves again\n"
        assert serving() == "1.0.0"
        expected = {"ok": True, "model": {"name": "sales", "version": "2.0.0", "kind": "cardinality"}}
        assert as_json(model("activate", "sales@2.0.0", *folder, "--json")) == expected
        assert serving() == "2.0.0"
        pinned = {row.version: row.pinned for row in store.listing()}
        assert pinned == {"": False, "1.0.0": False, "2.0.0": True}
        assert "bad.onnx is refused" in one_line(model("activate", "bad.onnx", *folder), 1)
        assert model("activate", "--newest", *folder).stdout == "sales 2.0.0 serves\n"
        assert serving() == "2.0.0"
    finally:
        store.close()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("list", "--models", "/no/such/folder"), 1, "/no/such/folder is not a folder"),
        (("list",), 2, "--models"),
        (("activate", "--models", "."), 2, "name a model"),
        (("activate", "x", "--newest", "--models", "."), 2, "name a model"),
        (("rollback", "--models", ".", "--kind", "magic"), 2, "cardinality or hints"),
        (("validate",), 2, "FILE"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], code: int, words: str) -> None:
    assert words in one_line(model(*arguments), code)


def test_colours_only_on_a_terminal(tmp_path: Path) -> None:
    cardinality_model(tmp_path / "m.onnx")
    leader, follower = os.openpty()
    try:
        for variables, coloured in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
            environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
            subprocess.run(
                [sys.executable, "-m", "pilotwire", "model", "validate", str(tmp_path / "m.onnx")],
                env=environment | variables,
                stdout=follower,
                stderr=follower,
                timeout=60,
                check=True,
            )
            assert ("\x1b[32m" in os.read(leader, 1 << 16).decode()) is coloured
    finally:
        os.close(leader)
        os.close(follower)
