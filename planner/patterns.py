"""LIKE patterns: matching in linear steps, the fixed prefix, and the server's guess for the rest (like_support.c)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

FIXED_CHARACTER: Final = 0.20
ANY_CHARACTER: Final = 0.9
FULL_WILDCARD: Final = 5.0
_ONE: Final = None
"""Stands for ``_`` in a part of a pattern."""


class Pattern:
    """A LIKE or ILIKE pattern, taken apart once. Matching costs at most len(text) * len(part) steps for each part
    between two ``%``: no pattern makes it explode, as a regular expression could."""

    __slots__ = ("_first", "_ignore_case", "_last", "_open", "exact", "parts", "prefix", "rest")

    def __init__(self, text: str, *, ignore_case: bool = False) -> None:
        tokens = _tokens(text)
        self._ignore_case = ignore_case
        #: The text that every match begins with; for ILIKE only up to the first character that has a case.
        self.prefix = _prefix(tokens, ignore_case)
        #: Whether the pattern is nothing but its prefix.
        self.exact = len(self.prefix) == len(tokens) and not (ignore_case and not tokens)
        #: The server's guess at the selectivity of what follows the prefix (like_selectivity).
        self.rest = _guess(tokens[len(self.prefix) :])
        self.parts = _parts(tokens, ignore_case)
        self._open = len(self.parts) > 1
        self._first, self._last = self.parts[0], self.parts[-1]

    def matches(self, text: str) -> bool:
        """Whether the whole text matches."""
        if self._ignore_case:
            text = text.lower()
        if not self._open:
            return len(text) == len(self._first) and _at(text, 0, self._first)
        start, end = len(self._first), len(text) - len(self._last)
        if start > end or not _at(text, 0, self._first) or not _at(text, end, self._last):
            return False
        for part in self.parts[1:-1]:
            start = _find(text, start, end, part)
            if start < 0:
                return False
        return True


_Token = tuple[str, bool]  # a character, and whether it is a wildcard
_Part = str | Sequence[str | None]


def _tokens(text: str) -> list[_Token]:
    tokens: list[_Token] = []
    escaped = False
    for character in text:
        if escaped or character not in "%_\\":
            tokens.append((character, False))
            escaped = False
        elif character == "\\":
            escaped = True
        else:
            tokens.append((character, True))
    return tokens


def _prefix(tokens: Sequence[_Token], ignore_case: bool) -> str:
    prefix = []
    for character, wild in tokens:
        if wild or (ignore_case and (character.isalpha() or ord(character) > 127)):
            break
        prefix.append(character)
    return "".join(prefix)


def _guess(tokens: Sequence[_Token]) -> float:
    """like_selectivity: fixed characters make a match rarer, wildcards make it likelier."""
    start = next((place for place, (_, wild) in enumerate(tokens) if not wild), len(tokens))
    guess = 1.0
    for character, wild in tokens[start:]:
        if not wild:
            guess *= FIXED_CHARACTER
        else:
            guess *= FULL_WILDCARD if character == "%" else ANY_CHARACTER
    return min(guess, 1.0)


def _parts(tokens: Sequence[_Token], ignore_case: bool) -> list[_Part]:
    parts: list[list[str | None]] = [[]]
    for character, wild in tokens:
        if wild and character == "%":
            parts.append([])
        else:
            parts[-1].append(_ONE if wild else character.lower() if ignore_case else character)
    return ["".join(part) if None not in part else part for part in parts]  # type: ignore[arg-type]


def _at(text: str, start: int, part: _Part) -> bool:
    if isinstance(part, str):
        return text.startswith(part, start)
    return all(want is _ONE or text[start + place] == want for place, want in enumerate(part))


def _find(text: str, start: int, end: int, part: _Part) -> int:
    """Where the first match of the part between the two places ends, -1 if there is none."""
    if isinstance(part, str):
        found = text.find(part, start, end)
        return found + len(part) if found >= 0 else -1
    for place in range(start, end - len(part) + 1):
        if _at(text, place, part):
            return place + len(part)
    return -1
