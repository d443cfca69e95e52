"""Files that settings point to: whether they can be read, whether too many can, and the password in a passfile."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxy.dsn import Host, parse_dsn
from proxy.settings import ProxySettings, docs
from proxy.settings_rules import fold_dsn
from proxy.settings_store import fold_store

_MAX_PASSFILE = 1 << 20
# Files that nobody but their group may read; certificates are public.
_PRIVATE = ("users_file", "client_tls_key", "server_tls_key")
_CREATED = ("control_socket",)


def check_config(config: Path | None, values: Mapping[str, Any], warnings: list[str]) -> None:
    """Warn when a configuration file holds a password and others can read it."""
    if config is None:
        return
    folded = dict(values)
    # A DSN that cannot be read is reported where it is used, and may not be used at all.
    with contextlib.suppress(ValueError):
        folded = fold_store(fold_dsn(folded))
    if (folded.get("upstream_password") or folded.get("store_password")) and _open_to(config, 0o077):
        warnings.append(f"{config} holds a password and other users can read it: chmod 0600 {config}")


def check_paths(settings: ProxySettings, warnings: list[str]) -> None:
    """ValueError for a file that cannot be read; a warning for a secret one that everybody can, and for a folder that
    everybody can write to."""
    if settings.models:
        folder = Path(settings.models)
        if not folder.is_dir():
            raise ValueError(f"models: {folder} is not a folder: create it, and drop model files into it at any time")
        if os.stat(folder).st_mode & 0o002:
            warnings.append(f"models: every user of this machine can put models into {folder}: chmod o-w {folder}")
    for name, doc in docs().items():
        value: str = getattr(settings, name) if doc.unit == "path" else ""
        if not value or name in _CREATED or (name == "server_tls_ca" and value == "system"):
            continue
        path = Path(value)
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise ValueError(f"{name}: cannot read {path}: {error.strerror}") from None
        if name in _PRIVATE and _open_to(path, 0o007):
            warnings.append(f"{name}: every user of this machine can read {path}: chmod 0600 {path}")


def _open_to(path: Path, bits: int) -> bool:
    mode = os.stat(path).st_mode
    return stat.S_ISREG(mode) and bool(mode & bits)


def _is_credential(path: Path, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether systemd has put the file there for this service alone. In such a folder, which nobody else can enter,
    the access list that lets the service read a file of root's shows as the group's."""
    folder = environment.get("CREDENTIALS_DIRECTORY", "")
    return bool(folder) and path.resolve().is_relative_to(Path(folder).resolve())


def passfile_password(path: Path, upstream: str) -> str:
    """The password of the upstream's user in a ``.pgpass`` file, for the first of its hosts that has one.

    ValueError when the file cannot be read, others can read it (libpq refuses it then too), or no line fits.
    """
    try:
        if _open_to(path, 0o037 if _is_credential(path) else 0o077):
            raise ValueError(f"upstream_passfile: other users can read {path}: chmod 0600 {path}")
        with path.open("rb") as file:
            text = file.read(_MAX_PASSFILE).decode()
    except OSError as error:
        raise ValueError(f"upstream_passfile: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"upstream_passfile: {path} is not UTF-8 text") from None
    dsn = parse_dsn(upstream)
    entries = [fields for line in text.splitlines() if len(fields := _fields(line)) == 5]
    for host in dsn.hosts:
        wanted = (None, str(host.port), dsn.database, dsn.user)
        for entry in entries:
            if _fits(entry[0], _host_names(host)) and all(
                value is None or _fits(field, (value,)) for field, value in zip(entry, wanted, strict=False)
            ):
                return _unescape(entry[4])
    raise ValueError(
        f"upstream_passfile: {path} has no line for user {dsn.user or '(none in the DSN)'} of {dsn.text()}"
    )


def _host_names(host: Host) -> tuple[str, ...]:
    # libpq looks a Unix socket up as its directory, and the default ones as localhost.
    return (host.host, "localhost") if host.is_unix else (host.host,)


def _fits(pattern: str, values: tuple[str, ...]) -> bool:
    return pattern == "*" or _unescape(pattern) in values


def _fields(line: str) -> list[str]:
    """The five fields of a line, still escaped; the password is the rest of the line. [] for a comment."""
    if line.startswith("#"):
        return []
    fields: list[str] = []
    current, position = "", 0
    while position < len(line) and len(fields) < 4:
        character = line[position]
        if character == "\\" and position + 1 < len(line):
            current += line[position : position + 2]
            position += 2
            continue
        if character == ":":
            fields.append(current)
            current = ""
        else:
            current += character
        position += 1
    return [*fields, line[position:]] if len(fields) == 4 else []


def _unescape(field: str) -> str:
    plain, position = "", 0
    while position < len(field):
        position += field[position] == "\\" and position + 1 < len(field)
        plain += field[position]
        position += 1
    return plain
