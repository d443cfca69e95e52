"""Connections of asyncpg under our own protocol: one test for each thing that went wrong when this was first tried."""

from __future__ import annotations

import asyncio
import struct
import types
from collections.abc import AsyncIterator

import asyncpg
import pytest

from proxy.login import NoCredential
from proxy.settings import ProxySettings
from proxy.tls import TlsContexts
from proxy.upstream import takeover
from proxy.upstream.backend import Backend, Owner, reported_settings, run_alone
from proxy.upstream.cancel import send_cancel
from proxy.upstream.errors import UpstreamError
from proxy.upstream.opener import Opener
from proxy.wire.messages import error_fields, query
from tests.support.postgres import Postgres
from tests.support.waiting import eventually
from tests.support.wireclient import WireClient


class Talk(Owner):
    """The owner of a backend in these tests: collects what the server says."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.data = b""
        self.ended = asyncio.Event()
        backend.owner = self

    def server_data(self, backend: Backend, data: bytes) -> None:
        self.data += data

    def server_lost(self, backend: Backend, error: Exception | None) -> None:
        self.ended.set()

    def server_writable(self, writable: bool) -> None:
        """Nothing here writes much."""

    async def query(self, sql: str) -> list[bytes]:
        """The bodies of the DataRow messages, the kinds of the others."""
        self.data = b""
        self.backend.transport.write(query(sql))
        return await eventually(self._answer, what=f"the answer to {sql}")

    def _answer(self) -> list[bytes]:
        found, pos = [], 0
        while len(self.data) - pos >= 5:
            (length,) = struct.unpack_from("!I", self.data, pos + 1)
            kind = self.data[pos : pos + 1]
            found.append(self.data[pos + 5 : pos + 1 + length] if kind == b"D" else kind)
            pos += 1 + length
        return found if pos == len(self.data) and found and found[-1] == b"Z" else []

    async def value(self, sql: str) -> str:
        return (await self.query(sql))[1][6:].decode()


def make_opener(postgres: Postgres, database: str = "postgres", size: int | None = 1) -> Opener:
    takeover.install()
    settings = ProxySettings(upstream=postgres.dsn(), listen=["127.0.0.1:0"], admin="off", auth="trust")
    return Opener(settings, TlsContexts(settings), postgres.user, database, NoCredential(), size)


@pytest.fixture
async def opener(postgres: Postgres) -> AsyncIterator[Opener]:
    made = make_opener(postgres)
    yield made
    made.close()


async def take(opener: Opener, **settings: str) -> tuple[Backend, Talk, list[Backend]]:
    """A backend that is ours, who listens to it, and the list that it joins at its end."""
    backend = await opener.open(settings)
    ended: list[Backend] = []
    backend.start(ended.append)
    return backend, Talk(backend), ended


async def leave(backend: Backend, ended: list[Backend]) -> None:
    backend.close(polite=True)
    await eventually(lambda: ended)


async def test_taken_handed_back_and_taken_again(opener: Opener) -> None:
    backend, talk, ended = await take(opener)
    assert backend.how == "pool"
    pid = await talk.value("select pg_backend_pid()")
    for _ in range(3):
        assert await run_alone(backend, "DISCARD ALL")
        await backend.prove()  # asyncpg runs a query of its own on it
        talk = Talk(backend)
        assert await talk.value("select pg_backend_pid()") == pid == str(backend.pid)
    assert opener.in_use == 1
    await leave(backend, ended)


@pytest.mark.parametrize("text", ["begin", "begin; select 1/0", "begin; declare c cursor for select 1"])
async def test_never_handed_back_inside_a_transaction(opener: Opener, text: str) -> None:
    """asyncpg believes such a connection to be idle: its next user would get the open transaction."""
    backend, talk, ended = await take(opener)
    await talk.query(text)
    assert not await run_alone(backend, "DISCARD ALL")
    await leave(backend, ended)


async def test_nothing_of_a_client_is_left_when_handed_back(opener: Opener) -> None:
    backend, talk, ended = await take(opener)
    await talk.query(
        "create temp table x (a int); prepare __asyncpg_stmt_1__ as select 1; prepare __asyncpg_stmt_2__ as select 1;"
        " listen c; set search_path = x; set role pg_monitor; declare c cursor with hold for select 1"
    )
    await talk.query("select pg_advisory_lock(1)")
    assert await run_alone(backend, "DISCARD ALL")
    await backend.prove()
    talk = Talk(backend)
    for text in (
        "select count(*) from pg_prepared_statements",
        "select count(*) from pg_cursors",
        "select count(*) from pg_listening_channels()",
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
        "select count(*) from pg_class where relnamespace = pg_my_temp_schema()",
    ):
        assert await talk.value(text) == "0", text
    assert await talk.value("select current_user") == "postgres"
    assert await talk.value("show search_path") == '"$user", public'
    await leave(backend, ended)


async def test_a_connection_that_dies_gives_its_place_back(opener: Opener, postgres: Postgres) -> None:
    """asyncpg cannot see it: without being told, it would count the place as used for ever."""
    for _ in range(3):
        backend, talk, ended = await take(opener)
        postgres.sql(f"select pg_terminate_backend({backend.pid})")
        await talk.ended.wait()
        assert ended == [backend]
        assert backend.lost
        assert b"57P01" in talk.data
        assert opener.in_use == 0
        assert len(opener._chunks) == 1
        assert opener._chunks[0].pool.get_idle_size() == 0


async def test_a_connection_that_dies_while_asyncpg_has_it(opener: Opener, postgres: Postgres) -> None:
    backend, _, _ = await take(opener)
    assert await run_alone(backend, "DISCARD ALL")
    postgres.sql(f"select pg_terminate_backend({backend.pid})")
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
        await backend.prove()
    backend.abort()
    await eventually(lambda: opener.in_use == 0)
    backend, talk, ended = await take(opener)
    assert await talk.value("select 1") == "1"
    await leave(backend, ended)


async def test_ended_by_us_in_mid_query(opener: Opener, postgres: Postgres) -> None:
    backend, talk, ended = await take(opener)
    talk.backend.transport.write(query("select pg_sleep(60)"))
    pid = backend.pid
    active = f"select state from pg_stat_activity where pid = {pid}"
    await eventually(lambda: postgres.sql(active) == "active")
    backend.abort()
    await eventually(lambda: ended)
    assert opener.in_use == 0
    postgres.sql(f"select pg_terminate_backend({pid})")


async def test_the_start_up_packet_is_the_client_s(opener: Opener) -> None:
    """RESET and DISCARD ALL go back to it; asyncpg by itself would insist on client_encoding utf-8."""
    backend, talk, ended = await take(
        opener,
        client_encoding="LATIN1",
        DateStyle="German",
        options="-c work_mem=5MB -c my.own=x -c timezone=Asia/Tokyo",
    )
    for _ in range(2):
        assert await talk.value("show client_encoding") == "LATIN1"
        assert await talk.value("select date '2001-02-03'") == "03.02.2001"
        assert await talk.value("show work_mem") == "5MB"
        assert await talk.value("show my.own") == "x"
        assert await talk.value("show timezone") == "Asia/Tokyo"
        await talk.query("set work_mem = '6MB'; set timezone = 'UTC'; reset all")
        await talk.query("set work_mem = '6MB'; set client_encoding = 'UTF8'; set my.own = 'y'")
        assert await run_alone(backend, "DISCARD ALL")
        talk = Talk(backend)
    await leave(backend, ended)


async def test_settings_that_work_at_the_start_only(opener: Opener) -> None:
    backend, talk, ended = await take(opener, options="-c ignore_system_indexes=on")
    assert await talk.value("show ignore_system_indexes") == "on"
    await leave(backend, ended)


@pytest.mark.parametrize("settings", [{}, {"client_encoding": "LATIN1", "application_name": "x", "TimeZone": "UTC"}])
async def test_the_greeting_is_the_server_s(opener: Opener, postgres: Postgres, settings: dict[str, str]) -> None:
    direct = await WireClient.connect(postgres, settings=settings)
    backend, _, ended = await take(opener, **settings)
    ours = {name.decode(): value.decode() for name, value in reported_settings(backend.greeting).items()}
    assert ours == direct.parameters
    await direct.close()
    await leave(backend, ended)


async def test_the_server_s_own_refusal(postgres: Postgres) -> None:
    opener = make_opener(postgres, "nobody_has_this")
    with pytest.raises(UpstreamError) as caught:
        await opener.open({})
    fields = error_fields(caught.value.response[5:])
    assert (fields["C"], fields["M"]) == ("3D000", 'database "nobody_has_this" does not exist')
    assert opener.in_use == 0
    opener.close()
    opener = make_opener(postgres)
    for _ in range(3):
        with pytest.raises(UpstreamError) as caught:
            await opener.open({"work_mem": "nonsense"})
        assert error_fields(caught.value.response[5:])["C"] == "22023"
    backend, talk, ended = await take(opener)  # a failed attempt takes no place for good
    assert await talk.value("select 1") == "1"
    await leave(backend, ended)
    opener.close()


async def test_keys_have_four_bytes_and_work(opener: Opener, postgres: Postgres) -> None:
    backend, talk, ended = await take(opener)
    assert len(backend.secret) == 4
    task = asyncio.create_task(talk.query("select pg_sleep(60)"))
    await eventually(lambda: postgres.sql(f"select state from pg_stat_activity where pid = {backend.pid}") == "active")
    await send_cancel(backend.address, backend.pid, backend.secret, None, require_tls=False)
    assert (await task)[-2:] == [b"E", b"Z"]
    await leave(backend, ended)


async def test_places_are_added_when_a_pool_is_full(postgres: Postgres) -> None:
    """A backend that is ending still has its place when the next one is opened."""
    opener = make_opener(postgres, size=2)
    opened = [await take(opener) for _ in range(5)]
    assert len(opener._chunks) == 3
    for backend, _, ended in opened:
        await leave(backend, ended)
    assert opener.in_use == 0
    backend, _, ended = await take(opener)
    assert len(opener._chunks) == 3
    await leave(backend, ended)
    opener.close()


async def test_other_uses_of_asyncpg_are_left_alone(postgres: Postgres) -> None:
    takeover.install()
    connection = await asyncpg.connect(postgres.dsn(), server_settings={"application_name": "other"})
    assert await connection.fetchval("show client_encoding") == "UTF8"
    assert await connection.fetchval("show application_name") == "other"
    await connection.close()


def test_an_asyncpg_that_changed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    takeover.install()
    takeover.self_check()
    monkeypatch.setattr(asyncpg.connect_utils, "protocol", types.ModuleType("changed"))
    with pytest.raises(RuntimeError, match=f"asyncpg {asyncpg.__version__} cannot be used: connect_utils.protocol"):
        takeover.self_check()
