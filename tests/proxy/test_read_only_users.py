"""``read_only_users``: whose connections are read-only, whichever way they log in and whatever pools there are."""

from __future__ import annotations

import signal
from pathlib import Path

import psycopg
import pytest
from psycopg import errors

from tests.conftest import StartProxy
from tests.proxy.auth.servers import AuthServer
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.waiting import wait_until

SECRET = "a secret"


def connect(proxy: Proxy, user: str, database: str = "postgres") -> psycopg.Connection:
    # Client-side cursors send several statements in one text.
    return psycopg.connect(proxy.dsn(database, user, SECRET), autocommit=True, cursor_factory=psycopg.ClientCursor)


def is_read_only(client: psycopg.Connection) -> bool:
    return client.execute("SHOW transaction_read_only").fetchone() == ("on",)


@pytest.fixture
def people(postgres: Postgres) -> tuple[str, str]:
    """Two superusers: nothing but the proxy keeps either from writing."""
    return postgres.create_role(SECRET, "LOGIN SUPERUSER"), postgres.create_role(SECRET, "LOGIN SUPERUSER")


@pytest.fixture
def users_file(people: tuple[str, str], tmp_path: Path) -> str:
    path = tmp_path / "users"
    path.touch(mode=0o600)
    path.write_text("".join(f'"{user}" "{SECRET}"\n' for user in people))
    return str(path)


def check(target: Proxy, reader: str, writer: str) -> None:
    with connect(target, reader) as client:
        assert is_read_only(client)
        for text in ("CREATE SCHEMA written", "BEGIN READ WRITE; CREATE SCHEMA written"):
            with pytest.raises(errors.ReadOnlySqlTransaction):
                client.execute(text)
    with pytest.raises(psycopg.OperationalError, match="replication connections are refused where read_only is on"):
        psycopg.connect(target.dsn(user=reader, password=SECRET), replication="database")
    with connect(target, writer) as client:
        client.execute("BEGIN READ WRITE; CREATE SCHEMA written; ROLLBACK")


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
@pytest.mark.parametrize("auth", ["scram-sha-256", "md5", "relay"])
def test_theirs_are_and_nobody_elses(
    proxy: StartProxy, people: tuple[str, str], users_file: str, auth: str, pool_mode: str
) -> None:
    known = {} if auth == "relay" else {"users_file": users_file}
    check(proxy(auth=auth, pool_mode=pool_mode, workers=1, read_only_users=[people[0]], **known), *people)


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_also_where_everybody_is_trusted(proxy: StartProxy, auth_server: AuthServer, pool_mode: str) -> None:
    upstream = f"postgresql://postgres@{auth_server.host}:{auth_server.port}/postgres"
    target = proxy(upstream=upstream, pool_mode=pool_mode, workers=1, read_only_users=["trusted_user"])
    check(target, "trusted_user", "postgres")


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_a_reload_adds_somebody(proxy: StartProxy, pool_mode: str) -> None:
    """Whoever is connected stays what he was; backends that the pool has kept are not given to him any more."""
    target = proxy(pool_mode=pool_mode, workers=1)
    with connect(target, "postgres") as before:
        assert not is_read_only(before)
        target.write_config(read_only_users=["postgres"])
        target.signal(signal.SIGHUP)

        def applied() -> bool:
            with connect(target, "postgres") as client:
                return is_read_only(client)

        wait_until(applied, what="new connections are read-only")
        assert not is_read_only(before)
        with connect(target, "postgres") as client, pytest.raises(errors.ReadOnlySqlTransaction):
            client.execute("BEGIN READ WRITE; CREATE SCHEMA written; ROLLBACK")


def test_an_administrator_among_them_may_only_look(
    proxy: StartProxy, people: tuple[str, str], users_file: str, postgres: Postgres
) -> None:
    target = proxy(
        auth="scram-sha-256", users_file=users_file, workers=1, admin_users=[*people], read_only_users=[people[0]]
    )
    with connect(target, people[0], "pilotwire") as reader, connect(target, people[1], "pilotwire") as writer:
        assert reader.execute("SHOW VERSION").fetchone() == writer.execute("SHOW VERSION").fetchone()
        with pytest.raises(errors.InsufficientPrivilege, match="only administrators"):
            reader.execute("PAUSE")
        with pytest.raises(errors.InsufficientPrivilege, match="only administrators"):
            reader.execute("SET mode = off")
        writer.execute("PAUSE")
        writer.execute("RESUME")
