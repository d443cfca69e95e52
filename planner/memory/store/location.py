"""Where the store is: reading the setting ``store``.

Three spellings are understood: a path or ``sqlite:///path`` (``sqlite:////path`` is absolute) for a file, and
``postgresql://...``, anything libpq takes, for a database. Passwords never leave `Location.url`; everything that is
shown, logged or raised uses `Location.shown`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from planner.memory.store.errors import StoreError

_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://")
_SECRET_OPTIONS: Final = frozenset({"password", "sslpassword"})


class Location(NamedTuple):
    """``path`` is the file of a SQLite store, None for PostgreSQL; ``shown`` is ``url`` without secrets."""

    url: str
    path: Path | None
    shown: str


def locate(url: str) -> Location:
    """Raises StoreError for what is neither a file nor a PostgreSQL database."""
    text = url.strip()
    if text.startswith(_SQLITE):
        return _file(text.removeprefix(_SQLITE))
    if text.startswith(_POSTGRES):
        return Location(text, None, _shown(text))
    if "://" not in text and text.startswith(("/", "./", "../", "~")):
        return _file(text)
    raise StoreError(
        "url",
        "the store is given as sqlite:////path/of/a/file, a path that begins with / or ./, "
        "postgresql://user@host/database, or none",
    )


def _file(text: str) -> Location:
    if not text or "\0" in text:
        raise StoreError("url", "the store's URL names no file: sqlite:////var/lib/pilotwire/store.db")
    path = Path(text).expanduser().absolute()
    url = f"{_SQLITE}{path}"
    return Location(url, path, url)


def _shown(url: str) -> str:
    try:
        parts = urlsplit(url)
        options = [(name, value) for name, value in parse_qsl(parts.query) if name not in _SECRET_OPTIONS]
        user, found, host = parts.netloc.rpartition("@")
        if found:
            host = f"{quote(user.split(':', 1)[0], safe='%')}@{host}"
        return urlunsplit((parts.scheme, host, parts.path, urlencode(options, safe="/,"), ""))
    except ValueError:
        return "postgresql://..."
