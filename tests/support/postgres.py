"""PostgreSQL servers for tests: one shared by the whole run, and private ones to be configured, killed or restarted."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from pilotwire.embedded import SUPERUSER, EmbeddedServer
from tests.support.waiting import wait_until

CONFIG: Mapping[str, str | int] = {
    "fsync": "off",
    "full_page_writes": "off",
    "shared_buffers": "64MB",
    "max_connections": 300,
    "wal_level": "logical",
    "max_prepared_transactions": 20,
    # Statistics change when a test says so.
    "autovacuum": "off",
}


class SqlError(AssertionError):
    """psql refused a statement; the text is what it said."""


class Postgres:
    """A running server. Roles other than the superuser ``postgres`` need a password unless ``hba`` says else."""

    def __init__(
        self,
        directory: Path,
        *,
        config: Mapping[str, str | int] | None = None,
        hba: Sequence[str] = (),
        port: int = 0,
        initdb_options: Sequence[str] = (),
    ) -> None:
        self.server = EmbeddedServer(
            directory,
            config={**CONFIG, **(config or {})},
            hba=hba,
            port=port,
            initdb_options=["--no-sync", *initdb_options],
        )
        self.server.start()
        self.user = SUPERUSER

    def __repr__(self) -> str:
        return f"Postgres({self.server!r})"

    @property
    def host(self) -> str:
        return self.server.host

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def socket_dir(self) -> Path:
        return self.server.socket_dir

    @property
    def data(self) -> Path:
        return self.server.data

    @property
    def hint_plan(self) -> bool:
        """Whether pg_hint_plan is loaded into every session."""
        return self.server.hint_plan.available

    def bin(self, name: str) -> Path:
        """The path of a program of the same version (``psql``, ``pgbench``, ``pg_dump``, ``pg_restore`` ...)."""
        return self.server.binary(name)

    def dsn(self, database: str = "postgres", user: str | None = None) -> str:
        return self.server.dsn(database, user or self.user)

    def sql(self, text: str, database: str = "postgres", user: str | None = None) -> str:
        """Run `text` by psql, past any proxy; rows as lines, columns divided by ``|``. SqlError if refused."""
        done = subprocess.run(
            [self.bin("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1", "-f", "-", self.dsn(database, user)],
            input=text,
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if done.returncode:
            raise SqlError(done.stderr.strip())
        return done.stdout.rstrip("\n")

    def create_database(self, template: str = "template1") -> str:
        """A new database under a name of its own; dropped with the server (or by `drop_database`)."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
        return name

    def drop_database(self, name: str) -> None:
        self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def create_role(self, password: str | None = None, options: str = "LOGIN") -> str:
        """A new role under a name of its own. ``password`` may be a SCRAM verifier."""
        name = f"r{uuid.uuid4().hex[:12]}"
        secret = "" if password is None else " PASSWORD '" + password.replace("'", "''") + "'"
        self.sql(f"CREATE ROLE {name} {options}{secret}")
        return name

    def log_text(self) -> str:
        return self.server.log_file.read_text(errors="replace")

    def configure(self, *, config: Mapping[str, str | int] | None = None, hba: Sequence[str] | None = None) -> None:
        """Replace the extra settings or the first pg_hba.conf lines of a private server and reload it."""
        merged = None if config is None else {**CONFIG, **config}
        self.server.configure(config=merged, hba=hba)

    def start(self) -> None:
        self.server.start()

    def stop(self) -> None:
        self.server.stop()

    def restart(self) -> None:
        self.server.stop()
        self.server.start()

    def kill(self) -> None:
        """kill -9 of the postmaster; returns when all of the server has gone."""
        pid = self.server.pid
        assert pid is not None, "the server does not run"
        # Backends notice only when they next wait for something; until then they answer.
        backends = psutil.Process(pid).children()
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not self.server.running, what="the postmaster has gone")
        wait_until(lambda: not any(_lives(it) for it in backends), what="the backends have gone")

    def close(self) -> None:
        self.server.reset()


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
