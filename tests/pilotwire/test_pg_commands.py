"""``pilotwire pg`` as a command: what it prints and with which code it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def pg(command: str, directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pilotwire", "pg", command, "--dir", str(directory), *more],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=90,
    )


def test_from_start_to_reset(run_folder: Path) -> None:
    directory = run_folder / "pg-commands"
    started = pg("start", directory)
    assert started.returncode == 0, started.stderr
    assert started.stdout.startswith("postgresql://postgres@127.0.0.1:")
    facts = json.loads(pg("start", directory, "--json").stdout)
    assert facts["dsn"] == started.stdout.strip() == pg("dsn", directory).stdout.strip()
    assert facts["version"].startswith("18.")
    other = pg("dsn", directory, "--database", "shop")
    assert other.stdout.strip() == facts["dsn"].removesuffix("postgres") + "shop"
    assert pg("psql", directory, "--", "-XAtc", "SELECT current_user").stdout == "postgres\n"
    assert pg("psql", directory, "--", "-XAtc", "SELECT nonsense").returncode == 1
    assert json.loads(pg("stop", directory, "--json").stdout) == {"stopped": True}
    assert json.loads(pg("stop", directory, "--json").stdout) == {"stopped": False}
    stopped = pg("psql", directory)
    assert stopped.returncode == 1
    assert "pilotwire pg start --dir" in stopped.stderr
    assert pg("reset", directory).returncode == 0
    assert not Path(facts["data"]).exists()


def test_without_a_server_it_is_one_line(tmp_path: Path) -> None:
    for command in ("dsn", "psql"):
        done = pg(command, tmp_path / "nothing")
        assert done.returncode == 1
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "Traceback" not in done.stderr
    for command in ("stop", "reset"):
        assert pg(command, tmp_path / "nothing").returncode == 0
    assert not (tmp_path / "nothing").exists()
