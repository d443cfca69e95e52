"""A wire worker's side of the planner's socket, by hand: asks and waits for answers."""

from __future__ import annotations

import asyncio
from typing import Any, Self

from planner.messages import Answer, Ask, Changed, Message, Reader, encode
from tests.support.waiting import eventually


class PlannerClient:
    """``ask`` returns the answer to one statement; ``changes`` holds every `Changed` so far."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.changes: list[Changed] = []
        self._reader = reader
        self._writer = writer
        self._frames = Reader()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._task = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, path: str) -> Self:
        return cls(*await asyncio.open_unix_connection(path))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._task

    async def _read(self) -> None:
        while data := await self._reader.read(65536):
            for message in self._frames.feed(data):
                if isinstance(message, Changed):
                    self.changes.append(message)
                elif isinstance(message, Answer) and message.number in self._waiting:
                    self._waiting.pop(message.number).set_result(message)
        for waiting in self._waiting.values():
            waiting.cancel()

    def tell(self, message: Message) -> None:
        self._writer.write(encode(message))

    def send(self, database: str, text: str, **more: Any) -> asyncio.Future[Answer]:
        """Asks without waiting."""
        self._number += 1
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        fields = {"user": "postgres", "application": "", "search_path": "", "template": text.encode()[:32], **more}
        self.tell(Ask(number=self._number, database=database, text=text.encode(), **fields))
        return answer

    async def ask(self, database: str, text: str, **more: Any) -> Answer:
        async with asyncio.timeout(20):
            return await self.send(database, text, **more)

    async def known(self, database: str, text: str, **more: Any) -> Answer:
        """The first answer that does not say that there is no catalog yet."""
        found: list[Answer] = []

        async def decided() -> bool:
            found.append(await self.ask(database, text, **more))
            return found[-1].reason != "no_catalog"

        await eventually(decided, 20)
        return found[-1]
