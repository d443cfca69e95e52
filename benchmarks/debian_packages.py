"""Fetching packages of a later Debian release without changing the machine: an apt state of its own, then ``dpkg -x``.

The archive's address and key come from the machine's own package sources; only the suite's name is replaced. apt checks
the signatures as always.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.processes import BenchmarkError

SOURCES = Path("/etc/apt")
TIMEOUT = 180.0


def later_suite(sources: str, suite: str) -> str:
    """deb822 stanzas for ``main`` of `suite` from the text of a ``.sources`` file; '' when it names no archive."""
    kept = []
    for stanza in re.split(r"\n\s*\n", sources):
        lines = [line for line in stanza.splitlines() if not line.startswith("#")]
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        suites = fields.get("suites", "").split()
        if "deb" not in fields.get("types", "").split() or "main" not in fields.get("components", "").split():
            continue
        if not suites or "-" in suites[0] or fields.get("enabled") == "no":  # bookworm-security, bookworm-updates
            continue
        stanza_lines = ["Types: deb", f"URIs: {fields['uris']}", f"Suites: {suite}", "Components: main"]
        if "signed-by" in fields:
            stanza_lines.append(f"Signed-By: {fields['signed-by']}")
        kept.append("\n".join(stanza_lines))
    return "\n\n".join(kept)


def from_one_line_style(sources: str) -> str:
    """The entries of a classic ``sources.list`` as deb822 stanzas."""
    stanzas = []
    for line in sources.splitlines():
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s+(.+)", line.strip())
        if match is None:
            continue
        options, uri, suite, components = match.groups()
        lines = ["Types: deb", f"URIs: {uri}", f"Suites: {suite}", f"Components: {components}"]
        signed = re.search(r"signed-by=(\S+)", options or "")
        if signed:
            lines.append(f"Signed-By: {signed[1]}")
        stanzas.append("\n".join(lines))
    return "\n\n".join(stanzas)


def fetch(packages: Sequence[str], suite: str, target: Path) -> None:
    """Unpack `packages` of Debian's `suite` into `target`, which appears only when all of them are there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        place = Path(scratch)
        (place / "debian.sources").write_text(_machine_sources(suite))
        for folder in ("state/lists/partial", "cache/archives/partial", "parts"):
            (place / folder).mkdir(parents=True)
        (place / "debian.sources").rename(place / "parts" / "debian.sources")
        options = {
            "Dir::State": place / "state",
            "Dir::State::status": "/dev/null",
            "Dir::Cache": place / "cache",
            "Dir::Etc::SourceList": "/dev/null",
            "Dir::Etc::SourceParts": place / "parts",
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
        }
        apt = ["apt-get", "-q", *(part for name, value in options.items() for part in ("-o", f"{name}={value}"))]
        _run([*apt, "update", "--error-on=any"], place)
        _run([*apt, "download", *packages], place)
        for archive in sorted(place.glob("*.deb")):
            _run(["dpkg", "-x", str(archive), "unpacked"], place)
        (place / "unpacked").rename(target)


def _machine_sources(suite: str) -> str:
    texts = [file.read_text() for file in sorted((SOURCES / "sources.list.d").glob("*.sources"))]
    lists = [SOURCES / "sources.list", *sorted((SOURCES / "sources.list.d").glob("*.list"))]
    texts += [from_one_line_style(file.read_text()) for file in lists if file.exists()]
    stanzas = [text for text in (later_suite(text, suite) for text in texts if "debian" in text) if text]
    if not stanzas:
        raise BenchmarkError("The machine's package sources name no Debian archive.")
    return "\n\n".join(stanzas) + "\n"


def _run(command: Sequence[str], place: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, check=False, cwd=place, env=environment, capture_output=True, text=True, timeout=TIMEOUT
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise BenchmarkError(f"A package could not be fetched: {error}.") from None
    if done.returncode:
        raise BenchmarkError(f"{command[0]} failed: {done.stderr.strip()[-300:]}")
