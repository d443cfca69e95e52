"""Programs the client tests start: finding them, and running them with their output at hand."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

TIMEOUT = 60.0


def need(program: str, package: str) -> Path:
    """The path of ``program``; a machine without it fails the test: a client not tried proves nothing."""
    found = shutil.which(program)
    assert found is not None, f"The client tests need {program}: install the Debian package {package}."
    return Path(found)


def run(
    command: list[str | Path], environment: dict[str, str], *, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run to the end (at most a minute) and return exit code and both outputs; a failing program is no exception."""
    return subprocess.run(
        [str(part) for part in command],
        env=environment,
        input=stdin,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def output(command: list[str | Path], environment: dict[str, str], *, stdin: str = "", cwd: Path | None = None) -> str:
    """Run and return what the program printed; any other exit code than 0 fails the test with both outputs."""
    done = run(command, environment, stdin=stdin, cwd=cwd)
    assert done.returncode == 0, f"{command[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout
