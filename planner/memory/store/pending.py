"""What waits to be written: bounded queues, no threads, no database.

Of a query, an arm and a guard only the latest record waits. Ledger lines, samples and history keep their order.
Records that a writer has in hand still count towards the bounds, so that they always fit when they have to be given
back.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Final

from planner.memory.records import ArmRecord, Execution, GuardRecord, HistoryPoint, LedgerEntry, QueryRecord
from planner.memory.store.rows import LONGEST_TEXT, Record

KINDS: Final[dict[type, str]] = {
    QueryRecord: "query", ArmRecord: "arm", LedgerEntry: "ledger", Execution: "execution", HistoryPoint: "history",
    GuardRecord: "guard",
}  # fmt: skip
_ENTRY_BYTES: Final = 600
"""About what a record takes besides its long texts."""


class _Queue:
    """Records of one kind by what they replace: the key of a query or arm, else a number of their own."""

    __slots__ = ("in_hand", "in_hand_size", "size", "waiting")

    def __init__(self) -> None:
        self.waiting: dict[object, Record] = {}
        self.size = 0
        self.in_hand = 0
        self.in_hand_size = 0


class Pending:
    """At most ``bound`` records of each kind, with at most ``max_bytes`` of text. The caller keeps threads apart."""

    def __init__(self, bound: int, max_bytes: int) -> None:
        self._bound = bound
        self._max_bytes = max_bytes
        self._queues = {kind: _Queue() for kind in KINDS}
        self._number = 0
        self.dropped = dict.fromkeys(KINDS.values(), 0)

    def __bool__(self) -> bool:
        return any(queue.waiting for queue in self._queues.values())

    @property
    def in_hand(self) -> bool:
        return any(queue.in_hand for queue in self._queues.values())

    def counts(self) -> dict[str, int]:
        """Records that are not written yet, by kind."""
        return {KINDS[kind]: len(queue.waiting) + queue.in_hand for kind, queue in self._queues.items()}

    def put(self, record: Record) -> bool:
        """False when there is no room; it is counted then. A newer record of a query or arm finds room always, unless
        it is longer than the older one by more than there is."""
        if isinstance(record, LedgerEntry | Execution) and not record.uid:
            # Given here, so that a transaction that is repeated after a lost answer does not write it twice.
            record.uid = secrets.token_hex(12)
        queue = self._queues[type(record)]
        key = self._key(record)
        older = queue.waiting.get(key)
        size = _size(record) - (_size(older) if older is not None else 0)
        if (older is None and len(queue.waiting) + queue.in_hand >= self._bound) or (
            size > 0 and queue.size + queue.in_hand_size + size > self._max_bytes
        ):
            self.dropped[KINDS[type(record)]] += 1
            return False
        queue.waiting[key] = record
        queue.size += size
        return True

    def take(self) -> list[Record]:
        """All that waits, kind by kind, the oldest of each first. `done` or `give_back` follows."""
        taken: list[Record] = []
        for queue in self._queues.values():
            taken += queue.waiting.values()
            queue.in_hand, queue.in_hand_size = len(queue.waiting), queue.size
            queue.waiting, queue.size = {}, 0
        return taken

    def done(self) -> None:
        for queue in self._queues.values():
            queue.in_hand = queue.in_hand_size = 0

    def give_back(self, records: Iterable[Record]) -> None:
        """``records`` of those in hand wait again, before what came since; where a newer one came, that one waits."""
        self.done()
        newer = {kind: queue.waiting for kind, queue in self._queues.items()}
        for queue in self._queues.values():
            queue.waiting, queue.size = {}, 0
        for record in records:
            self._queues[type(record)].waiting[self._key(record)] = record
        for kind, waiting in newer.items():
            queue = self._queues[kind]
            queue.waiting.update(waiting)
            queue.size = sum(map(_size, queue.waiting.values()))

    def _key(self, record: Record) -> object:
        if isinstance(record, QueryRecord):
            return record.key
        if isinstance(record, ArmRecord):
            return record.key, record.arm
        if isinstance(record, GuardRecord):
            return record.name
        self._number += 1
        return self._number


def halves(records: list[Record]) -> tuple[list[Record], list[Record]]:
    """Two parts of what cannot be written as a whole."""
    middle = len(records) // 2
    return records[:middle], records[middle:]


def _size(record: Record) -> int:
    if isinstance(record, QueryRecord | Execution):
        return _ENTRY_BYTES + min(len(record.text), LONGEST_TEXT) + min(len(record.params), LONGEST_TEXT)
    return _ENTRY_BYTES + len(record.text) if isinstance(record, LedgerEntry) else _ENTRY_BYTES
