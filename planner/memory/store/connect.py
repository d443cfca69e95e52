"""SQLAlchemy engines for the two kinds of store, with limits on what any statement may wait for.

SQLite: one file in WAL mode, so that readers never wait for a writer; ``synchronous=FULL``, so that what was committed
is there after a power cut too; every transaction that writes says BEGIN IMMEDIATE and waits for others at most the busy
timeout. PostgreSQL: timeouts are set inside each transaction, so that the store also works through a pooler; since a
server that hangs does not keep them, its connection is given up some seconds later.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import psycopg
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import QueuePool

from planner.memory.store.errors import NO_ANSWER, StoreError, explain
from planner.memory.store.location import Location

BUSY_MS: Final = 5_000
"""How long a transaction waits for others, in milliseconds."""
STATEMENT_MS: Final = 20_000
GRACE_MS: Final = 5_000
"""What a server has to say that a statement took too long, before it is taken for one that hangs."""
FAILURES: Final = (SQLAlchemyError, sqlite3.Error, psycopg.Error, OSError, OverflowError, UnicodeError)
"""What SQLAlchemy, the drivers and the operating system raise when a store fails or does not take a value."""
SQLITE_RECYCLE_SECONDS: Final = 10
"""How long a connection to a file is kept."""
_WRITES: Final = "pilotwire_writes"
_AUTO_VACUUM_INCREMENTAL: Final = 2


class Connector:
    """Opens transactions. Thread-safe; ``busy_ms`` and ``statement_ms`` bound what one waits for."""

    def __init__(self, location: Location, *, busy_ms: int = BUSY_MS, statement_ms: int = STATEMENT_MS) -> None:
        self.location = location
        self._busy_ms = busy_ms
        self._statement_ms = statement_ms
        self._file: tuple[int, int] | None = None
        self._sessions: WeakSet[_Session] = WeakSet()
        self.engine: Engine = self._sqlite(location.path) if location.path is not None else self._postgres()

    @property
    def sqlite(self) -> bool:
        return self.location.path is not None

    @contextmanager
    def reading(self, *, snapshot: bool = False) -> Iterator[Connection]:
        """A transaction; with ``snapshot`` all of its statements see one state of the store, however long it takes.
        Raises StoreError."""
        with self._transaction(writes=False, snapshot=snapshot) as connection:
            yield connection

    @contextmanager
    def writing(self, *, statement_ms: int | None = None) -> Iterator[Connection]:
        """A transaction that is committed at the end of the block, and rolled back when it raises. Raises StoreError;
        ``statement_ms`` 0 lifts the limit (migrations, imports)."""
        with self._transaction(writes=True, statement_ms=statement_ms) as connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()

    def cut(self) -> None:
        """Ends all connections to a PostgreSQL server from any thread, without a word to it: whoever waits for an
        answer gets an error at once."""
        for session in [*self._sessions]:
            with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(session.pgconn.socket)) as own:
                own.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def _transaction(
        self, *, writes: bool, statement_ms: int | None = None, snapshot: bool = False
    ) -> Iterator[Connection]:
        limit = self._statement_ms if statement_ms is None else statement_ms
        try:
            self._notice_another_file()
            with self.engine.connect() as connection:
                connection.execution_options(**{_WRITES: writes})
                session = connection.connection.dbapi_connection
                if isinstance(session, _Session):
                    session.patience_ms = None if snapshot or not limit else limit + GRACE_MS
                if snapshot and not self.sqlite:
                    # SQLite's transactions are such always.
                    connection.execution_options(isolation_level="REPEATABLE READ")
                with connection.begin():
                    if not self.sqlite and not snapshot:
                        self._limit(connection, limit)
                    yield connection
        except FAILURES as error:
            raise explain(error, self.location) from error

    def _limit(self, connection: Connection, statement_ms: int) -> None:
        # idle_in_transaction: an instance that hangs in the middle must not hold the others' lock for ever.
        connection.execute(
            text(
                "SELECT set_config('statement_timeout', :statement, true), set_config('lock_timeout', :lock, true), "
                "set_config('idle_in_transaction_session_timeout', :idle, true)"
            ),
            {"statement": str(statement_ms), "lock": str(self._busy_ms), "idle": "60000"},
        )

    # ------------------------------------------------------------------ SQLite

    def _sqlite(self, path: Path) -> Engine:
        engine = create_engine(
            "sqlite://",
            creator=lambda: self._open(path),
            poolclass=QueuePool,
            pool_size=2,
            max_overflow=4,
            pool_timeout=self._busy_ms / 1000,
            # A connection reads from its cache: only a new one notices that the file was damaged under it.
            pool_recycle=SQLITE_RECYCLE_SECONDS,
        )
        event.listen(engine, "begin", _begin)
        return engine

    def _open(self, path: Path) -> sqlite3.Connection:
        # Without an isolation level the driver begins no transaction of its own: `_begin` does.
        connection = sqlite3.connect(path, timeout=self._busy_ms / 1000, check_same_thread=False, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            if connection.execute("PRAGMA page_count").fetchone()[0] == 0:
                connection.execute(f"PRAGMA auto_vacuum = {_AUTO_VACUUM_INCREMENTAL}")
            if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                connection.execute("PRAGMA journal_mode = WAL")
            # Else the log stays as large as the largest transaction made it.
            connection.execute("PRAGMA journal_size_limit = 16777216")
        except BaseException:
            connection.close()
            raise
        return connection

    def create_file(self) -> bool:
        """Makes an empty SQLite file that only this user can read, with its folder; False when there is one."""
        path = self.location.path
        if path is None or path.exists():
            return False
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise explain(error, self.location) from None
        return True

    def _notice_another_file(self) -> None:
        """SQLite goes on writing to a file that was removed or replaced; nobody would ever read that."""
        path = self.location.path
        if path is None:
            return
        try:
            found = path.stat()
        except OSError:
            self.engine.dispose()
            known, self._file = self._file, None
            sentence = (
                f"the store {self.location.shown} is gone" if known else f"there is no store {self.location.shown}"
            )
            raise StoreError("gone", sentence) from None
        seen = (found.st_dev, found.st_ino)
        if self._file is not None and self._file != seen:
            self.engine.dispose()
            self._file = None
            raise StoreError("gone", f"the store {self.location.shown} was replaced by another file")
        self._file = seen

    # -------------------------------------------------------------- PostgreSQL

    def _postgres(self) -> Engine:
        engine = create_engine(
            "postgresql+psycopg://",
            creator=self._login,
            pool_size=2,
            max_overflow=4,
            pool_timeout=self._busy_ms / 1000,
            pool_pre_ping=True,
            pool_recycle=1800,
        )
        event.listen(engine, "checkin", _be_patient_no_more)
        return engine

    def _login(self) -> psycopg.Connection[Any]:
        given = psycopg.conninfo.conninfo_to_dict(self.location.url)
        defaults: dict[str, Any] = {
            "connect_timeout": 5,
            "application_name": "pilotwire-store",
            # A server that went away without a word is noticed in seconds, not in the kernel's quarter of an hour.
            "tcp_user_timeout": 10_000,
            "keepalives_idle": 30,
        }
        missing = {name: value for name, value in defaults.items() if name not in given}
        # Named statements would not survive a pooler in transaction mode.
        session = _Session.connect(self.location.url, prepare_threshold=None, **missing)
        self._sessions.add(session)
        return session


class _Session(psycopg.Connection[Any]):
    """Gives a server up that has not answered a statement for ``patience_ms``, while that is set."""

    patience_ms: int | None = STATEMENT_MS + GRACE_MS

    def wait(self, gen: Any, *given: Any, **named: Any) -> Any:
        patience = self.patience_ms
        return super().wait(gen if patience is None else self._bounded(gen, patience), *given, **named)

    def _bounded(self, gen: Any, patience_ms: int) -> Generator[Any, Any, Any]:
        """``gen`` says what it waits for, and is told what has come: several times a second, nothing."""
        until = time.monotonic() + patience_ms / 1000
        try:
            awaited = next(gen)
            while True:
                come = yield awaited
                if not come and time.monotonic() > until:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(NO_ANSWER)
                awaited = gen.send(come)
        except StopIteration as end:
            return end.value


def _be_patient_no_more(session: object, _record: object) -> None:
    # Whoever gets it next asks first whether it is still there.
    if isinstance(session, _Session):
        session.patience_ms = STATEMENT_MS + GRACE_MS


def _begin(connection: Connection) -> None:
    # A writer that took the lock only at its first write could find that what it has read is out of date.
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
