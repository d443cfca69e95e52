"""The replies that the server still owes, oldest first: a queue of the entries that `proxy.wire.entries` describes.

Hardly ever more than a handful stand in it, and the oldest is asked for with each message that the server sends: it is
a field, a number without an object in the compiled build. A deque cost five times as much there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from proxy.wire.entries import KIND, OWN
from proxy.wire.frames import QUERY

if TYPE_CHECKING:
    from mypy_extensions import i64

_KEPT: Final = 256  # places that are kept for entries to come, or that those which are gone may take up


class Owed:
    """``first`` is the oldest entry, 0 for none: no entry is 0. It may be changed, to another entry."""

    __slots__ = ("_at", "_end", "_later", "first")

    def __init__(self) -> None:
        self.first: i64 = 0
        # Those behind it are `_later[_at:_end]`; places are used again, so that no memory comes and goes.
        self._later: list[int] = []
        self._at: i64 = 0
        self._end: i64 = 0

    def append(self, entry: int) -> None:
        """One more is owed."""
        if not self.first:
            self.first = entry
        elif self._end < len(self._later):
            self._later[self._end] = entry
            self._end += 1
        else:
            self._later.append(entry)
            self._end += 1

    def popleft(self) -> int:
        """Takes the oldest away. Raises `IndexError` when there is none."""
        entry: i64 = self.first
        at: i64 = self._at
        end: i64 = self._end
        if at < end:
            self.first = self._later[at]
            self._at = at + 1
            if self._at == end:
                self._at = self._end = 0
                if end > _KEPT:
                    self._later.clear()
            elif at >= _KEPT and at + at >= end:
                self.replace(self.entries())
        elif entry:
            self.first = 0
        else:
            raise IndexError("no reply is owed")
        return entry

    def appendleft(self, entry: int) -> None:
        """This one is owed before all others."""
        first: i64 = self.first
        self.first = entry
        if not first:
            return
        if self._at:
            self._at -= 1
            self._later[self._at] = first
        else:
            self._later.insert(0, first)
            self._end += 1

    @property
    def last(self) -> int:
        """The entry that came last, 0 for none."""
        return self._later[self._end - 1] if self._end else self.first

    @last.setter
    def last(self, entry: int) -> None:
        if self._end:
            self._later[self._end - 1] = entry
        else:
            self.first = entry

    @property
    def at_our_query(self) -> bool:
        """Whether the server is at a simple query of the proxy's own."""
        return self.first & (KIND | OWN) == QUERY | OWN

    def entries(self) -> list[int]:
        """All of them."""
        return [self.first, *self._later[self._at : self._end]] if self.first else []

    def replace(self, entries: list[int]) -> None:
        """These are owed in place of all that were."""
        self.first = entries[0] if entries else 0
        self._later = entries[1:]
        self._at = 0
        self._end = len(self._later)

    def __len__(self) -> int:
        return self._end - self._at + 1 if self.first else 0

    def __contains__(self, entry: object) -> bool:
        # The compiled build does not fall back to `__iter__`.
        return any(one == entry for one in self)

    def __iter__(self) -> Iterator[int]:
        # No copy: a client may have sent a long row of messages ahead, and most who ask stop at the first entries.
        if self.first:
            yield self.first
            for at in range(self._at, self._end):
                yield self._later[at]

    def backwards(self) -> Iterator[int]:
        """From the one that came last on."""
        for at in range(self._end - 1, self._at - 1, -1):
            yield self._later[at]
        if self.first:
            yield self.first
