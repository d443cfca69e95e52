"""Who may do what in the administration database."""

from __future__ import annotations

from typing import Any

import pytest

from proxy.auth import Authenticator
from proxy.auth.exchange import ScramExchange
from proxy.console_db.rights import Rights, meant, rights, say_who
from proxy.login import Login, NoCredential, RelayCredential
from proxy.logs import Log
from proxy.settings import ProxySettings


def settings(**values: Any) -> ProxySettings:
    return ProxySettings.model_validate({"upstream": "postgresql://app@127.0.0.1/shop", "store": "none", **values})


def login(user: str, *, read_only: bool = False) -> Login:
    return Login(user, "pilotwire", {}, NoCredential(), read_only=read_only)


def test_without_names_it_is_the_dsns_user_alone() -> None:
    assert rights(settings(), login("app"), {}) is Rights.ALL
    assert rights(settings(), login("dba"), {}) is Rights.NONE
    nobody = settings(upstream="postgresql://127.0.0.1/shop")
    assert rights(nobody, login("jo"), {"PGUSER": "jo"}) is Rights.ALL
    assert rights(nobody, login("dba"), {"PGUSER": "jo"}) is Rights.NONE


def test_with_names_it_is_those() -> None:
    found = settings(admin_users=["dba"], stats_users=["dba", "exporter"])
    assert [rights(found, login(user), {}) for user in ("dba", "exporter", "app")] == [
        Rights.ALL, Rights.SHOW, Rights.NONE,
    ]  # fmt: skip
    assert rights(found, login("dba", read_only=True), {}) is Rights.SHOW


@pytest.mark.parametrize(
    ("database", "replication", "expected"),
    [("pilotwire", None, True), ("Pilotwire", None, False), ("", None, False), ("pilotwire", "database", False)],
)
def test_which_logins_are_meant(database: str, replication: str | None, expected: bool) -> None:
    assert meant(settings(), database, replication) is expected
    assert not meant(settings(admin_database=""), database, replication)


async def test_where_the_server_verifies_clients_the_proxy_does_it_for_its_own_database() -> None:
    authenticator = Authenticator(
        settings(auth="relay", upstream_password="geheim"), lambda: None, Log("test", fd=-1), environment={}
    )
    await authenticator.start()
    about: dict[str, Any] = {"tls": False, "peer_certificate": None, "peer": "127.0.0.1"}
    assert isinstance((await authenticator.begin("app", "shop", **about)).credential, RelayCredential)
    own = await authenticator.begin("app", "pilotwire", own=True, **about)
    assert isinstance(own, ScramExchange)
    assert not own.done


def test_the_start_says_who_is_the_administrator_where_nobody_is_named() -> None:
    told: list[tuple[str, dict[str, Any]]] = []

    class Lines(Log):
        def event(self, name: str, /, *, level: Any = "info", **fields: Any) -> None:
            told.append((name, fields))

    log = Lines("test", fd=-1)
    for quiet in (settings(admin_users=["dba"]), settings(admin_database="")):
        say_who(quiet, log)
    assert told == []
    say_who(settings(), log)
    ((event, fields),) = told
    assert (event, fields["admin"]) == ("admin_users_not_set", "app")
