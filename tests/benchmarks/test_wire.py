"""A run of the wire's benchmark that was stopped, and goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report import kept

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.wire", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


@pytest.mark.long
def test_a_run_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    common = ("--parts", "speed", "--targets", "direct", "--seconds", "1", "--cells", "1:simple,2:simple")
    assert bench(*common, "--rounds", "1", "--output", str(file)).returncode == 0
    content = json.loads(file.read_text())
    first, disturbed = content["samples"]
    first |= {"tps": 12345.0, "stolen": 0.0}
    disturbed |= {"tps": 12345.0, "stolen": 0.5}
    file.write_text(json.dumps(content))
    assert bench(*common, "--rounds", "2", "--resume", str(file)).returncode == 0
    samples: list[dict[str, Any]] = json.loads(file.read_text())["samples"]
    places = [(sample["round"], sample["cell"]["clients"]) for sample in samples]
    assert sorted(places) == [(0, 1), (0, 2), (1, 1), (1, 2)]
    assert [sample["tps"] for sample in samples].count(12345.0) == 1


EMPTY = {"settings": {"seconds": 3}, "samples": [], "queries": [], "connects": [], "versions": {}}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "holds no run of this benchmark"),
        ("{}", "holds no run of this benchmark"),
        (json.dumps(EMPTY | {"samples": [{}]}), "holds no run of this benchmark"),
        (json.dumps(EMPTY), "holds runs of 3 seconds: go on with --seconds 3"),
    ],
)
def test_what_cannot_be_gone_on_with_is_refused(content: str, reason: str, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=reason):
        kept(file, 10)
