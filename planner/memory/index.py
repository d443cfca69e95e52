"""The plan memory's index: the entries of queries and templates, bounded, what is to be written, and what was read.

What must be written, and whose answers no longer hold, is collected and handed out by `Index.drain`;
`Index.committed` is told what has been written, for nothing is replayed as approved before. `Index.loaded` takes up
what the store holds at the start, and what people and other instances decide later.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from planner.memory.entries import ArmEntry, Changes, Entry, Facts
from planner.memory.guard import SPENDING, Policy
from planner.memory.judging import Judge
from planner.memory.records import REPLAYED, ArmRecord, GuardRecord, QueryRecord, State
from planner.memory.states import SYSTEM

MAX_QUERIES: Final = 5_000
MAX_TEMPLATES: Final = 2_000
MAX_APART: Final = 5_000
MAX_TEXT: Final = 16_384
"""Longer texts are not kept."""
MAX_TEXT_BYTES: Final = 32 << 20
RETRY_COMMIT_S: Final = 5.0
STORED_CALLS: Final = 3
"""From so many executions on a query is worth a line in the store although nothing was tried."""
FLUSH_S: Final = 0.1
MAX_FLUSHED: Final = 1_000
SWEEP_S: Final = 60.0
MAX_KEYS: Final = 1_000
"""Keys whose answers no longer hold; of more, all answers are forgotten."""


class Index:
    """``durable``: there is a store, and what is approved counts only when it is written. ``clock`` gives seconds since
    the epoch. Texts are kept as they are: the store takes out the literals. Thread-safe by one lock; methods that begin
    with an underscore are called under it."""

    def __init__(
        self,
        policy: Policy | None = None,
        *,
        durable: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._lock = threading.Lock()
        self._policy = policy or Policy()
        self._judge = Judge(self._policy, durable=durable)
        self._clock = clock
        self._queries: OrderedDict[str, Entry] = OrderedDict()
        self._templates: OrderedDict[str, Entry] = OrderedDict()
        self._text_bytes = 0
        self._changes = Changes()
        #: Entries with evidence that is not written, and with approvals not known to be.
        self._dirty: dict[str, Entry] = {}
        self._unwritten: dict[str, Entry] = {}
        self._flushed_at = self._swept_at = 0.0
        self._spending_known = False
        #: Arms of queries that are not here: read before their query, since a large store is read in parts, or of a
        #: query that had to make room.
        self._apart: OrderedDict[str, list[ArmRecord]] = OrderedDict()

    def configure(self, policy: Policy) -> None:
        with self._lock:
            self._policy = policy
            self._judge.configure(policy)

    def __len__(self) -> int:
        return len(self._queries)

    def entries(self) -> list[Entry]:
        """All queries, not the templates; for looking at only."""
        with self._lock:
            return [*self._queries.values()]

    # --- entries ---------------------------------------------------------------------------------------------------

    def _entry(self, key: str) -> Entry | None:
        return self._queries.get(key) or self._templates.get(key)

    def _entries(self, facts: Facts, now: float) -> tuple[Entry, Entry]:
        """Those of a query and of its template, new ones where there are none."""
        entry = self._queries.get(facts.key)
        if entry is None:
            entry = self._add(Entry(self._record(facts, facts.key, now)))
        else:
            self._queries.move_to_end(facts.key)
        template = self._templates.get(facts.template)
        if template is None:
            template = self._add(Entry(self._record(facts, facts.template, now)))
        else:
            self._templates.move_to_end(facts.template)
        return entry, template

    def _record(self, facts: Facts, key: str, now: float) -> QueryRecord:
        return QueryRecord(
            key=key,
            template=facts.template,
            database=facts.database,
            search_path=facts.search_path,
            fingerprint=facts.fingerprint,
            text=facts.text.encode(errors="replace").decode() if len(facts.text) <= MAX_TEXT else "",
            params=facts.params if key == facts.key and len(facts.params) <= MAX_TEXT else "",
            first_seen=now,
            last_seen=now,
        )

    def _add(self, entry: Entry) -> Entry:
        entries, most = (self._templates, MAX_TEMPLATES) if entry.is_template else (self._queries, MAX_QUERIES)
        entries[entry.record.key] = entry
        self._text_bytes += len(entry.record.text)
        while len(entries) > most or (self._text_bytes > MAX_TEXT_BYTES and len(entries) > 1):
            # Not the arms in use, as long as there is something else among the oldest.
            oldest = [key for key, _ in zip(entries, range(50), strict=False)]
            spare = (one for one in oldest if entries[one].replayed() is None and one != entry.record.key)
            key = next(spare, oldest[0])
            gone = entries.pop(key)
            self._text_bytes -= len(gone.record.text)
            self._dirty.pop(key, None)
            self._unwritten.pop(key, None)
            for arm in gone.arms.values():
                if arm.touched:
                    self._set_apart(arm.record)
        for record in self._apart.pop(entry.record.key, ()):
            self._load_arm(record)
        return entry

    def _set_apart(self, record: ArmRecord) -> None:
        self._apart.setdefault(record.key, []).append(record)
        if len(self._apart) > MAX_APART:
            self._apart.popitem(last=False)

    def _drop(self, entry: Entry) -> None:
        """A person had it forgotten."""
        key = entry.record.key
        self._outdated(entry.record)
        (self._templates if entry.is_template else self._queries).pop(key, None)
        self._text_bytes -= len(entry.record.text)
        self._dirty.pop(key, None)
        self._unwritten.pop(key, None)

    def _outdated(self, record: QueryRecord) -> None:
        """Answers to this query, or to all queries of this template, do not hold any more."""
        key = record.key
        if key != record.template:
            self._changes.keys.add(key)
            return
        self._changes.keys.update(one.record.key for one in self._queries.values() if one.record.template == key)

    # --- what is to be written -------------------------------------------------------------------------------------

    def drain(self) -> Changes:
        """What has changed since the last call: the caller owns it. Evidence without a change of state is among it
        every tenth of a second."""
        now = self._clock()
        with self._lock:
            changes, self._changes = self._changes, Changes()
            changes.guards += self._judge.breakers.changed()
            moved = [record for record in changes.records if isinstance(record, ArmRecord)]
            changes.records = []
            for key in dict.fromkeys(record.key for record in moved):
                entry = self._entry(key)
                if entry is not None:
                    changes.records.append(msgspec.structs.replace(entry.record))
                    if any(record.state in REPLAYED for record in moved if record.key == key):
                        self._unwritten[key] = entry
            changes.records += moved
            if not 0 <= now - self._flushed_at < FLUSH_S:
                self._flushed_at = now
                changes.guards += self._judge.spending.changed(now)
                self._flush(changes, now)
            if not 0 <= now - self._swept_at < SWEEP_S:
                self._swept_at = now
                self._sweep(changes, now)
            if len(changes.keys) > MAX_KEYS:
                changes.keys, changes.everything = set(), True
            # Of each only the latest: queries before their arms, as they were put in.
            latest = {(record.key, record.arm if isinstance(record, ArmRecord) else ""): record
                      for record in changes.records}  # fmt: skip
            changes.records = [*latest.values()]
            return changes

    def _flush(self, changes: Changes, now: float) -> None:
        room = MAX_FLUSHED
        while self._dirty and room > 0:
            key = next(iter(self._dirty))
            entry = self._dirty.pop(key)
            tried = [arm for arm in entry.arms.values() if arm.touched]
            if not (tried or entry.stored or self._memorable(entry)):
                continue
            entry.stored = True
            changes.records.append(msgspec.structs.replace(entry.record))
            changes.records += [arm.copied() for arm in tried]
            room -= 1 + len(tried)
        for key, entry in [*self._unwritten.items()]:
            waiting = [arm for arm in entry.arms.values() if arm.record.state in REPLAYED and not arm.committed]
            if not waiting:
                del self._unwritten[key]
            for arm in waiting:
                # The store was away, or the queue full: once more.
                if now - arm.asked_at > RETRY_COMMIT_S:
                    arm.asked_at = now
                    changes.records += [msgspec.structs.replace(entry.record), arm.copied()]

    def _sweep(self, changes: Changes, now: float) -> None:
        """Answers whose evidence has become old meanwhile are to be asked for again."""
        limit = now - self._policy.max_age_s
        for entry in self._queries.values():
            if any(arm.settled and arm.record.updated < limit for arm in entry.arms.values()):
                changes.keys.add(entry.record.key)

    def _memorable(self, entry: Entry) -> bool:
        return entry.record.calls >= STORED_CALLS and entry.typical_ms >= self._policy.min_ms

    # --- what was written, and what was read -----------------------------------------------------------------------

    def committed(self, records: Iterable[object]) -> None:
        """These records are in the store, as they stand there: a person may have decided meanwhile."""
        with self._lock:
            for record in records:
                if isinstance(record, QueryRecord):
                    self._load_query(record, ours=True)
                elif isinstance(record, ArmRecord):
                    entry = self._entry(record.key)
                    arm = entry.arms.get(record.arm) if entry is not None else None
                    if entry is None or arm is None:
                        continue
                    if arm.record.state is not record.state:
                        self._load_arm(record)
                        continue
                    arm.join(record, ours=True)
                    if not arm.committed:
                        arm.committed = True
                        self._outdated(entry.record)

    def loaded(
        self, queries: Iterable[QueryRecord], arms: Iterable[ArmRecord], guards: Iterable[GuardRecord] = ()
    ) -> int:
        """Takes up what the store held at the start, and what others wrote since; returns how many records told
        something new."""
        taken = 0
        with self._lock:
            for guard in guards:
                if guard.name == SPENDING and not self._spending_known:
                    # Once: of what several instances spend each bounds its own.
                    self._spending_known = True
                    self._judge.spending.load(guard)
                elif self._judge.breakers.load(guard):
                    taken += 1
                    self._changes.everything = True
            for query in queries:
                taken += self._load_query(query)
            for arm in arms:
                taken += self._load_arm(arm)
        return taken

    def _load_query(self, record: QueryRecord, *, ours: bool = False) -> bool:
        known = self._entry(record.key)
        if record.forgotten:
            if known is not None:
                self._drop(known)
            return known is not None
        if known is None:
            if ours:
                return False
            entry = Entry(msgspec.structs.replace(record))
            entry.stored = True
            self._add(entry)
        else:
            known.record.revision = max(known.record.revision, record.revision)
            if known.record.opted_out == record.opted_out:
                return False
            known.record.opted_out, known.record.actor = record.opted_out, record.actor
        self._outdated(record)
        return True

    def _load_arm(self, record: ArmRecord) -> bool:
        entry = self._entry(record.key)
        if entry is None:
            self._set_apart(record)
            return False
        known = entry.arms.get(record.arm)
        if known is not None:
            own = known.record
            if record.state is own.state and record.actor in (SYSTEM, own.actor):
                known.join(record, ours=False)
                return False
            own.revision = max(own.revision, record.revision)
            if record.actor == SYSTEM and record.updated < own.updated:
                return False  # it has been overtaken
        arm = ArmEntry(msgspec.structs.replace(record), committed=True)
        arm.per_values = known.per_values if known is not None else bool(record.advice.rows)
        entry.arms[record.arm] = arm
        if record.arm not in entry.order:
            entry.order.append(record.arm)
        if record.state is State.TRIAL:
            entry.trial = entry.trial or record.arm
        template = self._templates.get(entry.record.template)
        if template is not None and template is not entry and (carried := template.arms.get(record.arm)) is not None:
            carried.won += record.state in REPLAYED
            carried.lost += arm.beaten
        self._outdated(entry.record)
        return True
