"""One statement on a real server, read-only: its plan, and what a run of it takes.

Everything happens in a read-only transaction of its own that is rolled back, with the search_path, the planner settings
and the time limit put in place for it alone. Advice is delivered as the proxy delivers it: a comment in front of the
text, settings around it. A statement with parameters becomes a PREPARE with the comment in front and an EXECUTE with
its values as text, planned for these values (`plan_cache_mode`), as a steered execution is; `generic` plans it without
looking at the values instead, which is what a prepared statement may come to.

The caller gives an asyncpg connection outside a transaction. Rows are thrown away as they come, so that a large result
costs time and no memory.

A time limit may strike when the statement is just over: the server then answers twice, and asyncpg takes the second
answer for that of the next statement. Every answer around a run is therefore checked, and a connection out of step is
ended (`OutOfStepError`); a `Link` opens another one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, TypeAlias

import asyncpg
import msgspec
from pglast.parser import ParseError, parse_sql_json

from planner.advice import Rendered
from planner.explore.plans import Plan

Connection: TypeAlias = Any
"""An asyncpg connection: the library has no types of its own."""
Params: TypeAlias = Sequence[str | None]
"""The values of ``$1``, ``$2`` ... as text, None for NULL."""

EXPLAIN_LIMIT_MS: Final = 10_000.0
GRACE_SECONDS: Final = 5.0
"""How much longer than its statement_timeout a run may take to be answered before the connection is given up."""
SETTLED_AFTER: Final = 6
"""A prepared statement is planned for its values five times; the sixth plan is the one that stays."""
APPLICATION: Final = "pilotwire explorer"
CANCELLED: Final = "57014"
_NAME: Final = "pilotwire_explored"
_RUN: Final = frozenset({"SelectStmt"})
_PLAIN: Final = Rendered()


class NotExplorableError(ValueError):
    """The text is not one SELECT (VALUES and TABLE among them): it is not run."""


class OutOfStepError(ConnectionError):
    """The connection gave an answer to something else than what was asked, and has been ended."""


LOST: Final = (OSError, asyncpg.PostgresConnectionError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What a connection that is gone raises."""


class Link:
    """A connection that is opened anew after it was lost; over a connection of the caller's it is not, and not closed
    either."""

    def __init__(self, target: Connection | str | Callable[[], Awaitable[Connection]]) -> None:
        """``target`` is a connection, a DSN, or what opens a connection."""
        self._open: Callable[[], Awaitable[Connection]] | None = None
        self._connection: Connection | None = None
        if isinstance(target, str):
            self._open = lambda: connect(target, timeout=30)
        elif callable(target):
            self._open = target
        else:
            self._connection = target

    @property
    def reopens(self) -> bool:
        return self._open is not None

    async def get(self) -> Connection:
        """The connection; asyncpg's errors and OSError pass through."""
        if self._open is not None and (self._connection is None or self._connection.is_closed()):
            self._connection = await self._open()
        return self._connection

    async def close(self) -> None:
        """Ends what this opened; never raises on account of the server."""
        if self._open is None or self._connection is None:
            return
        try:
            await self._connection.close(timeout=GRACE_SECONDS)
        except (*LOST, asyncpg.PostgresError, TimeoutError):
            self._connection.terminate()


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement with its values, under the text of its session's search_path ("": the connection's own)."""

    sql: str
    params: tuple[str | None, ...] = ()
    search_path: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """One run. ``ms`` runs from sending it to the last byte of its answer; a run that ended at its time limit counts as
    that limit. ``rows`` is -1 where none were counted; ``error`` is "" or the server's SQLSTATE."""

    ms: float
    timed_out: bool = False
    rows: int = -1
    error: str = ""

    @property
    def completed(self) -> bool:
        return not self.timed_out and not self.error


async def connect(dsn: str, **options: Any) -> Connection:
    """A connection for this module. asyncpg's errors and OSError pass through."""
    return await asyncpg.connect(
        dsn,
        statement_cache_size=0,
        server_settings={"application_name": APPLICATION, "default_transaction_read_only": "on"},
        **options,
    )


async def explain(
    connection: Connection,
    sql: str,
    params: Params = (),
    *,
    advice: Rendered | None = None,
    search_path: str = "",
    generic: bool = False,
    settled: bool = False,
    analyze: bool = False,
    limit_ms: float = EXPLAIN_LIMIT_MS,
) -> Plan:
    """The plan of a statement under ``advice``; ``analyze`` runs it too. ``settled`` gives the plan that a prepared
    statement keeps after some executions with such values, whether that is made for them or not.

    Raises NotExplorableError, and asyncpg's errors (QueryCanceledError after ``limit_ms``).
    """
    rendered = advice or _PLAIN
    options = "ANALYZE, FORMAT JSON" if analyze else "FORMAT JSON"
    mode = "auto" if settled else _plan_cache_mode(generic)
    async with _Transaction(connection, sql, params, rendered, search_path, mode, limit_ms) as run:
        # Behind the prefix, if that is part of the text: a hint counts at the beginning only.
        prefix = "" if params else rendered.prefix
        text = f"{prefix}EXPLAIN ({options}) {run.removeprefix(prefix)}"
        async with asyncio.timeout(limit_ms / 1000 + GRACE_SECONDS):
            if settled and params:
                for _ in range(SETTLED_AFTER - 1):
                    await connection.execute(text)
            return Plan(await connection.fetchval(text))


