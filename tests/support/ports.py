"""Ports that collide with nobody: neither with another test worker nor with outgoing connections.

The kernel gives outgoing connections ports of its own range (32768 and up), and under load takes every one of them, so
a port found by binding 0 and releasing it may be gone when the server starts. These lie below that range, and each is
held by a lock file for as long as this process lives.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

FIRST, LAST = 15000, 31999
_held: list[int] = []
"""Descriptors of the lock files; the kernel drops the locks when the process ends, however it ends."""


def free_port(host: str = "127.0.0.1") -> int:
    """A TCP port free on `host` and reserved for this process until it ends. RuntimeError when there is none."""
    locks = Path(tempfile.gettempdir()) / f"pilotwire-ports-{os.geteuid()}"
    locks.mkdir(mode=0o700, exist_ok=True)
    for port in random.sample(range(FIRST, LAST + 1), 500):
        lock = os.open(locks / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if _can_bind(host, port):
            _held.append(lock)
            return port
        os.close(lock)
    raise RuntimeError(f"no free port between {FIRST} and {LAST}")


def _can_bind(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True
