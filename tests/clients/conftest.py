"""Fixtures of the client matrix: the mode a test runs in and the address its client connects to.

Every test is run once per pool mode. PILOTWIRE_CLIENT_TARGETS=direct (or any list of direct, session, transaction)
points the clients elsewhere: straight at the server, a failure is the test's own fault.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from tests.clients.matrix import CLIENTS, MODES
from tests.clients.target import Target
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.tls import TlsFiles

Opener = Callable[[str], Proxy]

TARGETS = os.environ.get("PILOTWIRE_CLIENT_TARGETS", ",".join(MODES)).split(",")
PASSWORD = "it's a \u201csecret\u201d of 100 % @/:"
HERE = Path(__file__).resolve().parent
PROXIES = pytest.StashKey[list[Proxy]]()
LOG_LINES = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write into each test's report which row of the table it belongs to."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if item.path.parent != HERE or callspec is None or "mode" not in callspec.params:
            continue
        marker = item.get_closest_marker("client")
        if marker is None or marker.args[0] not in CLIENTS:
            message = f"{item.nodeid} needs the marker client(<name>), with a name of tests/clients/matrix.py."
            raise pytest.UsageError(message)
        item.user_properties += [("client", marker.args[0]), ("mode", callspec.params["mode"])]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure shows the end of the log of each proxy this process runs: it may be gone when somebody looks."""
    report = yield
    if report.failed:
        for proxy in item.config.stash.get(PROXIES, []):
            lines = proxy.log_text().splitlines()[-LOG_LINES:]
            report.sections.append((f"log of the proxy in {proxy.settings['pool_mode']} mode", "\n".join(lines)))
    return report


@pytest.fixture(scope="session", params=TARGETS)
def mode(request: pytest.FixtureRequest) -> str:
    assert request.param in (*MODES, "direct"), "PILOTWIRE_CLIENT_TARGETS lists direct, session or transaction."
    return str(request.param)


@pytest.fixture(autouse=True)
def _version(request: pytest.FixtureRequest) -> None:
    """Put the client's version, which each module's fixture ``client_version`` tells, into the report."""
    if "mode" in request.fixturenames:
        request.node.user_properties.append(("version", request.getfixturevalue("client_version")))


def close(proxy: Proxy) -> None:
    """Stop a proxy; an exception it caught on its way, though it cost one client only, fails the run."""
    proxy.close()
    internal = [line for line in proxy.log_text().splitlines() if " internal_error " in line]
    assert not internal, f"{proxy!r} met what it did not expect: {internal[:10]}"


@pytest.fixture(scope="session")
def open_proxy(
    postgres: Postgres, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Opener]:
    """Opens the proxy for clients without TLS or password, once per mode."""
    with ExitStack() as stack:

        @cache
        def proxy_for(mode: str) -> Proxy:
            proxy = Proxy(postgres, tmp_path_factory.mktemp("open"), pool_mode=mode)
            stack.callback(close, proxy)
            pytestconfig.stash.setdefault(PROXIES, []).append(proxy)
            return proxy

        yield proxy_for


@pytest.fixture(scope="session")
def scram_user(postgres: Postgres) -> str:
    """A plain role, of this test process alone, whose password the proxy knows from its users file."""
    return postgres.create_role(PASSWORD)


@pytest.fixture(scope="session")
def secure_proxy(
    postgres: Postgres,
    tls_files: TlsFiles,
    scram_user: str,
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
) -> Iterator[Opener]:
    """Opens the proxy for clients that verify its certificate and log in by SCRAM, once per mode."""
    folder = tmp_path_factory.mktemp("secure")
    users = folder / "users.txt"
    users.touch(mode=0o600)
    users.write_text(f'"{scram_user}" "{PASSWORD}"\n', encoding="utf-8")
    with ExitStack() as stack:

        @cache
        def proxy_for(mode: str) -> Proxy:
            proxy = Proxy(
                postgres,
                folder,
                pool_mode=mode,
                auth="scram-sha-256",
                users_file=str(users),
                client_tls_mode="require",
                client_tls_cert=str(tls_files.server_cert),
                client_tls_key=str(tls_files.server_key),
            )
            stack.callback(close, proxy)
            pytestconfig.stash.setdefault(PROXIES, []).append(proxy)
            return proxy

        yield proxy_for


@pytest.fixture(scope="module")
def target(mode: str, postgres: Postgres, open_proxy: Opener) -> Iterator[Target]:
    """The address for this mode and a database of the module's own."""
    server: Postgres | Proxy = postgres if mode == "direct" else open_proxy(mode)
    database = postgres.create_database()
    yield Target(mode, server.host, server.port, postgres.user, database)
    postgres.drop_database(database)


@pytest.fixture(scope="module")
def secure_target(
    mode: str, postgres: Postgres, scram_user: str, secure_proxy: Opener, tls_files: TlsFiles
) -> Iterator[Target]:
    """The same behind TLS and SCRAM; the user owns the database. There is no such direct target."""
    if mode == "direct":
        pytest.skip("the server itself has no certificate here")
    proxy = secure_proxy(mode)
    database = postgres.create_database()
    postgres.sql(f"alter database {database} owner to {scram_user}")
    yield Target(mode, proxy.host, proxy.port, scram_user, database, PASSWORD, tls_files.ca)
    postgres.drop_database(database)
