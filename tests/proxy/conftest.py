"""Fixtures of all tests that log in: servers with users of every kind, and a database behind two backends.

They are defined here and nowhere imported: a fixture that several modules import is set up once for each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import StartProxy
from tests.proxy.auth.servers import FEW_ROUNDS, ROLES, AuthServer, Certificates, TlsServer, system_postgres
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy

SERVERS = ("auth_server", "tls_server")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of a server run in one worker of a parallel run, so that it is started once."""
    for item in items:
        for server in SERVERS:
            if server in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group(server))


@pytest.fixture(scope="session")
def auth_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AuthServer]:
    server = AuthServer(tmp_path_factory.mktemp("auth-server"))
    try:
        asyncio.run(server.sql(ROLES))
        asyncio.run(server.sql(FEW_ROUNDS))
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def tls_server(certificates: Certificates) -> Iterator[TlsServer]:
    """A server with TLS; the embedded one is built without it."""
    bin_dir: Path | None = system_postgres()
    assert bin_dir is not None, "Channel binding needs a PostgreSQL with TLS: install the Debian package postgresql."
    server = TlsServer(bin_dir, certificates)
    try:
        asyncio.run(_make_roles(server))
        yield server
    finally:
        server.stop()


async def _make_roles(server: TlsServer) -> None:
    connection = await asyncpg.connect(
        host=server.host, port=server.port, user="postgres", database="postgres", ssl=False
    )
    try:
        await connection.execute(
            ROLES + "CREATE ROLE cert_user LOGIN; CREATE ROLE tls_only LOGIN; CREATE ROLE clear_only LOGIN;"
        )
    finally:
        await connection.close()


@pytest.fixture
def database(postgres: Postgres) -> str:
    """A new database of the shared server."""
    return postgres.create_database()


@pytest.fixture(scope="module")
def two(module_proxy: StartProxy) -> Proxy:
    """A proxy with two backends for all clients of a database."""
    return module_proxy(pool_mode="transaction", pool_size=2, pool_overflow=0)
