"""Ends every process of a test run once nobody uses the run any more, however the run ended.

Users of a run hold a shared lock on a file in its folder; this program waits for the exclusive one, which the kernel
grants when the last user has ended, be it by SIGKILL. Everything started by the run carries the run's folder in its
environment, so whatever is left is found by that, stopped, and the folder removed. Started by `tests.support.run`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import psutil

MARK = "PW_TEST_RUN"
LOCK = "users.lock"


def leftovers(folder: Path) -> list[psutil.Process]:
    """The processes that were started under the run in `folder`, ourselves excepted."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == str(folder):
                found.append(process)
    return found


def end(processes: list[psutil.Process]) -> None:
    """SIGQUIT first, by which PostgreSQL removes its shared memory, and SIGKILL to what is left after that."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.resume()  # a test may have stopped it
            process.send_signal(signal.SIGQUIT if process.name() == "postgres" else signal.SIGKILL)
    alive = wait(processes, 5)
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.kill()
    wait(alive, 5)


def wait(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Those that have not ended within the time. A zombie has: its parent may be the one that waits for us."""
    deadline = time.monotonic() + seconds
    while (alive := [process for process in processes if not ended(process)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    return alive


def ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def remove(folder: Path) -> None:
    for state in folder.rglob("embedded.json"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            shutil.rmtree(json.loads(state.read_text())["base"], ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    folder = Path(sys.argv[1])
    with (folder / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        while processes := leftovers(folder):
            end(processes)
    remove(folder)


if __name__ == "__main__":
    main()
