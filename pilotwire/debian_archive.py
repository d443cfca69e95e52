"""The Debian archive that the machine's own package sources name, and an apt that changes nothing on the machine.

Whoever needs a package of a later release than the machine's reads the sources in ``/etc/apt`` (`machine_entries`),
picks the entries that fit, and gives them to an `Apt` with another suite's name. That one has its lists, its cache and
its sources below a folder of the caller's; it needs no root and installs nothing. The addresses and keys stay those of
the machine, so apt checks the signatures as always.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ETC = Path("/etc/apt")
OS_RELEASE = Path("/etc/os-release")
OFF = frozenset({"no", "false", "without", "off", "disable", "0"})
"""What apt reads as false."""

_ONE_LINE = re.compile(r"(deb|deb-src)\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)")
_FIELD = re.compile(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", re.MULTILINE)


class ArchiveError(Exception):
    """apt could not do it; the text is a part of a sentence. `passing` tells that another try may succeed soon."""

    def __init__(self, reason: str, *, passing: bool = False) -> None:
        super().__init__(reason)
        self.passing = passing


@dataclass(frozen=True, slots=True)
class Entry:
    """One archive of the package sources.

    `kinds` are of ``deb`` and ``deb-src``, `options` what stands in the brackets of a one-line entry; of a stanza only
    a key file's path is taken over, as ``signed-by=PATH``.
    """

    kinds: tuple[str, ...]
    uri: str
    options: str
    suites: tuple[str, ...]
    components: tuple[str, ...]

    def line(self, kind: str, suite: str) -> str:
        """A one-line entry for the component ``main`` of `suite` in the same archive."""
        return f"{kind} [{self.options}] {self.uri} {suite} main" if self.options else f"{kind} {self.uri} {suite} main"


def one_line_entries(text: str) -> list[Entry]:
    """The entries of a ``.list`` file: ``deb [options] URI suite component ...``."""
    found = []
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match is not None and not match[3].startswith("cdrom:"):
            options = (match[2] or "").strip()
            found.append(Entry((match[1],), match[3], options, (match[4],), tuple(match[5].split())))
    return found


def stanza_entries(text: str) -> list[Entry]:
    """The entries of a ``.sources`` file in deb822 style, one for each URI; those switched off are left out."""
    found = []
    # A comment within a stanza does not end it.
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    for stanza in re.split(r"\n\s*\n", "\n".join(lines)):
        fields = {name.lower(): value.strip() for name, value in _FIELD.findall(stanza)}
        if fields.get("enabled", "yes").lower() in OFF:
            continue
        key = fields.get("signed-by", "")
        kinds, uris, suites, components = (
            tuple(fields.get(name, "").split()) for name in ("types", "uris", "suites", "components")
        )
        option = f"signed-by={key}" if key.startswith("/") else ""
        found += [Entry(kinds, uri, option, suites, components) for uri in uris]
    return found


def machine_entries(etc: Path = ETC) -> list[Entry]:
    """The entries of all files that apt itself would read below `etc`, in that order. OSError as reading raises it."""
    found = []
    for file in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if file.is_file() and file.suffix in (".list", ".sources"):
            read = stanza_entries if file.suffix == ".sources" else one_line_entries
            found += read(file.read_text())
    return found


def machine_codename(os_release: Path = OS_RELEASE) -> str:
    """The name of the machine's release, such as ``bookworm``; empty when it says none."""
    fields = dict(line.split("=", 1) for line in os_release.read_text().splitlines() if "=" in line)
    return fields.get("VERSION_CODENAME", "").strip("\"'")


class Apt:
    """apt with lists, cache and sources of its own below `place`.

    `timeout` is in seconds and for each run of a program. ArchiveError where the machine has no apt, and from each
    method when a program refuses or takes too long.
    """

    def __init__(self, place: Path, timeout: float) -> None:
        if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
            raise ArchiveError("this machine has no apt to get it with")
        self._place = place
        self._timeout = timeout
        self._sources = place / "sources.list"
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (place / folder).mkdir(parents=True)
        self._options: list[str] = []
        for name, value in {
            "Dir::Etc::sourcelist": self._sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State": place / "state",
            # Nothing counts as installed: a package that the machine has is fetched like any other.
            "Dir::State::status": "/dev/null",
            "Dir::Cache": place / "cache",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": 1,
            "Acquire::http::Timeout": 20,
            "Acquire::https::Timeout": 20,
        }.items():
            self._options += ["-o", f"{name}={value}"]

    def update(self, sources: Sequence[str], *, all_of_them: bool = True) -> None:
        """Fetch the lists of `sources`, one-line entries; with `all_of_them` one that cannot be had is an error."""
        self._sources.write_text("".join(f"{line}\n" for line in sources))
        self._apt_get("update", *(["--error-on=any"] if all_of_them else []))

    def download(self, packages: Sequence[str]) -> list[Path]:
        """The downloaded ``.deb`` files, one for each of `packages`; not what they depend on."""
        self._apt_get("download", *packages)
        archives = []
        for package in packages:
            found = sorted(self._place.glob(f"{package}_*.deb"))
            if not found:
                raise ArchiveError(f"apt brought no {package}", passing=True)
            archives.append(found[-1])
        return archives

    def source_versions(self, package: str) -> set[str]:
        """The versions in which the lists hold the source package `package`."""
        listed = self._run("apt-cache", *self._options, "showsrc", package)
        return set(re.findall(r"^Version: (\S+)", listed, re.MULTILINE))

    def source(self, package: str, version: str) -> list[Path]:
        """The downloaded upstream archives of the source package `package`, not unpacked."""
        self._apt_get("source", "--download-only", "--only-source", f"{package}={version}")
        return sorted(it for it in self._place.glob(f"{package}_*.orig.tar.*") if it.suffix != ".asc")

    def unpack(self, archive: Path, target: Path) -> None:
        """Unpack what a ``.deb`` holds into `target`, beside what is there."""
        self._run("dpkg", "-x", str(archive), str(target))

    def _apt_get(self, action: str, *arguments: str) -> None:
        self._run("apt-get", "-q", *self._options, action, *arguments)

    def _run(self, program: str, *arguments: str) -> str:
        try:
            done = subprocess.run(
                [program, *arguments],
                check=False,
                cwd=self._place,
                env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=self._timeout,
            )
        except subprocess.TimeoutExpired:
            raise ArchiveError("the package sources did not answer in time", passing=True) from None
        if done.returncode:
            complaints = [line for line in done.stderr.splitlines() if line.startswith("E: ")] or ["no reason given"]
            raise ArchiveError(f"{program}: {complaints[0].removeprefix('E: ')}", passing=True)
        return done.stdout
