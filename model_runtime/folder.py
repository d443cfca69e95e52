"""Looks at a folder of model files and tells which of them are new, changed or gone. Reads no file.

A file that somebody is still writing must not be judged: by default a change counts when two looks in a row find the
same inode, size and time of modification, and a file is gone when two looks in a row miss it (a tool that replaces a
file by removing it first leaves a gap).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from model_runtime.bundle import signature

SUFFIX: Final = ".onnx"
Signature = tuple[int, int, int]


@dataclass(slots=True)
class _Tracked:
    judged: Signature | None = None
    found: Signature | None = None
    missed: bool = False


@dataclass(frozen=True, slots=True)
class Changes:
    """``changed`` names files to be read, the one modified first before the others; ``gone`` those that are not there
    any more; ``ignored`` counts files beyond the limit."""

    changed: list[str] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    ignored: int = 0


class Folder:
    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self._files: dict[str, _Tracked] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def changes(self, *, settled_only: bool) -> Changes:
        """What is to be done now; each change is told once. Raises OSError when the folder cannot be listed.

        Costs two system calls a file when nothing changed.
        """
        found = sorted(self._scan(), key=lambda item: (item[1][2], item[0]))
        ignored = max(len(found) - self.limit, 0)
        # The files modified last are the ones that somebody waits for.
        present = dict(found[ignored:])
        changed = []
        for name, now in present.items():
            tracked = self._files.setdefault(name, _Tracked())
            settled = tracked.found == now or not settled_only
            tracked.found, tracked.missed = now, False
            if settled and tracked.judged != now:
                tracked.judged = now
                changed.append(name)
        gone = []
        for name in [name for name in self._files if name not in present]:
            if self._files[name].missed or not settled_only:
                gone.append(name)
                del self._files[name]
            else:
                self._files[name].missed = True
        return Changes(changed, gone, ignored)

    def forget(self, name: str) -> None:
        """Tell that file as changed again once it has settled."""
        if name in self._files:
            self._files[name] = _Tracked()

    def modified(self, name: str) -> float:
        """Seconds since the epoch."""
        tracked = self._files.get(name)
        return tracked.found[2] / 1e9 if tracked and tracked.found else 0.0

    def _scan(self) -> Iterator[tuple[str, Signature]]:
        with os.scandir(self.path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or not entry.name.endswith(SUFFIX):
                    continue
                try:
                    status = entry.stat()
                except OSError:
                    # Gone since the listing, or a link to nothing.
                    continue
                if not stat.S_ISDIR(status.st_mode):
                    yield entry.name, signature(status)
