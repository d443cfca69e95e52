"""Accepting: the server's own answers to odd beginnings, cheap and bounded half-open connections, TLS negotiation."""

from __future__ import annotations

import asyncio
import resource
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from proxy.wire.messages import AUTHENTICATION_OK, error_fields
from tests.conftest import StartProxy
from tests.proxy.door import READY, Cancelled, Door, ask, read_all
from tests.proxy.wire.startup_packets import GSS_REQUEST, ODD_PACKETS, SSL_REQUEST, USER, packet, padded
from tests.support.postgres import Postgres
from tests.support.tls import TlsFiles
from tests.support.waiting import wait_until

OpenDoor = Callable[..., Door]
LOGIN = packet(USER)
WELCOME = AUTHENTICATION_OK + READY
SHUT = 10.0
"""Seconds within which a connection that should be closed must be."""


@pytest.fixture
def open_door(tmp_path: Path) -> Iterator[OpenDoor]:
    with ExitStack() as stack:

        def start(**options: Any) -> Door:
            door = stack.enter_context(Door(tmp_path / "log", **{"auth": "trust", **options}))
            stack.callback(lambda: check_quiet(door))
            return door

        yield start


def check_quiet(door: Door) -> None:
    assert door.problems == []


def with_tls(files: TlsFiles, **settings: Any) -> dict[str, Any]:
    return {"client_tls_cert": str(files.server_cert), "client_tls_key": str(files.server_key), **settings}


def client_tls(files: TlsFiles, alpn: str = "postgresql") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(files.ca))
    if alpn:
        context.set_alpn_protocols([alpn])
    return context


def asked_tls(door: Door, files: TlsFiles) -> ssl.SSLSocket:
    sock = door.connect()
    sock.sendall(SSL_REQUEST)
    assert sock.recv(10) == b"S"
    return client_tls(files, "").wrap_socket(sock, server_hostname="localhost")


# The server's own answers.


def in_comparable_form(answer: bytes) -> list[bytes | dict[str, str]]:
    """The messages up to AuthenticationOk; errors without the place in the server's source."""
    messages: list[bytes | dict[str, str]] = []
    while answer:
        if answer[:1] in b"NS" and answer[1:2] in (b"", b"E", b"N"):
            messages.append(answer[:1])
            answer = answer[1:]
            continue
        if answer.startswith(b"EFATAL"):
            return [*messages, answer]
        (length,) = struct.unpack_from("!I", answer, 1)
        message, answer = answer[: length + 1], answer[length + 1 :]
        if message[:1] == b"E":
            fields = error_fields(message[5:])
            messages.append({code: text for code, text in fields.items() if code not in "FLR"})
        else:
            messages.append(message)
        if message == AUTHENTICATION_OK:
            break
    return messages


@pytest.mark.parametrize("name", ODD_PACKETS)
def test_answers_as_the_server_does(name: str, open_door: OpenDoor, postgres: Postgres) -> None:
    door = open_door()
    server = socket.create_connection((postgres.host, postgres.port), 10)
    expected = ask(server, ODD_PACKETS[name], until=b"\x05I")
    assert in_comparable_form(ask(door.connect(), ODD_PACKETS[name])) == in_comparable_form(expected)


# What stands behind a request is told apart by whether it is there in time, so that these have no one answer.
IN_ONE_PIECE = [name for name in ODD_PACKETS if "Request" in name]


@pytest.mark.parametrize("name", [name for name in ODD_PACKETS if name not in IN_ONE_PIECE])
def test_answers_the_same_to_single_bytes(name: str, open_door: OpenDoor) -> None:
    door = open_door()
    whole = ask(door.connect(), ODD_PACKETS[name])
    with door.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BrokenPipeError, ConnectionResetError):
            for byte in ODD_PACKETS[name][:300]:
                sock.sendall(bytes([byte]))
            sock.sendall(ODD_PACKETS[name][300:])
        assert read_all(sock, READY) == whole


def test_requests_may_follow_their_answers(open_door: OpenDoor) -> None:
    door = open_door()
    with door.connect() as sock:
        sock.sendall(GSS_REQUEST)
        assert sock.recv(10) == b"N"
        sock.sendall(SSL_REQUEST)
        assert sock.recv(10) == b"N"
        sock.sendall(LOGIN)
        assert read_all(sock, READY) == WELCOME


