"""Reading and writing the store, blocking. One transaction for each call; every method raises `StoreError`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, Connection, Select, Table, delete, func, select, update

from planner.memory.records import ArmRecord, Execution, GuardRecord, HistoryPoint, LedgerEntry, QueryRecord, State
from planner.memory.store.connect import Connector
from planner.memory.store.errors import StoreError
from planner.memory.store.location import Location
from planner.memory.store.redact import Redactor
from planner.memory.store.rows import R, from_row, from_rows, to_row
from planner.memory.store.saving import SYSTEM, save_arms, save_guards, save_queries, true_lines, unrepeated, upsert
from planner.memory.store.tables import ARMS, EXECUTIONS, GUARDS, HISTORY, INFO, LEDGER, QUERIES, REVISION

DAY: Final = 86_400.0
ORDERS: Final = ("total_ms", "calls", "last_seen", "updated", "key")
_EXPIRED_AT_ONCE: Final = 2_000
"""Rows deleted in one transaction: others wait for a few milliseconds only."""
_TOMBSTONE_SECONDS: Final = 30 * DAY
_DECIDED: Final = (State.PREFERRED, State.FROZEN)
_FOLLOWED: Final = (QUERIES, ARMS, GUARDS)
"""Tables whose changes instances tell each other, by revision."""


class Saved(NamedTuple):
    """What a `Store.save` left in the store: queries and arms as they stand now, with their revisions, tombstones
    among them; ``revision`` 0 when there were neither."""

    revision: int
    queries: list[QueryRecord]
    arms: list[ArmRecord]


class Changes(NamedTuple):
    """Queries, arms and guards that changed after a revision; ``revision`` is what to ask with next time."""

    revision: int
    queries: list[QueryRecord]
    arms: list[ArmRecord]
    guards: list[GuardRecord]


class Change(NamedTuple):
    """What is to be written about one query."""

    queries: list[QueryRecord]
    arms: list[ArmRecord]
    ledger: list[LedgerEntry]


class Retention(msgspec.Struct, frozen=True):
    """How long things are kept, in seconds, 0 for ever. A query goes that has not been seen for so long, with its arms,
    unless a person decided something about it. The rows of what clients can make grow are bounded too; 0: they are
    not."""

    ledger: float = 365 * DAY
    executions: float = 14 * DAY
    history: float = 90 * DAY
    queries: float = 90 * DAY
    execution_rows: int = 1_000_000
    ledger_rows: int = 5_000_000
    query_rows: int = 200_000


class Store:
    """Thread-safe. Get one from `planner.memory.store.open_store`; `close` it."""

    def __init__(self, connector: Connector, *, literals: bool = False) -> None:
        self._connector = connector
        self._literals = literals
        with connector.reading() as connection:
            salt = connection.execute(select(INFO.c.value).where(INFO.c.name == "salt")).scalar()
        self.salt = str(salt or "")
        self._redactor = Redactor(self.salt)

    @property
    def location(self) -> Location:
        return self._connector.location

    @property
    def connector(self) -> Connector:
        return self._connector

    def close(self) -> None:
        self._connector.close()

    def cut(self) -> None:
        """From any thread: whoever waits for a PostgreSQL server that hangs gets an error at once."""
        self._connector.cut()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ----------------------------------------------------------------- writing

    def save(
        self,
        queries: Iterable[QueryRecord] = (),
        arms: Iterable[ArmRecord] = (),
        ledger: Iterable[LedgerEntry] = (),
        executions: Iterable[Execution] = (),
        history: Iterable[HistoryPoint] = (),
        guards: Iterable[GuardRecord] = (),
    ) -> Saved:
        """All or nothing. What happens to a query or arm that somebody else wrote meanwhile: see `saving`. Ledger lines
        and executions that are there already (by ``uid``) are left out, so a save may be repeated."""
        made_queries = [self._kept(record) for record in queries]
        made_arms, made_guards = list(arms), list(guards)
        entries = [self._kept(entry) for entry in ledger]
        samples = [to_row(self._kept(execution)) for execution in executions]
        points = [to_row(point) for point in history]
        with self._connector.writing() as connection:
            untrue: set[tuple[str, str, str]] = set()
            saved = self._write(connection, made_queries, made_arms, made_guards, untrue)
            lines = unrepeated(connection, true_lines(entries, untrue))
            upsert(connection, LEDGER, [to_row(entry) for entry in lines], keep=True)
            upsert(connection, EXECUTIONS, samples, keep=True)
            upsert(connection, HISTORY, points)
        return saved

    def next_revision(self, connection: Connection) -> int:
        """For a transaction that writes queries or arms. The row's lock is held until the commit: revisions become
        visible in order."""
        made = connection.execute(update(REVISION).values(value=REVISION.c.value + 1).returning(REVISION.c.value))
        return int(made.scalar_one())

    def change(self, key: str, judge: Callable[[QueryRecord | None, list[ArmRecord]], Change]) -> Saved:
        """Reads one query, has ``judge`` say what becomes of it, and writes that, all under the store's lock: nobody
        writes in between. What ``judge`` raises ends it without a change."""
        with self._connector.writing() as connection:
            # First of all: it is what others that write queries wait for.
            revision = self.next_revision(connection)
            row = connection.execute(select(QUERIES).where(QUERIES.c.key == key)).mappings().first()
            found = from_row(QueryRecord, row) if row is not None else None
            chosen = select(ARMS).where(ARMS.c.key == key).order_by(ARMS.c.arm)
            arms = from_rows(ArmRecord, connection.execute(chosen).mappings().all())
            change = judge(None if found is not None and found.forgotten else found, arms)
            if change.queries and change.queries[0].forgotten:
                connection.execute(delete(ARMS).where(ARMS.c.key == key))
            kept = [self._kept(record) for record in change.queries]
            queries = save_queries(connection, kept, revision, literals=self._literals)
            saved = Saved(revision, queries, save_arms(connection, change.arms, revision))
            upsert(connection, LEDGER, [to_row(self._kept(entry)) for entry in change.ledger])
        return saved

    def forget(self, key: str, *, actor: str = SYSTEM, why: str = "") -> bool:
        """Removes all that is known of a query or template, except its ledger lines, to which one is added; others see
        a tombstone. False when nothing was known."""
        known = False

        def judge(query: QueryRecord | None, arms: list[ArmRecord]) -> Change:
            nonlocal known
            known = query is not None or bool(arms)
            if not known:
                return Change([], [], [])
            about = query or QueryRecord(key=key, template=key, database="", search_path="", fingerprint="")
            now = time.time()
            tombstone = QueryRecord(
                key=key, template=about.template, database=about.database, search_path=about.search_path,
                fingerprint=about.fingerprint, actor=actor, updated=now, revision=about.revision, forgotten=True,
            )  # fmt: skip
            line = LedgerEntry(
                at=now, kind="person" if actor != SYSTEM else "state", key=key, database=about.database,
                fingerprint=about.fingerprint, after="forgotten", actor=actor, why=why, text=about.shape,
                scope=about.scope,
            )  # fmt: skip
            return Change([tombstone], [], [line])

        self.change(key, judge)
        return known

    def expire(self, retention: Retention, now: float | None = None) -> dict[str, int]:
        """Deletes what is older than it may be, a little at a time; the number of rows by table."""
        moment = time.time() if now is None else now
        gone = dict.fromkeys(("ledger", "query_metrics", "metric_history", "queries"), 0)
        for table, seconds in (
            (LEDGER, retention.ledger),
            (EXECUTIONS, retention.executions),
            (HISTORY, retention.history),
        ):
            if seconds:
                gone[table.name] += self._delete_old(table, table.c.at < moment - seconds)
        for table, most in ((EXECUTIONS, retention.execution_rows), (LEDGER, retention.ledger_rows)):
            newest = self._value_at(table.c.id, most)
            if newest is not None:
                gone[table.name] += self._delete_old(table, table.c.id <= newest)
        seen = self._value_at(QUERIES.c.last_seen, retention.query_rows)
        if retention.queries or seen is not None:
            aged = moment - retention.queries if retention.queries else 0.0
            gone["queries"] = self._expire_queries(max(aged, seen or 0.0))
            gone["queries"] += self._delete_old(
                QUERIES, QUERIES.c.forgotten & (QUERIES.c.updated < moment - _TOMBSTONE_SECONDS)
            )
        if self._connector.sqlite and any(gone.values()):
            with self._connector.writing() as connection:
                # Each step gives one page back, so all of them have to be fetched, which SQLAlchemy does not.
                connection.connection.cursor().execute("PRAGMA incremental_vacuum(2000)").fetchall()
        return gone

    # ----------------------------------------------------------------- reading

    def query(self, key: str) -> QueryRecord | None:
        """None when it is not known, or forgotten."""
        with self._connector.reading() as connection:
            row = connection.execute(select(QUERIES).where(QUERIES.c.key == key, ~QUERIES.c.forgotten)).mappings()
            found = row.first()
        return from_row(QueryRecord, found) if found is not None else None

    def queries(
        self,
        database: str | None = None,
        since: float = 0.0,
        limit: int = 1000,
        order: str = "total_ms",
        *,
        offset: int = 0,
        template: str | None = None,
        fingerprint: str | None = None,
        state: State | str | None = None,
        frozen: bool | None = None,
        key_prefix: str = "",
    ) -> list[QueryRecord]:
        """Queries updated at or after ``since``, those with the most of ``order`` (one of `ORDERS`) first; ``state``:
        only those with an arm in it; ``frozen``: only those that a person froze, or only others."""
        if order not in ORDERS:
            raise StoreError("other", f"queries are ordered by one of {', '.join(ORDERS)}, not by {order[:40]}")
        column = QUERIES.c[order]
        chosen = select(QUERIES).where(~QUERIES.c.forgotten, QUERIES.c.updated >= since)
        for name, value in (("database", database), ("template", template), ("fingerprint", fingerprint)):
            if value is not None:
                chosen = chosen.where(QUERIES.c[name] == value)
        if state is not None:
            chosen = chosen.where(QUERIES.c.key.in_(select(ARMS.c.key).where(ARMS.c.state == str(state))))
        if frozen is not None:
            chosen = chosen.where(QUERIES.c.opted_out == frozen)
        if key_prefix:
            chosen = chosen.where(QUERIES.c.key.startswith(key_prefix, autoescape=True))
        chosen = chosen.order_by(column if order == "key" else column.desc(), QUERIES.c.key)
        return self._all(QueryRecord, chosen.limit(limit).offset(offset))

    def arms(
        self, key: str | None = None, since: float = 0.0, *, keys: Iterable[str] | None = None,
        state: State | str | None = None, limit: int | None = None,
    ) -> list[ArmRecord]:  # fmt: skip
        """Arms updated at or after ``since``; ``keys`` asks for several queries at once (at most 1000)."""
        chosen = select(ARMS).where(ARMS.c.updated >= since)
        if key is not None:
            chosen = chosen.where(ARMS.c.key == key)
        if keys is not None:
            chosen = chosen.where(ARMS.c.key.in_(list(keys)[:1000]))
        if state is not None:
            chosen = chosen.where(ARMS.c.state == str(state))
        return self._all(ArmRecord, chosen.order_by(ARMS.c.key, ARMS.c.arm).limit(limit))

    def ledger(
        self,
        since: float = 0.0,
        kind: str | None = None,
        key: str | None = None,
        limit: int = 1000,
        before_id: int | None = None,
        *,
        until: float | None = None,
        database: str | None = None,
        actor: str | None = None,
    ) -> list[LedgerEntry]:
        """The latest lines first; ``before_id`` (the ``id`` of the last line seen) turns the page."""
        return self._all(
            LedgerEntry,
            _ledger_query(since, until, kind, key, database, actor, before_id)
            .order_by(LEDGER.c.id.desc())
            .limit(limit),
        )

    def executions(
        self,
        since: float = 0.0,
        *,
        until: float | None = None,
        database: str | None = None,
        fingerprint: str | None = None,
        key: str | None = None,
        after_id: int = 0,
        limit: int = 10_000,
        newest: bool = False,
    ) -> list[Execution]:
        """Samples in the order in which they were stored, or with ``newest`` the other way round; ``after_id`` turns
        the page."""
        chosen = select(EXECUTIONS).where(EXECUTIONS.c.at >= since, EXECUTIONS.c.id > after_id)
        if until is not None:
            chosen = chosen.where(EXECUTIONS.c.at < until)
        for name, value in (("database", database), ("fingerprint", fingerprint), ("key", key)):
            if value is not None:
                chosen = chosen.where(EXECUTIONS.c[name] == value)
        order = EXECUTIONS.c.id.desc() if newest else EXECUTIONS.c.id
        return self._all(Execution, chosen.order_by(order).limit(limit))

    def history(
        self, metric: str | None = None, model: str | None = None, since: float = 0.0, until: float | None = None,
        limit: int = 100_000,
    ) -> list[HistoryPoint]:  # fmt: skip
        """Points with ``since`` <= ``at`` < ``until``, the oldest first; of more than ``limit`` the latest."""
        chosen = select(HISTORY).where(HISTORY.c.at >= since)
        if until is not None:
            chosen = chosen.where(HISTORY.c.at < until)
        for name, value in (("metric", metric), ("model", model)):
            if value is not None:
                chosen = chosen.where(HISTORY.c[name] == value)
        chosen = chosen.order_by(HISTORY.c.at.desc(), HISTORY.c.model, HISTORY.c.metric).limit(limit)
        return self._all(HistoryPoint, chosen)[::-1]

    def guards(self) -> list[GuardRecord]:
        """All of them: a few for each model that ever served."""
        return self._all(GuardRecord, select(GUARDS).order_by(GUARDS.c.name))

    def revision(self) -> int:
        """The number of the latest change of queries or arms."""
        with self._connector.reading() as connection:
            return _revision(connection)

    def changed_since(self, revision: int, limit: int = 5_000) -> Changes:
        """What changed after ``revision``, oldest first and about ``limit`` rows at most: go on asking with the
        revision that comes back until it stays the same. Forgotten queries come as tombstones (``forgotten``). From 0
        on it reads everything. About 0.2 ms when nothing changed.
        """
        with self._connector.reading() as connection:
            upto = _revision(connection)
            if upto == revision:
                return Changes(revision, [], [], [])
            # A store that is behind what the caller knows is another one than before: all of it is new.
            after = revision if upto > revision else -1
            for table in _FOLLOWED:
                column = table.c.revision
                cut = connection.execute(
                    select(column).where(column > after, column <= upto).order_by(column).offset(limit).limit(1)
                ).scalar()
                if cut is not None:
                    # Rows of one revision stay together: at the least, those of the next one are read.
                    upto = max(cut - 1, _next(connection, after, upto))
            queries, arms, guards = (
                connection.execute(
                    select(table)
                    .where(table.c.revision > after, table.c.revision <= upto)
                    .order_by(table.c.revision, *table.primary_key)
                )
                .mappings()
                .all()
                for table in _FOLLOWED
            )
        return Changes(
            upto, from_rows(QueryRecord, queries), from_rows(ArmRecord, arms), from_rows(GuardRecord, guards)
        )

    def counts(self) -> dict[str, int]:
        """Rows by table."""
        with self._connector.reading() as connection:
            return {
                table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
                for table in (QUERIES, ARMS, LEDGER, EXECUTIONS, HISTORY, GUARDS)
            }

    def stream_ledger(
        self, since: float = 0.0, *, until: float | None = None, kind: str | None = None, key: str | None = None,
        database: str | None = None, actor: str | None = None, at_once: int = 5_000,
    ) -> Iterator[LedgerEntry]:  # fmt: skip
        """Every line, the oldest first, with few of them in memory at a time."""
        after = 0
        base = _ledger_query(since, until, kind, key, database, actor, None)
        while found := self._all(LedgerEntry, base.where(LEDGER.c.id > after).order_by(LEDGER.c.id).limit(at_once)):
            yield from found
            after = found[-1].id

    # ------------------------------------------------------------------ within

    def _all(self, kind: type[R], chosen: Select[Any]) -> list[R]:
        with self._connector.reading() as connection:
            return from_rows(kind, connection.execute(chosen).mappings().all())

    def _write(
        self, connection: Connection, queries: list[QueryRecord], arms: list[ArmRecord], guards: list[GuardRecord],
        untrue: set[tuple[str, str, str]],
    ) -> Saved:  # fmt: skip
        if not queries and not arms and not guards:
            return Saved(0, [], [])
        revision = self.next_revision(connection)
        saved = Saved(
            revision,
            save_queries(connection, queries, revision, literals=self._literals),
            save_arms(connection, arms, revision, untrue),
        )
        save_guards(connection, guards, revision)
        return saved

    def _kept(self, record: R) -> R:
        """The record as it may be stored: without literals, unless they are allowed."""
        if isinstance(record, QueryRecord):
            shape = self._redactor.shape(record.shape or record.text)
            return msgspec.structs.replace(record, shape=shape) if shape != record.shape else record
        if self._literals or isinstance(record, ArmRecord | HistoryPoint | GuardRecord):
            return record
        if isinstance(record, LedgerEntry):
            return msgspec.structs.replace(record, text=self._redactor.shape(record.text)) if record.text else record
        return msgspec.structs.replace(record, text="", params="") if record.text or record.params else record

    def _delete_old(self, table: Table, old: ColumnElement[bool]) -> int:
        keys = list(table.primary_key)
        total = 0
        while True:
            with self._connector.writing() as connection:
                rows = connection.execute(select(*keys).where(old).limit(_EXPIRED_AT_ONCE)).all()
                if not rows:
                    return total
                if len(keys) == 1:
                    connection.execute(delete(table).where(keys[0].in_([row[0] for row in rows])))
                else:
                    last = sorted(row[0] for row in rows)[-1]
                    connection.execute(delete(table).where(old, keys[0] <= last))
            total += len(rows)

    def _value_at(self, column: ColumnElement[Any], number: int) -> Any:
        """The value that comes after the ``number`` largest ones; None when there are fewer, or ``number`` is 0."""
        if not number:
            return None
        with self._connector.reading() as connection:
            return connection.execute(select(column).order_by(column.desc()).offset(number).limit(1)).scalar()

    def _expire_queries(self, before: float) -> int:
        decided = select(ARMS.c.key).where((ARMS.c.actor != SYSTEM) | ARMS.c.state.in_([str(s) for s in _DECIDED]))
        old = (
            ~QUERIES.c.forgotten & (QUERIES.c.last_seen <= before) & (QUERIES.c.updated <= before)
            & ~QUERIES.c.opted_out & QUERIES.c.key.not_in(decided)
        )  # fmt: skip
        total = 0
        while True:
            with self._connector.writing() as connection:
                keys = list(connection.execute(select(QUERIES.c.key).where(old).limit(500)).scalars())
                if not keys:
                    break
                # In the order in which those who write lock them.
                self.next_revision(connection)
                connection.execute(delete(ARMS).where(ARMS.c.key.in_(keys)))
                connection.execute(delete(QUERIES).where(QUERIES.c.key.in_(keys)))
            total += len(keys)
        return total + self._expire_orphans(before)

    def _expire_orphans(self, before: float) -> int:
        """Arms of queries that nobody wrote a record of."""
        old = (
            (ARMS.c.updated < before) & (ARMS.c.actor == SYSTEM) & ARMS.c.state.not_in([str(s) for s in _DECIDED])
            & ARMS.c.key.not_in(select(QUERIES.c.key))
        )  # fmt: skip
        with self._connector.writing() as connection:
            self.next_revision(connection)
            return connection.execute(delete(ARMS).where(old)).rowcount


def _revision(connection: Connection) -> int:
    return int(connection.execute(select(REVISION.c.value)).scalar_one())


def _next(connection: Connection, after: int, upto: int) -> int:
    """The first revision after ``after`` that any row has."""
    found = [
        connection.execute(select(func.min(table.c.revision)).where(table.c.revision > after)).scalar()
        for table in _FOLLOWED
    ]
    return min((int(value) for value in found if value is not None), default=upto)


def _ledger_query(
    since: float, until: float | None, kind: str | None, key: str | None, database: str | None, actor: str | None,
    before_id: int | None,
) -> Select[Any]:  # fmt: skip
    chosen = select(LEDGER).where(LEDGER.c.at >= since)
    filters: Mapping[str, str | None] = {"kind": kind, "key": key, "database": database, "actor": actor}
    for name, value in filters.items():
        if value is not None:
            chosen = chosen.where(LEDGER.c[name] == value)
    if until is not None:
        chosen = chosen.where(LEDGER.c.at < until)
    if before_id is not None:
        chosen = chosen.where(LEDGER.c.id < before_id)
    return chosen
