"""Our own upstream login against real servers, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import ssl
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.auth import scram
from proxy.auth.exchange import ScramExchange, md5_of
from proxy.login import Credential, NoCredential, PasswordCredential, ScramKeysCredential
from proxy.upstream.login import MAX_GREETING_BYTES, UpstreamLogin
from proxy.wire.messages import AUTHENTICATION_OK, TERMINATE, error_fields, message, startup_message
from tests.proxy.auth.servers import PASSWORD, AuthServer, Certificates, TlsServer

SSL_REQUEST = struct.pack("!ii", 8, 80877103)
READY = b"Z\0\0\0\x05I"


async def log_in(
    server: AuthServer | TlsServer,
    user: str,
    credential: Credential,
    *,
    tls: bool = False,
    binding: bytes | None = None,
    minor: int = 0,
    chunk: int = 65536,
    parameters: dict[str, str] | None = None,
) -> UpstreamLogin:
    """Log in to a real server, reading ``chunk`` bytes at a time, and hang up."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        if tls:
            writer.write(SSL_REQUEST)
            assert await reader.readexactly(1) == b"S"
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            await writer.start_tls(context)
        startup = startup_message({"user": user, "database": "postgres", **(parameters or {})}, minor)
        login = UpstreamLogin(startup, user, credential, binding)
        writer.write(login.start())
        while not login.done and login.failed is None:
            data = await asyncio.wait_for(reader.read(chunk), 20)
            if not data:
                login.connection_lost()
                break
            writer.writelines(login.receive(data))
        if login.done:
            writer.write(TERMINATE)
        return login
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def failure(login: UpstreamLogin) -> dict[str, str]:
    assert login.failed is not None, login
    assert not login.done
    return error_fields(login.failed[5:])


async def keys_of(server: AuthServer, user: str) -> ScramKeysCredential:
    """What the proxy recovers from a client's proof when it holds only the server's verifier."""
    (row,) = await server.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{user}'")
    salt = base64.b64decode(row[0].split(":")[1].split("$")[0])
    iterations = int(row[0].split("$")[1].split(":")[0])
    keys = scram.derive_keys(PASSWORD, salt, iterations)
    return ScramKeysCredential(keys.client_key, keys.server_key)


@pytest.mark.parametrize("user", ["scram_user", "forever_user", "md5_user", "clear_user", "few_rounds_user"])
@pytest.mark.parametrize("chunk", [1, 65536])
async def test_password(auth_server: AuthServer, user: str, chunk: int) -> None:
    login = await log_in(auth_server, user, PasswordCredential(PASSWORD), chunk=chunk)
    assert login.done, login.failed
    kinds = [raw[:1] for raw in login.greeting]
    assert kinds.count(b"K") == 1
    assert b"server_version\0" in b"".join(login.greeting)
    assert login.pid > 0
    assert len(login.secret) == 4
    assert login.rest == b""


@pytest.mark.parametrize(("user", "password"), [("odd_user", "a\u00a0b\u00adc"), ("raw_user", "x\u2028\u00e9")])
async def test_password_preparation_is_the_servers(auth_server: AuthServer, user: str, password: str) -> None:
    assert (await log_in(auth_server, user, PasswordCredential(password))).done


async def test_startup_settings_and_long_key(auth_server: AuthServer) -> None:
    login = await log_in(
        auth_server,
        "scram_user",
        PasswordCredential(PASSWORD),
        minor=2,
        parameters={"application_name": "möwe", "DateStyle": "SQL, DMY"},
    )
    assert login.done, login.failed
    assert login.minor == 2
    assert len(login.secret) == 32
    assert any(b"DateStyle\0SQL, DMY" in raw for raw in login.greeting)


async def test_newer_protocol_is_negotiated(auth_server: AuthServer) -> None:
    login = await log_in(
        auth_server, "trusted_user", NoCredential(), minor=9999, parameters={"_pq_.one": "x", "_pq_.two": "y"}
    )
    assert login.done, login.failed
    assert login.minor == 2
    assert login.unknown_options == ["_pq_.one", "_pq_.two"]
    assert all(raw[:1] in (b"S", b"N", b"K") for raw in login.greeting)


async def test_trust_and_replication(auth_server: AuthServer) -> None:
    assert (await log_in(auth_server, "trusted_user", NoCredential())).done
    login = await log_in(auth_server, "asker", PasswordCredential("asker"), parameters={"replication": "true"})
    assert login.done, login.failed


@pytest.mark.parametrize("user", ["scram_user", "few_rounds_user"])
async def test_recovered_keys(auth_server: AuthServer, user: str) -> None:
    assert (await log_in(auth_server, user, await keys_of(auth_server, user))).done


