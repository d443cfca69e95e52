"""One server connection: the asyncio protocol on its transport, and what is known of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from mypy_extensions import mypyc_attr

from proxy.transports import GREAT_READ, Portions, write_at_once
from proxy.upstream.takeover import TakenConnection
from proxy.wire.frames import ERROR, HEADER_SIZE, IDLE, PARAMETER_STATUS, READY, whole_messages
from proxy.wire.messages import TERMINATE, query
from proxy.wire.session_state import BackendState


# A class and no protocol, whose methods the compiled build would look up by name each time.
@mypyc_attr(allow_interpreted_subclasses=True)
class Owner:
    """Who gets the bytes of a backend: the session that is linked to it, or a pool for an idle one."""

    __slots__ = ()

    def server_data(self, backend: Backend, data: bytes) -> None:
        raise NotImplementedError

    def server_lost(self, backend: Backend, error: Exception | None) -> None:
        raise NotImplementedError

    def server_writable(self, writable: bool) -> None:
        raise NotImplementedError


class Backend:
    """A server connection that is logged in, past its first ReadyForQuery.

    ``how`` is ``pool`` or ``direct``; ``greeting`` the ParameterStatus and notice messages of its start-up;
    ``cancelling`` counts cancel requests that are on their way to it: while there are any, it must not change hands.
    """

    __slots__ = (
        "_early",
        "_eof",
        "_on_end",
        "_paused",
        "_portions",
        "_taken",
        "address",
        "born",
        "cancelling",
        "checked",
        "expires",
        "full",
        "greeting",
        "how",
        "idle_since",
        "lost",
        "owner",
        "pid",
        "secret",
        "state",
        "tls",
        "transport",
        "write",
    )

    def __init__(
        self,
        transport: asyncio.Transport,
        *,
        pid: int,
        secret: bytes,
        address: str | tuple[str, int],
        greeting: list[bytes],
        now: float,
        taken: TakenConnection | None,
        early: bytes = b"",
    ) -> None:
        self.transport = transport
        self.write: Callable[[bytes], None] = transport.write  # looked up once
        self.pid = pid
        self.secret = secret
        self.address = address
        self.greeting = greeting
        self.how = "direct" if taken is None else "pool"
        self.tls = transport.get_extra_info("ssl_object") is not None
        self.state: BackendState | None = None
        self.owner: Owner | None = None
        self.born = now
        self.expires = float("inf")  # when it is not to be used for another transaction any more
        self.idle_since = now
        self.checked = now
        self.cancelling = 0
        self.lost = False
        self._taken = taken
        self._paused = False
        self._portions: Portions | None = None  # made at the first great read
        self._eof = False  # it was told that nothing more comes
        self.full = False  # the server does not read: what is written only piles up
        self._early = early  # what came right behind the first ReadyForQuery
        self._on_end: Callable[[Backend], None] | None = None
        if not self.tls:
            write_at_once(transport)

    def __repr__(self) -> str:
        return f"<Backend {self.how} pid={self.pid} lost={self.lost} owner={self.owner!r}>"

    def start(self, on_end: Callable[[Backend], None]) -> None:
        """Takes the transport over; ``on_end`` is called once, when the connection is gone."""
        self._on_end = on_end
        if self._taken is not None:
            self._taken.take(cast("asyncio.Protocol", self))
        else:
            self.transport.set_protocol(cast("asyncio.Protocol", self))

    def replay_early(self) -> None:
        """Gives its owner what arrived before there was one."""
        early, self._early = self._early, b""
        if early:
            self.data_received(early)

    # asyncio.Protocol; `data_received` is the hot path: one attribute look-up before the session has the bytes.

    def data_received(self, data: bytes) -> None:
        if len(data) >= GREAT_READ and self._in_portions(data):
            return
        owner = self.owner
        if owner is not None:
            owner.server_data(self, data)

    def _in_portions(self, data: bytes) -> bool:
        if self._portions is None:
            self._portions = Portions(self.transport, self.data_received, self._read_on)
        return self._portions.begin(data)

    def _read_on(self) -> None:
        """A great read has been handled, and others have had their turn."""
        if not self._paused and not self.lost and not self.transport.is_closing():
            self.transport.resume_reading()

    def eof_received(self) -> None:
        return None

    def pause_writing(self) -> None:
        self.full = True
        if self.owner is not None:
            self.owner.server_writable(False)

    def resume_writing(self) -> None:
        self.full = False
        if self.owner is not None:
            self.owner.server_writable(True)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost:
            return
        if self._portions is not None and self._portions.rest:
            self._portions.flush()
        self.lost = True
        if self._taken is not None:
            self._taken.ended(exc)
        if self._on_end is not None:
            self._on_end(self)
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.server_lost(self, exc)

    # What its holder does with it.

    def read(self, *, wanted: bool) -> None:
        """Reads from the server, or leaves it waiting; nothing happens once the connection is ending."""
        if wanted is not self._paused or self.lost or self.transport.is_closing():
            return
        self._paused = not wanted
        if not wanted:
            self.transport.pause_reading()
        elif self._portions is None or not self._portions.rest:
            self.transport.resume_reading()

    def write_eof(self) -> None:
        """The client has sent all it will: the server ends the connection behind its answers."""
        self._eof = True
        self.transport.write_eof()

    def close(self, *, polite: bool) -> None:
        """Ends the connection: when ``polite`` with what was written and a Terminate behind it, else as it stands."""
        polite = polite and not self._eof  # nothing can be written any more, and the server knows
        self.owner = None
        if not self.lost and not self.transport.is_closing():
            if polite:
                self.transport.write(TERMINATE)
            elif self.transport.get_write_buffer_size():
                # The server does not read, perhaps since nobody reads its answer: the rest would never go out.
                self.transport.abort()
                return
            self.transport.close()

    def abort(self) -> None:
        self.owner = None
        if not self.lost:
            self.transport.abort()

    async def prove(self) -> None:
        """Gives the connection back to asyncpg, has it run a query there, and takes it again.

        Only after DISCARD ALL with nothing owed. Raises what asyncpg raises when the connection is not usable; a direct
        link, which came from no pool, runs the query itself.
        """
        if self._taken is None:
            if not await run_alone(self, "SELECT 1"):
                raise ConnectionError("the server failed a check query")
            return
        self.owner = None
        try:
            await self._taken.prove()
        finally:
            if self.transport.is_closing():
                # It ended while asyncpg had it: nobody told us.
                self.connection_lost(None)
            else:
                self._taken.take(cast("asyncio.Protocol", self))
        if self.lost:
            raise ConnectionError("the connection ended during a check")


class _Alone(Owner):
    """The owner of a backend while one query of the proxy's own runs on it."""

    def __init__(self) -> None:
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._data = b""
        self._failed = False

    def server_data(self, backend: Backend, data: bytes) -> None:
        data = self._data + data
        messages, rest = whole_messages(data)
        for kind, start, end in messages:
            if kind == ERROR:
                self._failed = True
            elif kind == PARAMETER_STATUS and backend.state is not None:
                backend.state.reported = {**backend.state.reported, **reported_settings([data[start:end]])}
            elif kind == READY and not self.done.done():
                self.done.set_result(not self._failed and data[end - 1] == IDLE)
        self._data = data[rest:]

    def server_lost(self, backend: Backend, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_result(False)

    def server_writable(self, writable: bool) -> None:
        """One short query is written; nothing to hold back."""


async def run_alone(backend: Backend, sql: str) -> bool:
    """Runs a query of the proxy's own on a backend that nobody uses; whether it succeeded and left state I."""
    if backend.lost:
        return False
    alone = _Alone()
    backend.owner = alone
    backend.transport.write(query(sql))
    try:
        return await alone.done
    finally:
        backend.owner = None


def reported_settings(greeting: list[bytes]) -> dict[bytes, bytes]:
    """The ParameterStatus set of a greeting, in the server's order."""
    reported = {}
    for raw in greeting:
        if raw[0] == PARAMETER_STATUS:
            name, value, _ = raw[HEADER_SIZE:].split(b"\0", 2)
            reported[name] = value
    return reported


def idle_message_is_harmless(data: bytes) -> bool:
    """Whether what an idle backend sent by itself leaves it usable: anything but an error."""
    messages, rest = whole_messages(data)
    return rest == len(data) and all(kind != ERROR for kind, _, _ in messages)
