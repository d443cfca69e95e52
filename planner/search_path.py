"""The text of the setting search_path, as SHOW gives it, to the schemas that it names."""

from __future__ import annotations

import re
from typing import Final

_ITEM: Final = re.compile(r'\s*(?:"((?:[^"]|"")*)"|([^",\s]+))\s*(?:,|$)')
MAX_SCHEMAS: Final = 100


def parse(text: str, user: str) -> tuple[str, ...]:
    """The schemas in order, ``"$user"`` replaced, names without quotes folded as the server does. Empty for an empty
    text and for one that is no list of names."""
    found: list[str] = []
    position = 0
    while position < len(text) and len(found) < MAX_SCHEMAS:
        match = _ITEM.match(text, position)
        if match is None or match.end() == position:
            return ()
        quoted, plain = match[1], match[2]
        name = quoted.replace('""', '"') if quoted is not None else plain.lower()
        if name == "$user":
            name = user
        if name:
            found.append(name)
        position = match.end()
    return tuple(found)