async def test_md5_hash_serves_as_password(auth_server: AuthServer) -> None:
    credential = PasswordCredential("md5" + md5_of(PASSWORD, "md5_user"))
    assert (await log_in(auth_server, "md5_user", credential)).done
    fields = failure(await log_in(auth_server, "scram_user", credential))
    assert "knows only its MD5 hash" in fields["M"]


async def test_the_servers_own_refusals_are_kept(auth_server: AuthServer) -> None:
    for user in ("scram_user", "md5_user", "clear_user", "expired_user", "nobody_known"):
        fields = failure(await log_in(auth_server, user, PasswordCredential("wrong")))
        assert (fields["S"], fields["C"]) == ("FATAL", "28P01")
        assert fields["M"] == f'password authentication failed for user "{user}"'
        assert "R" in fields, "it must be the server's message, with its routine"
    fields = failure(await log_in(auth_server, "few_rounds_user", await keys_of(auth_server, "scram_user")))
    assert fields["C"] == "28P01"


@pytest.mark.parametrize("user", ["scram_user", "md5_user", "clear_user"])
async def test_missing_password(auth_server: AuthServer, user: str) -> None:
    fields = failure(await log_in(auth_server, user, NoCredential()))
    assert (fields["S"], fields["C"]) == ("FATAL", "28000")
    assert "the proxy knows no password of it: add the password to users_file" in fields["M"]
    if user != "scram_user":
        fields = failure(await log_in(auth_server, user, ScramKeysCredential(bytes(32), bytes(32))))
        assert "knows only its SCRAM verifier" in fields["M"]


async def test_channel_binding(tls_server: TlsServer, certificates: Certificates) -> None:
    password = PasswordCredential(PASSWORD)
    assert (await log_in(tls_server, "scram_user", password, tls=True, binding=certificates.server_hash())).done
    assert (await log_in(tls_server, "scram_user", password, tls=True)).done
    fields = failure(await log_in(tls_server, "scram_user", password, tls=True, binding=hashlib.sha256().digest()))
    assert (fields["C"], fields["M"]) == ("28000", "SCRAM channel binding check failed")


def test_a_client_that_could_bind_says_so() -> None:
    """Somebody on the way takes PLUS out of the list: the server must learn that we could have bound."""
    login = fresh(binding=b"hash")
    (reply,) = login.receive(request(10, b"SCRAM-SHA-256\0\0"))
    assert reply[5:].startswith(b"SCRAM-SHA-256\0")
    assert b"y,,n=,r=" in reply


def request(code: int, data: bytes = b"") -> bytes:
    return message(b"R", struct.pack("!i", code) + data)


def fresh(credential: Credential | None = None, binding: bytes | None = None) -> UpstreamLogin:
    login = UpstreamLogin(startup_message({"user": "x"}), "x", credential or PasswordCredential("y"), binding)
    assert login.start() == startup_message({"user": "x"})
    return login


def test_our_own_exchange_is_a_server_for_it() -> None:
    verifier = scram.make_verifier("y", b"0123456789abcdef")
    exchange = ScramExchange("x", verifier, channel_binding=b"hash")
    login = fresh(binding=b"hash")
    data = exchange.start()
    while not exchange.done:
        (reply,) = login.receive(data)
        data = exchange.receive(reply[5:])
    assert login.receive(data + AUTHENTICATION_OK + READY + b"behind") == []
    assert login.done
    assert login.rest == b"behind"
    assert isinstance(exchange.credential, ScramKeysCredential)


@pytest.mark.parametrize("code", [2, 6, 7, 9, 99])
def test_unsupported_method(code: int) -> None:
    login = fresh()
    assert login.receive(request(code)) == []
    fields = failure(login)
    assert fields["C"] == "08P01"
    assert "which the proxy cannot do" in fields["M"]
    assert login.receive(READY) == []


def test_unsupported_mechanism() -> None:
    login = fresh()
    login.receive(request(10, b"OAUTHBEARER\0\0"))
    assert "only the SASL mechanisms OAUTHBEARER, and" in failure(login)["M"]


@pytest.mark.parametrize(
    "data",
    [
        READY,
        message(b"D", b"row"),
        message(b"S", b"name\0value\0"),
        message(b"R", b"\0"),
        request(5, b"abc"),
        request(11, b"r=x"),
        request(12, b"v=x"),
        message(b"R", struct.pack("!i", 0) + bytes(3000)),
        b"R" + struct.pack("!i", 3),
        b"S" + struct.pack("!i", 1 << 30),
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        AUTHENTICATION_OK + AUTHENTICATION_OK,
        AUTHENTICATION_OK + message(b"K", bytes(7)),
        AUTHENTICATION_OK + message(b"K", bytes(261)),
        AUTHENTICATION_OK + message(b"S", bytes(40000)),
        message(b"v", bytes(7)),
        message(b"v", struct.pack("!ii", 196608, 2) + b"_pq_.x\0"),
        message(b"v", struct.pack("!ii", 196610, 0)),
        AUTHENTICATION_OK + b"E" + struct.pack("!i", 1 << 20),
    ],
)
def test_protocol_violations(data: bytes) -> None:
    login = fresh()
    login.receive(data)
    assert failure(login)["C"] == "08P01"