def test_hands_over_what_came_early(open_door: OpenDoor) -> None:
    door = open_door(read_only=True)
    with door.connect() as sock:
        sock.sendall(packet([*USER, (b"application_name", b"a")]) + b"early")
        assert read_all(sock, READY) == WELCOME
        inside = door.logins[0]
        wait_until(lambda: inside.received == b"early", what="the early bytes have arrived")
        assert inside.login.settings == {"application_name": "a"}
        assert (inside.login.peer, inside.login.tls, inside.login.read_only) == ("127.0.0.1", False, True)
        made = inside.transport.get_extra_info("socket")
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert made.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert len(door.lobby) == 0


def test_unix_sockets(open_door: OpenDoor, tmp_path: Path, tls_files: TlsFiles) -> None:
    # TLS is neither offered nor required there.
    door = open_door(unix=tmp_path / "socket", **with_tls(tls_files, client_tls_mode="require"))
    with door.connect() as sock:
        sock.sendall(SSL_REQUEST)
        assert sock.recv(10) == b"N"
        sock.sendall(LOGIN)
        assert read_all(sock, READY) == WELCOME
    assert door.logins[0].login.peer == "unix"


# Too many, too late.


def test_too_many_clients(open_door: OpenDoor) -> None:
    door = open_door(max_clients=2)
    with door.connect() as one, door.connect() as two:
        for sock in (one, two):
            sock.sendall(LOGIN)
            assert read_all(sock, READY) == WELCOME
        refused = error_fields(ask(door.connect(), LOGIN)[5:])
        assert (refused["S"], refused["C"], refused["M"]) == ("FATAL", "53300", "sorry, too many clients already")
        assert door.counters.queue_rejected == 1
        # A cancel is still taken: it is what may make room.
        assert ask(door.connect(), struct.pack("!IIII", 16, 80877102, 1, 2)) == b""
        assert door.cancels == [Cancelled(1, b"\0\0\0\2")]
    wait_until(lambda: not door.sessions, what="both have left")
    assert ask(door.connect(), LOGIN) == WELCOME


def test_clients_that_are_logging_in_count(open_door: OpenDoor) -> None:
    door = open_door(max_clients=1, auth="scram-sha-256", upstream_password="secret")
    with door.connect() as sock:
        sock.sendall(LOGIN)
        assert sock.recv(100).startswith(b"R")
        assert error_fields(ask(door.connect(), LOGIN)[5:])["C"] == "53300"


def test_shutting_down(open_door: OpenDoor) -> None:
    door = open_door()
    with door.connect() as early:
        wait_until(lambda: len(door.lobby) == 1, what="the early one is accepted")
        door.call(lambda: setattr(door, "draining", True))
        late = error_fields(ask(door.connect(), LOGIN)[5:])
        assert (late["S"], late["C"], late["M"]) == ("FATAL", "57P03", "the database system is shutting down")
        early.sendall(LOGIN)
        assert read_all(early, READY) == WELCOME, "who was accepted before is served"


def test_stops_accepting_and_waits_for_those_who_log_in(open_door: OpenDoor) -> None:
    door = open_door()
    with door.connect() as early:
        wait_until(lambda: len(door.lobby) == 1, what="the early one is accepted")
        door.call(door.listener.stop_accepting)
        quiet = asyncio.run_coroutine_threadsafe(door.lobby.quiet(), door.loop)
        with door.connect() as waiting:
            waiting.sendall(LOGIN)
            early.sendall(LOGIN)
            assert read_all(early, READY) == WELCOME
            quiet.result(SHUT)
            assert len(door.logins) == 1, "the other waits for the next worker"
            door.call(door.listener.start)
            assert read_all(waiting, READY) == WELCOME


# Half-open connections.


