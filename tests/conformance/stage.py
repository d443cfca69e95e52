"""What a pass is played on: a fresh server, and the proxy in front of it when the pass goes through one.

Each pass gets a new database cluster in the same place and on the same port, so that paths, ports and object ids in the
outputs are those of the other passes. Whatever is started here is stopped when the pass ends, however it ends.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pilotwire.embedded import SUPERUSER
from pilotwire.postgres_files import PUBLIC_STATE, Account, open_to_everyone, server_account
from tests.conformance.steering import Delivered, Steering, delivered, steered, wait_until_steering
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy

ROOT = Path(__file__).resolve().parents[2]
CONFIG: dict[str, str | int] = {
    # As pg_regress sets up a server of its own, where it matters to the outputs.
    "wal_level": "replica",
    "max_prepared_transactions": 2,
    "autovacuum": "on",
    "log_autovacuum_min_duration": 0,
    "shared_buffers": "128MB",
    "max_wal_senders": 10,
}
HBA = ("host all all 127.0.0.1/32 trust",)

Mode = Literal["direct", "session", "transaction"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a suite connects to; always over TCP, so that direct and proxied runs differ in nothing else."""

    host: str
    port: int
    user: str = SUPERUSER

    def environment(self) -> dict[str, str]:
        """The process's environment with no PG* variable but these."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        here = {"PGHOST": self.host, "PGPORT": str(self.port), "PGUSER": self.user, "PGSSLMODE": "disable"}
        return inherited | here | {"LC_ALL": "C", "LC_MESSAGES": "C"}


class Place:
    """The folders of one run below the ``conformance`` folder of the project's state: ``out``, ``server``, ``results``.

    As root the server and pg_regress work under the server's account; where that one cannot enter the project, all of
    it lies in pilotwire's public state instead.
    """

    def __init__(self, keep: bool = False) -> None:
        self.account: Account | None = server_account()
        home = ROOT / ".pilotwire" / "conformance"
        if self.account is not None and not open_to_everyone(ROOT):
            home = PUBLIC_STATE / "conformance"
        self.keep = keep
        self.cache = home / "cache"
        self.run = home / f"run-{os.getpid()}"
        self.results = self.run / "results"
        self.differences = home / "differences"
        """Unified diffs of the last run that wrote them; kept."""
        shutil.rmtree(self.differences, ignore_errors=True)
        for folder in (self.cache, self.results):
            folder.mkdir(parents=True, exist_ok=True)

    def fresh_out(self) -> Path:
        """An empty folder that the server's account may write into, always under the same name."""
        out = self.run / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        if self.account is not None:
            os.chown(out, self.account.uid, self.account.gid)
        return out

    def close(self) -> None:
        if not self.keep:
            shutil.rmtree(self.run, ignore_errors=True)


class Stage:
    """Makes the passes of one run: ``with stage.play("session") as address: ...``."""

    def __init__(self, place: Place, target: Address | None = None, server_port: int = 0) -> None:
        self._place = place
        self._target = target
        self._port = server_port or free_port()
        self.delivered: dict[str, Delivered] = {}
        """By the name of a pass through a proxy of our own."""

    @contextmanager
    def play(self, mode: Mode, steering: Steering, name: str) -> Iterator[Address]:
        """A fresh server for the pass `name`, and the address to talk to: its own, the proxy's or the target's.

        AssertionError at the end when the proxy's log holds a traceback, the proxy has ended by itself, or it did not
        steer as it was to.
        """
        server = Postgres(
            self._place.run / "server", config=CONFIG, hba=HBA, port=self._port, initdb_options=("--no-sync",)
        )
        try:
            if mode == "direct":
                yield Address(server.host, server.port)
            elif self._target is not None:
                yield self._target
            else:
                yield from self._through_proxy(server, mode, steering, name)
        finally:
            if self._place.keep:
                shutil.copyfile(server.server.log_file, self._place.results / f"{name}.server.log")
            server.close()

    def _through_proxy(self, server: Postgres, mode: Mode, steering: Steering, name: str) -> Iterator[Address]:
        folder = self._place.results / f"{name}.proxy"
        with steered(steering, folder / "models") as settings:
            proxy = Proxy(server, folder, pool_mode=mode, **settings)
            try:
                wait_until_steering(proxy, steering)
                yield Address(proxy.host, proxy.port)
                assert proxy.process.poll() is None, f"the proxy ended during the run:\n{proxy.log_text()[-4000:]}"
                accepted = proxy.metrics()["pilotwire_clients_accepted_total"]
                assert accepted > 1, "the suites did not go through the proxy"
                self.delivered[name] = delivered(proxy, steering)
            except BaseException:
                proxy.stop()
                raise
            proxy.close()
