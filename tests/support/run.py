"""One test run: a folder shared by all its workers, and the promise that nothing it started outlives it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

from tests.support import reaper


class Run:
    """The run this process belongs to; the first process of a run makes the folder and starts the reaper.

    The folder can be reached by every user (the server's account is not ours when we are root).
    """

    def __init__(self) -> None:
        joined = os.environ.get(reaper.MARK)
        self._reaper: subprocess.Popen[bytes] | None = None
        if joined and Path(joined, reaper.LOCK).exists():
            self.folder = Path(joined)
            self._lock = self._hold()
            return
        self.folder = Path(tempfile.mkdtemp(prefix="pilotwire-test-")).resolve()
        self.folder.chmod(0o755)
        (self.folder / reaper.LOCK).touch()
        self._lock = self._hold()
        os.environ[reaper.MARK] = str(self.folder)
        os.environ["SPT_NOENV"] = "1"  # titles of processes leave the mark alone
        # A session of its own: Ctrl-C in the terminal must not reach the one that cleans up after it.
        self._reaper = subprocess.Popen(
            [sys.executable, reaper.__file__, str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _hold(self) -> IO[str]:
        lock = (self.folder / reaper.LOCK).open()
        fcntl.flock(lock, fcntl.LOCK_SH)
        return lock

    def leave(self) -> None:
        """Give the run up; its first process waits until everything has been stopped and removed."""
        self._lock.close()
        if self._reaper is not None:
            os.environ.pop(reaper.MARK, None)
            self._reaper.wait(60)
            self._reaper = None
