"""deploy.sh with releases of the very program, under load. systemd and pip are stood in for: the one starts, asks and
stops processes, the other installs what is here already."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.deploy.test_deploy import DEPLOY, ROOT
from tests.faults.load import Load
from tests.support.ports import free_port
from tests.support.postgres import Postgres

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

SYSTEMCTL = """#!/bin/bash
# start, stop, is-active, list-units of units whose processes are noted in $UNITS.
shift_options() { while [[ $1 == --* ]]; do shift; done; echo "$@"; }
set -- $(shift_options "$@")
unit=$2 release=${2#pilotwire@}; release=${release%.service}
alive() { [ -e "$UNITS/$1" ] && kill -0 "$(cat "$UNITS/$1")" 2>/dev/null; }
case $1 in
list-units)
    for file in "$UNITS"/*.service; do
        if alive "${file##*/}"; then echo "${file##*/} loaded"; fi
    done ;;
start)
    set -a; . "$(dirname "$PILOTWIRE_CONFIG")/environment"; set +a
    log=$UNITS/$release.log
    "$PILOTWIRE_ROOT/$release/bin/pilotwire" serve --takeover --config "$PILOTWIRE_CONFIG" >"$log" 2>&1 </dev/null &
    echo $! >"$UNITS/$unit"
    until grep -q " serving " "$log"; do alive "$unit" || exit 1; sleep 0.1; done ;;
stop) alive "$unit" && kill "$(cat "$UNITS/$unit")" ;;
is-active) alive "$unit" ;;
enable | disable) echo "$1 $unit" >>"$UNITS/enabled" ;;
esac
"""
PYTHON = """#!/bin/bash
# `-m venv FOLDER`: with a pip that notes what it is to install, and the program of this very tree.
mkdir -p "$3/bin"
printf '#!/bin/bash\\necho "$@" >"%s/installed"\\n[[ $* != *broken* ]]\\n' "$3" >"$3/bin/pip"
printf '#!/bin/bash\\ncd "%s" && exec "%s" -m pilotwire "$@"\\n' "$TREE" "$REAL_PYTHON" >"$3/bin/pilotwire"
chmod +x "$3/bin/pip" "$3/bin/pilotwire"
"""


class Machine:
    """A folder with programs that stand for the machine's, a configuration, and deploy.sh to be run in it."""

    host = "127.0.0.1"

    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self.postgres = postgres
        self.port = free_port()
        self.root = folder / "opt"
        self.units = folder / "units"
        self.config = folder / "pilotwire.toml"
        for made in (self.root, self.units, folder / "bin"):
            made.mkdir()
        for name, text in (("systemctl", SYSTEMCTL), ("python-shim", PYTHON)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.config.touch(mode=0o600)
        self.write(f'store = "{folder}/store.db"')
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PILOTWIRE_")}
        self.environment = environment | {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PYTHON": str(folder / "bin" / "python-shim"),
            "REAL_PYTHON": sys.executable,
            "TREE": str(ROOT),
            "UNITS": str(self.units),
            "PILOTWIRE_ROOT": str(self.root),
            "PILOTWIRE_CONFIG": str(self.config),
            "KEEP": "2",
        }
        # The file that the unit names, for what is the machine's own.
        (folder / "environment").write_text(
            f'# Of this machine\nPILOTWIRE_CONTROL_SOCKET={folder}/control\nPILOTWIRE_STATE_DIR="{folder}"\n'
        )

    def write(self, *lines: str) -> None:
        text = [
            f'upstream = "{self.postgres.dsn()}"',
            f'listen = ["{self.host}:{self.port}"]',
            'admin = ""',
            'auth = "trust"',
            "drain_timeout = 240",  # longer than the whole test: nobody may be ended by it
        ]
        self.config.write_text("\n".join([*text, *lines, ""]))

    def deploy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [DEPLOY / "deploy.sh", *arguments], env=self.environment, capture_output=True, text=True, check=False
        )

    def running(self) -> set[str]:
        names = {file.name: int(file.read_text()) for file in self.units.glob("*.service")}
        return {name for name, pid in names.items() if Path(f"/proc/{pid}/cmdline").exists()}

    def stop(self) -> None:
        for file in self.units.glob("*.service"):
            subprocess.run(["systemctl", "stop", file.name], env=self.environment, check=False)


async def test_releases_follow_one_another_under_load(postgres: Postgres, tmp_path: Path) -> None:
    machine = Machine(postgres, tmp_path)
    try:
        done = await asyncio.to_thread(machine.deploy, "pilotwire==1", "r1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert (machine.root / "current").resolve().name == "r1"
        assert (tmp_path / "store.db").exists(), "the store was migrated"
        async with Load(machine, clients=8, transactions=True, reconnect=False) as load:
            for number in range(2, 5):
                done = await asyncio.to_thread(machine.deploy, f"pilotwire=={number}", f"r{number}")
                assert done.returncode == 0, done.stdout + done.stderr
                (line,) = [line for line in done.stdout.splitlines() if "takes over from" in line]
                assert f"pilotwire@r{number - 1}.service" in line
                load.add(2)
                await load.all_answered(2)
            # What fails leaves the running release alone: a package that is none, settings that are none.
            for package, release in (("broken", "r5"), ("pilotwire==6", "r6")):
                if release == "r6":
                    machine.write("pool_size = 0")
                done = await asyncio.to_thread(machine.deploy, package, release)
                assert done.returncode != 0
                assert "nothing has changed" in done.stderr
                assert not (machine.root / release).exists()
                await load.all_answered(2)
            assert (machine.root / "current").resolve().name == "r4"
        assert load.failures == []
        assert "pilotwire@r4.service" in machine.running()
        left = {entry.name for entry in machine.root.iterdir() if entry.is_dir() and not entry.is_symlink()}
        assert {"r3", "r4"} <= left, "the release before is kept"
        marks = (machine.units / "enabled").read_text().splitlines()
        assert marks.index("enable pilotwire@r4.service") < marks.index("disable pilotwire@r3.service")
    finally:
        machine.stop()
