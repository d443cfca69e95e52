"""A planner process that does what a test says: a real Unix socket, the real messages, the wrong time or no answer.

It runs in a thread of its own, so that proxies and tests of any kind can use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from planner.messages import Answer, Ask, Changed, Message, Observed, Reader, Refused, encode
from tests.support.waiting import wait_until

Script = Callable[[Ask], Answer | None]


class ScriptedPlanner:
    """``script`` makes the answer to a question (None: never any); ``delay`` is how long it takes, in seconds;
    `hear` (False) makes it read nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.delay = 0.0
        self.asks: list[Ask] = []
        self.observed: list[Observed] = []
        self.refused: list[Refused] = []
        self.connections = 0
        self.script: Script = _nothing
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._gone = asyncio.Event()
        self._hearing = asyncio.Event()
        self._hearing.set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def reset(self) -> None:
        """As at the beginning; what workers remember of its answers is forgotten."""
        self.script, self.delay = _nothing, 0.0
        self.hear()
        self.change("on")
        for seen in (self.asks, self.observed, self.refused):
            seen.clear()

    def steer(self, prefix: str = "", settings: dict[str, str] | None = None, **fields: str | float | bytes) -> None:
        """Gives every statement this advice."""
        pairs = tuple((name.encode(), value.encode()) for name, value in (settings or {}).items())

        def script(ask: Ask) -> Answer:
            answer = Answer(ask.number, prefix.encode(), pairs, reason="steered", model="test-1")
            for name, value in fields.items():
                setattr(answer, name, value)
            return answer

        self.script = script

    def start(self) -> None:
        self._run(self._listen())

    def stop(self) -> None:
        """As if it had been killed."""
        self._run(self._end())

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def say(self, data: bytes) -> None:
        """These bytes to every worker; returns when they have been sent."""
        self._run(self._say(data))

    def hear(self, wanted: bool = True) -> None:
        """Whether it reads what it is told."""
        self._loop.call_soon_threadsafe(self._hearing.set if wanted else self._hearing.clear)

    def change(self, mode: str = "") -> None:
        self.say(encode(Changed(1, mode)))

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        self._hearing.set()
        for writer in [*self._writers]:
            writer.transport.abort()
        self.path.unlink(missing_ok=True)
        while self._writers:
            self._gone.clear()
            await self._gone.wait()

    async def _say(self, data: bytes) -> None:
        for writer in self._writers:
            writer.write(data)
            await writer.drain()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        messages = Reader()
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                for message in messages.feed(data):
                    self._take(message, writer)
                await self._hearing.wait()
        self._writers.discard(writer)
        self._gone.set()
        writer.close()

    def _take(self, message: Message, writer: asyncio.StreamWriter) -> None:
        if isinstance(message, Ask):
            self.asks.append(message)
            answer = self.script(message)
            if answer is not None:
                self._loop.call_later(self.delay, writer.write, encode(answer))
        elif isinstance(message, Observed):
            self.observed.append(message)
        elif isinstance(message, Refused):
            self.refused.append(message)

    def wait_connected(self, count: int = 1) -> None:
        wait_until(lambda: self.connections >= count, 10, "the workers have connected to the planner")


def _nothing(ask: Ask) -> Answer:
    return Answer(ask.number, reason="nothing")


@contextlib.contextmanager
def scripted_planner(*, listening: bool = True) -> Iterator[ScriptedPlanner]:
    folder = Path(tempfile.mkdtemp(prefix="pw-planner-"))  # a socket's path must be short
    planner = ScriptedPlanner(folder / "socket")
    try:
        if listening:
            planner.start()
        yield planner
    finally:
        planner.close()
        shutil.rmtree(folder, ignore_errors=True)
