"""``pilotwire run`` (and `make run`): the whole thing on one machine, to be tried with nothing set up before.

An embedded PostgreSQL is started, then the real command ``pilotwire serve`` as a child in front of it. What a run left
behind that was killed is ended by the next one. ``--once`` asks a few queries through the proxy instead of waiting, and
fails when an answer is not what it must be. ``pilotwire demo`` runs the same trial with work to do in it.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import psutil
import typer
from filelock import FileLock, Timeout
from rich.console import Console

from pilotwire.embedded import HOST, SUPERUSER, EmbeddedServer
from pilotwire.errors import StartError
from pilotwire.run_proof import prove

DEFAULT_PORT = 6432
DEFAULT_ADMIN_PORT = 9432
READY_TIMEOUT = 30.0
DRAIN_SECONDS = 5
STOP_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One running proxy with the server behind it."""

    server: EmbeddedServer
    process: subprocess.Popen[bytes]
    port: int
    admin_port: int

    @property
    def dsn(self) -> str:
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    @property
    def admin_url(self) -> str:
        return f"http://{HOST}:{self.admin_port}"


def run(
    once: Annotated[bool, typer.Option("--once", help="Ask a few queries through the proxy, then stop.")] = False,
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where the embedded server and the log live.", file_okay=False)
    ] = Path(".pilotwire"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the proxy; a free one when taken.")] = 6432,
    admin_port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the admin server; likewise.")] = 9432,
) -> int:
    """Try it: an embedded PostgreSQL with the proxy in front of it, until Ctrl-C."""
    return run_trial(directory, port, admin_port, Console(highlight=False, soft_wrap=True), once=once)


def run_trial(
    directory: Path,
    port: int,
    admin_port: int,
    console: Console,
    *,
    once: bool = False,
    config: Mapping[str, str | int] | None = None,
    models: Path | None = None,
    work: Callable[[Trial], None] | None = None,
    tell: Callable[[Trial], str] | None = None,
    database: str = "postgres",
) -> int:
    """Start server and proxy, do `work` with them if there is any, and serve until Ctrl-C; with `once` prove that the
    wire works instead of serving. ``config`` goes into postgresql.conf, ``models`` is the folder that the proxy takes
    models from. With work to do, the proxy's log goes to ``proxy.log``, so that it does not disturb what is shown.
    ``database`` is the one that people are told of, ``tell`` gives more to say once it serves.

    Work sees the model by itself, from the first execution on. What serves afterwards is another proxy at the same
    place, one that goes by evidence and keeps statements as they are, so that its console has something to show.
    """
    directory = directory.absolute()
    with _only_one(directory), _stopping_on_signals() as stopped:
        server = EmbeddedServer(directory / "pg", config=config)
        try:
            with console.status("starting PostgreSQL") as status:
                server.start(lambda step: status.update(f"{step} ..."))
            console.print(f"PostgreSQL {server.version} answers on {HOST}:{server.port}")
            console.print("pg_hint_plan is loaded" if server.hint_plan.available else server.hint_plan.reason)
            options = []
            if models is not None:
                models.mkdir(parents=True, exist_ok=True)
                options = ["--models", str(models)]
            quiet = once or work is not None
            if quiet:
                first = [*options, "--evidence", "none"] if work is not None else options
                with _proxy(server, directory, port, admin_port, first, log="wb") as trial:
                    _wait_ready(trial, directory, console)
                    if once:
                        prove(trial.dsn, trial.admin_url, server, console)
                    if work is not None:
                        work(trial)
                    if once:
                        return 0
                port, admin_port = trial.port, trial.admin_port
                options += ["--evidence", "measured", "--store-literals"]
            with _proxy(server, directory, port, admin_port, options, log="ab" if quiet else "") as trial:
                _wait_ready(trial, directory, console)
                _tell(trial, database, tell(trial) if tell is not None else "", console)
                return _serve(trial, stopped, console)
        except KeyboardInterrupt:
            console.print("stopped")
            return 0
        finally:
            server.stop()


