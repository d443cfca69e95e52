"""psycopg 3, synchronous: values, transactions, copy, cursors, prepared statements, cancel."""

# Where an error comes up, at the statement or at the end of a block, is the driver's business: blocks may hold several.
# ruff: noqa: PT012

from __future__ import annotations

import datetime
import ipaddress
import threading
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg.adapt import PyFormat
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from tests.clients.server import wait_until_running
from tests.clients.target import Target
from tests.support.postgres import Postgres

pytestmark = pytest.mark.client("psycopg 3")

Connection = psycopg.Connection[tuple[Any, ...]]


@pytest.fixture(scope="session")
def client_version() -> str:
    return psycopg.__version__


@pytest.fixture
def connection(target: Target) -> Iterator[Connection]:
    with psycopg.connect(target.dsn(), autocommit=True) as opened:
        yield opened


VALUES = [
    42,
    -(2**63),
    Decimal("12345.6789"),
    1.5e300,
    "t\u00e9xt '\\ \u4e16",
    b"\x00\xff\\x",
    True,
    datetime.date(2024, 2, 29),
    datetime.datetime(2024, 2, 29, 12, 30, 1, 999999, tzinfo=datetime.UTC),
    datetime.timedelta(days=3, seconds=4, microseconds=5),
    uuid.UUID("12345678-1234-5678-1234-567812345678"),
    ipaddress.ip_address("2001:db8::1"),
    [1, 2, None],
]


@pytest.mark.parametrize("binary", [False, True])
def test_values_come_back(connection: Connection, binary: bool) -> None:
    connection.execute("set timezone = 'UTC'")
    marks = sql.SQL(", ").join([sql.Placeholder(format=PyFormat.BINARY if binary else PyFormat.TEXT)] * len(VALUES))
    with connection.cursor(binary=binary) as cursor:
        row = cursor.execute(sql.SQL("select {}").format(marks), VALUES).fetchone()
        assert row is not None
        assert list(row) == VALUES
        assert cursor.execute("select %s", [Jsonb({"a": [1, None, "\u00e4"]})]).fetchone() == (
            {"a": [1, None, "\u00e4"]},
        )
        assert cursor.execute("select %s::text[]", [["a", 'b"c', None]]).fetchone() == (["a", 'b"c', None],)


def test_client_side_binding_and_multiple_results(target: Target) -> None:
    with psycopg.connect(target.dsn(), cursor_factory=psycopg.ClientCursor) as connection:
        cursor = connection.execute("select %s::text as a; select %s::int as b; select 'x' where false", ["it's", 7])
        found = [cursor.fetchall()]
        while cursor.nextset():
            found.append(cursor.fetchall())
    assert found == [[("it's",)], [(7,)], []]


def test_transactions_and_savepoints(connection: Connection) -> None:
    connection.execute("create table accounts (id int primary key, amount int)")
    with connection.transaction():
        connection.execute("insert into accounts values (1, 10)")
        with pytest.raises(errors.UniqueViolation) as caught, connection.transaction():
            connection.execute("insert into accounts values (1, 20)")
        assert caught.value.diag.constraint_name == "accounts_pkey"
        connection.execute("insert into accounts values (2, 30)")
    assert connection.execute("select * from accounts order by id").fetchall() == [(1, 10), (2, 30)]
    with connection.transaction(force_rollback=True):
        connection.execute("delete from accounts")
    assert connection.execute("select count(*) from accounts").fetchone() == (2,)


def test_an_aborted_transaction_stays_aborted_until_rollback(target: Target) -> None:
    with psycopg.connect(target.dsn()) as connection:
        with pytest.raises(errors.DivisionByZero):
            connection.execute("select 1/0")
        assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INERROR
        with pytest.raises(errors.InFailedSqlTransaction):
            connection.execute("select 1")
        connection.rollback()
        assert connection.execute("select 1").fetchone() == (1,)


