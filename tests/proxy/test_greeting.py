"""Logging in: what a client that is being verified may send, what it gets, and what it can never cause."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scramp import ScramClient

from proxy.auth import Authenticator, Exchange
from proxy.login import PasswordCredential
from proxy.tls import peer_end_point_hash
from proxy.wire.messages import AUTHENTICATION_OK, error_fields, message
from tests.proxy.door import READY, Door, ask, read_all
from tests.proxy.test_listener import in_comparable_form
from tests.proxy.wire.startup_packets import SSL_REQUEST, USER, packet
from tests.support.postgres import Postgres
from tests.support.tls import TlsFiles
from tests.support.waiting import wait_until

OpenDoor = Callable[..., Door]
LOGIN = packet(USER)
WELCOME = AUTHENTICATION_OK + READY
PASSWORD = "correct horse"


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Door]]:
    """One door for each way of asking for a password."""
    folder = tmp_path_factory.mktemp("doors")
    with ExitStack() as stack:
        opened = {
            auth: stack.enter_context(Door(folder / f"{auth}.log", auth=auth, upstream_password=PASSWORD))
            for auth in ("scram-sha-256", "md5")
        }
        yield opened
        for door in opened.values():
            assert door.problems == []
            assert len(door.lobby) == 0


@pytest.fixture
def open_door(tmp_path: Path) -> Iterator[OpenDoor]:
    with ExitStack() as stack:

        def start(**options: Any) -> Door:
            known = {"auth": "scram-sha-256", "upstream_password": PASSWORD}
            return stack.enter_context(Door(tmp_path / "log", **{**known, **options}))

        yield start


def read_message(sock: socket.socket) -> bytes:
    """One whole message of the other side."""
    head = b""
    while len(head) < 5:
        head += sock.recv(5 - len(head)) or pytest.fail(f"closed after {head!r}")
    size = int.from_bytes(head[1:], "big") - 4
    body = b""
    while len(body) < size:
        body += sock.recv(size - len(body)) or pytest.fail(f"closed after {head + body!r}")
    return head + body


def initial_response(mechanism: str, text: str) -> bytes:
    data = text.encode()
    return message(b"p", mechanism.encode() + b"\0" + struct.pack("!i", len(data)) + data)


def log_in_by_scram(sock: socket.socket, password: str, binding: bytes | None = None) -> bytes:
    """Answers the SASL request already sent; gives the first message behind AuthenticationSASLFinal."""
    mechanisms = read_message(sock)[9:].decode().rstrip("\0").split("\0")
    assert mechanisms == (["SCRAM-SHA-256-PLUS"] if binding else []) + ["SCRAM-SHA-256"]
    channel = ("tls-server-end-point", binding) if binding else None
    client = ScramClient(mechanisms[:1], "postgres", password, channel_binding=channel)
    sock.sendall(initial_response(client.mechanism_name, client.get_client_first()))
    client.set_server_first(read_message(sock)[9:].decode())
    sock.sendall(message(b"p", client.get_client_final().encode()))
    answer = read_message(sock)
    if answer[:1] == b"R":
        client.set_server_final(answer[9:].decode())
        answer = read_message(sock)
    return answer


def test_scram(doors: dict[str, Door]) -> None:
    door = doors["scram-sha-256"]
    with door.connect() as sock:
        sock.sendall(LOGIN)
        assert log_in_by_scram(sock, PASSWORD) == AUTHENTICATION_OK
        assert door.logins[-1].login.credential == PasswordCredential(PASSWORD)
    with door.connect() as sock:
        sock.sendall(LOGIN)
        fields = error_fields(log_in_by_scram(sock, "wrong")[5:])
        assert (fields["C"], fields["M"]) == ("28P01", 'password authentication failed for user "postgres"')
        assert read_all(sock) == b""
    assert door.counters.logins_failed


def test_scram_bound_to_the_certificate(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(client_tls_cert=str(tls_files.server_cert), client_tls_key=str(tls_files.server_key))
    with door.connect() as clear:
        clear.sendall(SSL_REQUEST)
        assert clear.recv(1) == b"S"
        context = ssl.create_default_context(cafile=str(tls_files.ca))
        with context.wrap_socket(clear, server_hostname="localhost") as sock:
            sock.sendall(LOGIN)
            assert log_in_by_scram(sock, PASSWORD, peer_end_point_hash(sock)) == AUTHENTICATION_OK


def md5_answer(request: bytes, password: str = PASSWORD) -> bytes:
    inner = hashlib.md5((password + "postgres").encode()).hexdigest()
    return message(b"p", b"md5" + hashlib.md5(inner.encode() + request[9:13]).hexdigest().encode() + b"\0")


@pytest.mark.parametrize("split", [1, 4, 5, 20])
def test_md5_in_pieces_with_something_behind(split: int, doors: dict[str, Door]) -> None:
    door = doors["md5"]
    with door.connect() as sock:
        sock.sendall(LOGIN)
        answer = md5_answer(read_message(sock)) + b"early"
        sock.sendall(answer[:split])
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.sendall(answer[split:])
        assert read_all(sock, READY) == WELCOME
        inside = door.logins[-1]
        wait_until(lambda: inside.received == b"early", what="the early bytes have arrived")


def test_negotiation_comes_once_and_first(doors: dict[str, Door]) -> None:
    with doors["md5"].connect() as sock:
        sock.sendall(packet([*USER, (b"_pq_.x", b"")], 3 << 16 | 9999))
        assert read_message(sock)[:1] == b"v"
        request = read_message(sock)
        assert request[:1] == b"R"
        sock.sendall(md5_answer(request))
        assert read_all(sock, READY) == WELCOME
        assert doors["md5"].logins[-1].login.minor == 2


SASL_CASES = {
    "another message": b"Q\0\0\0\x05\0",
    "only its first byte": b"Q",
    "terminate": b"X\0\0\0\x04",
    "a length that is too small": b"p\0\0\0\3",
    "a negative length": b"p\xff\xff\xff\xff",
    "a huge length": b"p\x7f\xff\xff\xff",
    "one byte too many": b"p" + struct.pack("!I", 1025) + b"a" * 1021,
    "no mechanism": b"p\0\0\0\4",
    "unknown mechanism": initial_response("SCRAM-SHA-1", "n,,n=,r=abc"),
    "mechanism without end": message(b"p", b"a" * 1020),
    "a length that lies": message(b"p", b"SCRAM-SHA-256\0\0\0\0\x63n,,"),
    "a negative length inside": message(b"p", b"SCRAM-SHA-256\0\xff\xff\xff\xfen,,"),
    "no text": initial_response("SCRAM-SHA-256", ""),
    "binding that was not offered": initial_response("SCRAM-SHA-256", "p=tls-server-end-point,,n=,r=abc"),
    "authorization identity": initial_response("SCRAM-SHA-256", "n,a=other,n=,r=abc"),
    "mandatory extension": initial_response("SCRAM-SHA-256", "n,,m=1,n=,r=abc"),
    "no nonce": initial_response("SCRAM-SHA-256", "n,,n="),
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("name", SASL_CASES)
def test_answers_to_broken_messages_as_the_server_does(name: str, doors: dict[str, Door], postgres: Postgres) -> None:
    role = postgres.create_role(PASSWORD).encode()
    server = socket.create_connection((postgres.host, postgres.port), 10)
    data = SASL_CASES[name]
    expected = ask(server, packet([(b"user", role), (b"database", b"postgres")]) + data)
    got = ask(doors["scram-sha-256"].connect(), LOGIN + data)
    assert in_comparable_form(got.replace(b"postgres", role)) == in_comparable_form(expected) or names_the_user(
        got, expected, role
    )


def names_the_user(got: bytes, expected: bytes, role: bytes) -> bool:
    """The same error but for the user's name, and so the length."""
    ours, theirs = in_comparable_form(got), in_comparable_form(expected)
    last = theirs[-1]
    assert isinstance(last, dict)
    return ours == [*theirs[:-1], {**last, "M": last["M"].replace(role.decode(), "postgres")}]


