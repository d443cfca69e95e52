"""Which exchange a client gets: methods, sources of secrets, reload."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proxy.auth import Authenticator, AuthFailed, Exchange, scram
from proxy.auth.exchange import Md5Exchange, ScramExchange
from proxy.auth.users import UsersFileError
from proxy.login import NoCredential, PasswordCredential, RelayCredential, ScramKeysCredential
from proxy.settings import ProxySettings
from tests.proxy.auth.dialogue import NONCE, Script, initial, ours
from tests.proxy.auth.listener import RecordedLog
from tests.proxy.auth.servers import PASSWORD, AuthServer

OWNED = "postgresql://owner:ownsecret@127.0.0.1:1/db"


async def make(**settings: Any) -> Authenticator:
    made = Authenticator(
        ProxySettings(**{"upstream": OWNED, **settings}), lambda: b"hash", RecordedLog(), environment={}
    )
    await made.start()
    return made


async def begin(authenticator: Authenticator, user: str, **facts: Any) -> Exchange:
    facts = {"tls": False, "peer_certificate": None, "peer": "127.0.0.1", **facts}
    return await authenticator.begin(user, "db", **facts)


def users_file(folder: Path, text: str, mode: int = 0o600) -> str:
    path = folder / "users.txt"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


async def test_nothing_before_start() -> None:
    with pytest.raises(RuntimeError):
        await begin(Authenticator(ProxySettings(upstream=OWNED), lambda: None, RecordedLog()), "owner")


async def test_default_method() -> None:
    assert isinstance(await begin(await make(), "owner"), ScramExchange)
    assert (await begin(await make(upstream="postgresql://owner@127.0.0.1:1/db"), "owner")).credential == NoCredential()


async def test_password_of_the_environment_and_of_a_passfile(tmp_path: Path) -> None:
    upstream = "postgresql://owner@127.0.0.1:1/db"
    trusting = Authenticator(
        ProxySettings(upstream=upstream, auth="trust"), lambda: None, RecordedLog(), environment={"PGPASSWORD": "pw"}
    )
    await trusting.start()
    assert (await begin(trusting, "owner")).credential == PasswordCredential("pw")
    passfile = tmp_path / "passfile"
    passfile.touch(mode=0o600)
    passfile.write_text("127.0.0.1:1:db:owner:fromfile\n")
    exchange = await begin(await make(upstream=upstream, upstream_passfile=str(passfile)), "owner")
    assert ours(exchange, Script("right", password="fromfile")) == {}
    assert exchange.credential == PasswordCredential("fromfile")


async def test_plus_only_over_tls() -> None:
    made = await make()
    assert b"SCRAM-SHA-256-PLUS" in (await begin(made, "owner", tls=True)).start()
    assert b"SCRAM-SHA-256-PLUS" not in (await begin(made, "owner")).start()


async def test_trust_is_for_this_machine() -> None:
    made = await make(auth="trust")
    for peer in ("unix", "127.0.0.1", "::1"):
        assert (await begin(made, "someone", peer=peer)).credential == NoCredential()
    with pytest.raises(AuthFailed) as caught:
        await begin(made, "someone", peer="192.0.2.7")
    assert caught.value.message == (
        'no pg_hba.conf entry for host "192.0.2.7", user "someone", database "db", no encryption'
    )


async def test_relay() -> None:
    assert (await begin(await make(auth="relay"), "someone")).credential == RelayCredential()


def challenge(exchange: Exchange) -> str:
    exchange.start()
    return exchange.receive(initial(f"n,,n=,r={NONCE}".encode()))[9:].decode().partition(",")[2]


async def test_unknown_users_look_like_known_ones(tmp_path: Path) -> None:
    path = users_file(tmp_path, '"bob" "secret"\n')
    made, twin = await make(users_file=path), await make(users_file=path)
    seen = {user: challenge(await begin(made, user)) for user in ("bob", "nobody", "somebody")}
    assert len(set(seen.values())) == 3
    assert {len(text) for text in seen.values()} == {len("s=") + 24 + len(",i=4096")}
    for user, text in seen.items():
        # The same again, and in another worker: a salt that changes would tell that the user is made up.
        assert challenge(await begin(made, user)) == text
        assert challenge(await begin(twin, user)) == text


async def test_md5_method(tmp_path: Path) -> None:
    verifier = scram.make_verifier("secret", b"0123456789abcdef")
    made = await make(auth="md5", users_file=users_file(tmp_path, f'"bob" "secret"\n"eve" "{verifier}"\n'))
    assert isinstance(await begin(made, "bob"), Md5Exchange)
    assert isinstance(await begin(made, "nobody"), Md5Exchange)
    assert isinstance(await begin(made, "eve"), ScramExchange)


async def test_certificates_choose_the_first_common_name(tmp_path: Path) -> None:
    made = await make(
        auth="cert",
        client_tls_mode="verify-ca",
        client_tls_cert="x",
        client_tls_key="x",
        client_tls_ca="x",
        users_file=users_file(tmp_path, '"bob" "secret"\n"old" "md5000102030405060708090a0b0c0d0e0f"\n'),
    )

    def certificate(*names: str) -> dict[str, Any]:
        return {"subject": ((("organizationName", "x"),), *((("commonName", name),) for name in names))}

    bob = await begin(made, "bob", tls=True, peer_certificate=certificate("bob", "eve"))
    assert bob.credential == PasswordCredential("secret")
    old = await begin(made, "old", tls=True, peer_certificate=certificate("old"))
    assert old.credential == PasswordCredential("md5000102030405060708090a0b0c0d0e0f")
    for names in (("eve", "bob"), (), ("",), ("bob\0",)):
        with pytest.raises(AuthFailed) as caught:
            await begin(made, "bob", tls=True, peer_certificate=certificate(*names))
        assert caught.value.message == 'certificate authentication failed for user "bob"'


async def test_reload_reads_the_file_anew_and_keeps_the_old_when_it_is_broken(tmp_path: Path) -> None:
    path = users_file(tmp_path, '"bob" "one"\n')
    settings = ProxySettings(upstream=OWNED, users_file=path)
    log = RecordedLog()
    made = Authenticator(settings, lambda: None, log, environment={})
    await made.start()
    assert ours(await begin(made, "bob"), Script("", password="one")) == {}
    users_file(tmp_path, '"bob" "two"\n', 0o644)
    await made.reload(settings)
    assert log.events == [("users_file_readable_by_all", {"level": "warning", "path": path})]
    assert ours(await begin(made, "bob"), Script("", password="one"))["C"] == "28P01"
    assert ours(await begin(made, "bob"), Script("", password="two")) == {}
    users_file(tmp_path, '"bob" three\n')
    with pytest.raises(UsersFileError):
        await made.reload(settings)
    assert ours(await begin(made, "bob"), Script("", password="two")) == {}


async def test_auth_query(auth_server: AuthServer, tmp_path: Path) -> None:
    made = await make(
        upstream=f"postgresql://owner:ownsecret@127.0.0.1:{auth_server.port}/postgres",
        server_tls_mode="disable",
        users_file=users_file(tmp_path, '"asker" "asker"\n'),
        auth_query="SELECT rolname, rolpassword, rolvaliduntil FROM pg_authid WHERE rolname = $1",
        auth_query_user="asker",
    )
    try:
        right = Script("right", password=PASSWORD)
        for user in ("scram_user", "forever_user", "few_rounds_user"):
            exchange = await begin(made, user)
            assert ours(exchange, right) == {}
            assert isinstance(exchange.credential, ScramKeysCredential)
        for user in ("expired_user", "bare_user", "nobody_known", "md5_user"):
            assert ours(await begin(made, user), right) == {
                "S": "FATAL", "V": "FATAL", "C": "28P01", "M": f'password authentication failed for user "{user}"',
            }  # fmt: skip
        # A new password is taken at the second attempt at the latest, whatever is kept.
        await auth_server.sql("CREATE ROLE changing_user LOGIN PASSWORD 'old'")
        assert ours(await begin(made, "changing_user"), Script("", password="old")) == {}
        await auth_server.sql("ALTER ROLE changing_user PASSWORD 'new'")
        ours(await begin(made, "changing_user"), Script("", password="new"))
        assert ours(await begin(made, "changing_user"), Script("", password="new")) == {}
        await auth_server.sql("DROP ROLE changing_user")
    finally:
        await made.close()


async def test_reload_ends_the_old_connections_of_auth_query(auth_server: AuthServer) -> None:
    settings = ProxySettings(
        upstream=f"postgresql://asker:asker@127.0.0.1:{auth_server.port}/postgres",
        server_tls_mode="disable",
        auth_query="SELECT rolname, rolpassword FROM pg_authid WHERE rolname = $1",
    )
    made = Authenticator(settings, lambda: None, RecordedLog(), upstream_tls=lambda: {"ssl": False}, environment={})
    await made.start()
    try:
        for _ in range(2):
            assert ours(await begin(made, "scram_user"), Script("", password=PASSWORD)) == {}
            await made.reload(settings)
        assert ours(await begin(made, "scram_user"), Script("", password=PASSWORD)) == {}
    finally:
        await made.close()
