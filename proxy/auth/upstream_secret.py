"""The DSN user's password, from where libpq and asyncpg would take it: the DSN, PGPASSWORD, a password file."""

from __future__ import annotations

import getpass
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from proxy.dsn import Dsn

_MAX_FILE_BYTES = 1 << 20


def dsn_user(dsn: Dsn, environment: Mapping[str, str] = os.environ) -> str:
    """The DSN's user, else PGUSER, else the system user's name."""
    return dsn.user or environment.get("PGUSER", "") or getpass.getuser()


def find_password(
    dsn: Dsn, user: str, given: str | None, passfile: str, environment: Mapping[str, str] = os.environ
) -> str | None:
    """The password of ``user`` at ``dsn``'s hosts: ``given``, PGPASSWORD, or the first fitting line of ``passfile``
    (when empty: PGPASSFILE, then ~/.pgpass). None when there is none.

    A file that is set, but is no plain file or may be read by others, raises ValueError; a missing one does not.
    """
    if given:
        return given
    if password := environment.get("PGPASSWORD"):
        return password
    explicit = passfile or environment.get("PGPASSFILE", "")
    path = Path(explicit) if explicit else Path.home() / ".pgpass"
    text = _read_private(path, explicit=bool(explicit))
    return None if text is None else password_in(text, dsn, user)


def password_in(text: str, dsn: Dsn, user: str) -> str | None:
    """The password of the first line (host:port:database:user:password, ``*`` fits all) that fits a host of ``dsn``."""
    entries = [fields for line in text.splitlines() if (fields := _split(line)) is not None]
    for host in dsn.hosts:
        name = "localhost" if host.is_unix else host.host
        wanted = (name, str(host.port), dsn.database or user, user)
        for fields in entries:
            if all(pattern in ("*", value) for pattern, value in zip(fields[:4], wanted, strict=True)):
                return fields[4] or None
    return None


def _read_private(path: Path, *, explicit: bool) -> str | None:
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        if explicit:
            raise ValueError(f"password file {path} is not a plain file")
        return None
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        if explicit:
            raise ValueError(f"password file {path} may be read by others: run chmod 0600 on it")
        return None
    with path.open("rb") as file:
        return file.read(_MAX_FILE_BYTES).decode("utf-8", "surrogateescape")


def _split(line: str) -> list[str] | None:
    """The five fields of a line, a backslash taking the next character as it is; None for comments and wrong lines."""
    if not line.strip() or line.startswith("#"):
        return None
    fields: list[str] = []
    current, position = "", 0
    while position < len(line):
        character = line[position]
        if character == "\\" and position + 1 < len(line):
            position += 1
            character = line[position]
        elif character == ":" and len(fields) < 4:
            fields.append(current)
            current, character = "", ""
        current += character
        position += 1
    fields.append(current)
    return fields if len(fields) == 5 else None