@pytest.mark.parametrize(
    ("data", "sqlstate", "text"),
    [
        (b"Q\0\0\0\5\0", "08P01", "expected password response, got message type 81"),
        (b"X\0\0\0\4", "08P01", "expected password response, got message type 88"),
        (b"p\0\0\0\5x", "08P01", "invalid password packet size"),
        (b"p\0\0\0\5\0", "28P01", "empty password returned by client"),
        (b"p\0\0\0\6x\0", "28P01", 'password authentication failed for user "postgres"'),
        (b"p\0\0\0\3", "", ""),
        (b"p\0\1\0\0", "", ""),
        (b"p\xff\xff\xff\xff", "", ""),
    ],
)
def test_broken_passwords(data: bytes, sqlstate: str, text: str, doors: dict[str, Door]) -> None:
    with doors["md5"].connect() as sock:
        sock.sendall(LOGIN)
        read_message(sock)
        sock.sendall(data)
        answer = read_all(sock)
        fields = error_fields(answer[5:]) if answer else {}
        assert (fields.get("C", ""), fields.get("M", "")) == (sqlstate, text)


# Our own side: slow, broken, abandoned.


class SlowAuthenticator(Authenticator):
    """Looks a user up only when told to, and then in the way a test wants."""

    gate: asyncio.Event
    outcome: Exception | None = None
    asked = 0
    cancelled = 0

    async def begin(self, *args: Any, **options: Any) -> Exchange:
        self.asked += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.outcome is not None:
            raise self.outcome
        return await super().begin(*args, **options)


