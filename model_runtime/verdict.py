"""What checking a model file found; goes as JSON from the process that checks to the one that serves."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

Fact: TypeAlias = str | int | float | list[str]


class Step(msgspec.Struct, frozen=True):
    """One check that a file passed: ``name`` is one of `STEPS`, ``detail`` says what was found."""

    name: str
    detail: str = ""


class Verdict(msgspec.Struct, frozen=True):
    """``failed`` is the step that refused the file, for ``reason``; both empty: the file is good. ``manifest`` is the
    manifest's JSON, and ``kind`` what the file says it is, as far as the checks got. ``facts`` describe the graph."""

    passed: tuple[Step, ...] = ()
    failed: str = ""
    reason: str = ""
    kind: str = ""
    manifest: str = ""
    facts: dict[str, Fact] = {}

    @property
    def good(self) -> bool:
        return not self.failed


STEPS = ("read", "size", "onnx", "external", "operators", "manifest", "interface", "self_test", "time")
"""In their order. ``read`` and ``size`` are done before a file gets to the checking process; ``process`` is the label
of a check that did not come to an end."""
PROCESS = "process"


def plain(text: str, limit: int = 300) -> str:
    """One line of bounded length that a terminal and a log can be given: a file's author chose parts of it."""
    line = " ".join(text[: 4 * limit].split())[:limit]
    return "".join(character if character.isprintable() else "?" for character in line)
