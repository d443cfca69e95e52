"""``auth = "relay"``: clients that log in with the server itself, through a proxy that only carries the messages."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from tests.conftest import StartProxy
from tests.proxy.auth.servers import PASSWORD, TlsServer
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.tls import TlsFiles
from tests.support.waiting import wait_until


def connect(proxy: Proxy, **options: str) -> psycopg.Connection:
    return psycopg.connect(make_conninfo(proxy.dsn(), **options), autocommit=True)


def test_the_server_decides(proxy: StartProxy, postgres: Postgres) -> None:
    target = proxy(auth="relay")
    role = postgres.create_role("a secret")
    with connect(target, user=role, password="a secret", application_name="told") as client:
        assert client.execute("SELECT current_user, current_setting('application_name')").fetchone() == (role, "told")
        assert client.info.parameter_status("application_name") == "told"
        with pytest.raises(errors.SyntaxError):
            client.execute("SELEC 1")
        assert client.execute("SELECT 2").fetchone() == (2,)
    with pytest.raises(psycopg.OperationalError, match=f'password authentication failed for user "{role}"'):
        connect(target, user=role, password="wrong")
    with pytest.raises(psycopg.OperationalError, match='database "nowhere" does not exist'):
        connect(target, dbname="nowhere")


def test_the_servers_own_key_cancels(proxy: StartProxy, postgres: Postgres) -> None:
    target = proxy(auth="relay")
    with connect(target) as client, ThreadPoolExecutor(1) as elsewhere:
        pid = client.info.backend_pid
        assert client.execute("SELECT pg_backend_pid()").fetchone() == (pid,)
        running = elsewhere.submit(client.execute, "SELECT pg_sleep(60)")
        waits = f"SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}"
        wait_until(lambda: postgres.sql(waits) == "PgSleep", what="the query runs")
        client.cancel()
        with pytest.raises(errors.QueryCanceled):
            running.result(30)


def test_what_cannot_be_bound_to_a_channel_is_not_offered(
    proxy: StartProxy, tls_server: TlsServer, tls_files: TlsFiles
) -> None:
    """A client without TLS would take the offer for an attack. One with TLS must be told not to try: the server sees in
    its proof that the offer was kept from it."""
    target = proxy(
        auth="relay",
        upstream=f"postgresql://scram_user@{tls_server.host}:{tls_server.port}/postgres",
        server_tls_mode="require",
        client_tls_cert=str(tls_files.server_cert),
        client_tls_key=str(tls_files.server_key),
    )
    for options in ({"sslmode": "disable"}, {"sslmode": "require", "channel_binding": "disable"}):
        with connect(target, user="scram_user", password=PASSWORD, **options) as client:
            assert client.execute("SELECT current_user").fetchone() == ("scram_user",)
    with pytest.raises(psycopg.OperationalError, match="channel binding negotiation error") as refused:
        connect(target, user="scram_user", password=PASSWORD, sslmode="require")
    assert "connect with channel_binding=disable" in str(refused.value)
