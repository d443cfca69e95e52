"""Comparing what a suite wrote through the proxy with what it wrote straight at the server, twice.

Three runs of one suite are three maps from file name to text. A file is *unstable* when the two direct runs differ. If
they still differ with long numbers (object ids, process ids) masked, it says nothing about the proxy; else the masked
texts are compared. Everything not unstable is compared byte for byte. The fingerprint of a difference is taken over its
changed lines with long numbers masked, so that it stays the same from run to run.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

Outputs = Mapping[str, bytes]
"""File name to what the suite wrote into it."""

_LONG_NUMBER = re.compile(rb"\d{4,}")


@dataclass(frozen=True, slots=True)
class Difference:
    """One file that came out of the proxy differently."""

    part: str
    file: str
    fingerprint: str
    diff: str
    """A unified diff, direct to proxied."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the comparison of one part says."""

    part: str
    files: tuple[str, ...]
    unstable: tuple[str, ...]
    """Files that differ between the direct runs."""
    unjudged: tuple[str, ...]
    """Those among them that could not be compared even with numbers masked."""
    differences: tuple[Difference, ...]


def judge(part: str, first: Outputs, second: Outputs, proxied: Outputs) -> Verdict:
    """Compare the two direct runs with each other and with the one through the proxy."""
    unstable: list[str] = []
    unjudged: list[str] = []
    differences: list[Difference] = []
    names = sorted({*first, *second, *proxied})
    for name in names:
        texts = [outputs.get(name) for outputs in (first, second, proxied)]
        if texts[0] != texts[1]:
            unstable.append(name)
            texts = [None if text is None else masked(text) for text in texts]
            if texts[0] != texts[1]:
                unjudged.append(name)
                continue
        if texts[0] != texts[2]:
            differences.append(_difference(part, name, texts[0], texts[2]))
    return Verdict(part, tuple(names), tuple(unstable), tuple(unjudged), tuple(differences))


def masked(text: bytes) -> bytes:
    """`text` with every number of four digits or more replaced by ``N``."""
    return _LONG_NUMBER.sub(b"N", text)


def _difference(part: str, name: str, direct: bytes | None, proxied: bytes | None) -> Difference:
    before, after = (_lines(text) for text in (direct, proxied))
    lines = list(difflib.unified_diff(before, after, f"direct/{name}", f"proxied/{name}", lineterm=""))
    changed = "\n".join(line for line in lines[2:] if not line.startswith((" ", "@@")))
    fingerprint = hashlib.sha256(masked(changed.encode())).hexdigest()
    return Difference(part, name, fingerprint, "\n".join(lines) + "\n")


def _lines(text: bytes | None) -> list[str]:
    if text is None:
        return ["(no such file)"]
    return text.decode("utf-8", "backslashreplace").split("\n")
