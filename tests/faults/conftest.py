"""Fixtures of the fault tests."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio

from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.wireclient import reset_all

MODES = ("session", "transaction")
StartProxy = Callable[..., Proxy]
StartPostgres = Callable[..., Postgres]


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """A database of the shared server that nobody else uses, so that its backends can be counted."""
    name = postgres.create_database()
    yield name
    postgres.drop_database(name)


@pytest_asyncio.fixture(autouse=True)
async def _connections() -> AsyncIterator[None]:
    yield
    await reset_all()


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    """Both pool modes in turn."""
    value: str = request.param
    return value


def alive(pid: int) -> bool:
    """Whether a process of this id is running (a zombie is not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        os.kill(pid, number)
