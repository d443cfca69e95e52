"""From a transport to a session: the protocol of a client that has not logged in yet.

In clear the listener has read the start-up message already and hands it over; behind TLS the first packets are read
here. Then the client is verified by what ``context.authenticator`` asks of it, and the session takes the transport
over, together with the bytes that came too early. Under ``auth = relay`` it is handed over unverified, with nothing
sent: the server itself answers.

Nothing a client sends before it is known makes this grow: a first packet has 10,000 bytes at most, a password message
what the exchange allows, and while the proxy itself is busy (looking a user up) reading stops once something arrives.
The limit on the time all this takes is kept by the listener's lobby, which ends a greeting by ``expire``.

Refusals carry PostgreSQL's SQLSTATEs and words; where the server closes without a word, so does this.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final, Protocol

from proxy.auth import Authenticator, AuthFailed, Exchange
from proxy.auth.failures import certificate_failed, password_failed
from proxy.console_db.rights import meant
from proxy.login import Credential, Login, RelayCredential
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.places import Places
from proxy.settings import ProxySettings
from proxy.tls import ALPN, TlsContexts
from proxy.wire.messages import AUTHENTICATION_OK, error_response
from proxy.wire.startup import (
    CancelRequest,
    FirstPacket,
    FirstPackets,
    GssRequest,
    SslRequest,
    StartupMessage,
    StartupRefused,
    encryption_refused,
    unencrypted_data_after,
)

UNIX = "unix"
"""What stands for the address of a client on a Unix socket."""

_AUTHENTICATION_SASL = 10
_TLS_REQUIRED = frozenset({"require", "verify-ca", "verify-full"})
_CERTIFICATE_REQUIRED = frozenset({"verify-ca", "verify-full"})


class GreetingContext(Protocol):
    """What greeting a client takes from its worker."""

    @property
    def settings(self) -> ProxySettings: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def tls(self) -> TlsContexts: ...
    @property
    def authenticator(self) -> Authenticator: ...
    @property
    def log(self) -> Log: ...
    @property
    def draining(self) -> bool: ...
    @property
    def sessions(self) -> Collection[Any]: ...
    @property
    def places(self) -> Places: ...

    def start_session(self, login: Login, transport: asyncio.Transport, pending: bytes) -> None:
        """Takes over a client to whom AuthenticationOk has been sent."""

    def start_relay(self, login: Login, transport: asyncio.Transport, raw_startup: bytes, pending: bytes) -> None:
        """Takes over a client to whom nothing has been sent."""

    async def cancel(self, pid: int, secret: bytes) -> None:
        """Returns when the cancel has been delivered or dropped."""


class Ticket(Protocol):
    """A connection's place among those that have not logged in."""

    @property
    def peer(self) -> str: ...
    @property
    def id(self) -> str:
        """Names the connection in the log."""

    @property
    def late(self) -> bool:
        """Accepted when the worker was shutting down already."""

    @property
    def read_only(self) -> bool: ...

    def admit(self) -> bool:
        """Counts the connection among the clients; False when there are too many."""

    def leave(self) -> None:
        """The connection is gone, or a session now."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a client is not let in, for the log, and what it is told."""

    reason: str
    response: bytes


TOO_MANY_CLIENTS: Final = Refusal("max_clients", error_response("53300", "sorry, too many clients already"))
NO_REPLICATION: Final = error_response("25006", "replication connections are refused where read_only is on")
SHUTTING_DOWN: Final = Refusal("shutting down", error_response("57P03", "the database system is shutting down"))


def refusal(context: GreetingContext, ticket: Ticket, startup: StartupMessage, *, encrypted: bool) -> Refusal | None:
    """Admits the client, or says why not; in the order in which the server checks."""
    if ticket.late:
        return SHUTTING_DOWN
    own = meant(context.settings, startup.database, startup.replication)
    # Whoever runs the proxy gets in when it is full; until then he counts among those who have said nothing.
    if not ticket.admit() and not own:
        context.counters.queue_rejected += 1
        return TOO_MANY_CLIENTS
    if not encrypted and ticket.peer != UNIX and context.settings.client_tls_mode in _TLS_REQUIRED:
        context.counters.logins_failed += 1
        response = encryption_refused(startup.user, startup.database, startup.replication, ticket.peer)
        return Refusal("no encryption", response)
    return None


def log_refusal(context: GreetingContext, ticket: Ticket, reason: str, startup: StartupMessage | None = None) -> None:
    """One line about a client that did not get as far as being verified."""
    user, database = (startup.user, startup.database) if startup else (None, None)
    context.log.event("client_refused", id=ticket.id, peer=ticket.peer, user=user, database=database, reason=reason)


