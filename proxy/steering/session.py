"""What a session says of itself, in its start-up packet and its texts, that its decisions depend on."""

from __future__ import annotations

import re
from typing import Final

_MOST: Final = 50  # names; with more, every statement may be about one of them
_LONGEST: Final = 64 * 1024  # bytes of a text that is looked through
_NAME: Final = rb"(?:\"(?P<quoted>(?:[^\"]|\"\")+)\"|(?P<name>[a-z_\x80-\xff][\w$\x80-\xff]*))"
_MADE: Final = re.compile(
    rb"\b(?:create\s+(?:or\s+replace\s+)?(?:(?:local|global)\s+)?|into\s+)temp(?:orary)?\s+"
    rb"(?:(?:table|(?:recursive\s+)?view|sequence)\s+)?(?:if\s+not\s+exists\s+)?(?:pg_temp\s*\.\s*)?"
    # A table or an alias may have the name: INSERT INTO temp SELECT ...
    rb"(?!(?:select|values|default|overriding|with|as|using|from|table|set)\b)" + _NAME
    + rb"|\bpg_temp(?:_\d+)?\"?\s*\.\s*" + _NAME.replace(b"P<", b"P<own_")
)  # fmt: skip
_ANY: Final = re.compile(b"")
_OPTION: Final = re.compile(r"(?:-c\s*|--)([\w.-]+)=((?:[^\s\\]|\\.)*)")
_ESCAPED: Final = re.compile(r"\\(.)")


def start_settings(packet: dict[str, str]) -> dict[str, str]:
    """The settings of a start-up packet by their names in lower case. Those given by name count more than those in its
    ``options``, as in the server."""
    options = [(name, _ESCAPED.sub(r"\1", value)) for name, value in _OPTION.findall(packet.get("options", ""))]
    return {name.lower(): value for name, value in [*options, *packet.items()]}


class TemporaryNames:
    """The temporary tables of a session, as far as its texts name them: the planner, on a connection of its own, does
    not see them, and would take one for the table that it hides.

    ``names`` is None while there are none. They are kept when a table is dropped or its transaction rolled back: a
    statement that is left alone for nothing loses little."""

    __slots__ = ("_all", "names")

    def __init__(self) -> None:
        self.names: re.Pattern[bytes] | None = None
        self._all: set[bytes] = set()

    def note(self, text: bytes) -> None:
        """A text that may make temporary tables."""
        found = set()
        for match in _MADE.finditer(text[:_LONGEST].lower()):
            found.add(match["quoted"] or match["name"] or match["own_quoted"] or match["own_name"])
        if found <= self._all or self.names is _ANY:
            return
        self._all |= found
        if len(self._all) > _MOST:
            self.names = _ANY
            self._all.clear()
        else:
            names = b"|".join(map(re.escape, sorted(self._all)))
            self.names = re.compile(rb"(?<![\w$\x80-\xff])(?:" + names + rb")(?![\w$\x80-\xff])")

    def named_in(self, text: bytes) -> bool:
        """Whether a text may be about one of them; some microseconds, and only where there are any."""
        return self.names is not None and self.names.search(text.lower()) is not None

    def clear(self) -> None:
        """The session has none any more."""
        self.names = None
        self._all.clear()