async def time_query(
    connection: Connection,
    sql: str,
    params: Params = (),
    rendered: Rendered | None = None,
    limit_ms: float = 0.0,
    *,
    search_path: str = "",
    generic: bool = False,
) -> Timing:
    """Run it once; ``limit_ms`` 0: no limit. What the server says against it comes back in `Timing.error`; raises
    NotExplorableError, and OSError or asyncpg's errors when the connection is lost."""
    limit = max(limit_ms, 1.0) if limit_ms else 0.0
    within = limit / 1000 + GRACE_SECONDS if limit else None
    try:
        transaction = _Transaction(
            connection, sql, params, rendered or _PLAIN, search_path, _plan_cache_mode(generic), limit
        )
        async with transaction as text:
            started = time.perf_counter()
            try:
                async with asyncio.timeout(within):
                    tag = await connection.execute(text)
            except (asyncpg.QueryCanceledError, TimeoutError):
                took = (time.perf_counter() - started) * 1000
                # Somebody else may have cancelled it too; that is no time limit, and says nothing.
                ended = bool(limit) and took >= limit * 0.9
                return Timing(limit if ended else took, ended, error="" if ended else CANCELLED)
            took = (time.perf_counter() - started) * 1000
            count = str(tag).rpartition(" ")[2]
            return Timing(took, rows=int(count) if count.isdigit() else -1)
    except asyncpg.PostgresConnectionError:
        raise
    except asyncpg.PostgresError as error:
        return Timing(0.0, error=error.sqlstate or "XX000")


@lru_cache(maxsize=512)
def check(sql: str) -> None:
    """Raises NotExplorableError unless the text is one SELECT: with a second statement it could leave its read-only
    transaction."""
    try:
        statements = msgspec.json.decode(parse_sql_json(sql))["stmts"]
    except (ParseError, UnicodeError, RecursionError, msgspec.MsgspecError, LookupError):
        raise NotExplorableError("PostgreSQL's grammar does not take it") from None
    if len(statements) != 1:
        raise NotExplorableError("it is not one statement")
    kind, body = next(iter(statements[0]["stmt"].items()))
    if kind not in _RUN or "intoClause" in body:
        raise NotExplorableError("it is no SELECT")


def _plan_cache_mode(generic: bool) -> str:
    return "force_generic_plan" if generic else "force_custom_plan"


class _Transaction:
    """``async with`` gives the text to run; at the end everything is as it was."""

    def __init__(
        self,
        connection: Connection,
        sql: str,
        params: Params,
        rendered: Rendered,
        search_path: str,
        plan_cache_mode: str,
        limit_ms: float,
    ) -> None:
        check(sql)
        self._connection = connection
        settings = {"statement_timeout": f"{round(limit_ms)}"}
        if search_path:
            settings["search_path"] = search_path
        if params:
            settings["plan_cache_mode"] = plan_cache_mode
        settings |= dict(rendered.settings)
        calls = ", ".join(f"set_config({_quoted(name)}, {_quoted(value)}, true)" for name, value in settings.items())
        self._begin = f"BEGIN READ ONLY; SELECT {calls}"
        self._prepare = f"{rendered.prefix}PREPARE {_NAME} AS {sql}" if params else ""
        self._text = f"EXECUTE {_NAME}({', '.join(map(_quoted, params))})" if params else rendered.prefix + sql

    async def __aenter__(self) -> str:
        try:
            if await self._connection.execute(self._begin) != "SELECT 1":
                raise self._out_of_step()
        except (asyncpg.QueryCanceledError, asyncpg.InFailedSQLTransactionError):
            raise self._out_of_step() from None
        if self._prepare:
            try:
                await self._connection.execute(self._prepare)
            except BaseException:
                await self._end()
                raise
        return self._text

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _end(self) -> None:
        """A PREPARE outlives its transaction."""
        if self._connection.is_closed():
            return
        # A run that was given up by the client may be answered late.
        try:
            async with asyncio.timeout(GRACE_SECONDS):
                tag = await self._roll_back()
                if self._prepare and tag == "ROLLBACK":
                    await self._connection.execute("DEALLOCATE ALL")
        except (asyncpg.PostgresError, asyncpg.InternalClientError, TimeoutError):
            raise self._out_of_step() from None
        if tag != "ROLLBACK":
            raise self._out_of_step()

    async def _roll_back(self) -> str:
        try:
            return str(await self._connection.execute("ROLLBACK"))
        except asyncpg.QueryCanceledError:
            # The run's time limit holds for its ROLLBACK too, which a busy machine may hold up. With the error the
            # transaction's settings are gone, and with them the limit.
            return str(await self._connection.execute("ROLLBACK"))

    def _out_of_step(self) -> OutOfStepError:
        self._connection.terminate()
        return OutOfStepError("the connection is out of step with the server")


def _quoted(value: str | None) -> str:
    """An SQL literal that means the same whatever standard_conforming_strings is."""
    if value is None:
        return "NULL"
    return "E'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