@contextlib.contextmanager
def _only_one(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(directory / "run.lock")
        lock.acquire(timeout=0)
    except Timeout:
        raise StartError(f"another run is using {directory}: stop it, or choose another directory with --dir") from None
    except PermissionError:
        raise StartError(f"{directory} cannot be written by this user: choose another directory with --dir") from None
    try:
        yield
    finally:
        lock.release()


class _Stopped:
    """How often we were asked to stop. The first time interrupts whatever is going on, later ones are counted."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.times += 1
        if self.times == 1:
            raise KeyboardInterrupt


@contextlib.contextmanager
def _stopping_on_signals() -> Iterator[_Stopped]:
    """SIGTERM and the terminal's hang-up stop us as Ctrl-C does."""
    stopped = _Stopped()
    before = {number: signal.signal(number, stopped) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _proxy(
    server: EmbeddedServer, directory: Path, port: int, admin_port: int, options: Sequence[str], *, log: str
) -> Iterator[Trial]:
    """`pilotwire serve` as a child; ended, gently first, when the block is left. ``log`` is how its log file is opened,
    "" for the terminal."""
    pid_file = directory / "proxy.pid"
    _end_leftover(pid_file)
    port, admin_port = _free(port), _free(admin_port)
    command = [
        "serve", "--upstream", server.dsn(), "--listen", f"{HOST}:{port}", "--admin", f"{HOST}:{admin_port}",
        "--drain-timeout", str(DRAIN_SECONDS), "--store", str(directory.absolute() / "store.db"),
        "--admin-users", SUPERUSER, *options,
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        output = stack.enter_context((directory / "proxy.log").open(log)) if log else None
        # A process group of its own: Ctrl-C reaches us alone, and we stop first the proxy and then the server.
        process = subprocess.Popen(
            [sys.executable, "-m", "pilotwire", *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )
        pid_file.write_text(f"{process.pid}\n")
        try:
            yield Trial(server, process, port, admin_port)
        finally:
            _end(process)
            pid_file.unlink(missing_ok=True)


def _end(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STOP_TIMEOUT
    asked = 0
    while process.poll() is None and time.monotonic() < deadline:
        if asked == 0 or (asked == 1 and time.monotonic() > deadline - STOP_TIMEOUT + DRAIN_SECONDS):
            process.terminate()
            asked += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
    if process.poll() is None:
        process.kill()
        process.wait()


def _end_leftover(pid_file: Path) -> None:
    """End the proxy of a run that was killed; its pid may be somebody else's by now."""
    try:
        left = psutil.Process(int(pid_file.read_text()))
        if left.cmdline()[1:4] == ["-m", "pilotwire", "serve"]:
            below = left.children(recursive=True)
            for process in (left, *below):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs([left, *below], timeout=5)
    except (OSError, ValueError, psutil.Error):
        return


def _free(wanted: int) -> int:
    """`wanted`, or a free port when somebody has it."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((HOST, port))
            found: int = probe.getsockname()[1]
            return found
    raise StartError("no port is free on this machine")


def _wait_ready(trial: Trial, directory: Path, console: Console) -> None:
    deadline = time.monotonic() + READY_TIMEOUT
    with console.status("starting the proxy"):
        while not _answers(f"{trial.admin_url}/readyz"):
            if trial.process.poll() is not None:
                raise StartError(f"the proxy ended with code {trial.process.returncode}{_last_words(directory)}")
            if time.monotonic() > deadline:
                raise StartError(f"the proxy was not ready after {READY_TIMEOUT:.0f} s{_last_words(directory)}")
            time.sleep(0.05)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 - always http to loopback
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _last_words(directory: Path) -> str:
    log = directory / "proxy.log"
    lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
    return f" ({lines[-1]})" if lines else ""


def _tell(trial: Trial, database: str, more: str, console: Console) -> None:
    console.print(f"the proxy answers on {HOST}:{trial.port}; try it:\n")
    program = os.path.relpath(trial.server.binary("psql"))
    dsn = f"{trial.dsn.rpartition('/')[0]}/{database}"
    console.print(f"  [bold]{shlex.quote(program)} {dsn}[/bold]")
    if more:
        console.print(more)
    console.print(f"\nconsole: {trial.admin_url}/\nadmin: {trial.admin_url}/metrics\nCtrl-C stops both.\n")


def _serve(trial: Trial, stopped: _Stopped, console: Console) -> int:
    try:
        code = trial.process.wait()
    except KeyboardInterrupt:
        console.print(f"\nstopping (connected clients have {DRAIN_SECONDS} s)")
        return 0
    if stopped.times:
        return 0
    raise StartError(f"the proxy ended by itself with code {code}")