class Greeting(asyncio.Protocol):
    """One client that is logging in.

    ``startup`` is its start-up message when that has been read in clear. Without it the transport is a TLS one,
    ``direct`` when the client began with TLS instead of asking for it.
    """

    __slots__ = (
        "_buffer",
        "_context",
        "_direct",
        "_encrypted",
        "_exchange",
        "_packets",
        "_paused",
        "_sasl",
        "_startup",
        "_task",
        "_ticket",
        "_transport",
    )

    def __init__(
        self, context: GreetingContext, ticket: Ticket, startup: StartupMessage | None = None, *, direct: bool = False
    ) -> None:
        self._context = context
        self._ticket = ticket
        self._startup = startup
        self._encrypted = startup is None
        self._direct = direct
        self._packets: FirstPackets | None = None if startup else FirstPackets(encrypted=not direct)
        self._buffer = b""
        self._exchange: Exchange | None = None
        self._sasl = False
        self._paused = False
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def __repr__(self) -> str:
        state = "first packets" if self._startup is None else "looking up" if self._exchange is None else "verifying"
        return f"<Greeting {self._ticket.peer} {'TLS ' if self._encrypted else ''}{state}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Every transport that uvloop makes for a socket has both directions.
        self._transport = transport  # type: ignore[assignment]
        if self._encrypted:
            self._context.counters.tls_connections += 1
            if self._direct and not self._has_alpn(transport):
                self._refuse(
                    StartupRefused("received direct SSL connection request without ALPN protocol negotiation extension")
                )
        elif self._startup is not None:
            self._begin(self._startup)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._ticket.leave()

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._packets is not None:
            self._packets.feed(data)
            self._read_first_packets(self._packets)
            return
        self._buffer += data
        if self._exchange is not None:
            self._verify(self._exchange)
        elif not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def expire(self) -> None:
        """The login has taken too long: ends without a word, as on the server."""
        if self._transport is not None:
            self._transport.abort()

    def _has_alpn(self, transport: asyncio.BaseTransport) -> bool:
        tls = transport.get_extra_info("ssl_object")
        return tls is not None and tls.selected_alpn_protocol() == ALPN

    # First packets, behind TLS.

    def _read_first_packets(self, packets: FirstPackets) -> None:
        try:
            while (packet := packets.next()) is not None:
                if not self._take(packet, packets):
                    return
        except StartupRefused as refused:
            self._refuse(refused)

    def _take(self, packet: FirstPacket, packets: FirstPackets) -> bool:
        """Acts on one first packet; False when it was the last."""
        match packet:
            case SslRequest():
                self._decline("SSL request", packets)
                return True
            case GssRequest():
                self._decline("GSSAPI encryption request", packets)
                return True
            case CancelRequest(pid, secret):
                self._packets = None
                self._task = asyncio.ensure_future(self._cancel(pid, secret))
            case StartupMessage():
                self._startup, self._buffer, self._packets = packet, packets.buffered, None
                answer = refusal(self._context, self._ticket, packet, encrypted=True)
                if answer is not None:
                    log_refusal(self._context, self._ticket, answer.reason, packet)
                    self._end(packet.negotiate + answer.response)
                else:
                    self._begin(packet)
        return False

    def _decline(self, request: str, packets: FirstPackets) -> None:
        """Encryption within encryption. Only a client that began with direct TLS comes here."""
        self._write(b"N")
        if packets.buffered:
            raise unencrypted_data_after(request)

    async def _cancel(self, pid: int, secret: bytes) -> None:
        # libpq takes the end of this connection as the sign that the cancel has been dealt with.
        try:
            await self._context.cancel(pid, secret)
        finally:
            self._task = None
            if self._transport is not None:
                self._transport.close()

    # Verifying.

    def _begin(self, startup: StartupMessage) -> None:
        settings = self._context.settings
        own = meant(settings, startup.database, startup.replication)
        if settings.auth != "relay" or own:
            self._task = asyncio.ensure_future(self._look_up(startup))
            return
        # What the server does not see must be right before it is asked.
        try:
            self._check_name(startup, self._certificate())
        except AuthFailed as failed:
            self._fail(failed, startup.negotiate)
        else:
            self._hand_over(RelayCredential())

    async def _look_up(self, startup: StartupMessage) -> None:
        try:
            certificate = self._certificate()
            exchange = await self._context.authenticator.begin(
                startup.user,
                startup.database,
                tls=self._encrypted,
                peer_certificate=certificate,
                peer=self._ticket.peer,
                own=meant(self._context.settings, startup.database, startup.replication),
            )
            self._task = None
            request = exchange.start()
            self._exchange = exchange
            if exchange.done:
                self._verified(startup.negotiate + request, exchange)
                return
            self._sasl = int.from_bytes(request[5:9], "big") == _AUTHENTICATION_SASL
            self._write(startup.negotiate + request)
            self._resume()
            self._verify(exchange)
        except AuthFailed as failed:
            self._fail(failed, startup.negotiate)
        except Exception as error:  # whatever is wrong on our side, the client gets an answer and the log the reason
            self._context.log.event(
                "login_broken",
                level="error",
                id=self._ticket.id,
                peer=self._ticket.peer,
                user=startup.user,
                error=repr(error),
            )
            self._end(startup.negotiate + error_response("XX000", "the proxy could not verify the login"))

    def _certificate(self) -> dict[str, Any] | None:
        """The client's verified certificate. AuthFailed when one is required and missing."""
        certificate: dict[str, Any] | None = None
        if self._encrypted and self._transport is not None:
            certificate = self._transport.get_extra_info("peercert") or None
        required = self._encrypted and self._context.settings.client_tls_mode in _CERTIFICATE_REQUIRED
        if required and certificate is None:
            raise AuthFailed("28000", "connection requires a valid client certificate")
        return certificate

    def _check_name(self, startup: StartupMessage, certificate: dict[str, Any] | None) -> None:
        """AuthFailed where the certificate must name the user and does not."""
        if self._encrypted and self._context.settings.client_tls_mode == "verify-full":
            check_common_name(startup.user, certificate)

    def _verify(self, exchange: Exchange) -> None:
        """Feeds the exchange with the password messages that have arrived."""
        try:
            while self._buffer and not exchange.done and (body := self._password_message(exchange)) is not None:
                answer = exchange.receive(body)
                if exchange.done:
                    self._verified(answer, exchange)
                elif answer:
                    self._write(answer)
        except AuthFailed as failed:
            self._fail(failed)
        except StartupRefused as refused:
            self._refuse(refused)

    def _password_message(self, exchange: Exchange) -> bytes | None:
        """Takes the next whole ``p`` message off the buffer, None while it is incomplete."""
        buffer = self._buffer
        if buffer[0] != ord("p"):
            expected = "SASL" if self._sasl else "password"
            self._context.counters.protocol_errors += 1
            raise AuthFailed("08P01", f"expected {expected} response, got message type {buffer[0]}")
        if len(buffer) < 5:
            return None
        # The server's limits count the length word.
        length = int.from_bytes(buffer[1:5], "big", signed=True)
        if not 4 <= length <= exchange.max_message:
            if self._sasl and self._startup is not None:
                raise password_failed(self._startup.user, "invalid message length")
            raise StartupRefused("invalid message length")
        if len(buffer) < length + 1:
            return None
        self._buffer = buffer[length + 1 :]
        return buffer[5 : length + 1]

    def _verified(self, last: bytes, exchange: Exchange) -> None:
        startup = self._startup
        if startup is None:
            raise RuntimeError("verified before the start-up message")
        self._check_name(startup, self._certificate())
        settings = self._context.settings
        own = meant(settings, startup.database, startup.replication)
        if self._context.places.taken > settings.max_clients and not own:
            self._context.counters.queue_rejected += 1
            self._end(last + TOO_MANY_CLIENTS.response)
            return
        self._write(last + AUTHENTICATION_OK)
        self._hand_over(exchange.credential)

    def _hand_over(self, credential: Credential) -> None:
        startup, transport = self._startup, self._transport
        if startup is None or transport is None or transport.is_closing():
            return
        login = Login(
            user=startup.user,
            database=startup.database,
            settings=startup.settings,
            credential=credential,
            minor=startup.minor if startup.minor >= 2 else 0,
            replication=startup.replication,
            peer=self._ticket.peer,
            id=self._ticket.id,
            tls=self._encrypted,
            read_only=self._ticket.read_only or startup.user in self._context.settings.read_only_users,
        )
        if login.read_only and login.replication is not None:
            self._end(NO_REPLICATION)  # a replication connection can run SQL that nobody looks at
            return
        pending, self._buffer = self._buffer, b""
        self._resume()
        try:
            if isinstance(credential, RelayCredential):
                self._context.start_relay(login, transport, startup.raw, pending)
            else:
                self._context.start_session(login, transport, pending)
        finally:
            self._ticket.leave()  # behind it: in between its place would look free

    # Ends.

    def _fail(self, failed: AuthFailed, before: bytes = b"") -> None:
        startup = self._startup
        self._context.counters.logins_failed += 1
        self._context.log.event(
            "login_failed",
            id=self._ticket.id,
            peer=self._ticket.peer,
            user=startup.user if startup else None,
            database=startup.database if startup else None,
            sqlstate=failed.sqlstate,
            reason=str(failed),
            detail=failed.log_detail or None,
        )
        self._end(before + failed.response())

    def _refuse(self, refused: StartupRefused) -> None:
        self._context.counters.protocol_errors += 1
        log_refusal(self._context, self._ticket, refused.text)
        self._end(refused.response)

    def _end(self, response: bytes) -> None:
        self._packets, self._buffer = None, b""
        self._write(response)
        if self._transport is not None:
            self._transport.close()

    def _write(self, data: bytes) -> None:
        if data and self._transport is not None:
            self._transport.write(data)

    def _resume(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()


def check_common_name(user: str, certificate: dict[str, Any] | None) -> None:
    """AuthFailed unless the certificate's common name is the user's name."""
    names = [value for part in (certificate or {}).get("subject", ()) for key, value in part if key == "commonName"]
    if names != [user]:
        raise certificate_failed(user, f"the certificate names {names[0] if names else 'nobody'}")
