"""A real `pilotwire serve` process in front of a test server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from tests.support import warm
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.reaper import MARK
from tests.support.waiting import wait_until

AnyProcess = warm.WarmProcess | subprocess.Popen[bytes]
START_TIMEOUT = 30
STOP_TIMEOUT = 15
DEFAULTS: dict[str, Any] = {"auth": "trust", "drain_timeout": 5, "evidence": "none", "store": "none"}
"""A model's advice is used at once; nothing is left behind on the machine."""


class Proxy:
    """`pilotwire serve` on free ports, ready for clients when the constructor returns.

    ``settings`` go into a TOML file (``None`` leaves a default of ours out), ``env`` into the process's environment.
    Config and log lie in ``folder``, or in the run's. ``upstream`` overrides the DSN of ``postgres``. With
    ``wait=False`` the constructor returns at once. ``executed`` makes it a process of its own from the first, where
    else it is a copy of a warm one.
    """

    def __init__(
        self,
        postgres: Postgres,
        folder: Path | None = None,
        *,
        env: dict[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        wait: bool = True,
        executed: bool = False,
        **settings: Any,
    ) -> None:
        self.postgres = postgres
        folder = folder or Path(os.environ[MARK]) / "proxies"
        self.folder = folder / f"proxy-{uuid.uuid4().hex[:8]}"
        self.folder.mkdir(parents=True)
        self.host = "127.0.0.1"
        self.port = free_port()
        self.admin_port = free_port()
        self.config_file = self.folder / "pilotwire.toml"
        self.log_file = self.folder / "proxy.log"
        self.tracebacks_allowed = False
        self._arguments = arguments
        self._env = env or {}
        self._executed = executed
        self.settings = {
            "upstream": postgres.dsn(),
            "listen": [f"{self.host}:{self.port}"],
            "admin": f"{self.host}:{self.admin_port}",
            **DEFAULTS,
            **settings,
        }
        self.write_config()
        self.process = self.start()
        if wait:
            self.wait_ready()

    def __repr__(self) -> str:
        return f"Proxy({self.host}:{self.port}, pid {self.process.pid}, {self.folder})"

    @property
    def admin_url(self) -> str:
        return f"http://{self.host}:{self.admin_port}"

    def dsn(self, database: str = "postgres", user: str | None = None, password: str | None = None) -> str:
        secret = "" if password is None else ":" + quote(password, safe="")
        name = quote(user or self.postgres.user, safe="")
        return f"postgresql://{name}{secret}@{self.host}:{self.port}/{quote(database, safe='')}"

    def write_config(self, **changes: Any) -> None:
        """Write the TOML file again with `changes`; a running proxy reads it at SIGHUP."""
        self.settings.update(changes)
        lines = [f"{name} = {_toml(value)}\n" for name, value in self.settings.items() if value is not None]
        self.config_file.touch(mode=0o600)
        self.config_file.write_text("".join(lines))

    def start(self, *more: str) -> AnyProcess:
        """Start one more process with the same settings (for a take-over pass its option); the log is shared."""
        arguments = ["serve", "--config", str(self.config_file), *self._arguments, *more]
        # Without a folder of its own a proxy would keep its state in the machine's.
        environment = {**os.environ, "PILOTWIRE_STATE_DIR": str(self.folder), **self._env}
        with self.log_file.open("ab") as log:
            if not self._executed:
                return warm.start(arguments, environment, log)
            return subprocess.Popen(
                [sys.executable, "-m", "pilotwire", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        def ready() -> bool:
            code = self.process.poll()
            if code is not None:
                raise AssertionError(f"the proxy ended with {code} instead of starting:\n{self.log_text()}")
            return self.http_status("/readyz") == 200

        try:
            wait_until(ready, timeout, "the proxy is ready")
        except TimeoutError as error:
            self.kill()
            raise AssertionError(f"{error}:\n{self.log_text()}") from None

    def http(self, path: str) -> tuple[int, str]:
        """Status and body of a GET on the admin port; status 0 when nobody answers."""
        try:
            with urllib.request.urlopen(self.admin_url + path, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def http_status(self, path: str) -> int:
        return self.http(path)[0]

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics, by name with its labels as Prometheus writes them."""
        status, text = self.http("/metrics")
        assert status == 200, f"/metrics answered {status}: {text}"
        samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def log_text(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_log(self, text: str, timeout: float = 10) -> None:
        """Wait until the log holds `text`."""
        wait_until(lambda: text in self.log_text(), timeout, f"the log of {self!r} says {text!r}")

    def pids(self) -> list[int]:
        """The process ids of supervisor and workers, the supervisor first."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [self.process.pid, *sorted(child.pid for child in children)]

    def workers(self) -> list[int]:
        """The process ids of the workers."""
        found = []
        for pid in self.pids()[1:]:
            try:
                if "pilotwire: worker" in " ".join(psutil.Process(pid).cmdline()):
                    found.append(pid)
            except psutil.NoSuchProcess:
                continue
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """SIGTERM twice, which ends it at once; its exit code. AssertionError when it does not end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
            try:
                return self.process.wait(min(1.0, timeout))
            except subprocess.TimeoutExpired:
                self.process.terminate()
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self!r} did not end after two SIGTERM:\n{self.log_text()}") from None

    def kill(self) -> None:
        """kill -9 of the supervisor and everything below it."""
        victims = []
        for pid in self.pids():
            try:
                victims.append(psutil.Process(pid))
                victims[-1].kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()
        psutil.wait_procs(victims, timeout=10)

    def close(self) -> None:
        """What the fixtures do at a test's end: stop it, and fail when the log holds a traceback."""
        self.stop()
        if not self.tracebacks_allowed:
            log = self.log_text()
            for sign in ("Traceback (most recent call last)", "internal_error"):
                assert sign not in log, f"{sign} in the proxy's log:\n{log}"


def _toml(value: Any) -> str:
    """A TOML value; JSON's notation of strings, numbers, booleans and lists of them is TOML's too."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(item)}" for name, item in value.items()) + "}"
    return json.dumps(value)