def test_errors_carry_every_field(connection: Connection) -> None:
    with pytest.raises(errors.UndefinedColumn) as caught:
        connection.execute("select \u00e4\u00e4, nonsense from (values (1)) v(\u00e4\u00e4)")
    diagnostics = caught.value.diag
    assert (diagnostics.severity, diagnostics.sqlstate, diagnostics.statement_position) == ("ERROR", "42703", "12")
    with pytest.raises(errors.RaiseException) as raised:
        connection.execute(
            "do $$ begin raise 'no' using detail = 'why', hint = 'try', column = 'c', table = 't'; end $$"
        )
    fields = raised.value.diag
    assert (fields.message_primary, fields.message_detail, fields.message_hint) == ("no", "why", "try")
    assert (fields.column_name, fields.table_name) == ("c", "t")
    assert fields.context is not None
    assert "PL/pgSQL function" in fields.context


def test_statements_prepared_after_the_threshold(target: Target) -> None:
    with psycopg.connect(target.dsn(), autocommit=True, prepare_threshold=2) as connection:
        connection.execute("create table prepared (a int)")
        for number in range(20):
            connection.execute("insert into prepared values (%s)", [number])
        total = "select sum(a) from prepared where a < %s"
        found = [connection.execute(total, [limit]).fetchone() for limit in range(1, 11)]
        assert found == [(limit * (limit - 1) // 2,) for limit in range(1, 11)]
        rows = connection.execute("select statement from pg_prepared_statements").fetchall()
        expected = {"insert into prepared values ($1)", total.replace("%s", "$1")}
        # In transaction mode the backend may hold what others prepared, and two backends may share ours.
        names = {row[0] for row in rows}
        assert names & expected if target.mode == "transaction" else names == expected


def test_many_prepared_statements_and_their_eviction(target: Target) -> None:
    with psycopg.connect(target.dsn(), autocommit=True, prepare_threshold=0) as connection:
        connection.prepared_max = 10
        for round_ in range(3):
            for number in range(30):
                row = connection.execute(f"select %s::int + {number}", [round_]).fetchone()
                assert row == (round_ + number,)


def test_a_prepared_statement_after_its_table_changed(target: Target) -> None:
    """psycopg forgets its statements after an ALTER of its own, so another connection makes it."""
    with (
        psycopg.connect(target.dsn(), autocommit=True, prepare_threshold=0) as connection,
        psycopg.connect(target.dsn(), autocommit=True) as other,
    ):
        connection.execute("create table changing as select 1 as a")
        assert connection.execute("select * from changing").fetchall() == [(1,)]
        other.execute("alter table changing add column b text default 'new'")
        with pytest.raises(errors.FeatureNotSupported, match="cached plan must not change result type"):
            connection.execute("select * from changing")
        connection.execute("deallocate all")
        assert connection.execute("select * from changing").fetchall() == [(1, "new")]


def test_deallocate_and_discard_all(target: Target) -> None:
    with psycopg.connect(target.dsn(), autocommit=True, prepare_threshold=0) as connection:
        for statement in ("deallocate all", "discard all"):
            assert connection.execute("select %s::int", [1]).fetchone() == (1,)
            connection.execute("set work_mem = '5MB'")
            connection.execute(statement, prepare=False)
            assert connection.execute("select %s::int", [2]).fetchone() == (2,)
        assert connection.execute("show work_mem", prepare=False).fetchone() != ("5MB",)


def test_prepare_and_execute_as_text(connection: Connection) -> None:
    connection.execute("prepare adder (int, int) as select $1 + $2")
    for number in range(5):
        assert connection.execute(f"execute adder({number}, 10)").fetchone() == (number + 10,)
    connection.execute("deallocate adder")
    with pytest.raises(errors.InvalidSqlStatementName):
        connection.execute("execute adder(1, 2)")


def test_copy_in_and_out_as_text(connection: Connection) -> None:
    rows = [(number, f"tab\t newline\n \u00e4 {number}", None) for number in range(5000)]
    connection.execute("create table copied (a int, b text, c date)")
    with connection.cursor() as cursor:
        with cursor.copy("copy copied from stdin") as copy:
            for row in rows:
                copy.write_row(row)
        assert cursor.rowcount == 5000
        with cursor.copy("copy (select * from copied order by a) to stdout") as copy:
            copy.set_types(["int4", "text", "date"])
            assert list(copy.rows()) == rows


def test_copy_in_and_out_as_binary(connection: Connection) -> None:
    rows = [(number, b"\x00\xff" * number, Decimal(number) / 8) for number in range(300)]
    connection.execute("create table copied_binary (a int4, b bytea, c numeric)")
    with connection.cursor() as cursor:
        with cursor.copy("copy copied_binary from stdin (format binary)") as copy:
            copy.set_types(["int4", "bytea", "numeric"])
            for row in rows:
                copy.write_row(row)
        with cursor.copy("copy (select * from copied_binary order by a) to stdout (format binary)") as copy:
            copy.set_types(["int4", "bytea", "numeric"])
            assert list(copy.rows()) == rows


def test_a_failed_copy_leaves_the_connection_usable(connection: Connection) -> None:
    connection.execute("create table refused (a int check (a < 100))")
    with connection.cursor() as cursor:
        with pytest.raises(ValueError, match="the client gave up"), cursor.copy("copy refused from stdin") as copy:
            copy.write_row([1])
            raise ValueError("the client gave up")
        with pytest.raises(errors.CheckViolation), cursor.copy("copy refused from stdin") as copy:
            for number in range(20_000):
                copy.write_row([number])
        with pytest.raises(errors.InvalidTextRepresentation), cursor.copy("copy refused from stdin") as copy:
            copy.write("x\n")
        assert cursor.execute("select count(*) from refused").fetchone() == (0,)


def test_server_side_cursors(target: Target) -> None:
    with psycopg.connect(target.dsn()) as connection:
        with connection.cursor("named") as cursor:
            cursor.itersize = 100
            cursor.execute("select n, repeat('x', 100) from generate_series(1, %s) n", [1050])
            assert sum(row[0] for row in cursor) == 1050 * 1051 // 2
        with connection.cursor("scrolled", scrollable=True) as cursor:
            cursor.execute("select * from generate_series(1, 100)")
            cursor.scroll(50)
            assert cursor.fetchmany(2) == [(51,), (52,)]
            cursor.scroll(-10)
            assert cursor.fetchone() == (43,)
            cursor.scroll(99, mode="absolute")
            assert cursor.fetchall() == [(100,)]


def test_a_cursor_that_outlives_its_transaction(target: Target) -> None:
    with (
        psycopg.connect(target.dsn(), autocommit=True) as connection,
        connection.cursor("held", withhold=True) as cursor,
    ):
        cursor.execute("select * from generate_series(1, 10)")
        assert cursor.fetchmany(3) == [(1,), (2,), (3,)]
        connection.execute("select 'something else'")
        assert cursor.fetchall() == [(number,) for number in range(4, 11)]


def test_streamed_rows(connection: Connection) -> None:
    with connection.cursor() as cursor:
        for size in (1, 100):
            rows = cursor.stream("select n, repeat('y', 200) from generate_series(1, 3000) n", size=size)
            assert sum(row[0] for row in rows) == 3000 * 3001 // 2
        first = next(iter(cursor.stream("select * from generate_series(1, 100000)")))
        assert first == (1,)
    assert connection.execute("select 'alive'").fetchone() == ("alive",)


def test_pipeline_mode(connection: Connection) -> None:
    connection.execute("create table piped (a int primary key)")
    with connection.pipeline(), connection.cursor() as inserting, connection.cursor(row_factory=dict_row) as counting:
        inserting.executemany("insert into piped values (%s)", [(number,) for number in range(500)])
        counting.execute("select count(*) as n from piped")
        assert counting.fetchone() == {"n": 500}
    with pytest.raises(errors.UniqueViolation), connection.pipeline():
        connection.execute("insert into piped values (1000)")
        connection.execute("insert into piped values (1)")
        connection.execute("insert into piped values (2000)")
    assert connection.execute("select count(*) from piped").fetchone() == (500,)


def test_pipeline_with_transactions_and_syncs(connection: Connection) -> None:
    connection.execute("create table synced (a int)")
    with connection.pipeline() as pipeline:
        with connection.transaction():
            cursors = [connection.execute("insert into synced values (%s) returning a", [n]) for n in range(50)]
        pipeline.sync()
        with pytest.raises(errors.DivisionByZero):
            connection.execute("select 1/0").fetchone()
        pipeline.sync()
        last = connection.execute("select count(*) from synced")
        assert [cursor.fetchone() for cursor in cursors] == [(n,) for n in range(50)]
        assert last.fetchone() == (50,)


def test_executemany_returning(connection: Connection) -> None:
    connection.execute("create table returned (id serial, name text)")
    with connection.cursor() as cursor:
        names = [(f"n{number}",) for number in range(200)]
        cursor.executemany("insert into returned (name) values (%s) returning id, name", names, returning=True)
        found = [cursor.fetchone()]
        while cursor.nextset():
            found.append(cursor.fetchone())
    assert found == [(number + 1, f"n{number}") for number in range(200)]


def test_notifications(target: Target, connection: Connection) -> None:
    with psycopg.connect(target.dsn(), autocommit=True) as listener:
        listener.execute("listen news")
        with connection.transaction():
            connection.execute("notify news, 'one'")
            connection.execute("select pg_notify('news', 'two')")
        received = [notification.payload for notification in listener.notifies(timeout=10, stop_after=2)]
        listener.execute("unlisten *")
    assert received == ["one", "two"]


def test_notices(connection: Connection) -> None:
    seen: list[str | None] = []
    connection.add_notice_handler(lambda diagnostics: seen.append(diagnostics.message_primary))
    connection.execute("do $$ begin for n in 1..3 loop raise notice 'n %', n; end loop; end $$")
    assert seen == ["n 1", "n 2", "n 3"]


def test_two_phase_commit(target: Target) -> None:
    """One connection prepares, another finishes: the transaction belongs to neither."""
    with psycopg.connect(target.dsn()) as connection, psycopg.connect(target.dsn()) as other:
        connection.execute("create table phases (a int)")
        connection.commit()
        for outcome in ("commit", "rollback"):
            identity = connection.xid(1, f"{target.database}-{outcome}", "branch")
            connection.tpc_begin(identity)
            connection.execute("insert into phases values (1)")
            connection.tpc_prepare()
            connection.close() if outcome == "rollback" else connection.tpc_commit()
        waiting = [found for found in other.tpc_recover() if found.gtrid == f"{target.database}-rollback"]
        assert len(waiting) == 1
        other.rollback()
        other.tpc_rollback(waiting[0])
        assert other.execute("select count(*) from phases").fetchone() == (1,)


def test_state_of_the_session_stays_with_it(target: Target) -> None:
    """SET, temporary tables and advisory locks, with other clients at work in between."""
    with psycopg.connect(target.dsn(), autocommit=True) as one, psycopg.connect(target.dsn(), autocommit=True) as two:
        one.execute("set search_path = pg_catalog; set application_name = 'one'")
        one.execute("create temp table mine (a int)")
        one.execute("insert into mine values (1)")
        assert one.execute("select pg_try_advisory_lock(77)").fetchone() == (True,)
        for _ in range(5):
            assert two.execute("show search_path").fetchone() == ('"$user", public',)
            assert two.execute("select to_regclass('mine')").fetchone() == (None,)
            assert two.execute("select pg_try_advisory_lock(77)").fetchone() == (False,)
            assert one.execute("show search_path").fetchone() == ("pg_catalog",)
            assert one.execute("select a from pg_temp.mine").fetchone() == (1,)
        assert one.info.parameter_status("application_name") == "one"
    with psycopg.connect(target.dsn(), autocommit=True) as three:
        three.execute("set lock_timeout = '10s'")  # the end of the other connection takes the server a moment
        three.execute("select pg_advisory_lock(77)")
        assert three.execute("show application_name").fetchone() == ("",)


def test_cancel(target: Target, postgres: Postgres) -> None:
    with psycopg.connect(target.dsn(), autocommit=True) as connection:
        for safe in (True, False):

            def cancel(safe: bool = safe) -> None:
                wait_until_running(postgres, target, "cancel me")
                connection.cancel_safe(timeout=10) if safe else connection.cancel()

            thread = threading.Thread(target=cancel)
            thread.start()
            with pytest.raises(errors.QueryCanceled, match="canceling statement due to user request"):
                connection.execute("select pg_sleep(60) /* cancel me */")
            thread.join()
            assert connection.execute("select 'alive'").fetchone() == ("alive",)


def test_timeouts_of_the_server(connection: Connection) -> None:
    connection.execute("set statement_timeout = '50ms'")
    with pytest.raises(errors.QueryCanceled, match="statement timeout"):
        connection.execute("select pg_sleep(10)")
    with pytest.raises(errors.QueryCanceled), connection.pipeline():
        connection.execute("select pg_sleep(10)")
    connection.execute("reset statement_timeout")
    assert connection.execute("select 1").fetchone() == (1,)


def test_what_the_connection_knows_of_the_server(connection: Connection, target: Target, postgres: Postgres) -> None:
    with psycopg.connect(postgres.dsn(database=target.database)) as direct:
        names = ["server_version", "server_encoding", "client_encoding", "is_superuser", "session_authorization"]
        names += ["DateStyle", "IntervalStyle", "TimeZone", "integer_datetimes", "standard_conforming_strings"]
        names += ["default_transaction_read_only", "in_hot_standby", "scram_iterations", "search_path"]
        for name in names:
            assert connection.info.parameter_status(name) == direct.info.parameter_status(name), name
    assert connection.info.dbname == target.database
    assert connection.info.backend_pid > 0


def test_unknown_database(target: Target) -> None:
    absent = target.dsn().replace(target.database, "absent")
    with pytest.raises(psycopg.OperationalError, match='database "absent" does not exist'):
        psycopg.connect(absent)


def test_its_own_pool(target: Target) -> None:
    with ConnectionPool(target.dsn(), min_size=2, max_size=4, kwargs={"autocommit": True}) as pool:
        pool.wait(timeout=20)
        results: list[int] = []

        def work(number: int) -> None:
            for step in range(10):
                with pool.connection() as connection:
                    row = connection.execute("select %s::int * 100 + %s::int", [number, step]).fetchone()
                    assert row is not None
                    results.append(row[0])

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [number * 100 + step for number in range(8) for step in range(10)]
        pool.check()


def test_large_values_both_ways(connection: Connection) -> None:
    big = "0123456789abcdef" * (1 << 20)
    row = connection.execute("select length(%(big)s::text), md5(%(big)s::text), %(big)s::text", {"big": big}).fetchone()
    assert row is not None
    assert row[0] == len(big)
    assert row[2] == big


def test_tls_and_scram(secure_target: Target) -> None:
    options = {"channel_binding": "require", "sslnegotiation": "direct"}
    with psycopg.connect(secure_target.dsn(**options), autocommit=True) as connection:
        assert connection.execute("select current_user").fetchone() == (secure_target.user,)
        assert connection.pgconn.ssl_in_use
        big = "x" * 3_000_000
        assert connection.execute("select %s::text", [big]).fetchone() == (big,)
        with connection.cursor() as cursor, cursor.copy("copy (select generate_series(1, 50000)) to stdout") as copy:
            assert sum(1 for _ in copy.rows()) == 50_000
    with pytest.raises(psycopg.OperationalError, match="password authentication failed for user"):
        psycopg.connect(secure_target.dsn(), password="wrong")
