"""Verifying one client: exchanges without I/O.

``start()`` gives the bytes to send first (none when nothing is asked), ``receive(body)`` takes the body of a ``p``
message and gives the bytes to send next. Once ``done``, ``credential`` says how to log in upstream in the client's
name; AuthenticationOk is sent by the caller. A refusal is raised as ``AuthFailed`` and ends the exchange.

A user who cannot log in (unknown, expired, without a fitting secret) goes through the whole exchange all the same,
against a salt that stays the same for that name, and fails at its end like a wrong password: whether a user exists is
not revealed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets as random_source
import struct
from collections.abc import Callable
from typing import Final

from scramp import ScramException, ScramMechanism
from scramp.core import ScramServer

from proxy.auth import scram
from proxy.auth.failures import INVALID_PASSWORD, PROTOCOL_VIOLATION, AuthFailed, malformed, password_failed
from proxy.auth.scram_messages import (
    MAX_SASL_MESSAGE,
    ClientFinal,
    ClientFirst,
    read_client_final,
    read_client_first,
    split_initial_response,
)
from proxy.auth.secrets import Md5Hash, Password, ScramVerifier
from proxy.login import Credential, NoCredential, PasswordCredential, ScramKeysCredential
from proxy.wire.messages import message

_CODE = struct.Struct("!i")
_MD5_PASSWORD: Final = 5
_SASL: Final = 10
_SASL_CONTINUE: Final = 11
_SASL_FINAL: Final = 12


def _request(code: int, data: bytes = b"") -> bytes:
    return message(b"R", _CODE.pack(code) + data)


class Exchange:
    """The base, and by itself the exchange of a client that is asked for nothing (trust, a verified certificate)."""

    __slots__ = ("_credential",)

    max_message = 0
    """Bytes that a ``p`` message may have, its length word counted; the caller refuses a client that announces more."""

    def __init__(self, credential: Credential | None = None) -> None:
        self._credential = credential

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'done' if self.done else 'waiting'}>"

    @property
    def done(self) -> bool:
        return self._credential is not None

    @property
    def credential(self) -> Credential:
        """RuntimeError before the exchange is done."""
        if self._credential is None:
            raise RuntimeError("the client has not been verified yet")
        return self._credential

    def start(self) -> bytes:
        return b""

    def receive(self, body: bytes) -> bytes:
        raise AuthFailed(PROTOCOL_VIOLATION, f"unexpected password message of {len(body)} bytes")


class Md5Exchange(Exchange):
    """The server's md5 method: md5(md5(password + user) + salt). ``secret`` None fails at the end."""

    __slots__ = ("_fail_detail", "_salt", "_secret", "_started", "_user")

    max_message = 65535

    def __init__(self, user: str, secret: Password | Md5Hash | None, fail_detail: str) -> None:
        super().__init__()
        self._user = user
        self._secret = secret
        self._fail_detail = fail_detail
        self._salt = random_source.token_bytes(4)
        self._started = False

    def start(self) -> bytes:
        self._started = True
        return _request(_MD5_PASSWORD, self._salt)

    def receive(self, body: bytes) -> bytes:
        if not self._started or self.done:
            return super().receive(body)
        self._started = False
        if not body.endswith(b"\0") or body.count(b"\0") > 1:
            raise AuthFailed(PROTOCOL_VIOLATION, "invalid password packet size")
        if body == b"\0":
            raise AuthFailed(INVALID_PASSWORD, "empty password returned by client")
        secret = self._secret
        if isinstance(secret, Password):
            digest = md5_of(secret.text, self._user)
        else:
            digest = secret.digest if secret else "0" * 32
        expected = b"md5" + hashlib.md5(digest.encode() + self._salt, usedforsecurity=False).hexdigest().encode()
        if not hmac.compare_digest(expected, body[:-1]) or secret is None:
            raise password_failed(self._user, self._fail_detail)
        # A hash is as good as the password towards a server that asks for md5, and is written as it is stored.
        self._credential = PasswordCredential(secret.text if isinstance(secret, Password) else "md5" + digest)
        return b""


def md5_of(password: str, user: str) -> str:
    """The digits that the server stores for an MD5 password."""
    salted = (password + user).encode("utf-8", "surrogateescape")
    return hashlib.md5(salted, usedforsecurity=False).hexdigest()


