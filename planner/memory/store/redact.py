"""Statements without their literals: each is replaced by a salted hash, so that equal ones can be seen to be equal.

The tokens are PostgreSQL's own. Comments are dropped, they may hold anything. A text that cannot be read is hashed as a
whole. The salt belongs to one store; whoever has it can still try out short values, so the salt is never exported.
"""

from __future__ import annotations

import hashlib
import re
from collections import OrderedDict
from threading import Lock
from typing import Final

LONGEST: Final = 16_384
"""Characters that are kept of a statement without its literals."""
_LITERALS: Final = frozenset({"SCONST", "USCONST", "ICONST", "FCONST", "BCONST", "XCONST"})
_COMMENTS: Final = frozenset({"C_COMMENT", "SQL_COMMENT"})
_REMEMBERED: Final = 2_000
_REMEMBERED_LENGTH: Final = 4_096
_HASHED: Final = re.compile(r"'#[0-9a-f]{12}'")


class Redactor:
    """Thread-safe; remembers the latest texts, since the same statements come again and again."""

    def __init__(self, salt: str) -> None:
        self._salt = salt.encode()[:64]
        self._known: OrderedDict[str, str] = OrderedDict()
        self._lock = Lock()

    def shape(self, text: str) -> str:
        """``text`` with each literal replaced by ``'#hash'``, and without comments. About 20 us for a short statement
        that is not remembered."""
        if not text:
            return ""
        with self._lock:
            found = self._known.get(text)
            if found is not None:
                self._known.move_to_end(text)
                return found
        made = self._make(text)
        if len(text) <= _REMEMBERED_LENGTH:
            with self._lock:
                self._known[text] = made
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
        return made

    def hashed(self, text: str) -> str:
        """What stands for a literal, without its quotes: ``#`` and 12 hexadecimal digits."""
        data = text.encode("utf-8", "surrogatepass")
        return "#" + hashlib.blake2b(data, digest_size=6, key=self._salt).hexdigest()

    def _make(self, text: str) -> str:
        # Here, since of all who import the store only those that keep statements need the parser.
        from pglast.parser import ParseError, scan

        try:
            # The scanner would take a zero byte for the end, and what follows would be kept unread.
            tokens = scan(text) if "\0" not in text else None
        except (ParseError, UnicodeError, ValueError):
            tokens = None
        if tokens is None:
            return f"'{self.hashed(text)}'"
        parts: list[str] = []
        position = size = 0
        for token in tokens:
            if token.name in _COMMENTS:
                replacement = ""
            elif token.name in _LITERALS:
                literal = text[token.start : token.end + 1]
                # What went through here before, an import for one, stays as it is.
                replacement = literal if _HASHED.fullmatch(literal) else f"'{self.hashed(literal)}'"
            else:
                continue
            parts += (text[position : token.start], replacement)
            size += token.start - position + len(replacement)
            position = token.end + 1
            if size > LONGEST:
                break
        else:
            parts.append(text[position:])
        made = "".join(parts)
        return made.strip() if len(made) <= LONGEST else made[:LONGEST].strip() + " ..."
