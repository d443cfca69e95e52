"""What goes wrong with a store, in one sentence each, told apart by a short label.

Neither a driver's exception nor its text reaches others: it may quote values, and a DSN its password.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from planner.memory.store.location import Location

KINDS: Final = (
    "full", "locked", "slow", "corrupt", "io", "gone", "refused", "newer", "older", "rejected", "url", "other",
)  # fmt: skip
"""Labels for metrics. ``newer`` and ``older``: the schema and this program do not fit; ``rejected``: a value that the
database does not take; ``refused``: permissions or a login; ``gone``: no file, no server, no connection; ``io``: a disk
that fails, or a limit on files."""
_SQLITE: Final = {
    sqlite3.SQLITE_FULL: ("full", "no space is left for {where}"),
    sqlite3.SQLITE_BUSY: ("locked", "{where} is locked by another process"),
    sqlite3.SQLITE_LOCKED: ("locked", "{where} is locked by another connection"),
    sqlite3.SQLITE_CORRUPT: ("corrupt", "{where} is damaged: move it away to begin a new one, or put a backup back"),
    sqlite3.SQLITE_NOTADB: ("corrupt", "{where} is no SQLite database: move it away, or name another file"),
    sqlite3.SQLITE_CANTOPEN: ("gone", "{where} cannot be opened"),
    sqlite3.SQLITE_READONLY: ("refused", "{where} may not be written"),
    sqlite3.SQLITE_PERM: ("refused", "{where} may not be opened"),
    sqlite3.SQLITE_INTERRUPT: ("slow", "{where} took too long"),
    sqlite3.SQLITE_IOERR: ("io", "{where} cannot be read or written (an input/output error)"),
}  # fmt: skip
_POSTGRES: Final = {
    "53100": ("full", "the disk of {where} is full"),
    "53200": ("full", "the server of {where} is out of memory"),
    "53300": ("gone", "the server of {where} has no connection left"),
    "55P03": ("locked", "a table of {where} is locked by another session"),
    "57014": ("slow", "{where} took too long"),
    "25P03": ("slow", "{where} took too long"),
    "40P01": ("locked", "{where} was locked by another session"),
    "40001": ("locked", "{where} was changed by another session"),
    "42501": ("refused", "the store's user may not do this in {where}"),
    "25006": ("refused", "{where} is read-only"),
    "3D000": ("gone", "the database of {where} does not exist"),
    "XX001": ("corrupt", "{where} is damaged"),
    "XX002": ("corrupt", "{where} is damaged"),
}
_CLASSES: Final = {
    "08": ("gone", "the connection to {where} was lost"),
    "57": ("gone", "the server of {where} is shutting down"),
    "28": ("refused", "the server of {where} does not let the store's user in"),
    "22": ("rejected", "{where} does not take a value"),
    "23": ("rejected", "{where} does not take a value"),
}
NO_ANSWER: Final = "no answer in time"
"""What a connection says that was given up."""


class StoreError(Exception):
    """``kind`` is one of `KINDS`; ``str()`` is one sentence without secrets that says what to do where it can."""

    def __init__(self, kind: str, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


def explain(error: BaseException, location: Location) -> StoreError:
    """The sentence for what a driver, SQLAlchemy or the operating system raised."""
    if isinstance(error, StoreError):
        return error
    cause: BaseException = getattr(error, "orig", None) or error
    found = _by_code(cause)
    if found is not None:
        return StoreError(found[0], found[1].format(where=f"the store {location.shown}"))
    if isinstance(cause, OSError):
        kind = {errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EACCES: "refused", errno.EPERM: "refused"}
        reason = cause.strerror or type(cause).__name__
        return StoreError(
            kind.get(cause.errno or 0, "gone"), f"the store {location.shown} cannot be used: {reason.lower()}"
        )
    return StoreError("other", f"the store {location.shown} failed ({type(cause).__name__})")


def _by_code(cause: BaseException) -> tuple[str, str] | None:
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", None)
        if isinstance(code, int) and code & 0xFF in _SQLITE:
            # The upper bytes only refine the primary code.
            return _SQLITE[code & 0xFF]
        if isinstance(cause, sqlite3.DataError | sqlite3.IntegrityError | sqlite3.InterfaceError):
            return ("rejected", "{where} does not take a value")
        if isinstance(cause, sqlite3.OperationalError) and "no such" in str(cause):
            return ("older", "{where} lacks a table or column: run `pilotwire store migrate`")
        return None
    state = getattr(cause, "sqlstate", None)
    if isinstance(state, str):
        if state in {"42P01", "42703"}:
            return ("older", "{where} lacks a table or column: run `pilotwire store migrate`")
        return _POSTGRES.get(state) or _CLASSES.get(state[:2])
    if type(cause).__module__.startswith("psycopg"):
        # Without an SQLSTATE no server spoke: it could not be reached, or went away.
        if type(cause).__name__ in {"OperationalError", "ConnectionTimeout", "InterfaceError"}:
            return _unreached(str(cause))
        return ("rejected", "{where} does not take a value")
    if type(cause).__module__ == "sqlalchemy.exc" and type(cause).__name__ == "TimeoutError":
        return ("slow", "all connections to {where} are in use")
    if isinstance(cause, OverflowError | TypeError | ValueError):
        return ("rejected", "{where} does not take a value")
    return None


def _unreached(message: str) -> tuple[str, str]:
    if message == NO_ANSWER:
        return ("slow", "{where} does not answer")
    # libpq gives no code for what happens before the login is through, only words.
    if "authentication failed" in message or "no password supplied" in message or "no pg_hba.conf" in message:
        return ("refused", "the server of {where} does not let the store's user in")
    if "does not exist" in message:
        return ("gone", "the database or the user of {where} does not exist")
    return ("gone", "the server of {where} cannot be reached")
