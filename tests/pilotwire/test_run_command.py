"""``pilotwire run`` as people use it: once, until Ctrl-C, twice at the same time, and after a kill -9."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pilotwire.embedded import EmbeddedServer
from tests.support.ports import free_port
from tests.support.waiting import wait_until


def command(directory: Path, *more: str) -> list[str]:
    ports = ["--port", str(free_port()), "--admin-port", str(free_port())]
    return [sys.executable, "-m", "pilotwire", "run", "--dir", str(directory), *ports, *more]


@contextlib.contextmanager
def running(directory: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run that serves; its output is in `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(directory), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        wait_until(lambda: "Ctrl-C stops both" in log.read_text() or process.poll() is not None, 60, "the run serves")
        assert process.poll() is None, log.read_text()
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def directory(run_folder: Path) -> Iterator[Path]:
    """Shared by the tests of this module, since making the data takes the longest."""
    place = run_folder / f"run-{os.getpid()}"
    yield place
    EmbeddedServer(place / "pg").reset()


def test_once_proves_itself_and_stops_everything(directory: Path) -> None:
    done = subprocess.run(
        command(directory, "--once"), check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "22012 division by zero" in done.stdout
    assert "cancelled, then 1" in done.stdout
    assert "psql 18" in done.stdout
    assert not EmbeddedServer(directory / "pg").running
    assert not (directory / "proxy.pid").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_until_it_is_stopped(directory: Path, tmp_path: Path, number: signal.Signals) -> None:
    log = tmp_path / "log"
    with running(directory, log) as process:
        text = log.read_text()
        [line] = [line for line in text.splitlines() if "bin/psql" in line]
        program, dsn = line.split()
        answer = subprocess.run(
            [program, dsn, "-XAtc", "SELECT 6 * 7"], check=True, capture_output=True, text=True, timeout=30
        )
        assert answer.stdout == "42\n"
        [admin] = [line.removeprefix("admin: ") for line in text.splitlines() if line.startswith("admin: ")]
        with urllib.request.urlopen(admin, timeout=5) as metrics:
            assert b"pilotwire_" in metrics.read()
        second = subprocess.run(command(directory), check=False, capture_output=True, text=True, timeout=30)
        assert second.returncode == 1
        assert "another run is using" in second.stderr
        below = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(number)
        assert process.wait(30) == 0, log.read_text()
    assert not EmbeddedServer(directory / "pg").running
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in below)
    assert "Traceback" not in log.read_text()


def test_what_a_killed_run_left_is_ended_by_the_next(directory: Path, tmp_path: Path) -> None:
    with running(directory, tmp_path / "first") as process:
        left = int((directory / "proxy.pid").read_text())
        process.kill()
    with running(directory, tmp_path / "second") as process:
        assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
        process.terminate()
        assert process.wait(30) == 0


def test_a_proxy_that_dies_ends_the_run(directory: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(directory, log) as process:
        os.kill(int((directory / "proxy.pid").read_text()), signal.SIGKILL)
        assert process.wait(30) == 1
    assert "the proxy ended by itself" in log.read_text()
    assert not EmbeddedServer(directory / "pg").running
