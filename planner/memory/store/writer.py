"""Writing in the background: whoever has something to keep hands it over and never waits.

One thread owns the store. Every half second it takes all that waits (`pending`) and writes one transaction, so that a
state and its ledger line become true together; only then ``on_committed`` is told. A store that fails is tried again
after a pause that grows up to half a minute; meanwhile the queues hold what fits, and what does not is counted. A
record that the database does not take is dropped alone. A store that hangs hangs the thread, nobody else.

The same thread looks once a second for what other processes and people wrote (``on_changed``), and once an hour deletes
what is older than it may be.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from planner.memory.records import ArmRecord, Execution, GuardRecord, HistoryPoint, LedgerEntry, QueryRecord
from planner.memory.store import Changes, Retention, Saved, Store, StoreError, locate, open_store
from planner.memory.store.pending import KINDS, Pending, halves
from planner.memory.store.rows import Record

INTERVAL: Final = 0.5
"""Seconds between two transactions: what a kill -9 can lose is less than a second old."""
BOUND: Final = 20_000
"""Records of one kind that wait at most."""
MAX_BYTES: Final = 32 << 20
"""Bytes of text of one kind that wait at most."""
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
SLOW_SECONDS: Final = 8.0
"""An attempt that takes longer is told of as a failure while it still goes on: a server that hangs may never answer."""
WATCH_SECONDS: Final = 1.0
EXPIRE_SECONDS: Final = 3_600.0
_REVISIONS: Final = 50_000
"""Queries and arms whose latest revision is remembered."""
_OWN: Final = 4_096
"""Revisions of our own that are remembered, to tell them from others' when watching."""
_LOG: Final = logging.getLogger(__name__)

_ARGUMENTS: Final[dict[type, str]] = {
    QueryRecord: "queries", ArmRecord: "arms", LedgerEntry: "ledger", Execution: "executions", HistoryPoint: "history",
    GuardRecord: "guards",
}  # fmt: skip
T = TypeVar("T")

Committed = Callable[[list[Record]], None]
Failed = Callable[[StoreError], None]
Changed = Callable[[Changes], None]


class WriterStats(NamedTuple):
    """Counters since the start, by kind of record (`pending.KINDS`) or of failure (`errors.KINDS`). ``failing``: the
    last attempt failed or the present one hangs, for the reason ``error`` in words ``sentence``. ``committed_at``:
    seconds since the epoch."""

    written: dict[str, int]
    dropped: dict[str, int]
    pending: dict[str, int]
    transactions: int
    failures: dict[str, int]
    failing: bool
    error: str
    sentence: str
    committed_at: float
    last_ms: float


