"""Opening server connections for one user of one database: through asyncpg pools, or directly where asyncpg cannot.

`Opener.open` gives a `Backend` past its first ReadyForQuery, started with exactly the start-up packet asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import asyncpg

from proxy.auth.secrets import md5_digest
from proxy.dsn import Dsn
from proxy.login import Credential, NoCredential, PasswordCredential
from proxy.settings import ProxySettings
from proxy.tls import TlsContexts
from proxy.upstream.backend import Backend
from proxy.upstream.direct import open_direct
from proxy.upstream.errors import UpstreamError, unreachable
from proxy.upstream.hosts import connect_first, tls_options
from proxy.upstream.scram_exchange import ScramExchange
from proxy.upstream.takeover import Opening, TakenConnection, opening
from proxy.wire.messages import startup_message

# An asyncpg pool makes all its places at once; small pools, added as needed, keep few clients cheap.
_SESSION_CHUNK: Final = 32


class _Chunk:
    """One asyncpg pool, and how many of its places are in use or about to be."""

    __slots__ = ("pool", "used")

    def __init__(self, pool: Any) -> None:
        self.pool = pool
        self.used = 0

    def free(self) -> None:
        self.used -= 1


async def _no_reset(connection: Any) -> None:
    """What goes back to asyncpg has had its DISCARD ALL already."""


def _asyncpg_can_use(credential: Credential) -> bool:
    """asyncpg logs in by password only, and would hash a password that is an MD5 hash already once more."""
    return isinstance(credential, NoCredential) or (
        isinstance(credential, PasswordCredential) and md5_digest(credential.password) is None
    )


class Opener:
    """Opens backends of one user, database and credential. ``size`` bounds how many there are at once, None for no
    bound of our own (the server's max_connections is one)."""

    def __init__(
        self,
        settings: ProxySettings,
        tls: TlsContexts,
        user: str,
        database: str,
        credential: Credential,
        size: int | None,
    ) -> None:
        self.user = user
        self.database = database
        self._settings = settings
        self._tls = tls
        self._credential = credential
        self._size = size
        self._chunks: list[_Chunk] = []
        self._making = asyncio.Lock()

    def renewed(self, settings: ProxySettings) -> Opener:
        """One like this for other settings; connections that this one opened stay as they are."""
        return Opener(settings, self._tls, self.user, self.database, self._credential, self._size)

    async def open(self, settings: Mapping[str, str]) -> Backend:
        """A new connection whose start-up packet carries these settings. Raises `UpstreamError`."""
        startup = startup_message({"user": self.user, "database": self.database, **settings})
        if not _asyncpg_can_use(self._credential):
            return await self.open_direct(startup)
        chunk = await self._chunk_with_room()
        chunk.used += 1
        with opening(startup, self._exchange_maker(startup)) as attempt:
            try:
                lent = await chunk.pool.acquire()  # each host has connect_timeout; there is room in the pool
            except (Exception, asyncio.CancelledError) as error:
                chunk.free()
                raise self._failure(error, attempt) from error
        taken = TakenConnection(lent, chunk.free)
        return Backend(
            taken.transport,
            pid=taken.pid,
            secret=taken.secret,
            address=taken.address,
            greeting=attempt.greeting,
            now=asyncio.get_running_loop().time(),
            taken=taken,
        )

    async def open_direct(self, startup: bytes) -> Backend:
        return await open_direct(self._settings, self._tls, startup, self.user, self._credential)

    def _exchange_maker(self, startup: bytes) -> Callable[[], ScramExchange] | None:
        credential = self._credential
        if not isinstance(credential, PasswordCredential):
            return None
        return partial(ScramExchange, startup, self.user, credential)

    def _failure(self, error: BaseException, attempt: Opening) -> BaseException:
        if isinstance(error, asyncio.CancelledError):
            return error
        if attempt.error is not None and isinstance(error, asyncpg.PostgresError):
            return UpstreamError(attempt.error)
        return unreachable(self._dsn.hosts, error)

    @property
    def _dsn(self) -> Dsn:
        return self._settings.dsn

    async def _chunk_with_room(self) -> _Chunk:
        async with self._making:
            for chunk in self._chunks:
                if chunk.used < chunk.pool.get_max_size():
                    return chunk
            chunk = _Chunk(await self._create_pool(self._size or _SESSION_CHUNK))
            self._chunks.append(chunk)
            return chunk

    async def _create_pool(self, size: int) -> Any:
        hosts = self._dsn.hosts
        password = self._credential.password if isinstance(self._credential, PasswordCredential) else ""
        if not isinstance(self._credential, NoCredential | PasswordCredential):
            raise TypeError(f"asyncpg cannot log in with a {type(self._credential).__name__}")
        return await asyncpg.create_pool(
            connect=partial(
                connect_first,
                hosts=hosts,
                target_session_attrs=self._settings.target_session_attrs,
                limit=self._settings.connect_timeout,
            ),
            user=self.user,
            database=self.database,
            password=password,
            **tls_options(self._tls, hosts),
            min_size=0,
            max_size=size,
            statement_cache_size=0,
            max_inactive_connection_lifetime=0,
            reset=_no_reset,
        )

    @property
    def in_use(self) -> int:
        """Connections taken from asyncpg, or being opened, now."""
        return sum(chunk.used for chunk in self._chunks)

    @property
    def unused(self) -> bool:
        return not self.in_use

    def close(self) -> None:
        for chunk in self._chunks:
            chunk.pool.terminate()
        self._chunks.clear()
