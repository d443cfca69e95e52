"""TLS contexts for both sides: we are the server towards clients, and a client towards the server.

The modes are libpq's sslmode names. Towards clients a certificate of theirs is asked for when there is an authority to
check it by, and one that is shown must be valid; whether it is required is decided after the handshake, by the
greeting, so that the client is told so in the server's own words and not by a TLS alert.

TLS 1.3 tickets are off, as on the server: PostgreSQL clients do not resume sessions, and each would be one more message
to make and send.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from asn1crypto import pem, x509

from proxy.settings import ProxySettings, TlsMode

ALPN: Final = "postgresql"
SYSTEM_ROOTS: Final = "system"
HANDSHAKE_SHUTDOWN: Final = 5.0
"""Seconds a client may take to answer the end of TLS before its connection is cut."""

_M_MMAP_THRESHOLD: Final = -3
_UVLOOP_TLS_BUFFER: Final = 256 * 1024


class TlsError(ValueError):
    """A file or a combination that cannot work; the text is one sentence that says what to do."""


@dataclass(frozen=True, slots=True)
class _ClientSide:
    context: ssl.SSLContext | None
    certificate_hash: bytes | None


class TlsContexts:
    """The contexts that new connections use.

    ``client_side`` is None when clients are not offered TLS, ``server_side`` when the server is not asked for it.
    ``certificate_hash`` is the tls-server-end-point data of our own certificate, None where it has none.
    Raises TlsError.
    """

    __slots__ = ("_client", "_settings", "server_side")

    def __init__(self, settings: ProxySettings) -> None:
        self._settings = settings
        self._client = _client_side(settings)
        self.server_side = server_context(settings)

    def __repr__(self) -> str:
        offered = "offered" if self._client.context else "not offered"
        return f"<TlsContexts {offered} to clients, {self.server_mode} towards the server>"

    @property
    def client_side(self) -> ssl.SSLContext | None:
        return self._client.context

    @property
    def certificate_hash(self) -> bytes | None:
        return self._client.certificate_hash

    @property
    def server_mode(self) -> TlsMode:
        return self._settings.server_tls_mode

    @property
    def server_pair(self) -> tuple[str, str]:
        """The files of our certificate for the server and of its key, empty without one."""
        certificate = self._settings.server_tls_cert
        return certificate, self._settings.server_tls_key or certificate

    def reload(self, settings: ProxySettings | None = None) -> list[str]:
        """Reads the files again, under ``settings`` when given. What is broken stays as it was, and the sentences
        returned say so; connections that exist keep what they have in any case.
        """
        settings = settings or self._settings
        problems = []
        try:
            self._client = _client_side(settings)
        except TlsError as error:
            problems.append(f"TLS towards clients stays as it was: {error}")
        try:
            # The mode and the context belong together: neither changes without the other.
            self.server_side, self._settings = server_context(settings), settings
        except TlsError as error:
            problems.append(f"TLS towards the server stays as it was: {error}")
        return problems


def _client_side(settings: ProxySettings) -> _ClientSide:
    context = client_context(settings)
    if context is None:
        return _ClientSide(None, None)
    return _ClientSide(context, end_point_hash(_first_certificate(settings.client_tls_cert)))


def client_context(settings: ProxySettings) -> ssl.SSLContext | None:
    """The context by which we are a TLS server for clients, None when ``client_tls_mode`` is disable."""
    mode, certificate, key = settings.client_tls_mode, settings.client_tls_cert, settings.client_tls_key
    if mode == "disable":
        return None
    if not certificate:
        raise TlsError(f"client_tls_mode is {mode} without a certificate: set client_tls_cert and client_tls_key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Not OP_NO_TICKET: it makes OpenSSL remember each session itself, 2 kB for every connection there has ever been
    # up to 20,480 of them, and ssl has no means to switch that off.
    context.num_tickets = 0
    context.set_alpn_protocols([ALPN])
    _load_pair(context, "client_tls", certificate, key or certificate)
    if settings.client_tls_ca:
        _load_roots(context, "client_tls_ca", settings.client_tls_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    elif mode in {"verify-ca", "verify-full"}:
        raise TlsError(f"client_tls_mode is {mode} without an authority: set client_tls_ca")
    return context


def server_context(settings: ProxySettings) -> ssl.SSLContext | None:
    """The context by which we connect to the server, None when ``server_tls_mode`` is disable."""
    mode, roots = settings.server_tls_mode, settings.server_tls_ca
    if mode == "disable":
        return None
    if roots == SYSTEM_ROOTS and mode != "verify-full":
        raise TlsError(
            f'server_tls_mode {mode} is too weak for server_tls_ca = "system", which trusts every public authority: '
            "use verify-full"
        )
    if mode in {"verify-ca", "verify-full"} and not roots:
        raise TlsError(
            f"server_tls_mode is {mode} without an authority to check the server's certificate by: set server_tls_ca "
            'to a file or to "system"'
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = mode == "verify-full"
    context.set_alpn_protocols([ALPN])
    # As in libpq, require with an authority at hand verifies like verify-ca.
    verify = mode in {"verify-ca", "verify-full"} or (mode == "require" and roots)
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    if roots == SYSTEM_ROOTS:
        context.load_default_certs()
    elif roots:
        _load_roots(context, "server_tls_ca", roots)
    if settings.server_tls_cert:
        _load_pair(context, "server_tls", settings.server_tls_cert, settings.server_tls_key or settings.server_tls_cert)
    return context


def _load_pair(context: ssl.SSLContext, setting: str, certificate: str, key: str) -> None:
    check_key_file(key)
    try:
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except ssl.SSLError as error:
        reason = error.reason or str(error)
        if reason == "KEY_VALUES_MISMATCH":
            raise TlsError(
                f'the private key "{key}" does not belong to the certificate "{certificate}": set {setting}_cert and '
                f"{setting}_key to a pair"
            ) from None
        raise TlsError(
            f'the certificate "{certificate}" or its key "{key}" cannot be used ({reason}): both must be PEM files'
        ) from None
    except _PassphraseNeededError:
        raise TlsError(
            f'the private key "{key}" has a passphrase, which nobody is there to type: store it without one, mode 0600'
        ) from None
    except OSError as error:
        raise TlsError(f'the certificate "{certificate}" cannot be read: {error.strerror or error}') from None


class _PassphraseNeededError(Exception):
    pass


def _no_passphrase() -> bytes:
    raise _PassphraseNeededError


def _load_roots(context: ssl.SSLContext, setting: str, path: str) -> None:
    try:
        context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise TlsError(
            f'{setting} "{path}" holds no certificates that can be used ({error.reason or error}): give a PEM file'
        ) from None
    except OSError as error:
        raise TlsError(f'{setting} "{path}" cannot be read: {error.strerror or error}') from None


def check_key_file(path: str) -> None:
    """The check of PostgreSQL and libpq: a private key that others can read is not used. Raises TlsError."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise TlsError(f'the private key "{path}" cannot be read: {error.strerror or error}') from None
    if not stat.S_ISREG(found.st_mode):
        raise TlsError(f'the private key "{path}" is not a regular file')
    if found.st_uid not in {0, os.geteuid()}:
        raise TlsError(f'the private key "{path}" must be owned by the user that runs pilotwire or by root')
    # A key of root's may be given to a group, such as Debian's ssl-cert.
    forbidden = stat.S_IWGRP | stat.S_IXGRP | stat.S_IRWXO if found.st_uid == 0 else stat.S_IRWXG | stat.S_IRWXO
    if found.st_mode & forbidden:
        raise TlsError(
            f'the private key "{path}" has group or world access: its permissions must be u=rw (0600) or less, or '
            "u=rw,g=r (0640) or less when root owns it"
        )


