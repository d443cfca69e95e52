"""What psql wrote, without what another plan may change: the plans themselves, and the order of a result's rows."""

from __future__ import annotations

import re
from typing import Final

_RULE: Final = re.compile(rb"-+(?:\+-+)*\Z")
_END: Final = re.compile(rb"\(\d+ rows?\)\Z")
_PLAN: Final = re.compile(rb"\s*(?:QUERY PLAN|explain\w*)\s*\Z")
PLAN: Final = b"(a plan)"


def without_plans(text: bytes) -> bytes:
    """psql's aligned tables with their rows sorted, and one line for the output of an EXPLAIN, or of a function whose
    name begins so. A row of several lines is sorted by its lines."""
    lines = text.split(b"\n")
    kept: list[bytes] = []
    at = 0
    while at < len(lines):
        line = lines[at]
        end = _end(lines, at + 1) if _RULE.match(line) and kept and _heads(kept[-1], line) else 0
        if not end:
            kept.append(line)
            at += 1
        elif _PLAN.match(kept[-1]):
            kept[-1] = PLAN
            at = end + 1
        else:
            kept += [line, *sorted(lines[at + 1 : end]), lines[end]]
            at = end + 1
    return b"\n".join(kept)


def _heads(header: bytes, rule: bytes) -> bool:
    """Whether a line is the header over this rule: psql pads it to the same width."""
    return header.startswith(b" ") and len(header.decode("utf-8", "replace")) <= len(rule) <= len(header)


def _end(lines: list[bytes], start: int) -> int:
    """The line that counts the rows; 0 when there is none before a line that is not indented like a row."""
    for at in range(start, len(lines)):
        if _END.match(lines[at]):
            return at
        if not lines[at].startswith(b" "):
            return 0
    return 0
