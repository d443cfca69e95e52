"""The nursery: a process that has everything imported, and forks the workers.

A worker that is started by itself spends half a second on its imports; one that is forked is there in some milliseconds
and shares the memory of what it has imported with the others. The nursery is forked from the supervisor while that has
neither a thread nor an event loop, since only then is a copy of it sound; it has no loop and no thread of its own. It
knows two requests, one at a time: ``fork`` and ``reap``. When its socket ends the supervisor is dead, and it ends too.

One can do without it: where the system has no pidfd, or when it was killed, workers are started by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final, NoReturn

from setproctitle import setproctitle

from pilotwire.children import without_secrets
from proxy import worker

ANSWER_SECONDS: Final = 5.0
"""A fork takes 2 to 5 ms. A nursery that takes this long is stopped or stuck, and is ended."""
_MOST_FDS: Final = 250


class NurseryLostError(Exception):
    """It was killed or does not answer."""


class Forked:
    """A worker that the nursery forked. It is the nursery's child, and ours only by its pidfd."""

    __slots__ = ("_nursery", "_pidfd", "pid")

    def __init__(self, nursery: Nursery, pid: int, pidfd: int) -> None:
        self.pid = pid
        self._nursery = nursery
        self._pidfd = pidfd

    async def wait(self) -> int | None:
        """The exit status once it has ended, negative for a signal; None when nobody saw it. To be called once."""
        await _readable(self._pidfd)
        try:
            return await self._nursery.reap(self.pid)
        except NurseryLostError:
            return _adopted(self._pidfd)
        finally:
            pidfd, self._pidfd = self._pidfd, -1
            os.close(pidfd)

    def kill(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


class Nursery:
    """The supervisor's side of it."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        """``on_lost`` is told, once, why it is no more."""
        sock.setblocking(False)
        self.pid = pid
        self.on_lost: Callable[[str], None] = _nobody
        self._sock: socket.socket | None = sock
        self._turn = asyncio.Lock()

    @classmethod
    def open(cls, ignored: Collection[signal.Signals]) -> Nursery | None:
        """Forks it from this process, which has no thread but this one; None where that cannot be. ``ignored`` are the
        signals that are not for it, nor for the workers; they may be blocked now."""
        try:
            os.close(os.pidfd_open(os.getpid()))
        except (AttributeError, OSError):
            return None
        if threading.active_count() > 1:
            return None
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            pid = os.fork()
        except OSError:
            ours.close()
            theirs.close()
            return None
        if pid == 0:
            ours.close()
            _be_a_nursery(theirs, ignored)
        theirs.close()
        return cls(ours, pid)

    async def fork(self, worker_id: int, control: int, others: Callable[[], list[int]]) -> Forked:
        """A worker that has these descriptors, under the same numbers; the others are read when its turn has come,
        since sockets may be closed until then. Raises NurseryLostError."""
        answer, got = await self._ask({"fork": worker_id}, lambda: [control, *others()])
        if got:
            return Forked(self, int(answer["pid"]), got[0])
        if "pid" in answer:
            self._lose("no descriptor is left for its answer")
        raise NurseryLostError(str(answer))

    async def reap(self, pid: int) -> int | None:
        """The exit status of one that has ended. Raises NurseryLostError."""
        answer, _ = await self._ask({"reap": pid}, list)
        status: int | None = answer["status"]
        return status

    def close(self) -> None:
        """Ends it; the workers stay."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)

    def _lose(self, why: str) -> None:
        if self._sock is not None:
            self.close()
            self.on_lost(why)

    async def _ask(
        self, request: dict[str, object], read_fds: Callable[[], list[int]]
    ) -> tuple[dict[str, int], list[int]]:
        async with self._turn:
            if self._sock is None:
                raise NurseryLostError("it has ended")
            fds = read_fds()
            try:
                socket.send_fds(self._sock, [json.dumps({**request, "fds": fds}).encode()], fds)
                # When this very loop stood still the answer is there, and the time is up all the same.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_SECONDS):
                        await _readable(self._sock.fileno())
                answer, got, _, _ = socket.recv_fds(self._sock, 4096, 1)
                return json.loads(answer), got
            except BlockingIOError:
                self._lose(f"it did not answer for {ANSWER_SECONDS:g} s")
                raise NurseryLostError("no answer") from None
            except (OSError, ValueError) as error:
                self._lose(str(error) if isinstance(error, OSError) else "it has ended")
                raise NurseryLostError(str(error)) from None
            except asyncio.CancelledError:
                self.close()  # an answer that nobody reads would be taken for the next one
                raise


def _nobody(_: str) -> None:
    """There is none to tell."""


def _adopted(pidfd: int) -> int | None:
    """How a process without its nursery ended, if it became ours: in a container we are process 1, to which they go."""
    try:
        seen = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if seen is None:
        return None
    return seen.si_status if seen.si_code == os.CLD_EXITED else -seen.si_status


async def _readable(fd: int) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _set, ready)
    try:
        await ready
    finally:
        loop.remove_reader(fd)


def _set(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _be_a_nursery(sock: socket.socket, ignored: Collection[signal.Signals]) -> NoReturn:
    try:
        os.setpgid(0, 0)  # Ctrl-C in the terminal is the supervisor's alone
        for number in ignored:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
        setproctitle("pilotwire: nursery")  # from here on the kernel shows none of the environment
        secrets = without_secrets()
        shown = Path("/proc/self/environ").read_bytes()
        if "SPT_NOENV" not in os.environ and any(os.fsencode(secret) in shown for secret in secrets):
            os._exit(0)  # a worker that is started by itself has an environment of its own
        for name in os.listdir("/proc/self/fd"):
            if (fd := int(name)) > 2 and fd != sock.fileno():
                with contextlib.suppress(OSError):
                    os.close(fd)
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        _answer_requests(sock)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def _answer_requests(sock: socket.socket) -> None:
    while True:
        data, fds, _, _ = socket.recv_fds(sock, 65536, _MOST_FDS)
        if not data:
            return
        request = json.loads(data)
        if "reap" in request:
            try:
                _, status = os.waitpid(request["reap"], 0)
                answer: dict[str, object] = {"status": os.waitstatus_to_exitcode(status)}
            except ChildProcessError:
                answer = {"status": None}
            sock.send(json.dumps(answer).encode())
            continue
        try:
            pid = os.fork()
        except OSError as error:
            sock.send(json.dumps({"refused": error.strerror}).encode())
        else:
            if pid == 0:
                sock.close()
                _be_a_worker(request["fork"], fds, request["fds"])
            pidfd = os.pidfd_open(pid)
            socket.send_fds(sock, [json.dumps({"pid": pid}).encode()], [pidfd])
            os.close(pidfd)
        for fd in fds:
            os.close(fd)


def _be_a_worker(worker_id: int, got: list[int], wanted: list[int]) -> NoReturn:
    try:
        os.setpgid(0, 0)
        worker.raise_open_files()
        high = max(*got, *wanted) + 1
        kept = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, high) for fd in got]
        for fd in got:
            os.close(fd)
        for fd, number in zip(kept, wanted, strict=True):
            os.dup2(fd, number, inheritable=False)
            os.close(fd)
        os._exit(worker.main(["--control", str(wanted[0]), "--id", str(worker_id)]))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)
