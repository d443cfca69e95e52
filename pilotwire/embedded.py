"""An embedded PostgreSQL in a directory: what `make run`, `pilotwire pg` and the tests put behind the proxy.

The directory is a handle. Below it lie the data, the log and the Unix socket; where the server's account could not
reach them (root, in somebody's home directory) they lie in a public place and the directory remembers where. A free
port is chosen once and remembered, so the second start answers under the same DSN.

Everything may be interrupted at any moment: initdb works under another name until it is finished, and a server killed
with SIGKILL is recognised by looking for its processes, not by believing `postmaster.pid`.

On loopback and the Unix socket the superuser needs no password and every other role needs one: this is a server for
trying things, on a machine whose users trust each other.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import psutil
from filelock import FileLock, Timeout

from pilotwire.hint_plan import LIBRARY, HintPlan, ensure_hint_plan
from pilotwire.postgres_files import (
    PUBLIC_STATE,
    Account,
    EmbeddedError,
    Installation,
    find_installation,
    open_to_everyone,
    server_account,
)

__all__ = ["HOST", "SUPERUSER", "EmbeddedError", "EmbeddedServer"]

HOST = "127.0.0.1"
SUPERUSER = "postgres"
START_TIMEOUT = 60
STOP_TIMEOUT = 60
LOCK_TIMEOUT = 300.0
LOG_LIMIT = 16 * 1024 * 1024
SOCKET_NAME_LIMIT = 100
"""Bytes a Unix socket's name may have: the kernel's 108 less the part that PostgreSQL adds for its lock file."""

HBA = (
    f"local all         {SUPERUSER}             trust",
    f"host  all         {SUPERUSER} 127.0.0.1/32 trust",
    f"host  replication {SUPERUSER} 127.0.0.1/32 trust",
    f"local replication {SUPERUSER}             trust",
    "local all         all                  scram-sha-256",
    "host  all         all      127.0.0.1/32 scram-sha-256",
    "host  replication all      127.0.0.1/32 scram-sha-256",
)

Report = Callable[[str], None]


def _silent(_: str) -> None:
    pass


class EmbeddedServer:
    """One PostgreSQL 18 server in `directory`; any number of processes may hold the same one.

    ``config`` holds lines of postgresql.conf by name (values are quoted here), ``hba`` lines that come before the
    built-in ones of pg_hba.conf; both are written on every start and by `configure`. ``initdb_options`` count when the
    data is first made. ``port`` 0 means a free one, remembered. Everything here raises `EmbeddedError`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        config: Mapping[str, str | int] | None = None,
        hba: Sequence[str] = (),
        initdb_options: Sequence[str] = (),
        hint_plan: bool = True,
        port: int = 0,
    ) -> None:
        self.directory = directory.absolute()
        self._config = dict(config or {})
        self._hba = tuple(hba)
        self._initdb_options = tuple(initdb_options)
        self._want_hint_plan = hint_plan
        self._fixed_port = port
        self._account: Account | None = None
        self._installation: Installation | None = None
        self._base: Path | None = None
        self.hint_plan = HintPlan(False, "pg_hint_plan was not asked for.")

    def __repr__(self) -> str:
        return f"EmbeddedServer({str(self.directory)!r}, {'running' if self.running else 'stopped'})"

    # What it looks like from outside.

    @property
    def host(self) -> str:
        return HOST

    @property
    def port(self) -> int:
        """The TCP port on loopback; the server must have been started once."""
        port = self._remembered().get("port", 0)
        if not isinstance(port, int) or not port:
            raise EmbeddedError(f"No server was ever started in {self.directory}: start one first.")
        return port

    @property
    def base(self) -> Path:
        """Where data, log and socket lie."""
        if self._base is None:
            place = self._remembered().get("base")
            if not isinstance(place, str):
                raise EmbeddedError(f"No server was ever started in {self.directory}: start one first.")
            self._base = Path(place)
        return self._base

    @property
    def data(self) -> Path:
        return self.base / "data"

    @property
    def log_file(self) -> Path:
        return self.base / "server.log"

    @property
    def socket_dir(self) -> Path:
        """The folder of the Unix socket; in the temporary directory when the data's path is too long for one."""
        place = self.base / "socket"
        if len(os.fsencode(place / f".s.PGSQL.{self.port}.lock")) > SOCKET_NAME_LIMIT:
            identity = uuid.uuid5(uuid.NAMESPACE_URL, str(self.base)).hex[:12]
            place = Path(tempfile.gettempdir()) / f"pilotwire-{identity}"
        return place

    @property
    def installation(self) -> Installation:
        if self._installation is None:
            self._account = server_account()
            self._installation = find_installation(self._account)
        return self._installation

    @property
    def version(self) -> str:
        """The server's version as PostgreSQL says it, like ``18.6``."""
        answer = subprocess.run([self.binary("postgres"), "--version"], check=True, capture_output=True, text=True)
        return answer.stdout.split()[2]

    @property
    def hint_plan_installed(self) -> bool:
        """Whether pg_hint_plan lies beside this server's libraries; sessions load it unless it was not wanted."""
        return (self.installation.library_dir / LIBRARY).exists()

    def binary(self, name: str) -> Path:
        """The path of one of PostgreSQL's programs (``psql``, ``pgbench``, ``pg_dump`` ...)."""
        return self.installation.binary(name)

    def dsn(self, database: str = "postgres", user: str = SUPERUSER) -> str:
        """A URI for TCP on loopback, without a password."""
        return f"postgresql://{quote(user, safe='')}@{HOST}:{self.port}/{quote(database, safe='')}"

    @property
    def pid(self) -> int | None:
        """The postmaster's process id while it runs, else None."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
        except (OSError, EmbeddedError, IndexError, ValueError):
            return None
        return pid if _is_server_of(pid, self.data) else None

    @property
    def running(self) -> bool:
        return self.pid is not None

    # What can be done with it.

    def start(self, report: Report = _silent) -> None:
        """Start the server, making its data first if there is none; returns when it takes connections.

        A server that already runs is left alone (its config is written and reloaded when it differs).
        ``report`` is told each step that may take a while.
        """
        with self._lock():
            self._account, self._installation = None, None
            installation = self.installation
            self._settle()
            if self._want_hint_plan:
                if not self.hint_plan_installed:
                    report("getting pg_hint_plan")
                self.hint_plan = ensure_hint_plan(installation)
            if not (self.data / "PG_VERSION").exists():
                report(f"making a PostgreSQL {installation.major} database in {self.base}")
                self._initdb()
            self._check_version()
            if self.running:
                if self._write_config():
                    self._signal_postmaster(signal.SIGHUP)
                return
            report("starting PostgreSQL")
            self._start_on_free_port()

    def stop(self) -> bool:
        """Stop the server (clients are cut off, the data is closed cleanly); False when it was not running."""
        with self._lock():
            return self._stop()

    def reset(self) -> None:
        """Stop the server and remove its data; the next start makes new ones."""
        with self._lock():
            if "base" not in self._remembered():
                return
            self._stop()
            shutil.rmtree(self.socket_dir, ignore_errors=True)
            shutil.rmtree(self.base)
            self._state_file.unlink()
            self._base = None

    def configure(
        self, *, config: Mapping[str, str | int] | None = None, hba: Sequence[str] | None = None, restart: bool = False
    ) -> None:
        """Replace the extra config or pg_hba.conf lines; reloads a running server, or restarts it."""
        with self._lock():
            if config is not None:
                self._config = dict(config)
            if hba is not None:
                self._hba = tuple(hba)
            if not self.running:
                self._write_config()
            elif restart:
                self._stop()
                self._start_on_free_port()
            elif self._write_config():
                self._signal_postmaster(signal.SIGHUP)

    def write_file(self, name: str, content: bytes, mode: int = 0o600) -> Path:
        """Put a file into the data directory, owned by the server's account (keys, certificates, ident maps)."""
        path = self.data / name
        path.write_bytes(content)
        path.chmod(mode)
        self._give(path)
        return path

    def run(self, program: str, *arguments: str, timeout: float = 120) -> str:
        """Run one of the server's programs under the server's account; its output, or an error with its complaint."""
        _ = self.installation
        with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as complaint:
            # Files, not pipes: a server that pg_ctl starts would keep the pipe open and the wait would never end.
            done = subprocess.run(
                [self.binary(program), *arguments],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=complaint,
                cwd="/",
                env={**os.environ, "LC_ALL": "C"},
                timeout=timeout,
                **self._identity(),  # type: ignore[call-overload]
            )
            output.seek(0)
            complaint.seek(0)
            if done.returncode:
                raise EmbeddedError(f"{program} failed: {complaint.read().strip() or output.read().strip()}")
            return output.read()

    # How it is done.

    def _identity(self) -> dict[str, object]:
        if self._account is None:
            return {}
        return {"user": self._account.uid, "group": self._account.gid, "extra_groups": []}

    @property
    def _state_file(self) -> Path:
        return self.directory / "embedded.json"

    def _remembered(self) -> dict[str, object]:
        try:
            state = json.loads(self._state_file.read_text())
        except FileNotFoundError:
            return {}
        except PermissionError:
            raise EmbeddedError(
                f"{self.directory} belongs to another user: choose a directory of your own with --dir."
            ) from None
        except ValueError:
            raise EmbeddedError(f"{self._state_file} is damaged: remove {self.directory} and start again.") from None
        return state if isinstance(state, dict) else {}

    def _remember(self, **changes: object) -> None:
        unfinished = self._state_file.with_suffix(".new")
        unfinished.write_text(json.dumps({**self._remembered(), **changes}) + "\n")
        unfinished.replace(self._state_file)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.directory / "embedded.lock", timeout=LOCK_TIMEOUT)
            lock.acquire()
        except PermissionError:
            raise EmbeddedError(
                f"{self.directory} cannot be written by this user: choose a directory of your own with --dir."
            ) from None
        except Timeout:
            raise EmbeddedError(f"Another process has been busy with {self.directory} for too long: end it.") from None
        try:
            yield
        finally:
            lock.release()

    def _settle(self) -> None:
        """Choose where data, log and socket lie and see to it that the server's account owns that place."""
        if "base" not in self._remembered():
            base = self.directory / "postgres"
            if self._account is not None and not open_to_everyone(self.directory):
                base = PUBLIC_STATE / f"{self.directory.name.strip('.') or 'server'}-{uuid.uuid4().hex[:12]}"
            self._remember(base=str(base))
        self._base = None
        self.base.mkdir(mode=0o755, parents=True, exist_ok=True)
        if self._account is None and self.base.stat().st_uid != os.geteuid():
            raise EmbeddedError(f"{self.base} belongs to another user: choose a directory of your own with --dir.")
        self._give(self.base)

    def _give(self, path: Path) -> None:
        if self._account is not None:
            os.chown(path, self._account.uid, self._account.gid)

    def _initdb(self) -> None:
        unfinished = self.base / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        shutil.rmtree(self.data, ignore_errors=True)
        options = [f"--username={SUPERUSER}", "--auth=trust", "--encoding=UTF8", "--no-instructions"]
        if not any(option.startswith(("--locale", "--no-locale")) for option in self._initdb_options):
            options += ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
        self.run("initdb", "-D", str(unfinished), *options, *self._initdb_options, timeout=300)
        with (unfinished / "postgresql.conf").open("a") as main:
            main.write("\ninclude 'pilotwire.conf'\n")
        unfinished.rename(self.data)

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text().strip()
        if found != self.installation.major:
            raise EmbeddedError(
                f"The data in {self.directory} are of PostgreSQL {found} and the embedded server is "
                f"{self.installation.major}: remove them with `pilotwire pg reset --dir {self.directory}`."
            )

    def _write_config(self) -> bool:
        """Write pilotwire.conf and pg_hba.conf; True when one of them changed."""
        settings: dict[str, str | int] = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": str(self.socket_dir),
            "max_connections": 200,
        }
        if self._want_hint_plan and self.hint_plan_installed:
            settings["session_preload_libraries"] = "pg_hint_plan"
        settings.update(self._config)
        lines = [f"{name} = '{_quoted(value)}'" for name, value in settings.items()]
        changed = self._write_if_new("pilotwire.conf", lines)
        return self._write_if_new("pg_hba.conf", [*self._hba, *HBA]) or changed

    def _write_if_new(self, name: str, lines: Sequence[str]) -> bool:
        text = "".join(f"{line}\n" for line in lines)
        path = self.data / name
        if path.exists() and path.read_text() == text:
            return False
        self.write_file(name, text.encode())
        return True

    def _start_on_free_port(self) -> None:
        self._end_leftovers()
        if self.log_file.exists() and self.log_file.stat().st_size > LOG_LIMIT:
            self.log_file.replace(self.log_file.with_suffix(".old.log"))
        attempts = 3
        for attempt in range(attempts):
            port = self._fixed_port or self._remembered().get("port", 0)
            if not self._fixed_port and not (isinstance(port, int) and port and _is_free(port)):
                port = _free_port()
            self._remember(port=port)
            self.socket_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._give(self.socket_dir)
            self._write_config()
            logged = self.log_file.stat().st_size if self.log_file.exists() else 0
            try:
                self.run(
                    "pg_ctl", "start", "-w", "-s", "-t", str(START_TIMEOUT), "-D", str(self.data),
                    "-l", str(self.log_file), timeout=START_TIMEOUT + 30,
                )  # fmt: skip
            except (EmbeddedError, subprocess.TimeoutExpired) as error:
                said = self._log_since(logged)
                # Between choosing the port and binding it somebody else may have taken it.
                if "could not bind" in said and not self._fixed_port and attempt + 1 < attempts:
                    continue
                lines = said.splitlines()
                last = ([line for line in lines if "FATAL" in line] or lines)[-1:]
                raise EmbeddedError(
                    f"PostgreSQL did not start ({last[0] if last else error}): see {self.log_file}."
                ) from None
            return

    def _log_since(self, offset: int) -> str:
        if not self.log_file.exists():
            return ""
        with self.log_file.open("rb") as log:
            log.seek(offset)
            return log.read(1024 * 1024).decode(errors="replace")

    def _end_leftovers(self) -> None:
        """After a kill -9: wait for the children to notice, end those that do not, drop the lock files.

        PostgreSQL refuses to start while they hold the shared memory, and while the pid in its lock files exists, be it
        somebody else's or that of a dead process nobody has waited for (containers often lack an init that does).
        """
        children = [process for process in psutil.process_iter() if _is_server_of(process.pid, self.data)]
        _, alive = psutil.wait_procs(children, timeout=5)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(alive, timeout=5)
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        if "port" in self._remembered():
            (self.socket_dir / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)

    def _signal_postmaster(self, number: int) -> None:
        pid = self.pid
        if pid is not None:
            os.kill(pid, number)

    def _stop(self) -> bool:
        if not self.running:
            return False
        try:
            self._pg_ctl_stop("fast")
        except (EmbeddedError, subprocess.TimeoutExpired):
            if self.running:
                self._pg_ctl_stop("immediate")
        return True

    def _pg_ctl_stop(self, mode: str) -> None:
        options = ["-D", str(self.data), "-m", mode, "-w", "-s", "-t", str(STOP_TIMEOUT)]
        self.run("pg_ctl", "stop", *options, timeout=STOP_TIMEOUT + 30)

    def wait_reloaded(self, setting: str, value: str, timeout: float = 10) -> None:
        """Wait until new sessions see `value` for `setting` (SIGHUP says nothing when it is done)."""
        deadline = time.monotonic() + timeout
        arguments = ["-XAtq", "-c", f"SHOW {setting}", self.dsn()]
        while (seen := self.run("psql", *arguments).strip()) != value:
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{setting} is still {shlex.quote(seen)} after {timeout} s.")
            time.sleep(0.02)


def _quoted(value: str | int) -> str:
    return str(value).replace("\\", "\\\\").replace("'", "''")


def _is_server_of(pid: int, data: Path) -> bool:
    """Whether `pid` is a PostgreSQL process of `data`: a server's working directory is its data directory."""
    try:
        process = psutil.Process(pid)
        if process.name() != "postgres" or process.status() == psutil.STATUS_ZOMBIE:
            return False
        try:
            return Path(process.cwd()) == data
        except psutil.AccessDenied:  # a server of another user: its command line names the directory
            return str(data) in process.cmdline()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True
