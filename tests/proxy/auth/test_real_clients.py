"""libpq (through psycopg) and asyncpg prove themselves to our exchanges."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from proxy.auth import Authenticator, scram
from proxy.auth.exchange import md5_of
from proxy.login import NoCredential, PasswordCredential, ScramKeysCredential
from proxy.settings import ProxySettings
from tests.proxy.auth.listener import RecordedLog, TestListener
from tests.proxy.auth.servers import PASSWORD, AuthServer, Certificates
from tests.proxy.upstream.test_login import log_in

SALT = b"0123456789abcdef"


async def authenticator(tmp_path: Path, binding: bytes | None = None, **settings: Any) -> Authenticator:
    users = tmp_path / "users.txt"
    users.touch(mode=0o600)
    users.write_text(
        f'"plain" "secret"\n"verifier" "{scram.make_verifier("secret", SALT)}"\n'
        f'"hashed" "md5{md5_of("secret", "hashed")}"\n"cert_user" ""\n'
    )
    values = {"upstream": "postgresql://owner:ownsecret@127.0.0.1:1/db", "users_file": str(users), **settings}
    made = Authenticator(ProxySettings(**values), lambda: binding, RecordedLog(), environment={})
    await made.start()
    return made


def connect(port: int, user: str, password: str | None = "secret", **options: str) -> None:
    options |= {"host": "127.0.0.1", "port": str(port), "user": user, "dbname": "db", "connect_timeout": "20"}
    if password is not None:
        options["password"] = password
    psycopg.connect(make_conninfo(**options)).close()


async def refused(port: int, user: str, password: str | None = "secret", **options: str) -> str:
    with pytest.raises(psycopg.OperationalError) as caught:
        await asyncio.to_thread(connect, port, user, password, **options)
    return str(caught.value)


async def test_libpq_scram(tmp_path: Path) -> None:
    async with TestListener(await authenticator(tmp_path)).running() as listener:
        for user, password in (("plain", "secret"), ("verifier", "secret"), ("owner", "ownsecret")):
            await asyncio.to_thread(connect, listener.port, user, password, require_auth="scram-sha-256")
        assert listener.credentials["plain"] == PasswordCredential("secret")
        assert listener.credentials["owner"] == PasswordCredential("ownsecret")
        keys = scram.derive_keys("secret", SALT, 4096)
        assert listener.credentials["verifier"] == ScramKeysCredential(keys.client_key, keys.server_key)
        for user in ("plain", "verifier", "owner", "nobody", "cert_user", "hashed"):
            said = await refused(listener.port, user, "wrong")
            assert f'FATAL:  password authentication failed for user "{user}"' in said
        details = [failure.log_detail for failure in listener.failures]
        assert details == [
            'Password does not match for user "plain".',
            'Password does not match for user "verifier".',
            'Password does not match for user "owner".',
            'Role "nobody" is not known to the proxy.',
            'User "cert_user" has no password assigned.',
            'User "hashed" does not have a valid SCRAM secret.',
        ]


async def test_libpq_channel_binding(tmp_path: Path, certificates: Certificates) -> None:
    bound = await authenticator(tmp_path, certificates.server_hash())
    async with TestListener(bound, certificates.server_context()).running() as listener:
        for user in ("plain", "verifier"):
            for binding in ("require", "prefer", "disable"):
                await asyncio.to_thread(connect, listener.port, user, sslmode="require", channel_binding=binding)
        assert isinstance(listener.credentials["verifier"], ScramKeysCredential)
        assert 'user "plain"' in await refused(listener.port, "plain", "wrong", channel_binding="require")
    other = await authenticator(tmp_path, bytes(32))
    async with TestListener(other, certificates.server_context()).running() as listener:
        said = await refused(listener.port, "plain", sslmode="require", channel_binding="require")
        assert "SCRAM channel binding check failed" in said


async def test_asyncpg_scram_and_md5(tmp_path: Path) -> None:
    for auth in ("scram-sha-256", "md5"):
        async with TestListener(await authenticator(tmp_path, auth=auth)).running() as listener:
            connection = await asyncpg.connect(
                host="127.0.0.1", port=listener.port, user="plain", password="secret", database="db", ssl=False
            )
            await connection.close()
            assert listener.credentials == {"plain": PasswordCredential("secret")}


async def test_libpq_md5(tmp_path: Path) -> None:
    async with TestListener(await authenticator(tmp_path, auth="md5")).running() as listener:
        await asyncio.to_thread(connect, listener.port, "plain", require_auth="md5")
        await asyncio.to_thread(connect, listener.port, "hashed", require_auth="md5")
        assert listener.credentials["hashed"] == PasswordCredential("md5" + md5_of("secret", "hashed"))
        # A verifier cannot answer md5, so such a user is asked for SCRAM.
        await asyncio.to_thread(connect, listener.port, "verifier", require_auth="scram-sha-256")
        for user in ("plain", "hashed", "verifier", "nobody"):
            said = await refused(listener.port, user, "wrong")
            assert f'FATAL:  password authentication failed for user "{user}"' in said


async def test_libpq_trust(tmp_path: Path) -> None:
    async with TestListener(await authenticator(tmp_path, auth="trust")).running() as listener:
        for user in ("owner", "nobody"):
            await asyncio.to_thread(connect, listener.port, user, None, require_auth="none")
        assert listener.credentials == {"owner": PasswordCredential("ownsecret"), "nobody": NoCredential()}


async def test_libpq_certificates(tmp_path: Path, certificates: Certificates) -> None:
    made = await authenticator(
        tmp_path,
        certificates.server_hash(),
        auth="cert",
        client_tls_mode="verify-full",
        client_tls_cert=str(certificates.server_cert),
        client_tls_key=str(certificates.server_key),
        client_tls_ca=str(certificates.authority),
    )

    def options(name: str) -> dict[str, str]:
        cert, key = certificates.client[name]
        return {"sslmode": "require", "sslcert": str(cert), "sslkey": str(key)}

    async with TestListener(made, certificates.server_context()).running() as listener:
        await asyncio.to_thread(connect, listener.port, "cert_user", None, **options("cert_user"))
        assert listener.credentials == {"cert_user": NoCredential()}
        said = await refused(listener.port, "cert_user", None, **options("other_user"))
        assert 'FATAL:  certificate authentication failed for user "cert_user"' in said
        said = await refused(listener.port, "cert_user", None, sslmode="require", sslcert="", sslcertmode="disable")
        assert "FATAL:  connection requires a valid client certificate" in said
        said = await refused(listener.port, "cert_user", None, sslmode="disable")
        assert 'no pg_hba.conf entry for host "127.0.0.1", user "cert_user", database "db", no encryption' in said
        assert [failure.sqlstate for failure in listener.failures] == ["28000"] * 3


async def test_certificate_wording_is_the_servers(tls_server: Any, certificates: Certificates) -> None:
    cert, key = certificates.client["other_user"]
    said = await refused(tls_server.port, "cert_user", None, sslmode="require", sslcert=str(cert), sslkey=str(key))
    assert 'FATAL:  certificate authentication failed for user "cert_user"' in said
    said = await refused(tls_server.port, "cert_user", None, sslmode="require", sslcertmode="disable")
    assert "FATAL:  connection requires a valid client certificate" in said


async def test_from_a_clients_proof_to_a_login_at_the_server(tmp_path: Path, auth_server: AuthServer) -> None:
    """The proxy knows the verifier only; libpq's proof opens the server for that user all the same."""
    (row,) = await auth_server.sql("SELECT rolpassword FROM pg_authid WHERE rolname = 'few_rounds_user'")
    made = await authenticator(tmp_path)
    users = tmp_path / "users.txt"
    users.write_text(f'"few_rounds_user" "{row[0]}"\n')
    await made.start()
    async with TestListener(made).running() as listener:
        await asyncio.to_thread(connect, listener.port, "few_rounds_user", PASSWORD)
        login = await log_in(auth_server, "few_rounds_user", listener.credentials["few_rounds_user"])
        assert login.done, login.failed