def _first_certificate(path: str) -> bytes:
    """The DER of the first certificate of a PEM file: the one that is shown."""
    try:
        with open(path, "rb") as file:
            return next(_certificates(file.read()))
    except (OSError, ValueError, StopIteration) as error:
        raise TlsError(f'the certificate "{path}" cannot be read: {error}') from None


def _certificates(data: bytes) -> Iterator[bytes]:
    for kind, _, der in pem.unarmor(data, multiple=True):
        if kind.endswith("CERTIFICATE"):
            yield der


def end_point_hash(certificate: bytes) -> bytes | None:
    """The tls-server-end-point channel binding (RFC 5929) of a certificate in DER.

    None for a signature without a hash of its own (Ed25519), for which the RFC defines no binding.
    """
    algorithm = x509.Certificate.load(certificate)["signature_algorithm"]
    if algorithm["algorithm"].native in {"ed25519", "ed448"}:
        return None
    try:
        name: str = algorithm.hash_algo
    except ValueError:
        return None
    # Hashes too weak to bind by are replaced, says the RFC.
    if name in {"md5", "sha1"}:
        name = "sha256"
    return hashlib.new(name, certificate).digest()


def peer_end_point_hash(connection: ssl.SSLObject | ssl.SSLSocket) -> bytes | None:
    """The same of the certificate that the other side of a finished handshake has shown."""
    certificate = connection.getpeercert(binary_form=True)
    return end_point_hash(certificate) if certificate else None


def fit_allocator() -> None:
    """Makes glibc give each of uvloop's TLS buffers a mapping of its own.

    uvloop allocates 256 kB for every TLS connection and uses a page or two of it. As a mapping the rest costs nothing.
    But glibc moves its limit up when the first is freed, and then takes them from the heap, where pages once written to
    are carved up among others: measured with 2,000 idle clients, 48 kB each without this and 25 kB with it, of which
    17 kB are OpenSSL's. Without glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, _UVLOOP_TLS_BUFFER)


def return_free_memory() -> None:
    """Gives what has been freed back to the system, which glibc by itself does at the end of its heap only.

    Each burst of TLS connections otherwise leaves some 10 kB for each of them that the next does not use again.
    Takes 3 to 7 ms after 1,000 connections. Without glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