class Writer:
    """Every method may be called from any thread; the callbacks are called in the writer's own.

    ``on_committed`` gets the records of a transaction after its commit: queries and arms as they stand in the store
    now, which differs from what was put when a person decided otherwise meanwhile, the rest as put. ``on_failure`` is
    called at each failed attempt. ``on_changed`` gets what others wrote, at first all that the store holds, in parts.
    """

    def __init__(
        self,
        url: str,
        on_committed: Committed | None = None,
        on_failure: Failed | None = None,
        bound: int = BOUND,
        *,
        on_changed: Changed | None = None,
        interval: float = INTERVAL,
        literals: bool = False,
        retention: Retention | None = None,
        max_bytes: int = MAX_BYTES,
        longest_pause: float = LONGEST_PAUSE,
        busy_ms: int | None = None,
    ) -> None:
        self._url = url
        self._on_committed = on_committed
        self._on_failure = on_failure
        self._on_changed = on_changed
        self._interval = interval
        self._literals = literals
        self._retention = retention
        self._longest_pause = longest_pause
        self._busy_ms = busy_ms
        self._changed = threading.Condition()
        self._pending = Pending(bound, max_bytes)
        self._attempts = 0
        self._hurried = self._stopping = False
        self._written = dict.fromkeys(KINDS.values(), 0)
        self._failures: dict[str, int] = {}
        self._transactions = 0
        self._error: StoreError | None = None
        self._committed_at = self._last_ms = 0.0
        self._since = 0.0  # when the attempt under way began
        # Only the thread uses what follows.
        self._store: Store | None = None
        self._revisions: OrderedDict[object, int] = OrderedDict()
        self._own: deque[int] = deque(maxlen=_OWN)
        self._seen = 0
        self._watch_at = 0.0
        self._expire_at = time.monotonic() + 60.0
        # A daemon: a store that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
        self._thread.start()

    def put(self, *records: Record) -> bool:
        """Hands records over; what one call puts is written by one transaction. Takes a few microseconds, and never
        waits for the store. False when at least one was dropped, which is counted."""
        kept = True
        with self._changed:
            for record in records:
                kept = self._pending.put(record) and kept
        return kept

    def flush(self, timeout: float = 5.0) -> bool:
        """Has what was put before written at once, and waits for it; False when it failed or took longer than
        ``timeout`` seconds."""
        end = time.monotonic() + timeout
        with self._changed:
            attempts = self._attempts + (2 if self._pending.in_hand else 1)
            while self._pending or self._pending.in_hand:
                self._hurried = True
                self._changed.notify_all()
                left = end - time.monotonic()
                if left <= 0 or (self._attempts >= attempts and self._error is not None):
                    return False
                self._changed.wait(left)
        return True

    def close(self, timeout: float = 5.0) -> bool:
        """Writes what is left and ends. False when it could not be written: it is lost then."""
        end = time.monotonic() + timeout
        done = self.flush(timeout)
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join(max(0.1, end - time.monotonic()))
        return done

    def hanging(self) -> StoreError | None:
        """What to say of an attempt that has not come to its end for long; None where there is none. 0.2 us."""
        since = self._since
        if not since or time.monotonic() - since < SLOW_SECONDS:
            return None
        return StoreError("slow", f"the store {locate(self._url).shown} does not answer")

    def stats(self) -> WriterStats:
        with self._changed:
            error = self.hanging() or self._error
            return WriterStats(
                dict(self._written), dict(self._pending.dropped), self._pending.counts(), self._transactions,
                dict(self._failures), error is not None, error.kind if error else "", str(error) if error else "",
                self._committed_at, self._last_ms,
            )  # fmt: skip

    # -------------------------------------------------------------- the thread

    def _run(self) -> None:
        pause = 0.0
        while self._wait(pause or self._interval):
            error = self._attempt()
            with self._changed:
                self._attempts += 1
                self._error = error
                if error is not None:
                    self._failures[error.kind] = self._failures.get(error.kind, 0) + 1
                self._changed.notify_all()
            if error is None:
                pause = 0.0
                continue
            # Not all instances of a fleet should come back at the same moment.
            pause = min(self._longest_pause, max(FIRST_PAUSE, pause * 2)) * random.uniform(0.8, 1.0)  # noqa: S311
            self._let_go()
            self._tell(self._on_failure, error)
        self._let_go()

    def _wait(self, seconds: float) -> bool:
        """Sleeps; False when it is time to end."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self._stopping and not self._hurried:
                left = end - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._hurried = False
            return not self._stopping

    def _attempt(self) -> StoreError | None:
        """Writes what waits, and does what else is due. The error when the store failed."""
        self._since = time.monotonic()
        try:
            if self._store is None:
                self._store = open_store(self._url, literals=self._literals, busy_ms=self._busy_ms)
            self._write(self._store)
            self._watch(self._store)
            self._expire(self._store)
        except StoreError as error:
            return error
        except Exception as error:
            # A mistake of ours must not end the thread: then nothing would be kept any more.
            _LOG.exception("writing to the store failed")
            return StoreError("other", f"writing to the store failed ({type(error).__name__})")
        finally:
            self._since = 0.0
        return None

    def _write(self, store: Store) -> None:
        with self._changed:
            records = self._pending.take()
        # The first part is at the end.
        parts = [records] if records else []
        try:
            while parts:
                part = parts[-1]
                started = time.monotonic()
                try:
                    saved = store.save(**self._sorted(part))
                except (StoreError, TypeError, ValueError, AttributeError) as error:
                    if isinstance(error, StoreError) and error.kind != "rejected":
                        raise
                    # Something in it is not taken: the halves are tried, down to the record that it is.
                    parts.pop()
                    if len(part) > 1:
                        parts += reversed(halves(part))
                    else:
                        self._reject(part[0], error)
                    continue
                parts.pop()
                self._note(part, saved, (time.monotonic() - started) * 1000)
        finally:
            with self._changed:
                self._pending.give_back(record for part in reversed(parts) for record in part)

    def _sorted(self, records: list[Record]) -> dict[str, list[Any]]:
        made: dict[str, list[Any]] = {"queries": [], "arms": [], "ledger": [], "executions": [], "history": [],
                                     "guards": []}  # fmt: skip
        for record in records:
            if isinstance(record, QueryRecord | ArmRecord):
                # What was put before its own commit was known is not stale.
                revision = max(record.revision, self._revisions.get(_key(record), 0))
                made[_ARGUMENTS[type(record)]].append(msgspec.structs.replace(record, revision=revision))
            else:
                made[_ARGUMENTS[type(record)]].append(record)
        return made

    def _note(self, put: list[Record], saved: Saved, took_ms: float) -> None:
        """After a commit: what was written counts, and its owner is told."""
        asked = {_key(record): record for record in put if isinstance(record, QueryRecord | ArmRecord)}
        both: list[QueryRecord | ArmRecord] = [*saved.queries, *saved.arms]
        for stands in both:
            key = _key(stands)
            if _same_decision(asked.get(key), stands):
                self._revisions[key] = stands.revision
                self._revisions.move_to_end(key)
            else:
                # Whoever puts it again must have seen what was decided: only the record's own revision tells.
                self._revisions.pop(key, None)
        while len(self._revisions) > _REVISIONS:
            self._revisions.popitem(last=False)
        if saved.revision:
            self._own.append(saved.revision)
        with self._changed:
            for record in put:
                self._written[KINDS[type(record)]] += 1
            self._transactions += 1
            self._committed_at = time.time()
            self._last_ms = took_ms
        rest = [record for record in put if not isinstance(record, QueryRecord | ArmRecord)]
        self._tell(self._on_committed, [*both, *rest])

    def _reject(self, record: Record, error: Exception) -> None:
        _LOG.warning("the store does not take a record (%s): it is left out", KINDS[type(record)])
        with self._changed:
            self._pending.dropped[KINDS[type(record)]] += 1
            kind = error.kind if isinstance(error, StoreError) else "other"
            self._failures[kind] = self._failures.get(kind, 0) + 1

    def _watch(self, store: Store) -> None:
        if self._on_changed is None or time.monotonic() < self._watch_at:
            return
        self._watch_at = time.monotonic() + WATCH_SECONDS
        while True:
            changes = store.changed_since(self._seen)
            if changes.revision == self._seen:
                return
            self._seen = changes.revision
            own = set(self._own)
            others = Changes(
                changes.revision,
                [record for record in changes.queries if record.revision not in own],
                [record for record in changes.arms if record.revision not in own],
                [record for record in changes.guards if record.revision not in own],
            )
            if others.queries or others.arms or others.guards:
                self._tell(self._on_changed, others)

    def _expire(self, store: Store) -> None:
        if self._retention is None or time.monotonic() < self._expire_at:
            return
        self._expire_at = time.monotonic() + EXPIRE_SECONDS
        store.expire(self._retention)

    def _tell(self, callback: Callable[[T], None] | None, what: T) -> None:
        if callback is None:
            return
        try:
            callback(what)
        except Exception:
            _LOG.exception("what the store told was not taken")

    def _let_go(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()


def _key(record: QueryRecord | ArmRecord) -> object:
    return record.key if isinstance(record, QueryRecord) else (record.key, record.arm)


def _same_decision(asked: QueryRecord | ArmRecord | None, stands: QueryRecord | ArmRecord) -> bool:
    names = ("opted_out", "forgotten") if isinstance(stands, QueryRecord) else ("state", "actor")
    return asked is not None and all(getattr(asked, name) == getattr(stands, name) for name in names)
