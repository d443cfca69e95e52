"""A store of each kind."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from planner.memory.store import Store, open_store
from tests.support.postgres import Postgres


@pytest.fixture(scope="session")
def store_database(postgres: Postgres) -> str:
    return postgres.dsn(postgres.create_database())


@pytest.fixture
def postgres_url(store_database: str) -> str:
    """An empty schema of its own, which is made sooner than a database."""
    schema = f"s{uuid.uuid4().hex[:12]}"
    with psycopg.connect(store_database, autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    return f"{store_database}?options=-csearch_path%3D{schema}"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a new store may be made."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/state/store.db"
        return
    yield request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with open_store(url) as opened:
        yield opened


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/store.db"
