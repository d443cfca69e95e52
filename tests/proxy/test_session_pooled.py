"""Transaction pooling for real: few backends, many clients, and none of them sees what another did."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from proxy.wire.messages import message, query, startup_message
from tests.conftest import StartProxy
from tests.proxy.pooled_fixtures import backend_gone, backends, clients, kinds, sample, waits
from tests.proxy.wire.transcript import COPY_DONE, SYNC, bind, close, copy_data, describe, execute, parse
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import eventually
from tests.support.wireclient import ServerError, WireClient


@pytest.fixture(scope="module")
def one(module_proxy: StartProxy) -> Proxy:
    """A proxy with one backend for all clients of a database."""
    return module_proxy(pool_mode="transaction", pool_size=1, pool_overflow=0)


# ---------------------------------------------------------------------- prepared statements


async def test_clients_of_asyncpg_with_the_same_names(one: Proxy, database: str) -> None:
    """Each asyncpg connection names its statements __asyncpg_stmt_1__ and so on, whatever their texts."""
    connections = [await asyncpg.connect(one.dsn(database)) for _ in range(5)]

    async def work(number: int) -> None:
        for turn in range(30):
            assert await connections[number].fetchval(f"SELECT {number} * 1000 + $1::int", turn) == number * 1000 + turn
            assert await connections[number].fetchrow(f"SELECT {number} AS a{number}, $1::text", str(turn)) is not None

    try:
        await asyncio.gather(*(work(number) for number in range(5)))
    finally:
        for connection in connections:
            await connection.close(timeout=5)
    assert len(set(backends(one.postgres, database))) == 1


async def test_statements_on_changing_backends(two: Proxy, database: str) -> None:
    async with clients(two, database, 3) as (first, second, third):
        for number, client in enumerate((first, second, third)):
            assert await kinds(client, parse("s", f"select {number}"), SYNC) == b"1Z"
        for _ in range(4):
            # One client keeps a backend busy, so that the next gets the other one.
            for holder, client, answer in ((first, second, 1), (second, third, 2), (third, first, 0)):
                await holder.query("begin")
                client.send(bind("s") + describe("", b"P") + execute() + SYNC)
                seen = await client.until_ready()
                assert [kind for kind, _ in seen] == [b"2", b"T", b"D", b"C", b"Z"]
                assert seen[2][1].endswith(str(answer).encode())
                await holder.query("commit")


async def test_errors_name_the_client_s_own_statements(one: Proxy, database: str) -> None:
    async with clients(one, database, 1) as (client,):
        await kinds(client, parse("mine"), SYNC)
        client.send(parse("mine", "select 2") + SYNC)
        with pytest.raises(ServerError, match='42P05: prepared statement "mine" already exists'):
            await client.until_ready()
        await kinds(client, close("mine"), SYNC)
        client.send(bind("mine") + SYNC)
        with pytest.raises(ServerError, match='26000: prepared statement "mine" does not exist'):
            await client.until_ready()
        await kinds(client, parse("mine"), SYNC)
        await client.query("deallocate mine")
        with pytest.raises(ServerError, match='26000: prepared statement "mine" does not exist'):
            await client.query("deallocate mine")
        await kinds(client, parse("mine"), SYNC)
        client.send(query("deallocate all") + bind("mine") + SYNC)
        await client.until_ready()
        with pytest.raises(ServerError, match='26000: prepared statement "mine" does not exist'):
            await client.until_ready()


async def test_a_changed_table(one: Proxy, database: str) -> None:
    async with clients(one, database, 2) as (client, other):
        await client.query("create table t (a int)")
        await kinds(client, parse("s", "select * from t"), SYNC)
        assert await kinds(client, bind("s"), execute(), SYNC) == b"2CZ"
        await other.query("alter table t add b int")
        client.send(bind("s") + execute() + SYNC)
        with pytest.raises(ServerError, match="0A000: cached plan must not change result type"):
            await client.until_ready()
        assert await kinds(client, close("s"), parse("s", "select * from t"), bind("s"), execute(), SYNC) == b"312CZ"


async def test_execute_and_deallocate_by_name(two: Proxy, database: str) -> None:
    async with clients(two, database, 2) as (client, other):
        await kinds(client, parse("s", "select 42"), SYNC)
        await kinds(client, parse("t", "select 43"), SYNC)
        await other.query("begin")  # takes the backend that has them
        assert await client.query("execute s") == [("42",)]
        await client.query("deallocate t")
        await other.query("commit")
        await client.query("discard all")
        with pytest.raises(ServerError, match='26000: prepared statement "s" does not exist'):
            await client.query("execute s")


async def test_execute_by_name_whose_table_is_gone(two: Proxy, database: str) -> None:
    async with clients(two, database, 2) as (client, other):
        await client.query("create table gone (a int)")
        await kinds(client, parse("s", "select * from gone"), SYNC)
        await other.query("drop table gone")
        await other.query("begin")
        with pytest.raises(ServerError, match="42P01"):
            await client.query("execute s")
        await other.query("commit")
        assert await client.query("select 1") == [("1",)]


async def test_long_values_with_a_renamed_statement(one: Proxy, database: str) -> None:
    size = 3_000_000
    rest = b"\0\0\0\1" + size.to_bytes(4, "big") + b"v" * size + b"\0\0"
    async with clients(one, database, 2) as (client, other):
        await kinds(client, parse("s", "select length($1::text)"), SYNC)
        await other.query("deallocate all")  # the backend has it no more
        client.send(bind("s", "", rest) + execute() + SYNC)
        assert (await client.until_ready())[1] == (b"D", b"\0\1\0\0\0\7" + str(size).encode())


@pytest.mark.parametrize("size", [60_000, 200_000])
async def test_long_texts(one: Proxy, database: str, size: int) -> None:
    comment = "/*" + "x" * size + "*/"
    async with clients(one, database, 2) as (client, other):
        assert await client.query(f"select 1 {comment}") == [("1",)]
        await client.query("discard all")
        assert await kinds(client, parse("s", f"select 2 {comment}"), bind("s"), execute(), SYNC) == b"12DCZ"
        assert await kinds(client, bind("s"), execute(), SYNC) == b"2DCZ"
        await client.query("discard all")
        assert await kinds(client, parse("", f"select 3 {comment}"), bind(), execute(), SYNC) == b"12DCZ"
        await client.query("discard all")
        assert await other.query("select 4") == [("4",)]


# ---------------------------------------------------------------------- settings


async def test_settings_neither_leak_nor_get_lost(one: Proxy, database: str, postgres: Postgres) -> None:
    role = postgres.create_role()
    async with clients(one, database, 3) as (first, second, third):
        await first.query("set search_path = alpha; set timezone = 'Asia/Tokyo'; set my.own = 'first'")
        await second.query(f"set role {role}")
        await second.query("select set_config('my.own', 'it''s \\ second', false)")
        look = (
            "select current_setting('search_path'), current_setting('timezone'), current_user,"
            " nullif(current_setting('my.own', true), '')"
        )
        plain = await third.query(look)
        for _ in range(3):
            assert await first.query(look) == [("alpha", "Asia/Tokyo", "postgres", "first")]
            assert await second.query(look) == [(plain[0][0], plain[0][1], role, "it's \\ second")]
            assert await third.query(look) == plain
        assert first.parameters["TimeZone"] == "Asia/Tokyo"
        assert second.parameters["TimeZone"] == third.parameters["TimeZone"] != "Asia/Tokyo"
        assert (second.parameters["is_superuser"], third.parameters["is_superuser"]) == ("off", "on")
        await first.query("reset timezone")
        assert first.parameters["TimeZone"] == third.parameters["TimeZone"]
        await second.query("reset role")
        assert await second.value("select current_user") == "postgres"


async def test_settings_that_end_with_their_transaction(one: Proxy, database: str) -> None:
    look = "select current_setting('work_mem'), current_setting('statement_timeout')"
    async with clients(one, database, 2) as (first, second):
        plain = await second.query(look)
        await first.query("begin; set local work_mem = '5MB'; set statement_timeout = '5min'; rollback")
        assert await first.query(look) == plain
        await first.query("begin; savepoint a; set work_mem = '5MB'; rollback to a; set statement_timeout = '6min'")
        await first.query("commit")
        assert await first.query(look) == [(plain[0][0], "6min")]
        assert await second.query(look) == plain
        with pytest.raises(ServerError):
            await first.query("set work_mem = '7MB'; select 1/0")
        assert await first.query(look) == [(plain[0][0], "6min")]
        await first.query(
            "set transaction isolation level serializable; set default_transaction_isolation = serializable"
        )
        assert await first.value("show transaction_isolation") == "serializable"
        assert await second.value("show transaction_isolation") == "read committed"


async def test_the_application_s_name(one: Proxy, database: str) -> None:
    async with clients(one, database, 1, application_name="first") as (first,), clients(one, database, 1) as (second,):
        for _ in range(2):
            assert await first.value("show application_name") == "first"
            assert await second.value("show application_name") == ""
        assert first.parameters["application_name"] == "first"
        await first.query("set application_name = 'other'")
        await second.query("select 1")
        assert await first.value("show application_name") == "other"
        await first.query("reset all")
        assert await first.value("show application_name") == "first"
        assert first.parameters["application_name"] == "first"
        await first.query("set application_name = 'other'; reset application_name")
        assert await first.value("show application_name") == "first"
        await first.query("set application_name = 'other'")
        await first.query("discard all")
        assert await first.value("show application_name") == "first"


async def test_start_up_settings_are_the_client_s_own(one: Proxy, database: str) -> None:
    async with (
        clients(one, database, 1, options="-c work_mem=5MB", DateStyle="German") as (first,),
        clients(one, database, 1) as (second,),
    ):
        assert await first.query("select current_setting('work_mem'), date '2001-02-03'") == [("5MB", "03.02.2001")]
        assert await second.value("select date '2001-02-03'") == "2001-02-03"
        await first.query("set work_mem = '6MB'; reset all")
        assert await first.value("show work_mem") == "5MB"


async def test_one_role_for_both_and_a_setting_it_may_not_change(one: Proxy, database: str, postgres: Postgres) -> None:
    role = postgres.create_role()
    async with clients(one, database, 2) as (first, second):
        await first.query(f"set log_min_duration_statement = 12345; set role {role}")
        await second.query(f"set role {role}")
        assert await first.value("show log_min_duration_statement") == "12345ms"
        assert await second.value("select current_user") == role
        assert await first.value("select current_user") == role


async def test_settings_that_cannot_be_put_in_place(one: Proxy, database: str, postgres: Postgres) -> None:
    """The client must not go on as somebody else."""
    role = postgres.create_role()
    async with clients(one, database, 2) as (first, second):
        await first.query(f"set role {role}")
        await second.query(f"create table seen (a text); drop role {role}")
        with pytest.raises(ServerError, match=f'role "{role}" does not exist') as caught:
            await first.query("insert into seen values (current_user)")
        assert caught.value.fatal
        assert await second.query("select * from seen") == []


async def test_a_reported_setting_without_a_text(one: Proxy, database: str) -> None:
    async with clients(one, database, 2) as (first, second):
        await first.query(
            "create function f() returns void language plpgsql as"
            " $$ begin perform set_config('timezone', 'Asia/Tokyo', false); end $$"
        )
        before = await second.value("show timezone")
        await first.query("select f()")
        assert await second.value("show timezone") == before
        assert await first.value("show timezone") == "Asia/Tokyo"


# ---------------------------------------------------------------------- pins

PINS = {
    "advisory_lock": ("select pg_advisory_lock(7)", "select pg_advisory_unlock(7)"),
    "advisory_lock, all": ("select pg_try_advisory_lock(7)", "select pg_advisory_unlock_all()"),
    "listen": ("listen c", "unlisten *"),
    "temporary": ("create temp table x (a int)", "drop table x"),
    "temporary, discard": ("select 1 as a into temporary x", "discard temp"),
    "hold_cursor": ("declare c cursor with hold for select 1", "close c"),
    "prepare": ("prepare p as select 1", "deallocate p"),
    "prepare, all": ("prepare p as select 1", "deallocate all"),
    "settings": ("set session authorization default", "discard all"),
    **{
        f"{name}, discard all": (pin, "discard all")
        for name, pin in {
            "advisory_lock": "select pg_advisory_lock(8)",
            "listen": "listen c",
            "temporary": "create temp table x (a int)",
            "hold_cursor": "declare c cursor with hold for select 1",
            "prepare": "prepare p as select 1",
        }.items()
    },
}


@pytest.mark.parametrize("name", PINS)
async def test_pinned_until_the_reason_is_gone(one: Proxy, database: str, name: str) -> None:
    pin, release = PINS[name]
    reason = name.partition(",")[0]
    before = sample(one, "pinned_total", f'reason="{reason}"')
    async with clients(one, database, 2) as (first, second):
        await first.query(pin)
        await first.query("select 1")
        waiting = asyncio.create_task(second.value("select count(*) from pg_listening_channels()"))
        await waits(one, waiting)
        await first.query("select 2")
        assert not waiting.done()
        await first.query(release)
        assert await waiting == "0"
        assert await first.value("select 3") == "3"
    assert sample(one, "pinned_total", f'reason="{reason}"') == before + 1


@pytest.mark.parametrize(
    "text",
    [
        "select 1 as temp, 'with hold'",
        "select pg_advisory_xact_lock(1)",
        "begin; create temp table x (a int) on commit drop; commit",
        "begin; listen c; rollback",
        "begin; select pg_try_advisory_lock(1); select pg_advisory_unlock(1); commit",
        "create temp table x (a int); drop table x",
    ],
)
async def test_not_pinned_for_long(one: Proxy, database: str, text: str) -> None:
    async with clients(one, database, 2) as (first, second):
        await first.query(text)
        assert await second.value("select 1") == "1"


async def test_a_temporary_function_pins(one: Proxy, database: str) -> None:
    async with clients(one, database, 2) as (first, second):
        await first.query("create function pg_temp.f() returns int language sql as 'select 1'")
        waiting = asyncio.create_task(second.value("select 2"))
        await waits(one, waiting)
        assert await first.value("select pg_temp.f()") == "1"
        first.reset()
        assert await waiting == "2"


async def test_statements_by_name_in_the_extended_protocol(two: Proxy, database: str) -> None:
    """EXECUTE and DEALLOCATE, prepared like any other statement, on whichever backend."""
    async with clients(two, database, 2) as (client, other):
        assert await kinds(client, parse("s", "select 20 + $1::int"), SYNC) == b"1Z"
        for _ in range(2):
            assert await kinds(client, parse("", "EXECUTE s (1)"), describe(), SYNC) == b"1tTZ"
            client.send(bind() + execute() + SYNC)
            assert (b"D", b"\0\1\0\0\0\x0221") in await client.until_ready()
            await other.query("begin")  # takes the backend that was used last
            assert await client.value("execute s (2)") == "22"
            await other.query("commit")
        assert await kinds(client, parse("", "DEALLOCATE s"), bind(), execute(), SYNC) == b"12CZ"
        client.send(parse("", "EXECUTE s (1)") + bind() + execute() + SYNC)
        answer = await client.until(b"Z")
        assert [ServerError(body).text for kind, body in answer if kind == b"E"] == [
            'prepared statement "s" does not exist'
        ]


async def test_own_notifications_bear_the_process_id_of_the_login(two: Proxy, database: str) -> None:
    async with clients(two, database, 2) as (listener, other):
        await listener.query("listen c")

        async def notified_by(client: WireClient) -> int:
            client.send(query("notify c"))
            return int.from_bytes((await listener.until(b"A"))[-1][1][:4], "big")

        # Another's can overtake the answer that says who runs NOTIFY there; it is never taken for the listener's own.
        assert await notified_by(other) != listener.pid
        await other.until_ready()
        assert await notified_by(listener) == listener.pid


async def test_notifications_reach_a_listener(two: Proxy, database: str) -> None:
    async with clients(two, database, 2) as (listener, other):
        await listener.query("listen c")
        for number in range(20):
            await asyncio.gather(other.query(f"notify c, '{number}'"), listener.query("set my.own = 1"))
        await other.query("notify c, 'last'")
        seen: list[bytes] = []
        while not seen or not seen[-1].endswith(b"last\0"):
            seen.append((await listener.until(b"A"))[-1][1])


async def test_what_dies_with_its_client(one: Proxy, database: str, postgres: Postgres) -> None:
    async with clients(one, database, 2) as (first, second):
        await first.query("select pg_advisory_lock(7)")
        pid = int(await first.value("select pg_backend_pid()") or 0)
        first.reset()
        await backend_gone(postgres, database, pid)
        assert await second.value("select count(*) from pg_locks where locktype = 'advisory'") == "0"
        assert int(await second.value("select pg_backend_pid()") or 0) != pid


# ---------------------------------------------------------------------- clients that vanish


@pytest.mark.parametrize("politely", [False, True])
async def test_vanishing_in_a_transaction(one: Proxy, database: str, postgres: Postgres, politely: bool) -> None:
    async with clients(one, database, 2) as (first, second):
        await first.query("create table t (a int)")
        await first.query("begin; insert into t values (1)")
        pid = int(await first.value("select pg_backend_pid()") or 0)
        if politely:
            await first.close()
        else:
            first.reset()
        await second.query("begin; lock table t in access exclusive mode; commit")
        assert await second.query("select * from t") == []
        assert await second.value("select pg_backend_pid()") != str(pid)
        await backend_gone(postgres, database, pid)


async def test_vanishing_in_mid_copy(one: Proxy, database: str, postgres: Postgres) -> None:
    async with clients(one, database, 2) as (first, second):
        await first.query("create table t (a text)")
        pid = int(await first.value("select pg_backend_pid()") or 0)
        first.send(query("copy t from stdin"))
        await first.until(b"G")
        first.send(copy_data(b"one\n") + copy_data(b"two\n") + message(b"d", b"x" * 100_000)[:50_000])
        await first.writer.drain()
        first.reset()
        assert await second.query("select * from t") == []
        await backend_gone(postgres, database, pid)


async def test_vanishing_in_mid_result(one: Proxy, database: str, postgres: Postgres) -> None:
    async with clients(one, database, 2) as (first, second):
        pid = int(await first.value("select pg_backend_pid()") or 0)
        first.send(query("select repeat('x', 1000) from generate_series(1, 1000000)"))
        await first.until(b"D")
        first.reset()
        assert await second.value("select 1") == "1"
        await backend_gone(postgres, database, pid)


@pytest.mark.parametrize("missing", [1, 2, 3, 5, 6, 50_000])
async def test_vanishing_in_mid_message(one: Proxy, database: str, postgres: Postgres, missing: int) -> None:
    """The server must not take a part of a statement, or our Terminate, for the rest of it."""
    sent = query("insert into t values ('" + "x" * 100_000 + "') -- and so on")
    async with clients(one, database, 2) as (first, second):
        await first.query("create table t (a text)")
        pid = int(await first.value("select pg_backend_pid()") or 0)
        first.send(sent[:-missing])
        await first.writer.drain()
        await eventually(lambda: sample(one, "client_received_bytes_total") > 100_000)
        first.reset()
        await backend_gone(postgres, database, pid)
        assert await second.query("select * from t") == []


async def test_a_byte_now_and_then_holds_no_backend(one: Proxy, database: str) -> None:
    async with clients(one, database, 2) as (first, second):
        sent = query("select 1")
        for at in range(len(sent) - 1):
            first.send(sent[at : at + 1])
            await first.writer.drain()
            assert await second.value("select 2") == "2"
        first.send(sent[-1:])
        assert (await first.until_ready())[-1] == (b"Z", b"I")


async def test_strays_hold_no_backend(one: Proxy, database: str) -> None:
    async with clients(one, database, 2) as (first, second):
        await first.query("create table t (a int)")
        first.send(query("copy t from stdin"))
        await first.until(b"G")
        first.send(copy_data(b"bad\n"))
        with pytest.raises(ServerError, match="22P02"):
            await first.until_ready()
        for _ in range(3):
            first.send(copy_data(b"1\n") + message(b"d", b"x" * 100_000) + message(b"H", b""))
            await first.writer.drain()
            assert await second.value("select 2") == "2"
        first.send(COPY_DONE)
        assert await first.value("select 1") == "1"


@pytest.mark.parametrize("begun", [False, True])
async def test_a_sync_that_may_be_answered_or_not(one: Proxy, database: str, begun: bool) -> None:
    """Behind data that fails the server answers a Sync, which it passes over within a COPY: nobody else gets that."""
    async with clients(one, database, 2) as (first, second):
        await first.query("create table t (a int)")
        first.send(query("copy t from stdin"))
        if begun:
            await first.until(b"G")
        first.send(copy_data(b"bad\n") + SYNC)
        with pytest.raises(ServerError, match="22P02"):
            await first.until_ready()
        assert await first.until_ready() == [(b"Z", b"I")]
        assert await second.value("select 2") == "2"
        assert await first.value("select 1") == "1"


async def test_a_sync_of_which_nobody_knows(one: Proxy, database: str) -> None:
    """It was passed over, since the data before it was good; but its answer may as well be on its way."""
    async with clients(one, database, 2) as (first, second):
        await first.query("create table t (a int)")
        first.send(query("copy t from stdin"))
        await first.until(b"G")
        first.send(copy_data(b"1\n") + SYNC + copy_data(b"bad\n"))
        with pytest.raises(ServerError, match="22P02"):
            await first.until_ready()
        with pytest.raises(ServerError, match="08P01"):
            await first.query("select 1")
        assert await second.value("select 2") == "2"


async def test_a_sync_within_a_copy_is_passed_over(one: Proxy, database: str) -> None:
    async with clients(one, database, 2) as (first, second):
        await first.query("create table t (a int)")
        first.send(query("copy t from stdin"))
        await first.until(b"G")
        first.send(copy_data(b"1\n") + SYNC + copy_data(b"2\n") + SYNC + COPY_DONE)
        assert (await first.until_ready())[-1] == (b"Z", b"I")
        assert await second.value("select count(*) from t") == "2"
        assert await first.value("select 1") == "1"


@pytest.mark.parametrize("rest", [1, 49_000, 50_000])
async def test_a_copy_refused_within_a_message(one: Proxy, database: str, rest: int) -> None:
    """The server reads a message of COPY data to its end also when it has refused the COPY before that."""
    async with clients(one, database, 2) as (first, second):
        await first.query("create table t (a int)")
        first.send(query("copy t from stdin"))
        await first.until(b"G")
        long = copy_data(b"x" * 100_000)
        first.send(copy_data(b"bad\n") + long[:-50_000])
        with pytest.raises(ServerError, match="22P02"):
            await first.until_ready()
        other = asyncio.create_task(second.value("select 2"))
        first.send(long[-50_000:-rest])
        await asyncio.sleep(0.05)
        assert not other.done()
        first.send(long[-rest:] + copy_data(b"1\n") + COPY_DONE + query("select 1"))
        assert await other == "2"
        assert (await first.until_ready())[-1] == (b"Z", b"I")
        assert await first.value("select count(*) from t") == "0"


async def test_a_backend_that_is_killed(one: Proxy, database: str, postgres: Postgres) -> None:
    async with clients(one, database, 2) as (first, second):
        pid = await first.value("begin; select pg_backend_pid()")
        postgres.sql(f"select pg_terminate_backend({pid})")
        seen = await first.until_closed()
        assert [kind for kind, _ in seen] == [b"E"]
        assert b"57P01" in seen[0][1]
        pid = await second.value("select pg_backend_pid()")
        postgres.sql(f"select pg_terminate_backend({pid})")  # idle: nobody notices
        await backend_gone(postgres, database, int(pid or 0))
        assert await second.value("select 1") == "1"


# ---------------------------------------------------------------------- comings and goings


async def test_a_query_sent_with_the_start_up(one: Proxy, database: str) -> None:
    for _ in range(2):  # the first one opens the pool
        client = await WireClient.open(one)
        client.send(startup_message({"user": "postgres", "database": database}) + query("select 1"))
        await client.until_ready()
        assert [kind for kind, _ in await client.until_ready()] == [b"T", b"D", b"C", b"Z"]
        client.reset()


async def test_a_query_sent_with_the_goodbye(one: Proxy, database: str) -> None:
    async with clients(one, database, 2) as (first, second):
        await first.query("create table t (a int)")
        first.send(query("insert into t values (1)") + message(b"X", b""))
        await first.until_closed()

        await second.query("select pg_advisory_lock(1)")  # on the next backend: the first one ended with its client
        await eventually(lambda: one.postgres.sql("select a from t", database) == "1")


async def test_answers_reach_a_client_that_has_sent_all(one: Proxy, database: str) -> None:
    async with clients(one, database, 1) as (client,):
        client.send(query("select 1 from pg_sleep(0.1)"))
        client.writer.write_eof()
        assert [kind for kind, _ in await client.until_closed()] == [b"T", b"D", b"C", b"Z"]


@pytest.mark.parametrize("sent", [query("begin"), query("copy t from stdin"), parse() + bind() + execute(), b"Q\0\0"])
async def test_a_client_that_ends_in_the_middle_of_things(one: Proxy, database: str, sent: bytes) -> None:
    async with clients(one, database, 2) as (first, second):
        await second.query("create table t (a int)")
        first.send(sent)
        first.writer.write_eof()
        await first.until_closed()
        assert await second.value("select 1") == "1"
