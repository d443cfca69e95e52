"""The administration database from psql, against real servers."""

from __future__ import annotations

import subprocess
import pytest
from tests.conftest import StartProxy
from tests.support.proxy import Proxy


def psql(proxy: Proxy, sql: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["psql", "-X", "-A", "-c", sql, proxy.dsn("pilotwire")], capture_output=True, text=True, timeout=20)


def test_x(proxy: StartProxy) -> None:
    p = proxy()
    for what in "HELP STATS POOLS CLIENTS SERVERS DATABASES MODELS DECISIONS MEMORY CONFIG VERSION".split():
        out = psql(p, f"SHOW {what}")
        print(out.stdout, out.stderr)
    for what in ("RELOAD", "PAUSE", "SHOW DATABASES", "RESUME", "KILL 0.77", "SET mode = off", "SHOW mode","SET log_slow_ms=5", "SET auth=trust", "SET pool_size=x", "FOO", "SELECT 1"):
        out = psql(p, what)
        print(what, '->', out.stdout, out.stderr)
    print(p.log_text())
    assert 0
