"""``auth_query`` against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from proxy.auth import query as query_module
from proxy.auth.failures import AuthFailed
from proxy.auth.query import AuthQuery, AuthQueryError, Found, QuerySettings, read_row
from proxy.auth.secrets import Md5Hash, Password, ScramVerifier
from proxy.dsn import parse_dsn
from tests.proxy.auth.listener import RecordedLog
from tests.proxy.auth.servers import AuthServer, free_port

SQL = "SELECT rolname, rolpassword, rolvaliduntil FROM pg_catalog.pg_authid WHERE rolname = $1"


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def no_tls() -> dict[str, Any]:
    return {"ssl": False}


@asynccontextmanager
async def asking(
    port: int,
    sql: str = SQL,
    now: Callable[[], float] = lambda: 0.0,
    timeout: float = 20,
    password: str | None = "asker",
) -> AsyncIterator[tuple[AuthQuery, RecordedLog]]:
    log = RecordedLog()
    settings = QuerySettings(
        parse_dsn(f"postgresql://asker@127.0.0.1:{port}/postgres"),
        sql,
        "asker",
        password,
        timeout,
        no_tls,
    )
    query = AuthQuery(settings, log, now)
    try:
        yield query, log
    finally:
        await query.close()


async def test_every_kind_of_row(auth_server: AuthServer) -> None:
    async with asking(auth_server.port) as (query, log):
        found = {
            user: await query.look_up(user)
            for user in ("scram_user", "md5_user", "bare_user", "expired_user", "forever_user", "nobody_known")
        }
        assert log.events == []
    kinds = {user: type(row.secret) if row else None for user, row in found.items()}
    assert kinds["scram_user"] is kinds["expired_user"] is ScramVerifier
    assert kinds["md5_user"] is Md5Hash
    assert found["bare_user"] == Found(None)
    assert found["nobody_known"] is None
    expired = {user for user, row in found.items() if row is not None and row.expired()}
    assert expired == {"expired_user"}


async def test_names_are_bound_not_written(auth_server: AuthServer) -> None:
    async with asking(auth_server.port) as (query, _log):
        found = await query.look_up('quote"d; DROP TABLE x --')
        assert found is not None
        assert isinstance(found.secret, ScramVerifier)
        for name in ("' OR true --", "$1", "%s", "x" * 64, "", "latin\udce9", "ünï\u2028"):
            assert await query.look_up(name) is None


async def test_answers_are_kept_for_a_while_and_can_be_forgotten(
    auth_server: AuthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "CACHE_USERS", 20)
    clock = Clock()
    sql = "SELECT $1::text, 'p' || nextval('look_ups')"
    await auth_server.sql("DROP SEQUENCE IF EXISTS look_ups; CREATE SEQUENCE look_ups")
    async with asking(auth_server.port, sql, clock) as (query, _log):

        async def secret(user: str) -> Any:
            found = await query.look_up(user)
            return None if found is None else found.secret

        together = await asyncio.gather(*(secret("one") for _ in range(10)))
        assert together == [Password("p1")] * 10
        assert await secret("one") == Password("p1")
        query.forget("one")
        assert await secret("one") == Password("p2")
        clock.time = query_module.CACHE_SECONDS + 1
        assert await secret("one") == Password("p3")
        for number in range(query_module.CACHE_USERS):
            await secret(f"user{number}")
        assert len(query._cache) == query_module.CACHE_USERS
        assert "one" not in query._cache


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELECT rolname FROM pg_authid WHERE rolname = $1", "2 or 3 columns"),
        ("SELECT 'other', 'secret', $1::text", "row of another user"),
        ("SELECT $1::text, 1", "must be text"),
        ("SELECT $1::text, 'secret', 'tomorrow'", "timestamp with time zone"),
        ("SELECT $1::text, 'secret', now()::timestamp", "timestamp with time zone"),
        ("SELECT $1::text, 'SCRAM-SHA-256$hush'", "cannot be used"),
        ("SELECT nothing FROM nowhere WHERE x = $1", 'relation "nowhere" does not exist'),
    ],
)
async def test_queries_that_do_not_work(auth_server: AuthServer, sql: str, says: str) -> None:
    async with asking(auth_server.port, sql) as (query, log):
        with pytest.raises(AuthFailed) as caught:
            await query.look_up("scram_user")
    assert caught.value.sqlstate == "57P03"
    assert caught.value.message == 'cannot look up user "scram_user": auth_query failed, see the log of the proxy'
    ((name, fields),) = log.events
    assert (name, fields["level"], fields["user"]) == ("auth_query_failed", "error", "scram_user")
    assert says in fields["reason"]
    assert "hush" not in fields["reason"]


async def test_unreachable_and_refused(auth_server: AuthServer) -> None:
    async with asking(free_port()) as (query, log):
        with pytest.raises(AuthFailed):
            await query.look_up("scram_user")
        assert "ConnectionRefused" in log.events[0][1]["reason"]
    async with asking(auth_server.port, password="wrong") as (query, log):
        with pytest.raises(AuthFailed):
            await query.look_up("scram_user")
        assert "password authentication failed" in log.events[0][1]["reason"]


async def test_slow_query_is_given_up(auth_server: AuthServer) -> None:
    sql = "SELECT $1::text, pg_sleep(60)::text"
    async with asking(auth_server.port, sql, timeout=0.5) as (query, log):
        with pytest.raises(AuthFailed):
            await query.look_up("scram_user")
        assert "TimeoutError" in log.events[0][1]["reason"]


async def test_waiting_is_bounded(auth_server: AuthServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_module, "MAX_WAITING", 3)
    async with asking(auth_server.port) as (query, _log):
        results = await asyncio.gather(*(query.look_up(f"u{n}") for n in range(5)), return_exceptions=True)
        refused = [result for result in results if isinstance(result, AuthFailed)]
        assert [failure.message for failure in refused] == [
            "too many logins wait for auth_query: try again in a moment"
        ] * 2
        assert await query.look_up("u4") is None


async def test_a_client_that_leaves_does_not_cancel_another(auth_server: AuthServer) -> None:
    async with asking(auth_server.port) as (query, _log):
        leaving = asyncio.ensure_future(query.look_up("scram_user"))
        staying = asyncio.ensure_future(query.look_up("scram_user"))
        await asyncio.sleep(0)
        leaving.cancel()
        assert await staying is not None
        assert leaving.cancelled()


async def test_the_server_restarts(auth_server: AuthServer) -> None:
    async with asking(auth_server.port) as (query, _log):
        assert await query.look_up("scram_user") is not None
        await asyncio.to_thread(auth_server.restart)
        query.forget("scram_user")
        assert await query.look_up("scram_user") is not None


def test_valid_until() -> None:
    soon = datetime.now(UTC) + timedelta(minutes=1)
    assert not read_row(("bob", "x", soon), "bob").expired()
    assert read_row(("bob", "x", soon - timedelta(minutes=2)), "bob").expired()
    assert read_row(("bob", "x", datetime.max), "bob").valid_until is None
    assert read_row(("bob", "x", datetime.min), "bob").expired()
    assert read_row(("bob", None), "bob") == Found(None)
    with pytest.raises(AuthQueryError):
        read_row((), "bob")
