"""What one backend holds of the prepared statements, least recently used first.

The bound is in bytes: bounds by count alone have let other proxies run out of memory.
"""

from __future__ import annotations

from collections import OrderedDict

from proxy.wire.prepared import Statement


class PreparedCache:
    """What one backend holds: our names, least recently used first, within a bound in bytes."""

    __slots__ = ("_doubtful", "_limit", "_newest", "_size", "_statements", "evictions", "unnamed")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._statements: OrderedDict[bytes, Statement] = OrderedDict()
        self._doubtful: set[bytes] = set()  # names among them that the backend may have or not
        self._newest: Statement | None = None  # the one used last, if it is there for certain: often used next
        self.unnamed: Statement | None = None
        self.evictions = 0

    def __contains__(self, statement: Statement) -> bool:
        return statement.name in self._statements

    def __len__(self) -> int:
        return len(self._statements)

    def use(self, statement: Statement) -> bool:
        """Whether the backend has it for certain; marks it as used."""
        if statement is self._newest:
            return True
        name = statement.name
        if name in self._statements and name not in self._doubtful:
            self._statements.move_to_end(name)
            self._newest = statement
            return True
        return False

    def add(self, statement: Statement) -> list[Statement]:
        """Notes it as prepared and returns what must be closed to stay within the bound."""
        self._newest = None
        self._statements[statement.name] = statement
        self._size += statement.size
        evicted = []
        while self._size > self._limit and len(self._statements) > 1:
            name, old = self._statements.popitem(last=False)
            self._doubtful.discard(name)
            self._size -= old.size
            evicted.append(old)
        self.evictions += len(evicted)
        return evicted

    def restore(self, statement: Statement) -> None:
        """Notes as prepared what a Close that never happened would have taken away."""
        if statement.name not in self._statements:
            self._newest = None
            self._statements[statement.name] = statement
            self._size += statement.size

    def discard(self, statement: Statement) -> None:
        self._newest = None
        old = self._statements.pop(statement.name, None)
        if old is not None:
            self._doubtful.discard(statement.name)
            self._size -= old.size

    def doubt(self, statement: Statement) -> None:
        """The backend may have it or not: it must be closed before it is prepared again."""
        self._newest = None
        self.restore(statement)
        self._doubtful.add(statement.name)

    def doubtful(self, statement: Statement) -> bool:
        return statement.name in self._doubtful

    def clear(self) -> None:
        self._newest = None
        self._statements.clear()
        self._doubtful.clear()
        self._size = 0
