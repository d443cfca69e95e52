"""The store's schema: is it the one that this program knows, and bringing an older one there.

Opening a store compares one row and loads Alembic only when there is something to do. An upgrade is one transaction,
under a lock, so that of several processes that start together one upgrades, and a kill in the middle leaves the old
schema whole. A store that is newer than the program is refused: what it writes could not be kept right.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, inspect, text

from planner.memory.store.connect import Connector
from planner.memory.store.errors import StoreError
from planner.memory.store.tables import METADATA, VERSION_TABLE

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

HEAD: Final = "0003"
"""The newest step in migrations/versions."""
_SCRIPTS: Final = Path(__file__).parent / "migrations"
_RUNNING: Final = threading.Lock()
_LOCK: Final = 0x70696C6F74776972
"""For pg_advisory_xact_lock: the letters "pilotwir"."""


def current(connection: Connection) -> str:
    """The schema's version, "" for none yet."""
    if not inspect(connection).has_table(VERSION_TABLE):
        return ""
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608
    return str(found) if found else ""


def check(connector: Connector) -> None:
    """Raises StoreError when the store's schema is not `HEAD`."""
    with connector.reading() as connection:
        version = current(connection)
    if version == HEAD:
        return
    _refuse_newer(connector, version)
    raise StoreError(
        "older",
        f"the store {connector.location.shown} has "
        + (f"schema {version}, this program needs {HEAD}" if version else "no schema yet")
        + ": run `pilotwire store migrate`",
    )


def upgrade(connector: Connector, target: str = HEAD) -> tuple[str, str]:
    """Brings the schema to ``target``; the versions before and after. Raises StoreError."""
    with connector.reading() as connection:
        version = current(connection)
    if version == target:
        return version, version
    _refuse_newer(connector, version)
    with connector.writing(statement_ms=0) as connection:
        if not connector.sqlite:
            connection.execute(text("SELECT set_config('lock_timeout', '60000', true)"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _LOCK})
        version = current(connection)
        if version != target:
            _refuse_newer(connector, version)
            _run(connection, target)
    return version, target


def scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(_SCRIPTS))


def _refuse_newer(connector: Connector, version: str) -> None:
    if version and version not in {script.revision for script in scripts().walk_revisions()}:
        raise StoreError(
            "newer",
            f"the store {connector.location.shown} was written by a newer pilotwire (schema {version}, this program "
            f"knows up to {HEAD}): update pilotwire, or name another store",
        )


def _run(connection: Connection, target: str) -> None:
    directory = scripts()
    # Alembic's `op` is one for the process.
    with _RUNNING:
        _run_alone(connection, directory, target)


def _run_alone(connection: Connection, directory: ScriptDirectory, target: str) -> None:
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext

    def steps(revision: Any, _context: Any) -> Any:
        return directory._upgrade_revs(target, revision)

    with EnvironmentContext(Config(), directory, fn=steps) as environment:
        environment.configure(
            connection=connection,
            target_metadata=METADATA,
            version_table=VERSION_TABLE,
            # SQLite's are too, once it is told to begin a transaction itself.
            transactional_ddl=True,
        )
        environment.run_migrations()
