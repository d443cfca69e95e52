"""Clients that work without pause while something is broken, and know exactly what happened to each of their queries.

Every query asks for a number of its own, so that an answer that belongs to another client, or to an earlier query, is
found out. A client whose connection ends notes how, and connects again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import psutil

from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import Lost, ServerError, WireClient

RETRY_SECONDS = 0.02
Where = Literal["connecting", "idle", "query", "transaction"]


@dataclass(frozen=True)
class Failure:
    """How a client lost its connection; ``where`` is what it was doing. ``sqlstate`` is '' when nothing was said."""

    client: int
    where: Where
    sqlstate: str
    text: str

    def __str__(self) -> str:
        return f"{self.where}:{self.sqlstate or 'lost'}"


@dataclass
class Report:
    """What a fault test tells: how often the fault happened, how much was under way then, what the clients saw."""

    fault: str
    least: int
    in_flight: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def hit(self, in_flight: int) -> None:
        """The fault happens now, with so many queries unanswered."""
        self.in_flight.append(in_flight)

    def close(self, failures: list[Failure], answered: int, most: int = 0) -> None:
        """Prints the line. AssertionError when too few queries were under way, or too many clients saw an error."""
        seen = dict(Counter(map(str, failures)))
        print(
            f"\n{self.fault}: iterations {len(self.in_flight)}, queries in flight at the fault {self.in_flight}, "
            f"answered {answered}, client errors {seen or 0}{''.join('; ' + note for note in self.notes)}"
        )
        assert self.in_flight, "the fault never happened"
        assert min(self.in_flight) >= self.least, f"too few queries were in flight: {self.in_flight} < {self.least}"
        assert len(failures) <= most, f"{len(failures)} clients saw an error, not {most} at most: {failures[:5]}"


class LoadClient:
    """One of them. ``transactions`` makes it run BEGIN, two queries and COMMIT in turn instead of single queries."""

    def __init__(self, load: Load, number: int, *, transactions: bool) -> None:
        self.load = load
        self.number = number
        self.transactions = transactions
        self.connection: WireClient | None = None
        self.where: Where = "connecting"
        self.answered = 0
        self.slowest = 0.0
        self.unanswered = False
        self.moving = False

    @property
    def local_port(self) -> int:
        return self.connection.local_port if self.connection is not None else 0

    async def run(self) -> None:
        while not self.load.stopping:
            try:
                await self._serve_one_connection()
            except ServerError as error:
                self._failed(error.sqlstate, error.text)
                await self._must_be_closed(error)
            except (Lost, OSError, TimeoutError) as error:
                self._failed("", f"{type(error).__name__} {error}")
            finally:
                if self.connection is not None:
                    self.connection.reset()
                self.connection = None
                self.unanswered = False
                self.where = "connecting"
            if not self.load.stopping:
                if not self.load.reconnect:
                    return
                await asyncio.sleep(RETRY_SECONDS)

    async def _must_be_closed(self, error: ServerError) -> None:
        """Behind a FATAL the connection ends, without the client's doing."""
        if error.fatal and self.connection is not None:
            try:
                await self.connection.until_closed(10)
            except TimeoutError:
                self.load.wrong.append(f"client {self.number} was left connected behind {error}")

    def _failed(self, sqlstate: str, text: str) -> None:
        self.load.failures.append(Failure(self.number, self.where, sqlstate, text))

    async def _serve_one_connection(self) -> None:
        self.connection = await WireClient.connect(
            self.load.server, self.load.database, timeout=self.load.patience, settings=self.load.settings
        )
        self.where = "idle"
        self.moving = False
        while not self.load.stopping and not self.moving:
            if self.transactions:
                await self._ask("BEGIN", "query")
                numbers = [await self._number("transaction"), await self._number("transaction")]
                await self._ask("COMMIT", "transaction")
                self.load.outcomes[0].update(numbers)
            else:
                self.load.outcomes[0].add(await self._number("query"))
            if self.load.pause:
                await asyncio.sleep(self.load.pause)
        await self.connection.close()

    async def _number(self, where: Where) -> int:
        self.load.serial += 1
        number = self.load.serial
        wanted = str(number)
        try:
            rows = await self._ask(self.load.statement.replace("$n", wanted), where)
        except ServerError:
            self.load.outcomes[1].add(number)
            raise
        if rows != [(wanted,)]:
            self.load.wrong.append(f"client {self.number} asked for {wanted} and got {rows}")
        return number

    async def _ask(self, sql: str, where: Where) -> list[tuple[str | None, ...]]:
        assert self.connection is not None
        self.where = where
        self.unanswered = True
        started = time.monotonic()
        rows = await self.connection.query(sql, self.load.patience)
        self.unanswered = False
        self.slowest = max(self.slowest, time.monotonic() - started)
        self.answered += 1
        self.where = "idle" if self.connection.status == "I" else "transaction"
        return rows


