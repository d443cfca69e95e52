"""Starting a server process, waiting for its port, and making sure that it is gone afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

from pilotwire.postgres_files import Account

HOST = "127.0.0.1"
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
START_TIMEOUT = 30.0
STOP_TIMEOUT = 5.0


class BenchmarkError(Exception):
    """The benchmark cannot go on; the text is one sentence that says why."""


def free_port() -> int:
    """A port on loopback that nothing used a moment ago.

    Below the range from which outgoing connections take theirs: a benchmark makes so many of those that one of them
    would soon sit on a port chosen there.
    """
    lowest = int(EPHEMERAL.read_text().split()[0]) if EPHEMERAL.exists() else 32768
    for port in random.sample(range(10000, max(lowest, 11000)), 100):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port
    raise BenchmarkError("No free port was found on loopback.")


@contextlib.contextmanager
def server_process(
    command: Sequence[str | Path],
    port: int,
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    account: Account | None = None,
) -> Iterator[int]:
    """Run `command` until the block ends and yield its pid once `port` takes connections.

    It runs in a session of its own, so that Ctrl-C reaches only the benchmark, which then ends everything in order.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )
    try:
        _wait_for_port(process, port, log)
        yield process.pid
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL for what is left of the process and its descendants; returns when all are gone."""
    try:
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        everyone = []
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT)
    for survivor in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor.kill()
    process.wait()
    psutil.wait_procs(everyone, timeout=STOP_TIMEOUT)


def _wait_for_port(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise BenchmarkError(f"{process.args!r} ended at once: {_tail(log)}")
        with contextlib.suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.02)
    raise BenchmarkError(f"Nothing listens on port {port} after {START_TIMEOUT:.0f} s: {_tail(log)}")


def _tail(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-400:] or "it printed nothing"
