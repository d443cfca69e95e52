"""Getting the real pg_hint_plan for the embedded PostgreSQL from the machine's own package sources.

Debian carries ``postgresql-18-pg-hint-plan`` in a later release than most machines run; its shared object needs nothing
but libc and loads into the wheel's server. So the package is fetched with a private apt state (nothing on the machine
changes, no root needed): the machine's own sources with the suite's name replaced, apt checking the signatures as
always. What was fetched is kept in the user's cache. Where it cannot be had, the reason is one sentence and everything
else goes on without.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

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


class _UnavailableError(Exception):
    """pg_hint_plan cannot be had; `passing` tells that another try may succeed soon."""

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


def ensure_hint_plan(installation: Installation) -> HintPlan:
    """Put pg_hint_plan into `installation` if it is not there; at most `FETCH_TIMEOUT` seconds, no error ever."""
    if (installation.library_dir / LIBRARY).exists():
        return HintPlan(True)
    try:
        cache = _cache_dir()
        with FileLock(cache / "lock", timeout=FETCH_TIMEOUT + 60):
            if not (installation.library_dir / LIBRARY).exists():
                _install(_unpacked(installation.major, cache), installation)
    except (_UnavailableError, OSError) as error:
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
        raise _UnavailableError(failed.read_text() or "an earlier try failed")
    try:
        with tempfile.TemporaryDirectory(dir=cache) as place:
            _fetch(f"postgresql-{major}-pg-hint-plan", Path(place))
            (Path(place) / "root").rename(unpacked)
    except _UnavailableError as error:
        if error.passing:
            failed.write_text(str(error))
        raise
    failed.unlink(missing_ok=True)
    return unpacked


def _fetch(package: str, place: Path) -> None:
    """Download `package` with an apt state private to `place` and unpack it into ``place/root``."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise _UnavailableError("this machine has no apt to get it with")
    sources = place / "sources.list"
    sources.write_text("".join(f"{line}\n" for line in _sources_of_machine()))
    for folder in ("state/lists/partial", "cache/archives/partial"):
        (place / folder).mkdir(parents=True)
    settings = {
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "-",
        "Dir::State": place / "state",
        "Dir::Cache": place / "cache",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": 1,
        "Acquire::http::Timeout": 20,
        "Acquire::https::Timeout": 20,
    }
    apt = ["apt-get", "-q"]
    for name, value in settings.items():
        apt += ["-o", f"{name}={value}"]
    _run([*apt, "update", "--error-on=any"], place)
    _run([*apt, "download", package], place)
    archives = sorted(place.glob(f"{package}_*.deb"))
    if not archives:
        raise _UnavailableError(f"apt brought no {package}", passing=True)
    _run(["dpkg", "-x", str(archives[0]), str(place / "root")], place)


def _run(command: list[str], place: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command,
            check=False,
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FETCH_TIMEOUT,
        )
    except subprocess.TimeoutExpired:
        raise _UnavailableError("the package sources did not answer in time", passing=True) from None
    if done.returncode:
        complaints = [line for line in done.stderr.splitlines() if line.startswith("E: ")] or ["no reason given"]
        raise _UnavailableError(f"{command[0]}: {complaints[0].removeprefix('E: ')}", passing=True)


def _sources_of_machine() -> list[str]:
    """The machine's Debian archive as one-line entries, with the suite that has the package in place of its own."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    entries: list[str] = []
    etc = Path("/etc/apt")
    for file in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if not file.is_file():
            continue
        if file.suffix == ".sources":
            entries += _from_stanzas(file.read_text(), codename)
        elif file.suffix == ".list":
            entries += _from_lines(file.read_text(), codename)
    if not entries:
        raise _UnavailableError("the machine's package sources name no Debian archive")
    return list(dict.fromkeys(entries))


def _from_lines(text: str, codename: str) -> list[str]:
    """Entries of the form ``deb [options] URI suite component ...`` whose suite is the machine's own release."""
    found = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.strip())
        if match and match[3] in {codename, *ROLLING} and "main" in match[4].split():
            found.append(f"deb {match[1] or ''}{match[2]} {SUITE} main")
    return found


def _from_stanzas(text: str, codename: str) -> list[str]:
    """The same from deb822 stanzas (``URIs:``, ``Suites:``, ``Components:``, ``Signed-By:``)."""
    found = []
    for stanza in re.split(r"\n\s*\n", text):
        kept = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
        fields = {
            name.lower(): value.strip()
            for name, value in re.findall(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", kept, re.MULTILINE)
        }
        suites = set(fields.get("suites", "").split())
        if not suites & {codename, *ROLLING} or "main" not in fields.get("components", "").split():
            continue
        if fields.get("enabled", "yes") == "no" or "deb" not in fields.get("types", "").split():
            continue
        key = fields.get("signed-by", "")
        option = f"[signed-by={key}] " if key.startswith("/") else ""
        found += [f"deb {option}{uri} {SUITE} main" for uri in fields.get("uris", "").split()]
    return found


def _install(unpacked: Path, installation: Installation) -> None:
    """Copy the extension's files, the shared object last: its presence says that all of it is there."""
    libraries = sorted(unpacked.glob(f"usr/lib/postgresql/*/lib/{LIBRARY}"))
    if not libraries:
        raise _UnavailableError("the package holds no shared object")
    for file in unpacked.glob("usr/share/postgresql/*/extension/pg_hint_plan*"):
        _copy(file, installation.share_dir / "extension" / file.name)
    _copy(libraries[0], installation.library_dir / LIBRARY)


def _copy(source: Path, target: Path) -> None:
    """Copy by way of a second name, so that no server ever loads half a file."""
    unfinished = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.copyfile(source, unfinished)
    unfinished.chmod(0o644)
    unfinished.replace(target)
