"""One worker as its supervisor sees it: the process, its control channel, its state."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Literal, Protocol

from pilotwire.children import environment
from pilotwire.errors import StartError
from pilotwire.listening import Listening
from pilotwire.nursery import Nursery, NurseryLostError
from proxy.control import ControlChannel, ControlLostError, Message
from proxy.settings import ProxySettings

State = Literal["starting", "ready", "draining", "dead"]

START_SECONDS: Final = 60.0
"""How long a worker may take from its start until it accepts clients."""
SILENT_SECONDS: Final = 10.0
"""After this long without a word a worker counts as not responding (stopped, or stuck in a computation)."""
LAST_WORDS_SECONDS: Final = 1.0
FIND_SECONDS: Final = 1.0
CANCEL_SECONDS: Final = 10.0
"""How long workers may take to say that they do not know a session, and one that does to cancel."""
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Owner(Protocol):
    """What a worker's messages and end are reported to."""

    async def on_worker_message(self, worker: WorkerProcess, kind: str, message: Message) -> Message | None: ...


class Child(Protocol):
    """A process that was started. ``wait`` is called once and gives its exit status, None when nobody saw it."""

    @property
    def pid(self) -> int: ...

    async def wait(self) -> int | None: ...

    def kill(self) -> None: ...


class WorkerProcess:
    """A process running ``proxy.worker``, forked by ``nursery`` or, without one, started by itself.

    ``slot`` is the worker id, unique among this process and those it took over from; ``source`` names this very
    incarnation in the merged counters.
    """

    __slots__ = ("_channel", "_lost", "_nursery", "_owner", "_process", "heard", "slot", "source", "started", "state")

    def __init__(self, slot: int, generation: int, owner: Owner, nursery: Nursery | None) -> None:
        self.slot = slot
        self.source = f"worker-{slot}#{generation}"
        self.state: State = "starting"
        self.started = time.monotonic()
        self.heard = self.started
        self._owner = owner
        self._nursery = nursery
        self._process: Child | None = None
        self._channel: ControlChannel | None = None
        self._lost = asyncio.Event()

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.source} {self.state} pid={self.pid}>"

    @property
    def pid(self) -> int:
        """The process id, 0 before the start."""
        return self._process.pid if self._process is not None else 0

    @property
    def responding(self) -> bool:
        """Whether it was heard of lately."""
        return time.monotonic() - self.heard < SILENT_SECONDS

    async def start(self, settings: ProxySettings, listening: Sequence[Listening], places: int) -> None:
        """Starts the process and waits until it accepts clients; ``places`` is the descriptor of the memory in which
        the workers count them together. StartError says why it does not."""

        def others() -> list[int]:
            return [places, *(entry.sock.fileno() for entry in listening)]

        try:
            ours = await self._forked(others) or await self._executed(others())
        except OSError as error:
            raise StartError(f"cannot start a worker process: {error.strerror}") from None
        self._channel = await ControlChannel.over(ours, self._on_message, self._lost.set)
        listeners = [{"fd": entry.sock.fileno(), "read_only": entry.read_only} for entry in listening]
        try:
            answer = await self._channel.request(
                "start",
                START_SECONDS,
                worker_id=self.slot,
                settings=settings.to_wire().decode(),
                listeners=listeners,
                places=places,
            )
        except ControlLostError as error:
            self.kill()
            raise StartError(f"worker {self.slot} did not start ({error}): see the log above") from None
        if "refused" in answer:
            self.kill()
            raise StartError(str(answer["refused"]))
        if self.state == "starting":
            self.state = "ready"

    async def _forked(self, others: Callable[[], list[int]]) -> socket.socket | None:
        """Our end of its control channel; None when there is no nursery to fork it."""
        if self._nursery is None:
            return None
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self._process = await self._nursery.fork(self.slot, theirs.fileno(), others)
            except NurseryLostError:
                ours.close()  # should it come all the same, it finds nobody there
                return None
        return ours

    async def _executed(self, others: list[int]) -> socket.socket:
        ours, theirs = socket.socketpair()
        control = theirs.fileno()
        with theirs:
            try:
                self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "proxy.worker", "--control", str(control), "--id", str(self.slot),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=environment(),
                    pass_fds=[control, *others],
                    # A group of its own: Ctrl-C in the terminal reaches the supervisor alone, even while it starts.
                    process_group=0,
                )  # fmt: skip
            except OSError:
                ours.close()
                raise
        return ours

    async def wait(self) -> int | None:
        """The exit status once the process has ended; negative for a signal, None when nobody saw it."""
        assert self._process is not None
        status = await self._process.wait()
        self.state = "dead"
        if self._channel is not None:
            # Its last words may still be in the socket.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lost.wait(), LAST_WORDS_SECONDS)
            self._channel.close()
        return status

    async def ask(self, kind: str, limit: float, **fields: object) -> Message:
        """A request to the worker; ControlLostError when it does not answer within ``limit`` seconds."""
        if self._channel is None:
            raise ControlLostError("the worker is not running")
        return await self._channel.request(kind, limit, **fields)

    def drain(self) -> None:
        """Tells it to stop accepting, to let its clients finish, and to end."""
        if self.state != "dead":
            self.state = "draining"
        if self._channel is not None:
            self._channel.send("drain")

    def abort(self) -> None:
        """Tells it to end at once."""
        if self._channel is not None:
            self._channel.send("abort")

    def kill(self) -> None:
        """Ends the process without asking it."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _on_message(self, kind: str, message: Message) -> Message | None:
        self.heard = time.monotonic()
        return await self._owner.on_worker_message(self, kind, message)


async def gather_quietly(calls: Sequence[Awaitable[Message]]) -> list[Message]:
    """The answers of those that answered; a worker that is gone or stuck is left out."""
    answers = await asyncio.gather(*calls, return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, ControlLostError):
            raise answer
    return [answer for answer in answers if isinstance(answer, dict)]


async def cancel_in_one(workers: Sequence[WorkerProcess], pid: int, secret: str) -> bool:
    """Has the workers look for the session with this cancel key, and cancel what it runs; whether one had it. One that
    hangs is waited for a moment only."""
    asked = [
        asyncio.ensure_future(worker.ask("cancel_here", CANCEL_SECONDS, pid=pid, secret=secret)) for worker in workers
    ]
    for task in asked:
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # may be of no interest any more
    with contextlib.suppress(TimeoutError):
        for answer in asyncio.as_completed(asked, timeout=FIND_SECONDS):
            with contextlib.suppress(ControlLostError):
                if (await answer).get("found"):
                    return True
    return False


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, 0 when it is gone or the system does not tell."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE
    except (OSError, IndexError, ValueError):
        return 0


def how_ended(status: int | None) -> str:
    """An exit status in words."""
    if status is None:
        return "nobody saw how"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
