"""Accepting clients, and keeping those cheap that have not said who they are.

A connection is a raw socket with a reader callback (``Arrival``) until its start-up message is complete; only then
does it get a transport and a ``Greeting``. A client that asks for TLS gets its transport when its handshake begins to
arrive. So ten thousand clients that connect and say nothing, or one byte now and then, cost a socket and a few hundred
bytes each. From the socket no byte is read beyond the packet under way: what follows stays there for TLS or for the
transport, and every byte that woke the loop is consumed, so that a level-triggered loop does not spin.

All of them stand in one ``Lobby``: in order of their deadlines, so that a single timer serves for all, and bounded.
When too many have not sent a start-up message, the one that has waited longest goes: connections that say nothing
cannot keep out those that log in. After ``login_timeout`` they are closed without a word, as the server does.

Workers that share a socket share its clients: one that has clearly more of them than another lets that one go first.
Out of file descriptors, accepting pauses for a moment instead of spinning.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import socket
import ssl
from typing import Final

from proxy.greeting import UNIX, Greeting, GreetingContext, log_refusal, refusal
from proxy.logs import connection_id
from proxy.tls import HANDSHAKE_SHUTDOWN, fit_allocator, return_free_memory
from proxy.wire.startup import (
    CancelRequest,
    FirstPacket,
    FirstPackets,
    GssRequest,
    SslRequest,
    StartupMessage,
    StartupRefused,
    unencrypted_data_after,
)

TLS_HANDSHAKE_RECORD: Final = 0x16
ACCEPTS_PER_WAKEUP: Final = 8
"""Connections taken at once: few, so that workers which share a socket share its clients too."""
ACCEPT_TURN: Final = 0.002
"""Seconds that a connection is left to workers with fewer clients. Then whoever is there takes it: they may be busy,
or stopped."""
ACCEPT_PAUSE: Final = 0.1
"""Seconds without accepting after the system refused a descriptor or memory."""
MIN_ARRIVALS: Final = 100
"""Connections without a start-up message that are always allowed, however small ``max_clients``."""
TIDY_SECONDS: Final = 30.0
"""How often memory that TLS connections have freed is given back."""
TIMER_SLACK: Final = 0.05
"""Seconds by which deadlines are rounded up, so that many of them are met by one wake-up."""

_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Lobby:
    """The connections of one worker that have not logged in. Listeners of a worker may share one."""

    __slots__ = ("_arriving", "_context", "_deadlines", "_quiet", "_timer")

    def __init__(self, context: GreetingContext) -> None:
        self._context = context
        # In order of arrival, which is the order of deadlines too.
        self._deadlines: dict[Arrival, float] = {}
        self._arriving: dict[Arrival, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._quiet: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._deadlines)

    def __repr__(self) -> str:
        return f"<Lobby {len(self._arriving)} arriving, {self.admitted} logging in>"

    @property
    def admitted(self) -> int:
        """Clients that have sent a start-up message and are being verified."""
        return len(self._deadlines) - len(self._arriving)

    @property
    def arrivals_limit(self) -> int:
        """Half the descriptors at most: sessions and their backends need the others."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = max(self._context.settings.max_clients, MIN_ARRIVALS)
        return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft // 2))

    def enter(self, arrival: Arrival) -> float:
        """Takes a connection in and gives its deadline on the loop's clock."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._context.settings.login_timeout
        self._deadlines[arrival] = deadline
        self._arriving[arrival] = None
        self._count()
        if self._timer is None:
            self._timer = loop.call_at(deadline + TIMER_SLACK, self._expire)
        if len(self._arriving) > self.arrivals_limit:
            self.evict_oldest()
        return deadline

    def evict_oldest(self) -> None:
        """Closes the connection that has waited longest without a start-up message."""
        oldest = next(iter(self._arriving), None)
        if oldest is not None:
            self._context.counters.half_open_evicted += 1
            oldest.expire()

    def admit(self, arrival: Arrival) -> bool:
        """Counts a connection whose start-up message is there among the clients, if there is room for one more."""
        if not self._context.places.admit(self._context.settings.max_clients):
            return False
        self._arriving.pop(arrival, None)
        self._count()
        return True

    def _count(self) -> None:
        self._context.places.put_lobby(len(self._arriving), self.admitted, len(self._context.sessions))

    def leave(self, arrival: Arrival) -> None:
        self._arriving.pop(arrival, None)
        self._deadlines.pop(arrival, None)
        self._count()
        if not self._deadlines:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._quiet is not None and not self._quiet.done():
                self._quiet.set_result(None)

    async def quiet(self) -> None:
        """Returns once nobody is logging in. For a worker that has stopped accepting and is about to end."""
        while self._deadlines:
            if self._quiet is None or self._quiet.done():
                self._quiet = asyncio.get_running_loop().create_future()
            # Several may wait, and one that gives up must not take the future from the others.
            await asyncio.shield(self._quiet)

    def abort(self) -> None:
        """Closes all of them."""
        for arrival in list(self._deadlines):
            arrival.expire()

    def _expire(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        now = loop.time()
        late = []
        for arrival, deadline in self._deadlines.items():
            if deadline > now:
                break
            late.append(arrival)
        for arrival in late:
            self._context.counters.login_timeouts += 1
            arrival.expire()
            # A transport says only later that it is gone; what was ended must not be ended again.
            self.leave(arrival)
        if self._timer is None and self._deadlines:
            self._timer = loop.call_at(next(iter(self._deadlines.values())) + TIMER_SLACK, self._expire)


class Arrival:
    """One accepted connection, from its first byte until it is a session. Its ticket in the lobby."""

    __slots__ = (
        "_context",
        "_deadline",
        "_greeting",
        "_lobby",
        "_packets",
        "_sock",
        "_task",
        "_tls_next",
        "id",
        "late",
        "peer",
        "read_only",
    )

    def __init__(
        self, context: GreetingContext, lobby: Lobby, sock: socket.socket, peer: str, *, read_only: bool
    ) -> None:
        self._context = context
        self._lobby = lobby
        # None once a transport owns it, or it is closed.
        self._sock: socket.socket | None = sock
        self._packets: FirstPackets | None = None
        self._tls_next = False
        self._greeting: Greeting | None = None
        self._task: asyncio.Task[None] | None = None
        self.peer = peer
        self.id = connection_id()
        self.late = context.draining
        self.read_only = read_only
        asyncio.get_running_loop().add_reader(sock.fileno(), self._readable, sock)
        self._deadline = lobby.enter(self)

    def __repr__(self) -> str:
        return f"<Arrival {self.peer} {self._greeting or self._packets or 'nothing sent'}>"

    def admit(self) -> bool:
        return self._lobby.admit(self)

    def leave(self) -> None:
        self._greeting = None
        self._lobby.leave(self)

    def expire(self) -> None:
        """Ends the connection without a word, whatever its state."""
        if self._sock is not None:
            self._close()
        if self._task is not None:
            self._task.cancel()
        if self._greeting is not None:
            self._greeting.expire()

    def _readable(self, sock: socket.socket) -> None:
        try:
            self._read(sock)
        except StartupRefused as refused:
            self._context.counters.protocol_errors += 1
            log_refusal(self._context, self, refused.text)
            self._close(refused.response)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            # Reset by the client, which is its right.
            self._close()

    def _read(self, sock: socket.socket) -> None:
        if self._tls_next:
            self._start_tls(sock, direct=False)
            return
        packets = self._packets
        if packets is None:
            first = sock.recv(1, socket.MSG_PEEK)
            if first and first[0] == TLS_HANDSHAKE_RECORD:
                if self._tls_context() is None:
                    raise StartupRefused("direct TLS connection, and TLS is not offered here")
                self._start_tls(sock, direct=True)
                return
            packets = self._packets = FirstPackets()
        while self._sock is not None and not self._tls_next:
            data = sock.recv(packets.wanted)
            if not data:
                self._close()
                return
            packets.feed(data)
            packet = packets.next()
            if packet is not None:
                self._take(packet, sock)

    def _take(self, packet: FirstPacket, sock: socket.socket) -> None:
        match packet:
            case SslRequest():
                self._answer_ssl_request(sock)
            case GssRequest():
                # Looked for before the answer: what comes after it is what the answer asked for.
                clear_text = _has_more(sock)
                sock.send(b"N")
                if clear_text:
                    raise unencrypted_data_after("GSSAPI encryption request")
            case CancelRequest(pid, secret):
                self._detach(sock)
                self._task = asyncio.ensure_future(self._cancel(sock, pid, secret))
            case StartupMessage():
                answer = refusal(self._context, self, packet, encrypted=False)
                if answer is None:
                    self._detach(sock)
                    self._sock = None
                    self._greet(Greeting(self._context, self, packet), sock, None)
                else:
                    log_refusal(self._context, self, answer.reason, packet)
                    self._close(packet.negotiate + answer.response)

    def _answer_ssl_request(self, sock: socket.socket) -> None:
        offered = self._tls_context() is not None
        # What came behind the request came in clear, and must never count as said within TLS. The server answers
        # N first where it has no TLS; with TLS it would take the bytes for a handshake and fail.
        clear_text = _has_more(sock)
        if clear_text and offered:
            raise unencrypted_data_after("SSL request")
        sock.send(b"S" if offered else b"N")
        if clear_text:
            raise unencrypted_data_after("SSL request")
        self._tls_next = offered

    def _tls_context(self) -> ssl.SSLContext | None:
        # On a Unix socket there is no network to hide from: the server declines there too.
        return None if self.peer == UNIX else self._context.tls.client_side

    def _start_tls(self, sock: socket.socket, *, direct: bool) -> None:
        context = self._tls_context()
        self._detach(sock)
        self._sock = None
        if context is None:
            # Switched off by a reload between the answer and the handshake.
            sock.close()
            self.leave()
            return
        self._packets = None
        self._greet(Greeting(self._context, self, direct=direct), sock, context)

    def _greet(self, greeting: Greeting, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        self._greeting = greeting
        self._task = asyncio.ensure_future(self._attach(greeting, sock, context))

    async def _attach(self, greeting: Greeting, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Gives the socket a transport; for TLS this ends with the handshake."""
        loop = asyncio.get_running_loop()
        try:
            if context is None:
                await loop.connect_accepted_socket(lambda: greeting, sock)
            else:
                await loop.connect_accepted_socket(
                    lambda: greeting,
                    sock,
                    ssl=context,
                    ssl_handshake_timeout=max(0.001, self._deadline - loop.time()),
                    ssl_shutdown_timeout=HANDSHAKE_SHUTDOWN,
                )
        except (OSError, TimeoutError) as error:
            # ssl.SSLError is an OSError; the transport has closed the socket.
            self._context.counters.protocol_errors += 1
            log_refusal(self._context, self, f"TLS handshake failed: {getattr(error, 'reason', None) or error!r}")
            self.leave()
        except asyncio.CancelledError:
            self.leave()
        finally:
            self._task = None

    async def _cancel(self, sock: socket.socket, pid: int, secret: bytes) -> None:
        # libpq takes the end of this connection as the sign that the cancel has been dealt with.
        try:
            await self._context.cancel(pid, secret)
        finally:
            self._task = None
            if self._sock is not None:
                self._close()

    def _detach(self, sock: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(sock.fileno())

    def _close(self, last: bytes = b"") -> None:
        """Closes the raw socket, with ``last`` sent as far as the kernel takes it at once."""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._detach(sock)
            with contextlib.suppress(OSError):
                if last:
                    sock.send(last)
                    # Closing on unread bytes makes a reset, which could overtake what was just sent.
                    sock.shutdown(socket.SHUT_WR)
                    sock.recv(65536)
            sock.close()
        self.leave()


def _has_more(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except (BlockingIOError, InterruptedError):
        return False


class Listener:
    """Accepts on a listening socket that belongs to the caller, who also closes it.

    ``read_only`` puts the read-only guard on every client that comes in here. Pass one ``lobby`` to all listeners of
    a worker to have them counted together.
    """

    __slots__ = ("_accepting", "_context", "_paused", "_read_only", "_sock", "_tidied", "_tidy", "lobby")

    def __init__(
        self, context: GreetingContext, sock: socket.socket, *, read_only: bool, lobby: Lobby | None = None
    ) -> None:
        self._context = context
        self._sock = sock
        self._read_only = read_only
        self._accepting = False
        self._paused: asyncio.TimerHandle | None = None
        self._tidy: asyncio.TimerHandle | None = None
        self._tidied = 0
        self.lobby = Lobby(context) if lobby is None else lobby

    def __repr__(self) -> str:
        state = "paused" if self._paused else "accepting" if self._accepting else "stopped"
        return f"<Listener {self._sock.getsockname()} {state}, {self.lobby!r}>"

    def start(self) -> None:
        """Begins to accept. Needs a running loop."""
        self._sock.setblocking(False)
        if self._sock.family != socket.AF_UNIX:
            # Accepted sockets inherit both.
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        fit_allocator()
        self._accepting = True
        self._context.places.open_door(accepting=True)
        loop = asyncio.get_running_loop()
        loop.add_reader(self._sock.fileno(), self._accept)
        self._tidy = loop.call_later(TIDY_SECONDS, self._tidy_up)

    def stop_accepting(self) -> None:
        """Accepts no more; connections that are logging in go on (``lobby.quiet`` waits for them)."""
        if not self._accepting:
            return
        self._accepting = False
        self._context.places.open_door(accepting=False)
        if self._paused is not None:
            self._paused.cancel()
            self._paused = None
        if self._tidy is not None:
            self._tidy.cancel()
            self._tidy = None
        asyncio.get_running_loop().remove_reader(self._sock.fileno())

    def _accept(self) -> None:
        if self._context.places.crowded:
            self._wait(ACCEPT_TURN)
        else:
            self._accept_some()

    def _accept_some(self) -> None:
        for _ in range(ACCEPTS_PER_WAKEUP):
            try:
                sock, address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                self._pause(error)
                return
            sock.setblocking(False)
            Arrival(self._context, self.lobby, sock, _peer(sock, address), read_only=self._read_only)

    def _pause(self, error: OSError) -> None:
        """Out of descriptors, or something else that the next try would meet again at once."""
        self._context.counters.accept_pauses += 1
        if error.errno in _EXHAUSTED:
            # Whoever says nothing makes room for those who wait to be accepted.
            self.lobby.evict_oldest()
        self._context.log.event("accept_paused", level="warning", error=error.strerror or str(error))
        self._wait(ACCEPT_PAUSE)

    def _wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock.fileno())
        self._paused = loop.call_later(seconds, self._resume)

    def _resume(self) -> None:
        self._paused = None
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)
        self._accept_some()

    def _tidy_up(self) -> None:
        handshakes = self._context.counters.tls_connections
        if handshakes != self._tidied:
            self._tidied = handshakes
            return_free_memory()
        self._tidy = asyncio.get_running_loop().call_later(TIDY_SECONDS, self._tidy_up)


def _peer(sock: socket.socket, address: object) -> str:
    """The client's IP address as text, or ``unix``."""
    if sock.family == socket.AF_UNIX or not isinstance(address, tuple):
        return UNIX
    # An IPv4 client of a socket that serves both families.
    return str(address[0]).removeprefix("::ffff:")
