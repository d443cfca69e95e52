"""Which exchange a client has to pass: the method configured, and where the user's secret comes from.

A user's secret is looked for in this order: the DSN user's password, the users file, ``auth_query``. What a reload
changes is one immutable ``_Known``, replaced as a whole, so that a login sees the old or the new state and a broken
users file leaves the old one in force.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from proxy.auth import scram
from proxy.auth.exchange import Exchange, Md5Exchange, ScramExchange, accept
from proxy.auth.failures import INVALID_AUTHORIZATION, AuthFailed, certificate_failed, no_entry
from proxy.auth.query import AuthQuery, EventLog, QuerySettings
from proxy.auth.secrets import Md5Hash, Password, ScramVerifier, Secret
from proxy.auth.upstream_secret import dsn_user, find_password
from proxy.auth.users import is_readable_by_others, read_users
from proxy.dsn import is_loopback
from proxy.login import Credential, NoCredential, PasswordCredential, RelayCredential
from proxy.settings import ProxySettings

_MAX_VERIFIERS: Final = 1024
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True, slots=True)
class _Known:
    method: str
    dsn_user: str
    users: Mapping[str, Secret | None] = field(repr=False)
    query: AuthQuery | None


@dataclass(frozen=True, slots=True)
class _Answer:
    """A secret fit for use, or None and the reason for the log."""

    secret: Secret | None = field(repr=False)
    why_none: str = ""
    from_query: AuthQuery | None = None


class Authenticator:
    """Verifies the clients of one worker.

    ``tls_hash`` gives the tls-server-end-point data of our certificate (None without TLS); ``upstream_tls`` gives what
    asyncpg takes as ``ssl`` for the connections of ``auth_query`` (else the setting ``server_tls_mode`` by itself).
    """

    def __init__(
        self,
        settings: ProxySettings,
        tls_hash: Callable[[], bytes | None],
        log: EventLog,
        *,
        upstream_tls: Callable[[], dict[str, Any]] | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings = settings
        self._tls_hash = tls_hash
        self._log = log
        self._upstream_tls = upstream_tls
        self._environment = environment
        self._known: _Known | None = None
        self._salt_key = _shared_key()
        self._verifiers: dict[tuple[str, str], ScramVerifier] = {}

    async def start(self) -> None:
        """Reads the users. ValueError says in one sentence what is wrong; nothing is asked of the upstream yet."""
        await self.reload(self._settings)

    async def reload(self, settings: ProxySettings) -> None:
        """Takes new settings and reads the files anew; on ValueError everything stays as it was."""
        known = self._read(settings)
        old, self._known, self._settings = self._known, known, settings
        self._verifiers.clear()
        if old is not None and old.query is not None and old.query is not known.query:
            await old.query.close()

    async def close(self) -> None:
        if self._known is not None and self._known.query is not None:
            await self._known.query.close()

    async def begin(
        self,
        user: str,
        database: str,
        *,
        tls: bool,
        peer_certificate: dict[str, Any] | None,
        peer: str,
        own: bool = False,
    ) -> Exchange:
        """The exchange for this client; ``peer`` is its address or ``unix``, ``peer_certificate`` what ``getpeercert``
        gives for a certificate that was verified; ``own``: the database is the proxy's, so that the server cannot be
        left to decide. AuthFailed when it need not be asked at all.
        """
        known = self._known
        if known is None:
            raise RuntimeError("start() has not been called")
        if known.method == "relay" and not own:
            return accept(RelayCredential())
        if known.method == "trust":
            if peer != "unix" and not is_loopback(peer):
                raise no_entry(peer, user, database, tls=tls, log_detail="auth trust is for this machine only")
            return accept(_static_credential(known, user))
        if known.method == "cert":
            _check_certificate(user, database, tls=tls, certificate=peer_certificate, peer=peer)
            return accept(_static_credential(known, user))
        answer = await self._find(known, user)
        if known.method == "md5" and not isinstance(answer.secret, ScramVerifier):
            return Md5Exchange(user, answer.secret, answer.why_none or f'Password does not match for user "{user}".')
        return self._scram(user, answer, tls=tls)

    def _read(self, settings: ProxySettings) -> _Known:
        owner = dsn_user(settings.dsn, self._environment)
        users = known_users(settings, self._environment)
        if settings.users_file and is_readable_by_others(Path(settings.users_file)):
            self._log.event("users_file_readable_by_all", level="warning", path=settings.users_file)
        query = self._make_query(settings, owner, users) if settings.auth_query else None
        return _Known(settings.auth_method, owner, users, query)

    def _make_query(self, settings: ProxySettings, owner: str, users: Mapping[str, Secret | None]) -> AuthQuery:
        asker = settings.auth_query_user or owner
        secret = users.get(asker)
        mode = settings.server_tls_mode
        wanted = QuerySettings(
            dsn=settings.dsn,
            sql=settings.auth_query,
            user=asker,
            password=secret.text if isinstance(secret, Password) else None,
            timeout=settings.connect_timeout,
            tls=self._upstream_tls or (lambda: {"ssl": mode}),
        )
        return AuthQuery(wanted, self._log)

    async def _find(self, known: _Known, user: str) -> _Answer:
        if user in known.users:
            secret = known.users[user]
            return _Answer(secret, "" if secret else f'User "{user}" has no password assigned.')
        if known.query is None:
            return _Answer(None, f'Role "{user}" is not known to the proxy.')
        found = await known.query.look_up(user)
        if found is None:
            return _Answer(None, f'Role "{user}" does not exist.', known.query)
        if found.secret is None:
            return _Answer(None, f'User "{user}" has no password assigned.', known.query)
        if found.expired():
            return _Answer(None, f'User "{user}" has an expired password.', known.query)
        return _Answer(found.secret, "", known.query)

    def _scram(self, user: str, answer: _Answer, *, tls: bool) -> ScramExchange:
        secret, detail, password = answer.secret, answer.why_none, None
        if isinstance(secret, Password):
            password = secret.text
            verifier = self._verifier_of(user, password)
        elif isinstance(secret, ScramVerifier):
            verifier = secret
        else:
            if isinstance(secret, Md5Hash):
                detail = f'User "{user}" does not have a valid SCRAM secret.'
            verifier = ScramVerifier(scram.DEFAULT_ITERATIONS, self._salt(user), bytes(32), bytes(32))
        query = answer.from_query
        return ScramExchange(
            user,
            verifier,
            channel_binding=self._tls_hash() if tls else None,
            password=password,
            doomed=not isinstance(secret, Password | ScramVerifier),
            fail_detail=detail,
            on_mismatch=None if query is None else lambda: query.forget(user),
        )

    def _verifier_of(self, user: str, password: str) -> ScramVerifier:
        """Kept, because making one costs a millisecond of the event loop."""
        verifier = self._verifiers.get((user, password))
        if verifier is None:
            if len(self._verifiers) >= _MAX_VERIFIERS:
                self._verifiers.clear()
            verifier = self._verifiers[user, password] = scram.make_verifier(password, self._salt(user))
        return verifier

    def _salt(self, user: str) -> bytes:
        """The same for a name at every attempt, known or not, so that salts do not tell who exists."""
        name = user.encode("utf-8", "surrogateescape")
        return hmac.digest(self._salt_key, name, "sha256")[: scram.SALT_BYTES]


def known_users(settings: ProxySettings, environment: Mapping[str, str] = os.environ) -> dict[str, Secret | None]:
    """The secrets that nobody need be asked for, by user. ValueError says what is wrong with the file they are in."""
    users = read_users(Path(settings.users_file)) if settings.users_file else {}
    owner = dsn_user(settings.dsn, environment)
    if password := find_password(settings.dsn, owner, settings.password, settings.upstream_passfile, environment):
        users[owner] = Password(password)
    return users


def _shared_key() -> bytes:
    """A key that all workers of this machine share and nobody outside can guess.

    Not derived from any password: salts are shown to everybody, and would then let a password be guessed off-line.
    """
    try:
        seed = _BOOT_ID.read_bytes()
    except OSError:
        seed = os.urandom(32)
    return hashlib.sha256(b"pilotwire mock authentication\0" + seed).digest()


def _static_credential(known: _Known, user: str) -> Credential:
    """How to log in as a user whom we did not ask for a password."""
    secret = known.users.get(user)
    if isinstance(secret, Password):
        return PasswordCredential(secret.text)
    if isinstance(secret, Md5Hash):
        return PasswordCredential("md5" + secret.digest)
    return NoCredential()


def _check_certificate(user: str, database: str, *, tls: bool, certificate: dict[str, Any] | None, peer: str) -> None:
    if not tls:
        raise no_entry(peer, user, database, tls=False, log_detail="auth cert needs TLS")
    if not certificate:
        raise AuthFailed(INVALID_AUTHORIZATION, "connection requires a valid client certificate")
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    if not names or names[0] != user:
        shown = names[0][:64] if names else ""
        raise certificate_failed(user, f'the certificate is of "{shown}", the user is "{user}"')
