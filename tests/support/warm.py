"""Starts the program from a process that has imported it already.

A third of the processors' time of a test run went into imports, the same ones some three hundred times. Each process of
the run keeps one warm process, and forks from it what would otherwise be executed anew: the same program with the same
arguments, environment, folder and output. Tests of the command itself execute it.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import IO, Any, NoReturn

from setproctitle import setproctitle


class WarmProcess:
    """What tests use of a ``subprocess.Popen``."""

    def __init__(self, keeper: _Keeper, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._keeper = keeper
        self._pidfd = pidfd
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        return self._reap(0)

    def wait(self, timeout: float | None = None) -> int:
        status = self._reap(timeout)
        if status is None:
            raise subprocess.TimeoutExpired("pilotwire", timeout or 0)
        return status

    def send_signal(self, number: int) -> None:
        with self._lock:
            if self.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(self._pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _reap(self, timeout: float | None) -> int | None:
        if self.returncode is None:
            waiting = select.poll()
            waiting.register(self._pidfd, select.POLLIN)
            if not waiting.poll(None if timeout is None else timeout * 1000):
                return None
        with self._lock:
            if self.returncode is None:
                self.returncode = self._keeper.reap(self.pid)
                os.close(self._pidfd)
        return self.returncode


class _Keeper:
    """The warm process as the tests' process sees it."""

    def __init__(self) -> None:
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.warm", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                cwd=Path(__file__).parents[2],
            )
        self._turn = threading.Lock()
        atexit.register(self.close)

    def start(self, arguments: list[str], environment: dict[str, str], output: IO[bytes]) -> WarmProcess:
        request = {"arguments": arguments, "environment": environment, "folder": os.getcwd()}
        answer, fds = self._ask(request, [output.fileno()])
        return WarmProcess(self, answer["pid"], fds[0])

    def reap(self, pid: int) -> int:
        answer, _ = self._ask({"reap": pid}, [])
        status: int = answer["status"]
        return status

    def close(self) -> None:
        self._sock.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any], fds: list[int]) -> tuple[dict[str, int], list[int]]:
        with self._turn:
            socket.send_fds(self._sock, [json.dumps(request).encode()], fds)
            answer, got, _, _ = socket.recv_fds(self._sock, 4096, 1)
        return json.loads(answer), got


_keepers: list[_Keeper] = []
_first = threading.Lock()


def start(arguments: list[str], environment: dict[str, str], output: IO[bytes]) -> WarmProcess:
    """``pilotwire`` with these arguments and this environment; both its outputs go to ``output``."""
    with _first:
        if not _keepers:
            _keepers.append(_Keeper())
    return _keepers[0].start(arguments, environment, output)


def _serve(sock: socket.socket) -> None:
    while True:
        data, fds, _, _ = socket.recv_fds(sock, 1 << 20, 1)
        if not data:
            return
        request = json.loads(data)
        if "reap" in request:
            _, status = os.waitpid(request["reap"], 0)
            sock.send(json.dumps({"status": os.waitstatus_to_exitcode(status)}).encode())
            continue
        pid = os.fork()
        if pid == 0:
            sock.close()
            _run(request, fds[0])
        pidfd = os.pidfd_open(pid)
        socket.send_fds(sock, [json.dumps({"pid": pid}).encode()], [pidfd])
        os.close(pidfd)
        os.close(fds[0])


def _run(request: dict[str, Any], output: int) -> NoReturn:
    code = 1
    try:
        from pilotwire.cli import run_program

        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        code = run_program(request["arguments"])
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main() -> None:
    import tomllib  # noqa: F401

    import uvicorn.lifespan.off
    import uvicorn.protocols.http.h11_impl  # noqa: F401

    import pilotwire.supervisor  # noqa: F401
    from pilotwire.cli import run_program
    from pilotwire.config import load

    # The first command line and the first settings cost as much again: what reads them is made when it is used.
    load(overrides={"upstream": "postgresql://postgres@127.0.0.1/postgres"})
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        run_program(["serve", "--config", os.devnull])

    # Titles need the environment as it was at the start.
    setproctitle("pilotwire: warm for tests")
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    main()
