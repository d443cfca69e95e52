"""Fixtures for all tests: the run, its shared PostgreSQL, private servers, proxies and certificates."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.wire import conversation
from tests.support.hinted import require_hint_plan
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.run import Run
from tests.support.tls import TlsFiles, make_tls_files

# The table of clients is kept where all reports pass: in the controller of a parallel run.
pytest_plugins = ["tests.clients.matrix"]
RUN = pytest.StashKey[Run]()
LONGEST = "tests/test_types.py"
StartProxy = Callable[..., Proxy]
StartPostgres = Callable[..., Postgres]

# While thousands of tests are collected nothing becomes garbage, and none of them does before the end: a third of the
# collection's time, and less for each `gc.collect` of a test.
gc.disable()


def pytest_collection_finish() -> None:
    gc.enable()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Each worker goes through the folders in another direction. In a fresh clone most of the collection's time is what
    pytest makes of a file's asserts: the worker that comes first does it, and the others find it done.
    """
    report = yield
    if isinstance(collector, pytest.Directory):
        inner = report.result
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        middle = len(inner) // 2 if worker // 2 % 2 else 0
        report.result = (inner[middle:] + inner[:middle])[:: -1 if worker % 2 else 1]
    return report


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts a run in the background has it ignore SIGINT, and so would every program the tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # Hundreds of processes of ours are started: each would compile the same modules again.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    # Here and not in a fixture: with xdist this runs in the controller before the workers start and join.
    config.stash[RUN] = Run()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Which worker a test runs in, and when.

    Tests that share what was set up for their module run in one worker, or each of them would set it up once more.
    Faults at full scale run one after another: each takes both cores, and looks how long others have to wait for it.
    The longest come first, or a run would end by waiting for them; files otherwise in one order in all workers.
    """
    items.sort(key=_place)
    for item in items:
        if item.get_closest_marker("xdist_group") is not None:
            continue
        if item.get_closest_marker("long") is not None and item.nodeid.startswith("tests/faults/"):
            item.add_marker(pytest.mark.xdist_group("faults at full scale"))
        elif _shares_with_its_module(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))


def _place(item: pytest.Item) -> tuple[bool, str]:
    longest = item.nodeid.startswith(LONGEST) or item.get_closest_marker("long") is not None
    return not longest, item.nodeid.partition("::")[0]


def _shares_with_its_module(item: pytest.Item) -> bool:
    fixtures: dict[str, Any] = getattr(getattr(item, "_fixtureinfo", None), "name2fixturedefs", {})
    return any(found and found[-1].scope == "module" for found in fixtures.values())


def pytest_report_header(config: pytest.Config) -> str:
    return f"proxy/wire: {'compiled' if str(conversation.__file__).endswith('.so') else 'pure Python'}"


def pytest_unconfigure(config: pytest.Config) -> None:
    if RUN in config.stash:
        config.stash[RUN].leave()


@pytest.fixture(scope="session")
def run_folder(pytestconfig: pytest.Config) -> Path:
    """A folder of this run, removed at its end, that every user can reach."""
    return pytestconfig.stash[RUN].folder


@pytest.fixture(scope="session")
def postgres(run_folder: Path) -> Postgres:
    """The server shared by all workers; stopped when the last of them has ended."""
    return Postgres(run_folder / "shared")


@pytest.fixture(scope="session")
def hinted_postgres(postgres: Postgres) -> Postgres:
    """The shared server, with pg_hint_plan loaded into every session; skipped without it, and failed in CI."""
    return require_hint_plan(postgres)


@pytest.fixture
def start_postgres(run_folder: Path, request: pytest.FixtureRequest) -> Iterator[StartPostgres]:
    """Start private servers: ``start_postgres(config=..., hba=..., port=...)``; removed after the test."""
    with ExitStack() as stack:
        count = 0

        def start(**options: Any) -> Postgres:
            nonlocal count
            count += 1
            directory = run_folder / f"private-{abs(hash(request.node.nodeid)):x}-{count}"
            # Not of the kernel's range for outgoing connections, so that a restart finds its port free.
            server = Postgres(directory, **{"port": free_port(), **options})
            stack.callback(server.close)
            return server

        yield start


def _proxies(postgres: Postgres, folder: Path) -> Iterator[StartProxy]:
    with ExitStack() as stack:

        def start(server: Postgres | None = None, **settings: Any) -> Proxy:
            started = Proxy(server or postgres, folder, **settings)
            stack.callback(started.close)
            return started

        yield start


@pytest.fixture
def proxy(postgres: Postgres, tmp_path: Path) -> Iterator[StartProxy]:
    """Start proxies: ``proxy(pool_mode="transaction")``, ``proxy(private_server, ...)``; stopped after the test."""
    yield from _proxies(postgres, tmp_path)


@pytest.fixture(scope="module")
def module_proxy(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartProxy]:
    """The same for proxies shared by the tests of a module."""
    yield from _proxies(postgres, tmp_path_factory.mktemp("proxies"))


@pytest.fixture(scope="session")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    """A self-made authority, a server's certificate for localhost and a client's for the user ``postgres``."""
    return make_tls_files(tmp_path_factory.mktemp("tls"))
