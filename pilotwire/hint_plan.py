"""Getting the real pg_hint_plan for the embedded PostgreSQL from the machine's own package sources.

Debian carries ``postgresql-18-pg-hint-plan`` in a later release than most machines run; its shared object needs nothing
but libc and loads into the wheel's server. So the package is fetched with a private apt state: the machine's own
sources with the suite's name replaced (pilotwire/debian_archive.py). What was fetched is kept in the user's cache.
Where it cannot be had, the reason is one sentence and everything else goes on without.
"""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pilotwire.debian_archive import Apt, ArchiveError, Entry, machine_codename, machine_entries
from pilotwire.postgres_files import Installation

LIBRARY = "pg_hint_plan.so"
SUITE = "forky"
ROLLING = ("stable", "testing", "unstable", "sid")
FETCH_TIMEOUT = 180.0
RETRY_AFTER = 3600.0
"""Seconds during which a failed fetch is not tried again, so that an offline machine does not wait on each start."""


@dataclass(frozen=True, slots=True)
class HintPlan:
    """Whether the server can load pg_hint_plan, and in one sentence why not."""

    available: bool
    reason: str = ""


def ensure_hint_plan(installation: Installation) -> HintPlan:
    """Put pg_hint_plan into `installation` if it is not there; at most `FETCH_TIMEOUT` seconds, no error ever."""
    if (installation.library_dir / LIBRARY).exists():
        return HintPlan(True)
    try:
        cache = _cache_dir()
        with FileLock(cache / "lock", timeout=FETCH_TIMEOUT + 60):
            if not (installation.library_dir / LIBRARY).exists():
                _install(_unpacked(installation.major, cache), installation)
    except (ArchiveError, OSError) as error:
        return HintPlan(False, f"pg_hint_plan is not available ({error}); everything else works without it.")
    return HintPlan(True)


def _cache_dir() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(home) / "pilotwire" / "pg_hint_plan"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _unpacked(major: str, cache: Path) -> Path:
    """The directory that holds the unpacked package of PostgreSQL `major`, fetched when it is not cached."""
    unpacked = cache / f"{major}-{platform.machine()}"
    if unpacked.exists():
        return unpacked
    failed = cache / f"{unpacked.name}.failed"
    if failed.exists() and time.time() - failed.stat().st_mtime < RETRY_AFTER:
        raise ArchiveError(failed.read_text() or "an earlier try failed")
    try:
        with tempfile.TemporaryDirectory(dir=cache) as place:
            _fetch(f"postgresql-{major}-pg-hint-plan", Path(place))
            (Path(place) / "root").rename(unpacked)
    except ArchiveError as error:
        if error.passing:
            failed.write_text(str(error))
        raise
    failed.unlink(missing_ok=True)
    return unpacked


def _fetch(package: str, place: Path) -> None:
    """Download `package` with an apt state private to `place` and unpack it into ``place/root``."""
    apt = Apt(place, FETCH_TIMEOUT)
    apt.update(_sources_of_machine())
    [archive] = apt.download([package])
    apt.unpack(archive, place / "root")


def _sources_of_machine() -> list[str]:
    """The machine's Debian archive as one-line entries, with the suite that has the package in place of its own."""
    sources = _later(machine_entries(), machine_codename())
    if not sources:
        raise ArchiveError("the machine's package sources name no Debian archive")
    return sources


def _later(entries: Iterable[Entry], codename: str) -> list[str]:
    """`SUITE` of the archives that hold ``main`` of the machine's own release, each once."""
    releases = {codename, *ROLLING}
    fitting = [it for it in entries if "deb" in it.kinds and "main" in it.components and releases & set(it.suites)]
    return list(dict.fromkeys(it.line("deb", SUITE) for it in fitting))


def _install(unpacked: Path, installation: Installation) -> None:
    """Copy the extension's files, the shared object last: its presence says that all of it is there."""
    libraries = sorted(unpacked.glob(f"usr/lib/postgresql/*/lib/{LIBRARY}"))
    if not libraries:
        raise ArchiveError("the package holds no shared object")
    for file in unpacked.glob("usr/share/postgresql/*/extension/pg_hint_plan*"):
        _copy(file, installation.share_dir / "extension" / file.name)
    _copy(libraries[0], installation.library_dir / LIBRARY)


def _copy(source: Path, target: Path) -> None:
    """Copy by way of a second name, so that no server ever loads half a file."""
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(source, unfinished)
    unfinished.chmod(0o644)
    unfinished.replace(target)