def test_greeting_is_bounded() -> None:
    login = fresh()
    login.receive(AUTHENTICATION_OK)
    notice = message(b"N", bytes(30000))
    for _ in range(MAX_GREETING_BYTES // len(notice) + 1):
        login.receive(notice)
    assert "longer than 1 MiB" in failure(login)["M"]
    assert login.receive(notice) == []


def sasl_started(credential: Credential | None = None) -> tuple[UpstreamLogin, bytes]:
    login = fresh(credential)
    (reply,) = login.receive(request(10, b"SCRAM-SHA-256\0SCRAM-SHA-256-PLUS\0\0"))
    return login, reply.rpartition(b"r=")[2]


def test_server_that_does_not_know_the_password() -> None:
    for last in (AUTHENTICATION_OK, request(12, b"v=" + base64.b64encode(bytes(32))), request(12, b"e=other-error")):
        login, nonce = sasl_started()
        assert login.receive(request(11, b"r=" + nonce + b"server,s=c2FsdHNhbHQ=,i=4096"))
        login.receive(last)
        assert failure(login)["C"] == "28000"


@pytest.mark.parametrize(
    "challenge",
    [
        b"r=NONCE,s=c2FsdA==,i=4096",
        b"r=otherserver,s=c2FsdA==,i=4096",
        b"r=NONCEserver,s=c2FsdA==,i=99999999",
        b"r=NONCEserver,s=c2FsdA==,i=0",
        b"r=NONCEserver,s=c2FsdA==,i=-1",
        b"r=NONCEserver,s=!,i=4096",
        b"r=NONCEserver,s=,i=4096",
        b"s=c2FsdA==,r=NONCEserver,i=4096",
        b"m=x,r=NONCEserver,s=c2FsdA==,i=4096",
        b"e=other-error",
        b"",
    ],
)
def test_wrong_challenges(challenge: bytes) -> None:
    login, nonce = sasl_started()
    assert login.receive(request(11, challenge.replace(b"NONCE", nonce))) == []
    assert failure(login)["C"] == "08P01"


def test_second_challenge_and_second_start() -> None:
    login, nonce = sasl_started()
    challenge = request(11, b"r=" + nonce + b"server,s=c2FsdA==,i=1")
    assert login.receive(challenge)
    assert login.receive(challenge) == []
    assert "second SCRAM challenge" in failure(login)["M"]
    login, _nonce = sasl_started()
    login.receive(request(10, b"SCRAM-SHA-256\0\0"))
    assert "second SASL exchange" in failure(login)["M"]


def test_old_error_of_a_server_without_processes() -> None:
    login = fresh()
    login.receive(b"Ecould not fork new process for connection: ")
    assert login.failed is None
    login.receive(b"Resource temporarily unavailable\n\0")
    assert failure(login)["M"] == "could not fork new process for connection: Resource temporarily unavailable"
    login = fresh()
    login.receive(b"Eout of memory\n")
    login.connection_lost()
    assert failure(login)["M"] == "out of memory"
    login = fresh()
    login.receive(b"E" + b"x" * 40000)
    assert failure(login)["C"] == "08P01"


def test_connection_lost() -> None:
    login = fresh()
    login.connection_lost()
    assert (failure(login)["C"], failure(login)["M"]) == ("08006", "server closed the connection unexpectedly")
    login = fresh()
    login.receive(AUTHENTICATION_OK + READY)
    login.connection_lost()
    assert login.done
    assert login.failed is None


def test_repr_tells_the_state_without_secrets() -> None:
    login = fresh(PasswordCredential("hush"))
    assert "proving" in repr(login)
    assert "hush" not in repr(login)
    login.receive(AUTHENTICATION_OK)
    assert "starting" in repr(login)


@given(st.lists(st.binary(max_size=64), max_size=20))
def test_random_bytes(parts: list[bytes]) -> None:
    login = fresh(binding=b"hash")
    for part in parts:
        login.receive(part)
    assert not login.done or login.rest is not None


@given(
    st.lists(
        st.tuples(st.sampled_from([b"R", b"S", b"K", b"N", b"E", b"Z", b"v"]), st.binary(max_size=40))
        | st.tuples(st.just(b"R"), st.sampled_from([0, 3, 5, 10, 11, 12]).map(lambda code: struct.pack("!i", code))),
        max_size=12,
    )
)
def test_random_messages(messages: list[tuple[bytes, bytes]]) -> None:
    login = fresh()
    for kind, body in messages:
        login.receive(message(kind, body))
    assert not (login.done and login.failed)
