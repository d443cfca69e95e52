"""A client of the administration database: its connection in the worker, from its login to its end.

Only the simple protocol is spoken, as with PgBouncer's console: psql and every driver's simple mode. What belongs to
the extended one is refused politely, and the client may go on. Commands are carried out one after the other, by asking
the supervisor; meanwhile a bounded number of bytes is read ahead. The connection counts neither as a client nor
against ``max_clients``, does not hold a drain up, and ends with the worker.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, cast

from proxy.console_db import replies
from proxy.console_db.commands import Command, CommandError, parse
from proxy.console_db.rights import Rights, rights
from proxy.control import ControlLostError
from proxy.login import Login
from proxy.wire.frames import (
    BIND,
    CLOSE,
    COPY_DATA,
    COPY_DONE,
    COPY_FAIL,
    DESCRIBE,
    EXECUTE,
    FLUSH,
    FUNCTION_CALL,
    HEADER,
    HEADER_SIZE,
    PARSE,
    QUERY,
    SYNC,
    TERMINATE,
)
from proxy.wire.messages import backend_key_data, error_response, ready_for_query

if TYPE_CHECKING:
    from proxy.context import WorkerContext

MAX_SESSIONS: Final = 50
"""In one worker."""
MAX_MESSAGE: Final = 64 * 1024
ASK_SECONDS: Final = 60.0
BUSY_SECONDS: Final = 0.1
"""How often it is looked whether what PAUSE waits for is over."""
_EXTENDED: Final = frozenset({PARSE, BIND, DESCRIBE, EXECUTE, CLOSE, FLUSH})
_IGNORED: Final = frozenset({COPY_DATA, COPY_DONE, COPY_FAIL})
_NO_EXTENDED: Final = CommandError(
    "0A000", "the administration database speaks the simple protocol only", "With psql there is nothing to do; with a "
    "driver, choose its simple query mode.",
)  # fmt: skip


class ConsoleSession(asyncio.Protocol):
    """See the module. ``key`` is the cancel key."""

    def __init__(
        self, context: WorkerContext, login: Login, transport: asyncio.Transport, pending: bytes, version: str
    ) -> None:
        self.login = login
        self.key: tuple[int, bytes] = context.new_key(long=login.minor >= 2)
        self._context = context
        self._transport = transport
        self._buffer = pending
        self._version = version
        self._task: asyncio.Task[None] | None = None
        self._cancelled = asyncio.Event()
        self._skipping = False  # until Sync, after something of the extended protocol
        self._writable = asyncio.Event()
        self._writable.set()

    def start(self) -> None:
        """AuthenticationOk has been sent."""
        self._transport.set_protocol(self)
        greeting = replies.settings_report(self._version)
        self._transport.write(greeting + backend_key_data(*self.key) + ready_for_query())
        self._go_on()

    # ------------------------------------------------------------------ asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._go_on()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()
        self._context.console_ended(self)

    # ------------------------------------------------------------------ what others do with it

    def cancel(self) -> None:
        """A cancel request with our key came."""
        self._cancelled.set()

    def finish(self, response: bytes) -> None:
        """Says why and closes."""
        self._buffer = b""
        if self._task is not None:
            self._task.cancel()
        if not self._transport.is_closing():
            self._transport.write(response)
            self._transport.close()

    def abort(self) -> None:
        self._transport.abort()

    # ------------------------------------------------------------------ messages

    def _go_on(self) -> None:
        """Takes up the next messages, one after the other, until one must be waited for."""
        while self._task is None and not self._transport.is_closing():
            if len(self._buffer) < HEADER_SIZE:
                break
            kind, length = HEADER.unpack_from(self._buffer)
            if not 4 <= length <= MAX_MESSAGE:
                self._broken(f"a message of {length} bytes, and the administration database takes {MAX_MESSAGE}")
                return
            if len(self._buffer) <= length:
                break
            body = self._buffer[HEADER_SIZE : length + 1]
            self._buffer = self._buffer[length + 1 :]
            self._take(kind, body)
        if not self._transport.is_closing():
            if len(self._buffer) > MAX_MESSAGE:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _take(self, kind: int, body: bytes) -> None:
        if kind == TERMINATE:
            self._transport.close()
        elif kind == SYNC:
            self._skipping = False
            self._transport.write(ready_for_query())
        elif self._skipping or kind in _IGNORED:
            return
        elif kind == QUERY:
            self._cancelled.clear()
            self._task = asyncio.get_running_loop().create_task(self._run(body.rstrip(b"\0")))
            self._task.add_done_callback(self._done)
        elif kind in _EXTENDED:
            self._skipping = True
            self._transport.write(replies.error(_NO_EXTENDED))
        elif kind == FUNCTION_CALL:
            self._transport.write(replies.error(_NO_EXTENDED) + ready_for_query())
        else:
            self._broken(f"invalid frontend message type {kind}")

    def _broken(self, why: str) -> None:
        self._context.counters.protocol_errors += 1
        self.finish(error_response("08P01", why))

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            self._context.log.event("admin_failed", level="error", id=self.login.id, error=repr(error))
            self.finish(error_response("XX000", "the proxy failed to carry this out"))
            return
        self._go_on()

    # ------------------------------------------------------------------ commands

    async def _run(self, text: bytes) -> None:
        """Carries out the commands of one Query message; the first error ends it, as on the server."""
        try:
            commands = parse(text.decode("utf-8", "replace"))
            for command in commands:
                await self._carry_out(command)
            if not commands:
                self._transport.write(replies.EMPTY_QUERY)
        except CommandError as error:
            self._transport.write(replies.error(error))
        except ControlLostError as error:
            failure = CommandError("57014", f"the supervisor did not answer: {error}")
            self._transport.write(replies.error(failure))
        self._transport.write(ready_for_query())

    async def _carry_out(self, command: Command) -> None:
        # Looked up each time: a reload may have taken them away.
        allowed = rights(self._context.settings, self.login)
        if not command.changes:
            if allowed < Rights.SHOW:
                raise _not_allowed()
            await self._answered(command)
            return
        outcome: str = "lost"
        try:
            if allowed is not Rights.ALL:
                raise _not_allowed()
            await self._answered(command)
            outcome = "done"
        except CommandError as error:
            outcome = error.sqlstate
            raise
        finally:
            self._context.log.event(
                "admin_command",
                id=self.login.id,
                user=self.login.user,
                peer=self.login.peer,
                command=command.verb,
                name=command.name or None,
                # What was refused may be anything, a password among it.
                value=command.value or None if outcome == "done" else None,
                outcome=outcome,
            )

    async def _answered(self, command: Command) -> None:
        described = False
        after = ""
        while True:
            answer = await self._ask(command, after)
            for text in answer.get("notices", ()):
                self._transport.write(replies.notice(str(text)))
            table = answer.get("table")
            if table is not None:
                if not described:
                    described = True
                    self._transport.write(replies.row_description(table["columns"]))
                self._transport.write(replies.data_rows(table["rows"]))
                await self._writable.wait()
                after = str(table["next"])
            elif answer.get("busy"):
                after = "busy"
                await self._pause()
            else:
                after = ""
            if not after:
                break
        self._transport.write(replies.command_complete(str(answer["tag"])))

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(BUSY_SECONDS):
                await self._cancelled.wait()
        except TimeoutError:
            return
        raise CommandError("57014", "canceling statement due to user request", "What was paused stays paused.")

    async def _ask(self, command: Command, after: str) -> dict[str, Any]:
        ask = self._context.ask_supervisor
        if ask is None:
            raise ControlLostError("there is none")
        answer = await ask(
            "console",
            ASK_SECONDS,
            verb=command.verb,
            name=command.name,
            value=command.value,
            after=after,
            actor=self.login.user,
        )
        if "failure" not in answer:
            return answer
        sqlstate, text, hint = cast("list[str]", answer["failure"])
        raise CommandError(sqlstate, text, hint)


def _not_allowed() -> CommandError:
    return CommandError("42501", "permission denied: only administrators (admin_users) may do this")