@pytest.fixture
def slow(open_door: OpenDoor) -> tuple[Door, SlowAuthenticator]:
    door = open_door(auth="trust")
    authenticator = SlowAuthenticator(door.settings, lambda: None, door.log)
    authenticator.gate = asyncio.Event()
    door.do(authenticator.start())
    door.authenticator = authenticator
    return door, authenticator


def test_what_comes_while_the_user_is_looked_up_is_bounded(slow: tuple[Door, SlowAuthenticator]) -> None:
    door, authenticator = slow
    with door.connect() as sock:
        sock.sendall(LOGIN)
        wait_until(lambda: authenticator.asked, what="the user is looked up")
        sock.settimeout(1)
        sent, chunk = 0, b"q" * 65536
        with suppress(TimeoutError):
            while sent < 64 << 20:
                sent += sock.send(chunk)
        assert sent < 32 << 20, "the rest stays with the client"
        (arrival,) = list(door.lobby._deadlines)
        assert arrival._greeting is not None
        assert len(arrival._greeting._buffer) <= 256 * 1024
        door.call(authenticator.gate.set)
        assert read_all(sock, READY) == WELCOME
        inside = door.logins[0]
        wait_until(lambda: len(inside.received) == sent, what="all of it has arrived")
        assert inside.received.strip(b"q") == b""


def test_a_client_that_leaves_stops_the_looking_up(slow: tuple[Door, SlowAuthenticator]) -> None:
    door, authenticator = slow
    with door.connect() as sock:
        sock.sendall(LOGIN)
        wait_until(lambda: authenticator.asked, what="the user is looked up")
    wait_until(lambda: authenticator.cancelled, what="the looking up is given up")
    wait_until(lambda: len(door.lobby) == 0, what="the lobby is empty")


def test_a_login_that_takes_too_long_ends_silently(open_door: OpenDoor) -> None:
    door = open_door(login_timeout=0.5)
    with door.connect() as sock:
        sock.sendall(LOGIN)
        assert read_message(sock)[:1] == b"R"
        assert read_all(sock) == b""
    assert door.counters.login_timeouts == 1


def test_a_failure_of_ours_is_an_answer_and_a_line_in_the_log(slow: tuple[Door, SlowAuthenticator]) -> None:
    door, authenticator = slow
    authenticator.outcome = RuntimeError("broken inside")
    door.call(authenticator.gate.set)
    fields = error_fields(ask(door.connect(), LOGIN)[5:])
    assert (fields["S"], fields["C"]) == ("FATAL", "XX000")
    door.log.close()
    assert "broken inside" in door.log_text()
    assert "broken inside" not in str(fields)


def test_a_refused_login_is_logged_with_its_reason_but_not_the_password(open_door: OpenDoor) -> None:
    door = open_door()
    with door.connect() as sock:
        sock.sendall(LOGIN)
        log_in_by_scram(sock, "my secret")
    door.log.close()
    line = next(line for line in door.log_text().splitlines() if "login_failed" in line)
    assert "user=postgres" in line
    assert "sqlstate=28P01" in line
    assert "my secret" not in line


# Hostile bytes.

PIECES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(list(SASL_CASES.values())),
        st.builds(lambda length, body: b"p" + struct.pack("!i", length) + body, st.integers(-9, 99), st.binary()),
        st.builds(lambda text: initial_response("SCRAM-SHA-256", text), st.text(max_size=40)),
        st.builds(lambda body: message(b"p", body), st.binary(max_size=1500)),
    ),
    max_size=4,
)


@pytest.mark.parametrize("auth", ["scram-sha-256", "md5"])
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=PIECES)
@example(pieces=[b"p" + struct.pack("!I", 65535) + b"a" * 65531])
def test_nobody_gets_in_by_any_bytes(auth: str, doors: dict[str, Door], pieces: list[bytes]) -> None:
    door = doors[auth]
    before = len(door.logins)
    with door.connect() as sock:
        sock.sendall(LOGIN)
        assert read_message(sock)[:1] == b"R"
        with suppress(OSError):
            for piece in pieces:
                sock.sendall(piece)
            sock.shutdown(socket.SHUT_WR)
        answer = read_all(sock)
        assert AUTHENTICATION_OK not in answer
        assert READY not in answer
    wait_until(lambda: len(door.lobby) == 0, what="the lobby is empty")
    assert len(door.logins) == before
    assert door.problems == []


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=300), lie=st.integers(-(2**31), 2**31 - 1))
def test_any_first_bytes_leave_others_alone(doors: dict[str, Door], data: bytes, lie: int) -> None:
    door = doors["md5"]
    for beginning in (data, struct.pack("!i", lie) + data, packet(terminator=data)):
        with door.connect() as sock:
            with suppress(OSError):
                sock.sendall(beginning)
                sock.shutdown(socket.SHUT_WR)
            assert AUTHENTICATION_OK not in read_all(sock)
    wait_until(lambda: len(door.lobby) == 0, what="the lobby is empty")
    assert door.problems == []
