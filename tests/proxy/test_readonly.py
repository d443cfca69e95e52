"""The read-only guard: every known way round `default_transaction_read_only`, judged by text and tried for real."""

from __future__ import annotations

import asyncpg
import pytest

from proxy.readonly import lifts_read_only
from tests.conftest import StartProxy
from tests.support.postgres import Postgres

ROUTES = [
    "BEGIN READ WRITE",
    "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE",
    "BEGIN /* a /* nested */ one */ READ -- and a line\n WRITE",
    "SET TRANSACTION READ WRITE",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SET transaction_read_only = off",
    "SET default_transaction_read_only TO off",
    'SET "default_transaction_read_only" = 0',
    'SET U&"default_transaction_read\\005fonly" = off',
    "SELECT 1; SET default_transaction_read_only = off",
    "SELECT set_config('default_transaction_read_only', 'off', false)",
    "SELECT pg_catalog.set_config('default_' || 'transaction_read_only', 'off', false)",
    "SELECT set_config(E'default_transaction_read\\137only', 'off', false)",
    "PREPARE sneaky AS SELECT set_config($1, 'off', false)",
    "UPDATE pg_settings SET setting = 'off' WHERE name LIKE 'default%read_only'",
    "DO $$BEGIN EXECUTE 'SET default_tra' || 'nsaction_read_only = off'; END$$",
    "DO E'BEGIN \\x45XECUTE ''SET default_transaction_read_\\x6fnly = off''; END'",
    "DO LANGUAGE plpgsql U&'BEGIN \\0045XECUTE ''SET default_transaction_read_\\006fnly = off''; END'",
    "ALTER SYSTEM SET work_mem = '8MB'",
    "SET my.a$b$ = 1; SET TRANSACTION READ/**/WRITE; SET my.a$b$ = 2",
    "SELECT name'\\'; COMMIT; BEGIN READ WRITE; SELECT name'\\'",
    "SELECT '\\', '; COMMIT; BEGIN READ WRITE; --'",  # where standard_conforming_strings is off
    """SELECT pg_catalog.U&"set_\\0063onfig"('default_transaction_' || 'read_only', 'off', false)""",
    """SELECT U&"!+000073et_config" UESCAPE '!' ('default_transaction_' || 'read_only', 'off', false)""",
    """SELECT U&"$0073et_config" UESCAPE E'\\x24' ('default_transaction_' || 'read_only', 'off', false)""",
    """UPDATE pg_catalog.U&"pg_\\0073ettings" SET setting = 'off' WHERE name LIKE 'default%read_only'""",
    "DO 'BEGIN COMMIT; SET TRANSACTION READ WRITE; CREATE TABLE written (a int); END'",
    "DO 'BEGIN COMMIT; SET TRANS'\n'ACTION READ WRITE; CREATE TABLE written (a int); END'",
    "DO $$BEGIN COMMIT; SET TRANSACTION READ/**/WRITE; CREATE TABLE written (a int); END$$",
    "DO $$BEGIN PERFORM set_config/**/('default_transaction_' || 'read_only', 'off', false); END$$",
    "SELECT query_to_xml('SELECT set' || '_config(''default_transaction_read' || '_only'', ''off'', false)', true, "
    "true, '')",
    "SELECT query_to_xml('SELECT set_config/**/(''default_'' || ''transaction_read'' || ''_only'', ''off'', false)', "
    "true, true, '')",
]
HARMLESS = [
    "SELECT 1",
    "BEGIN READ ONLY",
    "SHOW transaction_read_only",
    "SET default_transaction_read_only = on",
    "SELECT 'read write, it says'",
    "-- read write\nSELECT 1",
    "SELECT set_config('search_path', 'public', false)",
    "SET search_path TO public",
    'SELECT 1 AS U&"caf\\00e9"',
    "SELECT name'e', 'read write', E'it\\'s', $b$ $$ /* $b$",
    "DO $$BEGIN PERFORM 1; END$$",
    "SELECT * FROM ts_stat('SELECT ''a''::tsvector')",
    "SET my.a$b$ = 1",
]


@pytest.mark.parametrize("text", ROUTES)
def test_what_lifts_it_is_seen(text: str) -> None:
    assert lifts_read_only(text.encode())


@pytest.mark.parametrize("text", HARMLESS)
def test_what_does_not_passes(text: str) -> None:
    assert not lifts_read_only(text.encode())


@pytest.mark.parametrize("mode", ["session", "transaction"])
async def test_no_route_leads_to_a_table(proxy: StartProxy, postgres: Postgres, mode: str) -> None:
    """Each route in the simple and, where it is one statement, the extended protocol; then a write is tried."""
    database = postgres.create_database()
    target = proxy(read_only=True, pool_mode=mode, workers=1)
    refused = 0
    for text in ROUTES:
        for extended in (False, True):
            client = await asyncpg.connect(target.dsn(database=database), statement_cache_size=0)
            try:
                with pytest.raises(asyncpg.PostgresError) as caught:
                    await (client.fetch(text) if extended else client.execute(text))
                refused += isinstance(caught.value, asyncpg.ReadOnlySQLTransactionError)
                with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                    await client.execute("CREATE TABLE written (a int)")
            finally:
                await client.close()
    assert refused == 2 * len(ROUTES)
    client = await asyncpg.connect(target.dsn(database=database), statement_cache_size=0)
    for text in HARMLESS:
        await client.execute(text)
        await client.execute("ROLLBACK")
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await client.fetch("SELECT set_config($1, $2, false)", "default_transaction_read_only", "off")
    await client.close()
    assert postgres.sql("SELECT count(*) FROM pg_class WHERE relname = 'written'", database=database) == "0"


async def test_start_up_settings_do_not_lift_it(proxy: StartProxy) -> None:
    target = proxy(read_only=True, workers=1)
    settings = {"default_transaction_read_only": "off", "options": "-c default_transaction_read_only=off"}
    client = await asyncpg.connect(target.dsn(), server_settings=settings)
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await client.execute("CREATE TABLE written (a int)")
    await client.close()
