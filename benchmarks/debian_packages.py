"""Fetching packages of a later Debian release without changing the machine: an apt state of its own, then ``dpkg -x``.

The archive's address and key come from the machine's own package sources; only the suite's name is replaced
(pilotwire/debian_archive.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.processes import BenchmarkError
from pilotwire.debian_archive import Apt, ArchiveError, Entry, machine_entries

TIMEOUT = 180.0


def later_suite(entries: Iterable[Entry], suite: str) -> list[str]:
    """One-line entries for ``main`` of `suite` from those of Debian's archive among `entries`."""
    fitting = [
        entry
        for entry in entries
        if "deb" in entry.kinds
        and "main" in entry.components
        and "debian" in entry.uri + entry.options
        and entry.suites
        and "-" not in entry.suites[0]  # bookworm-security, bookworm-updates
    ]
    return list(dict.fromkeys(entry.line("deb", suite) for entry in fitting))


def fetch(packages: Sequence[str], suite: str, target: Path) -> None:
    """Unpack `packages` of Debian's `suite` into `target`, which appears only when all of them are there."""
    sources = later_suite(machine_entries(), suite)
    if not sources:
        raise BenchmarkError("The machine's package sources name no Debian archive.")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        place = Path(scratch)
        try:
            apt = Apt(place, TIMEOUT)
            apt.update(sources)
            for archive in apt.download(packages):
                apt.unpack(archive, place / "unpacked")
        except ArchiveError as error:
            raise BenchmarkError(f"A package could not be fetched: {error}.") from None
        (place / "unpacked").rename(target)
