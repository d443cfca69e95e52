"""pg_dump and pg_restore: a database taken out through the proxy and put back through it is the same database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clients.target import Target
from tests.clients.tools import output, run
from tests.support.postgres import Postgres

pytestmark = pytest.mark.client("pg_dump and pg_restore")

SCHEMA = """
    create schema shop;
    create type shop.mood as enum ('sad', 'ok', 'happy');
    create table shop.customers (id serial primary key, name text not null, mood shop.mood, tags text[], extra jsonb);
    create table shop.orders (
        id bigint generated always as identity primary key,
        customer int not null references shop.customers,
        placed timestamptz not null,
        amount numeric(12, 2) check (amount >= 0)
    );
    create index on shop.orders (customer, placed desc);
    create view shop.totals as select customer, sum(amount) as total from shop.orders group by customer;
    create function shop.twice(a int) returns int language sql immutable as 'select a * 2';
    create table shop.blobs (id int primary key, content bytea);
    comment on table shop.orders is 'it''s what "they" ordered; \u00e4\u4e16';
    insert into shop.customers (name, mood, tags, extra)
        select 'name ' || n || E'\\t\\n\\\\', (array['sad', 'ok', 'happy'])[n % 3 + 1]::shop.mood,
               array['a', null, n::text], jsonb_build_object('n', n)
        from generate_series(1, 500) n;
    insert into shop.orders (customer, placed, amount)
        select n % 500 + 1, timestamptz '2024-02-29 12:00+00' + n * interval '1 minute', n / 7.0
        from generate_series(1, 20000) n;
    insert into shop.blobs
        select n, decode(repeat(lpad(to_hex(n), 2, '0'), 30000), 'hex') from generate_series(0, 40) n;
    select lo_from_bytea(4242, 'a large object'::bytea);
"""

FINGERPRINT = """
    select md5(string_agg(c::text, '|' order by id)) from shop.customers c
    union all select md5(string_agg(o::text, '|' order by id)) from shop.orders o
    union all select md5(string_agg(b::text, '|' order by id)) from shop.blobs b
    union all select shop.twice(21)::text
    union all select sum(total)::text from shop.totals
    union all select convert_from(lo_get(4242), 'UTF8')
    union all select nextval('shop.customers_id_seq')::text
"""


@pytest.fixture(scope="session")
def client_version(postgres: Postgres) -> str:
    return output([postgres.bin("pg_dump"), "--version"], Target.outside()).split()[2]


@pytest.fixture(scope="module")
def filled(target: Target, postgres: Postgres) -> Target:
    postgres.sql(SCHEMA, database=target.database)
    return target


@pytest.fixture
def empty(target: Target, postgres: Postgres) -> Iterator[Target]:
    database = postgres.create_database()
    yield replace(target, database=database)
    postgres.sql(f"drop database if exists {database} with (force)")


def plain_dump(postgres: Postgres, database: str) -> str:
    """The whole database as text, taken straight from the server; the lines that are random by design are left out."""
    text = output([postgres.bin("pg_dump"), "-d", postgres.dsn(database=database)], Target.outside())
    return "\n".join(line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict")))


def assert_same(postgres: Postgres, filled: Target, copy: Target) -> None:
    assert plain_dump(postgres, copy.database) == plain_dump(postgres, filled.database)
    expected, found = postgres.sql(FINGERPRINT, filled.database), postgres.sql(FINGERPRINT, copy.database)
    assert found == expected
    postgres.sql("select setval('shop.customers_id_seq', 500)", filled.database)
    assert expected.splitlines()[3:] == ["42", expected.splitlines()[4], "a large object", "501"]


def test_custom_format(filled: Target, empty: Target, postgres: Postgres, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    output([postgres.bin("pg_dump"), "-Fc", "-f", dump], filled.environment())
    output([postgres.bin("pg_restore"), "--exit-on-error", "-d", empty.database, dump], empty.environment())
    assert_same(postgres, filled, empty)


def test_directory_format_in_parallel(filled: Target, empty: Target, postgres: Postgres, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    output([postgres.bin("pg_dump"), "-Fd", "-j", "3", "-f", dump], filled.environment())
    output([postgres.bin("pg_restore"), "--exit-on-error", "-j", "3", "-d", empty.database, dump], empty.environment())
    assert_same(postgres, filled, empty)


def test_text_through_psql(filled: Target, empty: Target, postgres: Postgres) -> None:
    text = output([postgres.bin("pg_dump")], filled.environment())
    output([postgres.bin("psql"), "-Xq", "-v", "ON_ERROR_STOP=1"], empty.environment(), stdin=text)
    assert_same(postgres, filled, empty)


def test_the_text_is_the_one_taken_directly(filled: Target, postgres: Postgres) -> None:
    through = output([postgres.bin("pg_dump"), "--restrict-key=same"], filled.environment())
    direct = output(
        [postgres.bin("pg_dump"), "--restrict-key=same", "-d", postgres.dsn(database=filled.database)], Target.outside()
    )
    assert through == direct


def test_inserts_in_one_transaction(filled: Target, empty: Target, postgres: Postgres, tmp_path: Path) -> None:
    dump = tmp_path / "dump"
    output([postgres.bin("pg_dump"), "-Ft", "--rows-per-insert=100", "--inserts", "-f", dump], filled.environment())
    output([postgres.bin("pg_restore"), "-1", "-d", empty.database, dump], empty.environment())
    assert_same(postgres, filled, empty)


def test_create_the_database_too(filled: Target, postgres: Postgres, tmp_path: Path) -> None:
    """pg_restore -C -c drops and creates the database it restores, connected to another one."""
    dump = tmp_path / "dump"
    output([postgres.bin("pg_dump"), "-Fc", "-f", dump], filled.environment())
    before = plain_dump(postgres, filled.database)
    elsewhere = replace(filled, database="postgres")
    command: list[str | Path] = [
        postgres.bin("pg_restore"),
        "-C",
        "-c",
        "--if-exists",
        "--exit-on-error",
        "-d",
        "postgres",
        dump,
    ]
    output(command, elsewhere.environment())
    assert plain_dump(postgres, filled.database) == before


def test_a_restore_over_what_is_there_reports_errors(
    filled: Target, empty: Target, postgres: Postgres, tmp_path: Path
) -> None:
    dump = tmp_path / "dump"
    output([postgres.bin("pg_dump"), "-Fc", "-f", dump], filled.environment())
    output([postgres.bin("pg_restore"), "-d", empty.database, dump], empty.environment())
    again = run([postgres.bin("pg_restore"), "-d", empty.database, dump], empty.environment())
    assert again.returncode == 1
    assert 'type "mood" already exists' in again.stderr
    assert "errors ignored on restore" in again.stderr


def test_pg_dumpall_and_pg_isready(filled: Target, postgres: Postgres) -> None:
    ready = output([postgres.bin("pg_isready")], filled.environment())
    assert ready == f"{filled.host}:{filled.port} - accepting connections\n"
    roles = output([postgres.bin("pg_dumpall"), "--globals-only", "--no-role-passwords"], filled.environment())
    assert f"CREATE ROLE {filled.user};" in roles
