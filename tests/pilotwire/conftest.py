"""Command lines that are refused, run where the tests run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pilotwire.cli import run_program

Refused = Callable[..., tuple[int, list[str]]]


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Runs a command line in this process, which saves its start; the exit code and the lines on standard error."""
    for name in [name for name in os.environ if name.startswith("PILOTWIRE_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str | Path) -> tuple[int, list[str]]:
        code = run_program([str(argument) for argument in arguments])
        return code, capfd.readouterr().err.splitlines()

    return run