def test_half_open_connections_end_silently_after_login_timeout(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(login_timeout=0.5, **with_tls(tls_files))
    beginnings = [b"", b"\0", LOGIN[:20], SSL_REQUEST, SSL_REQUEST[:5]]
    with ExitStack() as stack:
        started = time.monotonic()
        socks = [stack.enter_context(door.connect()) for _ in beginnings]
        for sock, data in zip(socks, beginnings, strict=True):
            sock.sendall(data)
        answers = [read_all(sock) for sock in socks]
        assert 0.4 < time.monotonic() - started < SHUT
        assert answers == [b"", b"", b"", b"S", b""]
        wait_until(lambda: len(door.lobby) == 0, what="the lobby is empty")
        assert door.counters.login_timeouts == len(beginnings)


def test_what_was_done_to_silent_connections_is_in_the_metrics(proxy: StartProxy) -> None:
    target = proxy(login_timeout=0.3)
    assert target.metrics()["pilotwire_login_timeouts_total"] == 0
    with socket.create_connection((target.host, target.port), SHUT) as silent:
        assert read_all(silent) == b""
    seen = target.metrics()
    assert seen["pilotwire_login_timeouts_total"] == 1
    assert seen["pilotwire_half_open_evicted_total"] == seen["pilotwire_accept_pauses_total"] == 0


def test_half_open_tls_handshakes_end_too(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(login_timeout=0.5, **with_tls(tls_files))
    with door.connect() as direct, door.connect() as asked:
        direct.sendall(b"\x16\x03\x01")
        asked.sendall(SSL_REQUEST)
        assert asked.recv(1) == b"S"
        asked.sendall(b"\x16\x03\x01\x02\x00\x01")
        silent = asked_tls(door, tls_files)
        with silent:
            assert read_all(direct) == b""
            assert read_all(asked) == b""
            with suppress(ssl.SSLError, ConnectionResetError):
                assert silent.recv(10) == b""
        wait_until(lambda: len(door.lobby) == 0, what="the lobby is empty")


def test_a_slow_loris_ends_at_the_same_time(open_door: OpenDoor) -> None:
    door = open_door(login_timeout=0.5)
    started = time.monotonic()
    with door.connect() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(0.02)
        endless, sent = padded(10_000), 0
        while time.monotonic() - started < SHUT:
            try:
                sock.sendall(endless[sent : sent + 1])
                sent += 1
                if sock.recv(1) == b"":
                    break
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
        assert 0.4 < time.monotonic() - started < SHUT / 2
        assert sent > 3


def test_partial_first_bytes_do_not_spin_the_loop(open_door: OpenDoor) -> None:
    door = open_door()
    with ExitStack() as stack:
        for beginning in (b"\0", b"\0\0\0", LOGIN[:6], LOGIN[:-1], SSL_REQUEST[:7]):
            stack.enter_context(door.connect()).sendall(beginning)
        wait_until(lambda: len(door.lobby) == 5, what="all are accepted")
        assert load(door, 0.5) < 0.2


def load(door: Door, seconds: float) -> float:
    """The share of a processor that the door's loop takes while nothing happens; near 1 when it spins."""

    async def watch() -> float:
        before = time.thread_time()
        await asyncio.sleep(seconds)
        return (time.thread_time() - before) / seconds

    return door.do(watch())


SILENT_CLIENTS = """
import socket, sys
port, count = int(sys.argv[1]), int(sys.argv[2])
socks = []
for index in range(count):
    socks.append(socket.create_connection(("127.0.0.1", port)))
    socks[-1].sendall(b"\\0" * (index % 4))
sys.stdin.read()
"""
"""A program that connects ``count`` times, says nothing or a byte or two, and waits for the end of its input."""


@pytest.mark.timeout(110)
def test_ten_thousand_half_open_connections(open_door: OpenDoor) -> None:
    raise_descriptors(20_000)
    count = 10_000
    door = open_door(max_clients=count, login_timeout=600)
    assert door.lobby.arrivals_limit == count, "the hard limit of open files is too low for this test"
    process = psutil.Process()
    before = process.memory_info().rss
    command = [sys.executable, "-c", SILENT_CLIENTS, str(door.port), str(count)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as clients:
        wait_until(lambda: len(door.lobby) == count, 60, what="all are accepted")
        grown = process.memory_info().rss - before
        print(f"{count} half-open connections, {grown / count:.0f} bytes each")
        assert grown / count < 2048
        started = time.monotonic()
        assert ask(door.connect(), LOGIN) == WELCOME
        assert time.monotonic() - started < 1, "others notice nothing"
        assert load(door, 0.3) < 0.2
        with door.connect() as one_more:
            wait_until(lambda: door.counters.half_open_evicted, what="the oldest has made room")
            one_more.sendall(LOGIN)
            assert read_all(one_more, READY) == WELCOME
        clients.communicate()
    wait_until(lambda: len(door.lobby) == 0, 30, what="all have gone")


def raise_descriptors(wanted: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))


def test_the_oldest_silent_connection_makes_room(open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.listener.MIN_ARRIVALS", 3)
    door = open_door(max_clients=1, auth="scram-sha-256", upstream_password="secret")
    with ExitStack() as stack:
        verified = stack.enter_context(door.connect())
        verified.sendall(LOGIN)
        assert verified.recv(100).startswith(b"R")
        socks = []
        for count in range(1, 6):
            socks.append(stack.enter_context(door.connect()))
            wait_until(lambda count=count: len(door.lobby) == 1 + min(count, 3), what="it is accepted")  # type: ignore[misc]
        assert read_all(socks[0]) == read_all(socks[1]) == b""
        assert door.counters.half_open_evicted == 2
        for sock in (*socks[2:], verified):
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)


def test_out_of_descriptors_it_pauses_and_goes_on(open_door: OpenDoor) -> None:
    door = open_door()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(20)]
        silent = stack.enter_context(door.connect())
        wait_until(lambda: len(door.lobby) == 1, what="the silent one is accepted")
        try:
            # No descriptor above those that are open, and no gap below.
            top = max(sock.fileno() for sock in socks) + 1
            while (extra := socket.socket()).fileno() < top:
                stack.enter_context(extra)
            extra.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
            for sock in socks:
                sock.connect(("127.0.0.1", door.port))
            wait_until(lambda: door.counters.accept_pauses >= 2, what="accepting has paused twice")
            assert door.counters.accept_pauses < 20
            assert load(door, 0.3) < 0.3
            assert door.counters.half_open_evicted >= 1
            assert read_all(silent) == b""
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        wait_until(lambda: len(door.lobby) >= 19, what="the others are accepted once there is room")
        assert ask(door.connect(), LOGIN) == WELCOME
    door.log.close()
    assert "accept_paused" in door.log_text()


def test_a_client_that_resets_at_any_moment(open_door: OpenDoor) -> None:
    door = open_door()
    for end in range(len(LOGIN) + 1):
        sock = door.connect()
        sock.sendall(LOGIN[:end])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()
    wait_until(lambda: len(door.lobby) == 0 and not door.sessions, what="all have gone")
    assert ask(door.connect(), LOGIN) == WELCOME


# Cancel requests.


@pytest.mark.parametrize("secret", [b"\1\2\3\4", b"k" * 32, b"k" * 256])
def test_a_cancel_ends_only_when_it_has_been_delivered(secret: bytes, open_door: OpenDoor) -> None:
    door = open_door()
    gate = door.cancel_gate = asyncio.Event()
    with door.connect() as sock:
        sock.sendall(struct.pack("!IIi", 12 + len(secret), 80877102, -7) + secret)
        wait_until(lambda: door.cancels == [Cancelled(-7, secret)], what="the cancel is under way")
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
        door.call(gate.set)
        sock.settimeout(SHUT)
        assert read_all(sock) == b""
    wait_until(lambda: len(door.lobby) == 0, what="it has left the lobby")


def test_a_cancel_through_tls(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(**with_tls(tls_files, client_tls_mode="require"))
    with asked_tls(door, tls_files) as sock:
        sock.sendall(struct.pack("!IIII", 16, 80877102, 5, 6))
        assert read_all(sock) == b""
    assert door.cancels == [Cancelled(5, b"\0\0\0\6")]


# TLS.


def test_tls_by_request(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(**with_tls(tls_files))
    with asked_tls(door, tls_files) as sock:
        sock.sendall(packet(USER) + b"early")
        assert read_all(sock, READY) == WELCOME
        inside = door.logins[0]
        assert inside.login.tls
        assert inside.received == b"early"
        assert door.counters.tls_connections == 1


def test_direct_tls_needs_alpn(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(**with_tls(tls_files))
    with client_tls(tls_files).wrap_socket(door.connect(), server_hostname="localhost") as sock:
        assert sock.selected_alpn_protocol() == "postgresql"
        sock.sendall(LOGIN)
        assert read_all(sock, READY) == WELCOME
    with client_tls(tls_files, "").wrap_socket(door.connect(), server_hostname="localhost") as sock:
        assert read_all(sock) == b""
    assert len(door.logins) == 1


def test_encryption_within_encryption(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(**with_tls(tls_files))
    with client_tls(tls_files).wrap_socket(door.connect(), server_hostname="localhost") as sock:
        for request in (SSL_REQUEST, GSS_REQUEST):
            sock.sendall(request)
            assert sock.recv(10) == b"N"
        sock.sendall(LOGIN)
        assert read_all(sock, READY) == WELCOME
    with asked_tls(door, tls_files) as sock:
        sock.sendall(SSL_REQUEST)
        fields = error_fields(read_all(sock)[5:])
        assert fields["M"] == "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.2"


def test_clear_text_behind_the_request_for_tls_ends_the_connection(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(**with_tls(tls_files))
    answer = ask(door.connect(), SSL_REQUEST + LOGIN)
    assert answer[:1] == b"E", "and no S before it"
    fields = error_fields(answer[5:])
    assert (fields["C"], fields["M"]) == ("08P01", "received unencrypted data after SSL request")
    assert door.logins == []
    assert door.counters.protocol_errors == 1


def test_clear_text_instead_of_a_handshake(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(**with_tls(tls_files))
    with door.connect() as sock:
        sock.sendall(SSL_REQUEST)
        assert sock.recv(1) == b"S"
        sock.sendall(LOGIN)
        answer = read_all(sock)
        assert READY not in answer
        assert AUTHENTICATION_OK not in answer
    wait_until(lambda: len(door.lobby) == 0, what="it has gone")
    assert door.logins == []


def test_direct_tls_where_there_is_none(open_door: OpenDoor) -> None:
    door = open_door()
    assert ask(door.connect(), b"\x16\x03\x01\x00\x05hello") == b""
    assert door.counters.protocol_errors == 1


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
def test_required_tls_refuses_clear_text_in_the_servers_words(
    mode: str, open_door: OpenDoor, tls_files: TlsFiles
) -> None:
    door = open_door(**with_tls(tls_files, client_tls_mode=mode, client_tls_ca=str(tls_files.ca)))
    fields = error_fields(ask(door.connect(), packet([*USER, (b"database", b"shop")]))[5:])
    assert fields["C"] == "28000"
    assert fields["M"] == 'no pg_hba.conf entry for host "127.0.0.1", user "postgres", database "shop", no encryption'
    fields = error_fields(ask(door.connect(), packet([*USER, (b"replication", b"true")]))[5:])
    assert fields["M"] == (
        'no pg_hba.conf entry for replication connection from host "127.0.0.1", user "postgres", no encryption'
    )


def test_certificates_of_clients(open_door: OpenDoor, tls_files: TlsFiles) -> None:
    door = open_door(**with_tls(tls_files, client_tls_mode="verify-full", client_tls_ca=str(tls_files.ca)))
    with asked_tls(door, tls_files) as sock:
        sock.sendall(LOGIN)
        fields = error_fields(read_all(sock)[5:])
        assert (fields["C"], fields["M"]) == ("28000", "connection requires a valid client certificate")
    for user, sqlstate in ((b"postgres", ""), (b"other", "28000")):
        context = client_tls(tls_files)
        context.load_cert_chain(tls_files.client_cert, tls_files.client_key)
        with context.wrap_socket(door.connect(), server_hostname="localhost") as sock:
            sock.sendall(packet([(b"user", user)]))
            answer = read_all(sock, READY)
            if sqlstate:
                fields = error_fields(answer[5:])
                assert (fields["C"], fields["M"]) == (sqlstate, 'certificate authentication failed for user "other"')
            else:
                assert answer == WELCOME


def test_relay_hands_over_unanswered(open_door: OpenDoor) -> None:
    door = open_door(auth="relay")
    raw = packet([*USER, (b"_pq_.x", b"1")])
    assert ask(door.connect(), raw + b"early") == READY
    assert door.logins[0].raw_startup == raw


IDLE_TLS_CLIENTS = """
import socket, ssl, sys
port, count, rounds = (int(argument) for argument in sys.argv[1:4])
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
context.set_alpn_protocols(["postgresql"])
for _ in range(rounds):
    socks = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks.append(context.wrap_socket(sock))
        socks[-1].sendall(bytes.fromhex(sys.argv[4]))
        while not socks[-1].recv(1000).endswith(b"I"):
            pass
    print("connected", flush=True)
    sys.stdin.readline()
    for sock in socks:
        sock.close()
    sys.stdin.readline()
"""
"""A program that logs ``count`` clients in over direct TLS; a line of input closes them, another begins a new round."""


def test_memory_of_idle_tls_clients(open_door: OpenDoor, tls_files: TlsFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against 48 kB each as uvloop and glibc would have it, and against growing with each burst of clients."""
    monkeypatch.setattr("proxy.listener.TIDY_SECONDS", 0.2)
    raise_descriptors(5_000)
    count, rounds = 500, 3
    door = open_door(**with_tls(tls_files))
    process = psutil.Process()
    before = process.memory_info().rss
    command = [sys.executable, "-c", IDLE_TLS_CLIENTS, str(door.port), str(count), str(rounds), LOGIN.hex()]
    grown = []
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as clients:
        assert clients.stdin is not None
        assert clients.stdout is not None
        for _ in range(rounds):
            assert clients.stdout.readline() == b"connected\n"
            wait_until(lambda: len(door.sessions) == count, what="all are inside")
            grown.append((process.memory_info().rss - before) / count)
            door.call(door.logins.clear)
            clients.stdin.write(b"\n")
            wait_until(lambda: not door.sessions, what="all have left")
            clients.stdin.write(b"\n")
    print(f"{count} idle TLS clients, bytes each in {rounds} rounds: {[round(each) for each in grown]}")
    assert max(grown) < 34 * 1024