class ScramExchange(Exchange):
    """SCRAM-SHA-256, and SCRAM-SHA-256-PLUS when ``channel_binding`` (the hash of our certificate) is given.

    ``password`` is kept for the server when it is known; otherwise the credential is made of the keys recovered from
    the client's proof. ``doomed`` means that the verifier is made up and the exchange fails at its end.
    ``on_mismatch`` is called when the proof is wrong.
    """

    __slots__ = (
        "_binding",
        "_doomed",
        "_fail_detail",
        "_first",
        "_mechanism",
        "_on_mismatch",
        "_password",
        "_server",
        "_server_first",
        "_step",
        "_user",
        "_verifier",
    )

    max_message = MAX_SASL_MESSAGE

    def __init__(
        self,
        user: str,
        verifier: ScramVerifier,
        *,
        channel_binding: bytes | None = None,
        password: str | None = None,
        doomed: bool = False,
        fail_detail: str = "",
        on_mismatch: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self._user = user
        self._verifier = verifier
        self._binding = channel_binding
        self._password = password
        self._doomed = doomed
        self._fail_detail = fail_detail
        self._on_mismatch = on_mismatch
        self._mechanism = ""
        self._first: ClientFirst | None = None
        self._server: ScramServer | None = None
        self._server_first = ""
        self._step: Callable[[bytes], bytes] = super().receive

    def start(self) -> bytes:
        self._step = self._receive_initial
        mechanisms = [scram.MECHANISM_PLUS] if self._binding is not None else []
        mechanisms.append(scram.MECHANISM)
        return _request(_SASL, b"".join(name.encode() + b"\0" for name in mechanisms) + b"\0")

    def receive(self, body: bytes) -> bytes:
        # Whatever happens, no step runs twice: a failed exchange stays failed.
        step, self._step = self._step, super().receive
        if len(body) + 4 > MAX_SASL_MESSAGE:
            # The server stops reading here too, and answers as to a wrong password.
            raise password_failed(self._user, f"SASL message of {len(body)} bytes")
        return step(body)

    def _receive_initial(self, body: bytes) -> bytes:
        mechanism, data = split_initial_response(body)
        if mechanism == scram.MECHANISM_PLUS and self._binding is None:
            raise AuthFailed(PROTOCOL_VIOLATION, "client selected an invalid SASL authentication mechanism")
        self._mechanism = mechanism
        if data is None:
            # The client wants to be asked: an empty challenge, then its first message.
            self._step = self._receive_first
            return _request(_SASL_CONTINUE)
        return self._receive_first(data)

    def _receive_first(self, data: bytes) -> bytes:
        plus = self._mechanism == scram.MECHANISM_PLUS
        self._first = read_client_first(data, plus=plus, tls=self._binding is not None)
        self._server = self._make_server(self._first, plus)
        self._server_first = self._server.get_server_first()
        self._step = self._receive_final
        return _request(_SASL_CONTINUE, self._server_first.encode("ascii"))

    def _make_server(self, first: ClientFirst, plus: bool) -> ScramServer:
        """scramp's side of the exchange, as if it had read ``first`` itself.

        It is shown a user name, a salt and an iteration count of its liking, and given the true ones after its
        checks: it refuses the empty name that libpq sends, salts below 12 bytes and iteration counts below 4096, all
        of which PostgreSQL accepts and stores.
        """
        verifier = self._verifier
        binding = (scram.CHANNEL_BINDING, self._binding) if plus else None
        server = ScramMechanism(scram.MECHANISM_PLUS if plus else scram.MECHANISM).make_server(
            lambda _user: (bytes(scram.SALT_BYTES), verifier.stored_key, verifier.server_key, 4096),
            channel_binding=binding,
        )
        header = f"p={scram.CHANNEL_BINDING},," if plus else f"{first.flag},,"
        try:
            server.set_client_first(f"{header}n=user,r={first.nonce}")
        except ScramException as error:
            raise malformed(str(error)) from error
        server.client_first_bare = first.bare
        server.salt = base64.b64encode(verifier.salt).decode("ascii")
        server.i = verifier.iterations
        return server

    def _receive_final(self, data: bytes) -> bytes:
        first, server = self._first, self._server
        if first is None or server is None:
            return super().receive(data)
        final = read_client_final(data, flag=first.flag, channel_binding=self._binding)
        if not hmac.compare_digest(final.nonce.encode(), str(server.nonce).encode()):
            raise AuthFailed(PROTOCOL_VIOLATION, "invalid SCRAM response", "Nonce does not match.")
        keys = self._recover_keys(final, first)
        try:
            server.set_client_final(data.decode("utf-8"))
        except ScramException as error:
            if keys is not None:
                # The proof is right, so it is the message that scramp objects to.
                raise malformed(str(error)) from error
        if keys is None or self._doomed:
            if self._on_mismatch is not None:
                self._on_mismatch()
            raise password_failed(self._user, self._fail_detail or f'Password does not match for user "{self._user}".')
        self._credential = PasswordCredential(self._password) if self._password is not None else keys
        return _request(_SASL_FINAL, server.get_server_final().encode("ascii"))

    def _recover_keys(self, final: ClientFinal, first: ClientFirst) -> ScramKeysCredential | None:
        auth_message = f"{first.bare},{self._server_first},{final.without_proof}".encode()
        client_key = scram.recover_client_key(self._verifier.stored_key, auth_message, final.proof)
        return None if client_key is None else ScramKeysCredential(client_key, self._verifier.server_key)


def accept(credential: Credential | None = None) -> Exchange:
    """An exchange that is done before it starts."""
    return Exchange(NoCredential() if credential is None else credential)
