"""``auth = "relay"``: clients that log in with the server itself, through a proxy that only carries the messages."""

from __future__ import annotations

import asyncio
import socket
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg import errors
from psycopg.conninfo import make_conninfo

from proxy.wire.messages import message, query, startup_message
from tests.conftest import StartProxy
from tests.proxy.auth.servers import PASSWORD, AuthServer, TlsServer
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.tls import TlsFiles
from tests.support.waiting import wait_until
from tests.support.wireclient import ServerError, WireClient


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


@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("user", ["clear_user", "trusted_user"])
async def test_the_guard_reads_what_comes_right_behind_the_login(
    proxy: StartProxy, auth_server: AuthServer, user: str, together: bool
) -> None:
    """The server would run it as soon as it has let the client in, before there is a session."""
    target = proxy(
        auth="relay", workers=1, read_only_users=[user],
        upstream=f"postgresql://{user}@{auth_server.host}:{auth_server.port}/postgres",
    )  # fmt: skip
    client = await WireClient.open(target)
    login = [startup_message({"user": user, "database": "postgres"})]
    if user == "clear_user":
        client.send(login.pop())
        assert await client.message() == (b"R", (3).to_bytes(4, "big"))
        login.append(message(b"p", PASSWORD.encode() + b"\0"))
    sent = [*login, query("BEGIN READ WRITE"), query("SHOW transaction_read_only"), query("SELECT 1")]
    for piece in [b"".join(sent)] if together else sent:
        client.send(piece)
        await asyncio.sleep(0)
    await client.until_ready()
    with pytest.raises(ServerError, match="25006: this session is read-only"):
        await client.until_ready()
    shown = [body for kind, body in await client.until_ready() if kind == b"D"]
    assert shown == [b"\0\1\0\0\0\2on"]
    await client.until_ready()
    await client.close()


async def test_a_server_that_never_answers_is_one_that_cannot_be_had(proxy: StartProxy) -> None:
    """It takes connections and says nothing about TLS, for longer than a login may take."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = proxy(
            auth="relay", workers=1, server_tls_mode="require", login_timeout=0.5, connect_timeout=30,
            upstream=f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/postgres",
        )  # fmt: skip
        client = await WireClient.open(target)
        client.send(startup_message({"user": "postgres", "database": "postgres"}))
        async with asyncio.timeout(10):
            with pytest.raises(ServerError, match=r"57P03: pilotwire cannot connect to the server at .*: timed out"):
                await client.until_ready()
            assert await client.until_closed() == []


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_a_certificate_that_is_required_is_asked_for(
    proxy: StartProxy, postgres: Postgres, tls_files: TlsFiles, mode: str
) -> None:
    target = proxy(
        auth="relay",
        client_tls_mode=mode,
        client_tls_cert=str(tls_files.server_cert),
        client_tls_key=str(tls_files.server_key),
        client_tls_ca=str(tls_files.ca),
    )
    certificate = {"sslmode": "require", "sslcert": str(tls_files.client_cert), "sslkey": str(tls_files.client_key)}
    role = {"user": postgres.create_role("a secret"), "password": "a secret"}
    with pytest.raises(psycopg.OperationalError, match="connection requires a valid client certificate"):
        connect(target, sslmode="require", sslcert="none", **role)
    with connect(target, **certificate) as client:
        assert client.execute("SELECT current_user").fetchone() == ("postgres",)
    if mode == "verify-ca":
        connect(target, **certificate, **role).close()
    else:
        with pytest.raises(psycopg.OperationalError, match="certificate authentication failed for user"):
            connect(target, **certificate, **role)
