"""A first look at a statement's text, for whoever carries its session's state and whoever may steer it.

What is found is remembered: most texts come again with nothing but other numbers in them.
"""

from __future__ import annotations

from typing import Final

from proxy.steering.template import glance
from proxy.wire.statements import classify

_MOST: Final = 1024  # texts that are remembered
_LONGEST: Final = 1024  # bytes of one of them
# To which case a letter is put and which digit stands somewhere changes nothing in what is found.
_FOLDED: Final = bytes(
    byte + 32 if 0x41 <= byte <= 0x5A else 0x30 if 0x30 <= byte <= 0x39 else byte for byte in range(256)
)


class _Looks:
    """Found by the texts with small letters and zeros for digits; all forgotten when they are too many."""

    __slots__ = ("_found", "_last", "_text")

    def __init__(self) -> None:
        self._found: dict[bytes, int] = {}
        self._text = b""  # the one looked at last, often looked at twice
        self._last = 0

    def of(self, text: bytes) -> int:
        if text is self._text:
            return self._last
        if len(text) > _LONGEST:
            bits = classify(text) | glance(text)
        else:
            folded = text.translate(_FOLDED)
            bits = self._found.get(folded, -1)
            if bits < 0:
                bits = classify(folded) | glance(folded)
                if len(self._found) >= _MOST:
                    self._found.clear()
                self._found[folded] = bits
            self._text = text
            self._last = bits
        return bits


_LOOKS: Final = _Looks()


def look(text: bytes) -> int:
    """The bits of `classify` and of `glance`; 0.1 us for a text that was seen before, else about 1 us."""
    return _LOOKS.of(text)
