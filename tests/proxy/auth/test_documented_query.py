"""The ``auth_query`` of the documentation, as somebody would copy it from there."""

from __future__ import annotations

import re

import psycopg
import pytest

from proxy.settings import ProxySettings
from tests.conftest import StartProxy
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until


@pytest.mark.parametrize("pool_mode", ["session", "transaction"])
def test_a_password_that_has_expired_is_none(proxy: StartProxy, postgres: Postgres, pool_mode: str) -> None:
    """Also where the pool has a connection of that user's, so that the server is not asked."""
    found = re.search(r"SELECT .* = \$1", ProxySettings.model_fields["auth_query"].description or "")
    assert found is not None
    role = postgres.create_role("a secret")
    target = proxy(auth="scram-sha-256", auth_query=found[0], pool_mode=pool_mode, workers=1)
    dsn = target.dsn(user=role, password="a secret")
    psycopg.connect(dsn).close()
    postgres.sql(f"ALTER ROLE {role} VALID UNTIL 'yesterday'")
    said = []

    def refused_here() -> bool:
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError as error:
            said.append(str(error))
        return "has an expired password" in target.log_text()

    wait_until(refused_here, 20, "what was known of the user is forgotten")
    assert f'password authentication failed for user "{role}"' in said[-1]
    target.wait_log("sqlstate=28P01")
    postgres.sql(f"ALTER ROLE {role} VALID UNTIL 'infinity'")
    psycopg.connect(dsn).close()
