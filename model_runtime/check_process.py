"""Checks model files in processes of their own, so that a hostile file can crash, fill or stall only those.

One helper process, started when the first file comes, has the libraries loaded and waits on a pipe. For each file it
forks a child; the child lowers its own limits (memory, processor time, no files written, no core), runs
`model_runtime.checks` and writes its verdict to a pipe. The helper kills it when its time is over, and answers in any
case. A fork costs a few milliseconds instead of most of a second for a fresh interpreter, and no file sees what an
earlier one left. The helper never looks into a file itself. It ends when it was idle for a while, and when the process
that uses it is gone, however that ended.

Bounds for memory and time of one prediction later on follow from these checks, because `model_runtime.graph_rules`
lets the number of rows alone decide what a run costs.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from model_runtime.limits import Limits
from model_runtime.verdict import PROCESS, Verdict

IDLE_SECONDS: Final = 60.0
START_SECONDS: Final = 60.0
MAX_VERDICT: Final = 256 << 20
CHECK_STACK: Final = 1 << 20
_REQUEST: Final = struct.Struct("!II")  # lengths of the limits' JSON and of the file
_ANSWER: Final = struct.Struct("!I")
_PROGRAM: Final = (
    "import json,sys; sys.path[:]=json.loads(sys.argv[1]); from model_runtime.check_process import serve; serve()"
)


class CheckProcess:
    """The helper, seen from the process that uses it. Safe to use from several threads: one file at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The helper's, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def check(self, data: bytes, limits: Limits) -> Verdict:
        """The verdict on a file's bytes. A check that cannot be done, or that crashes, is a refusal too."""
        with self._lock:
            for _ in range(2):
                if self._closed:
                    break
                try:
                    return self._ask(data, limits)
                except _Ended:
                    # It had been idle for long enough to leave just now, or somebody killed it: a new one is asked.
                    self._stop()
                except (OSError, msgspec.MsgspecError) as error:
                    self._stop()
                    return Verdict(failed=PROCESS, reason=f"it cannot be checked: {error}")
            return Verdict(failed=PROCESS, reason="it cannot be checked: the checking process was ended")

    def close(self) -> None:
        """End the helper, also amid a check: its file is then refused. Nothing is checked any more."""
        self._closed = True
        process = self._process
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        with self._lock:
            self._stop()

    def _ask(self, data: bytes, limits: Limits) -> Verdict:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        settings = limits.model_dump_json().encode()
        deadline = time.monotonic() + START_SECONDS + limits.check_seconds
        try:
            _write(process.stdin.fileno(), _REQUEST.pack(len(settings), len(data)) + settings, deadline)
            _write(process.stdin.fileno(), data, deadline)
            (length,) = _ANSWER.unpack(_read(process.stdout.fileno(), _ANSWER.size, deadline))
            return msgspec.json.decode(_read(process.stdout.fileno(), length, deadline), type=Verdict)
        except BrokenPipeError:
            raise _Ended from None

    def _started(self) -> subprocess.Popen[bytes]:
        if self.pid is None:
            self._stop()
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, json.dumps([path or os.getcwd() for path in sys.path])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                # numpy's BLAS starts threads when it is imported, which a forked child would not have.
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                bufsize=0,
                # Ctrl-C in a terminal is for the program, which then closes this.
                start_new_session=True,
            )
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                os.set_blocking(pipe.fileno(), False)
        assert self._process is not None
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            # Its own session is its process group: a check that is under way goes with it.
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


class _Ended(Exception):
    """The other side closed its end."""


def _write(descriptor: int, data: bytes, deadline: float) -> None:
    rest = memoryview(data)
    while rest:
        _wait(descriptor, select.POLLOUT, deadline)
        try:
            rest = rest[os.write(descriptor, rest[: 1 << 20]) :]
        except BlockingIOError:
            continue


def _read(descriptor: int, length: int, deadline: float) -> bytes:
    if length > MAX_VERDICT:
        raise OSError(f"an answer of {length} bytes")
    data = bytearray()
    while len(data) < length:
        _wait(descriptor, select.POLLIN, deadline)
        try:
            part = os.read(descriptor, min(length - len(data), 1 << 20))
        except BlockingIOError:
            continue
        if not part:
            raise _Ended
        data += part
    return bytes(data)


def _wait(descriptor: int, event: int, deadline: float) -> None:
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(deadline - time.monotonic(), 0) * 1e3):
        raise OSError("no answer in time")


# ---------------------------------------------------------------------- in the helper


def serve(idle: float = IDLE_SECONDS) -> None:
    """The helper's whole life. Requests come on standard input, answers go to standard output."""
    from model_runtime import checks  # noqa: F401 - loaded once, for all the children

    requests, answers = os.fdopen(0, "rb", buffering=0), os.fdopen(1, "wb", buffering=0)
    poll = select.poll()
    poll.register(requests.fileno(), select.POLLIN)
    while poll.poll(idle * 1e3):
        head = _exactly(requests, _REQUEST.size)
        settings, size = _REQUEST.unpack(head)
        limits = Limits.model_validate_json(_exactly(requests, settings))
        data = _exactly(requests, size)
        answer = _in_child(data, limits)
        answers.write(_ANSWER.pack(len(answer)))
        rest = memoryview(answer)
        while rest:
            rest = rest[answers.write(rest) :]


def _exactly(stream: FileIO, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = stream.read(min(length - len(data), 1 << 20))
        if not part:
            # The process that asks is gone.
            os._exit(0)
        data += part
    return bytes(data)


def _in_child(data: bytes, limits: Limits) -> bytes:
    """The verdict as JSON, whatever becomes of the child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            _child(data, limits, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    verdict = _until(reading, time.monotonic() + limits.check_seconds, limits)
    os.close(reading)
    if verdict is None:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if verdict is None:
        failed = Verdict(failed=PROCESS, reason=f"checking it took more than {limits.check_seconds:g} s")
        return msgspec.json.encode(failed)
    if os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) != 0:
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"code {os.WEXITSTATUS(status)}"
        failed = Verdict(failed=PROCESS, reason=f"checking it crashed ({how})")
        return msgspec.json.encode(failed)
    return verdict


def _until(descriptor: int, deadline: float, limits: Limits) -> bytes | None:
    """What comes until the end; None after the deadline, or when it is more than a verdict can be."""
    data = bytearray()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while poll.poll(max(deadline - time.monotonic(), 0) * 1e3):
        part = os.read(descriptor, 1 << 20)
        if not part:
            return bytes(data)
        data += part
        # JSON may need six bytes for one of the manifest's.
        if len(data) > 6 * limits.manifest_bytes + (1 << 20):
            break
    return None


def _child(data: bytes, limits: Limits, descriptor: int) -> None:
    from model_runtime import checks

    seconds = int(limits.check_seconds) + 1
    bounds = {
        resource.RLIMIT_AS: _address_space() + len(data) + limits.check_memory_bytes,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
    }
    for which, bound in bounds.items():
        _, hard = resource.getrlimit(which)
        resource.setrlimit(which, (bound if hard == resource.RLIM_INFINITY else min(bound, hard), hard))
    verdicts: list[Verdict] = []
    # Trees deep enough overflow the stack while they are loaded. What passes on this one has room on any thread's.
    threading.stack_size(CHECK_STACK)
    thread = threading.Thread(target=lambda: verdicts.append(checks.check(data, limits)))
    thread.start()
    thread.join()
    answer = msgspec.json.encode(verdicts[0])
    while answer:
        answer = answer[os.write(descriptor, answer) :]


def _address_space() -> int:
    """Bytes of address space this process has; without /proc what the libraries are known to need."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30