class Load:
    """An async context manager around its clients; at the end they finish what they do and leave.

    ``statement`` must return the number it is given as ``$n``. ``patience`` is how long an answer may take before
    that counts as an error. Every second client uses transactions when ``transactions`` is true. ``outcomes`` holds
    the numbers that were committed, and those whose query was refused by an error, as far as a client can know.
    """

    def __init__(
        self,
        server: Any,
        database: str = "postgres",
        *,
        clients: int = 12,
        statement: str = "select $n from pg_sleep(0.01)",
        transactions: bool = False,
        reconnect: bool = True,
        patience: float = 30.0,
        pause: float = 0.0,
        settings: dict[str, str] | None = None,
    ) -> None:
        self.server = server
        self.database = database
        self.statement = statement
        self.reconnect = reconnect
        self.patience = patience
        self.pause = pause
        self.settings = settings
        self.stopping = False
        self.serial = 0
        self.failures: list[Failure] = []
        self.wrong: list[str] = []
        self.outcomes: tuple[set[int], set[int]] = (set(), set())
        self.clients: list[LoadClient] = []
        self._transactions = transactions
        self._wanted = clients
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self.add(self._wanted)
        try:
            await self.all_answered()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        assert not self.wrong, self.wrong[:5]

    def add(self, count: int) -> None:
        for _ in range(count):
            number = len(self.clients)
            client = LoadClient(self, number, transactions=self._transactions and number % 2 == 1)
            self.clients.append(client)
            self._tasks.append(asyncio.create_task(client.run()))

    async def stop(self) -> None:
        self.stopping = True
        _, late = await asyncio.wait(self._tasks, timeout=self.patience)
        for task in late:
            task.cancel()
        for outcome in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, asyncio.CancelledError):
                raise outcome

    @property
    def in_flight(self) -> int:
        """Queries sent and not answered now."""
        return sum(client.unanswered for client in self.clients)

    @property
    def answered(self) -> int:
        return sum(client.answered for client in self.clients)

    @property
    def slowest(self) -> float:
        """The longest that any query took, in seconds."""
        return max(client.slowest for client in self.clients)

    async def busy(self, least: int, among: Callable[[LoadClient], bool] = lambda _: True) -> int:
        """Waits until so many queries are unanswered (of the clients chosen by `among`); how many they are."""
        chosen = [client for client in self.clients if among(client)]
        deadline = asyncio.get_running_loop().time() + 20
        while (count := sum(client.unanswered for client in chosen)) < least:
            assert asyncio.get_running_loop().time() < deadline, f"only {count} of {least} queries in flight"
            await asyncio.sleep(0.001)
        return count

    async def all_answered(self, more: int = 3, timeout: float = 30, but: frozenset[int] = frozenset()) -> None:
        """Waits until every client, except those in `but`, has had so many further answers."""
        goals = [(client, client.answered + more) for client in self.clients if client.number not in but]

        def reached() -> bool:
            return all(client.answered >= goal for client, goal in goals)

        await eventually(reached, timeout, f"each client gets {more} answers; failures: {self.failures[-3:]}")

    async def spread(self, target: Proxy, least: int = 2) -> dict[int, set[int]]:
        """Lets clients of the fullest worker leave and come again until every worker serves at least so many, which
        takes no more than a few since workers that have more leave new ones to the others; the clients' numbers by
        worker process."""
        for _ in range(10):
            found = await asyncio.to_thread(clients_by_worker, target)
            ports = {client.local_port: client.number for client in self.clients if client.local_port}
            shares = {pid: {ports[port] for port in there if port in ports} for pid, there in found.items()}
            if all(len(numbers) >= least for numbers in shares.values()):
                return shares
            _, fullest = max(shares.items(), key=lambda share: len(share[1]))
            for number in list(fullest)[:least]:
                self.clients[number].moving = True
            # Four answers may all belong to the transaction that it was in.
            await eventually(lambda: not any(client.moving for client in self.clients), 30, "all have moved")
            await self.all_answered(4)
        raise AssertionError(f"some workers get no clients: {shares}")


def clients_by_worker(target: Proxy) -> dict[int, set[int]]:
    """The clients' ports by the process id of the worker that holds their connection."""
    return {
        pid: {
            entry.raddr.port
            for entry in psutil.Process(pid).net_connections("tcp")
            if entry.status == psutil.CONN_ESTABLISHED and entry.laddr.port == target.port
        }
        for pid in target.workers()
    }
