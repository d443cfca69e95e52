"""``pilotwire demo`` as people use it, on few rows: the whole way once, and the kept results at the second start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pilotwire.embedded import EmbeddedServer
from tests.support.ports import free_port


def demo(directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    ports = ["--port", str(free_port()), "--admin-port", str(free_port())]
    return subprocess.run(
        [sys.executable, "-m", "pilotwire", "demo", "--once", "--dir", str(directory), "--rows", "0.01", *ports, *more],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def directory(run_folder: Path) -> Iterator[Path]:
    place = run_folder / f"demo-{os.getpid()}"
    yield place
    EmbeddedServer(place / "pg").reset()


# Half a minute of work for a processor, of which there may be few for many.
@pytest.mark.long
@pytest.mark.timeout(500)
def test_from_nothing_to_a_table_and_again(directory: Path) -> None:
    first = demo(directory, "--rounds", "1", "--queries", "20")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "rows of a shop loaded" in first.stdout
    assert "trained on" in first.stdout
    assert "in total" in first.stdout
    assert "joins nothing" in first.stdout
    [kept] = directory.glob("demo-results-*.json")
    results = json.loads(kept.read_text())
    assert len(results["rows"]) >= 40
    assert results["model"].startswith("demo-")
    tags = [(row["plain"]["tag"], row["steered"]["tag"]) for row in results["rows"]]
    assert all(plain == steered for plain, steered in tags)
    if EmbeddedServer(directory / "pg").hint_plan_installed:
        # On so few rows most are too short, all of them where a busy machine makes decisions slow.
        known = ("left alone: the model agrees", "left alone: too short to gain")
        asked = [row for row in results["rows"] if row["advised"] or row["why"] in known]
        assert len(asked) >= 20, results["rows"]
    second = demo(directory)
    assert second.returncode == 0, second.stdout + second.stderr
    assert f"as it ran at {results['taken_at']}" in second.stdout
    assert "loaded already" in second.stdout
    assert json.loads(kept.read_text()) == results
