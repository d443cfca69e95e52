"""TLS contexts: libpq's modes, files that cannot be used, channel binding, and reloading."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import ssl
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, NoEncryption, PrivateFormat

from proxy.settings import ProxySettings
from proxy.tls import TlsContexts, TlsError, check_key_file, end_point_hash, peer_end_point_hash
from tests.support.tls import Authority, TlsFiles


def contexts(**settings: Any) -> TlsContexts:
    return TlsContexts(settings_of(**settings))


def settings_of(**settings: Any) -> ProxySettings:
    texts: dict[str, Any] = {name: str(value) if isinstance(value, Path) else value for name, value in settings.items()}
    return ProxySettings(upstream="postgresql://postgres@127.0.0.1:1/postgres", auth="trust", **texts)


def server_pair(files: TlsFiles) -> dict[str, Any]:
    return {"client_tls_cert": files.server_cert, "client_tls_key": files.server_key}


def shake(server: ssl.SSLContext, client: ssl.SSLContext, host: str | None) -> tuple[ssl.SSLSocket, ssl.SSLSocket]:
    """Both ends of a finished handshake; raises what the client's end raises."""
    ours, theirs = socket.socketpair()
    ours.settimeout(10)
    theirs.settimeout(10)
    ended: list[ssl.SSLSocket] = []

    def serve() -> None:
        try:
            ended.append(server.wrap_socket(ours, server_side=True))
        except OSError:
            ours.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client_end = client.wrap_socket(theirs, server_hostname=host)
    except BaseException:
        theirs.close()
        thread.join()
        for sock in ended:
            sock.close()
        raise
    thread.join()
    return ended[0], client_end


def test_off_on_both_sides() -> None:
    tls = contexts(server_tls_mode="disable")
    assert (tls.client_side, tls.server_side, tls.certificate_hash, tls.server_mode) == (None, None, None, "disable")


def test_towards_clients(tls_files: TlsFiles) -> None:
    tls = contexts(**server_pair(tls_files))
    context = tls.client_side
    assert context is not None
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_NONE
    client = ssl.create_default_context(cafile=str(tls_files.ca))
    client.set_alpn_protocols(["postgresql"])
    server_end, client_end = shake(context, client, "localhost")
    with server_end, client_end:
        assert server_end.selected_alpn_protocol() == "postgresql"
        assert peer_end_point_hash(client_end) == tls.certificate_hash
        assert tls.certificate_hash is not None
        client_end.send(b"x")
        server_end.send(b"y")
        assert client_end.recv(1) == b"y"
        assert client_end.session is not None
        assert not client_end.session.has_ticket


@pytest.mark.parametrize("mode", ["allow", "prefer", "require", "verify-ca", "verify-full"])
def test_certificates_of_clients_are_asked_for_when_there_is_an_authority(mode: str, tls_files: TlsFiles) -> None:
    tls = contexts(**server_pair(tls_files), client_tls_mode=mode, client_tls_ca=tls_files.ca)
    assert tls.client_side is not None
    assert tls.client_side.verify_mode == ssl.CERT_OPTIONAL


def test_a_client_certificate_of_another_authority_is_refused(tls_files: TlsFiles, tmp_path: Path) -> None:
    tls = contexts(**server_pair(tls_files), client_tls_ca=tls_files.ca)
    stranger = Authority(tmp_path / "other").issue("client", "postgres")
    client = ssl.create_default_context(cafile=str(tls_files.ca))
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.load_cert_chain(*stranger)
    assert tls.client_side is not None
    with pytest.raises(OSError):  # noqa: PT011 - an alert or a reset, whichever arrives first
        shake(tls.client_side, client, "localhost")


SERVER_MODES = [
    # mode, authority that signed the server's certificate, host name, accepted
    ("allow", "none", "elsewhere", True),
    ("prefer", "none", "elsewhere", True),
    ("require", "none", "elsewhere", True),
    ("prefer", "other", "elsewhere", True),
    ("require", "other", "elsewhere", False),
    ("require", "own", "elsewhere", True),
    ("verify-ca", "own", "elsewhere", True),
    ("verify-ca", "other", "localhost", False),
    ("verify-full", "own", "localhost", True),
    ("verify-full", "own", "127.0.0.1", True),
    ("verify-full", "own", "elsewhere", False),
    ("verify-full", "other", "localhost", False),
]


@pytest.mark.parametrize(("mode", "authority", "host", "accepted"), SERVER_MODES)
def test_towards_the_server_as_libpq(
    mode: str, authority: str, host: str, accepted: bool, tls_files: TlsFiles, tmp_path: Path
) -> None:
    roots = {"none": "", "own": tls_files.ca, "other": Authority(tmp_path / "other").certificate}[authority]
    client = contexts(server_tls_mode=mode, server_tls_ca=roots).server_side
    server = contexts(**server_pair(tls_files)).client_side
    assert client is not None
    assert server is not None
    if accepted:
        server_end, client_end = shake(server, client, host)
        with server_end, client_end:
            assert client_end.selected_alpn_protocol() == "postgresql"
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            shake(server, client, host)


def test_the_machines_authorities(monkeypatch: pytest.MonkeyPatch, tls_files: TlsFiles) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tls_files.ca))
    client = contexts(server_tls_mode="verify-full", server_tls_ca="system").server_side
    server = contexts(**server_pair(tls_files)).client_side
    assert client is not None
    assert server is not None
    server_end, client_end = shake(server, client, "localhost")
    server_end.close()
    client_end.close()


@pytest.mark.parametrize("mode", ["prefer", "require", "verify-ca"])
def test_the_machines_authorities_need_verify_full(mode: str) -> None:
    with pytest.raises(ValueError, match="verify-full"):
        contexts(server_tls_mode=mode, server_tls_ca="system")


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_verifying_needs_an_authority(mode: str, tls_files: TlsFiles) -> None:
    with pytest.raises(ValueError, match="server_tls_ca"):
        contexts(server_tls_mode=mode)
    with pytest.raises(ValueError, match="client_tls_ca"):
        contexts(**server_pair(tls_files), client_tls_mode=mode)


def test_our_certificate_towards_the_server(tls_files: TlsFiles) -> None:
    client = contexts(server_tls_cert=tls_files.client_cert, server_tls_key=tls_files.client_key).server_side
    server = contexts(**server_pair(tls_files), client_tls_ca=tls_files.ca).client_side
    assert client is not None
    assert server is not None
    server_end, client_end = shake(server, client, "localhost")
    with server_end, client_end:
        shown = server_end.getpeercert()
        assert shown is not None
        assert (("commonName", "postgres"),) in shown["subject"]


# Files that cannot be used.


def broken(tmp_path: Path, files: TlsFiles, kind: str) -> dict[str, Any]:
    certificate, key = tmp_path / "a.crt", tmp_path / "a.key"
    shutil.copy(files.server_cert, certificate)
    shutil.copy(files.server_key, key)
    key.chmod(0o600)
    pair: dict[str, Any] = {"client_tls_cert": certificate, "client_tls_key": key}
    if kind == "no certificate":
        certificate.unlink()
    elif kind == "no key":
        key.unlink()
    elif kind == "a folder as key":
        pair["client_tls_key"] = tmp_path
    elif kind == "garbage":
        certificate.write_text("garbage")
    elif kind == "another key":
        key.write_bytes(files.client_key.read_bytes())
    elif kind == "readable key":
        key.chmod(0o644)
    elif kind == "passphrase":
        plain = ed25519.Ed25519PrivateKey.generate()
        key.write_bytes(plain.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    elif kind == "no authority":
        pair["client_tls_ca"] = tmp_path / "missing.crt"
    elif kind == "empty authority":
        (tmp_path / "empty.crt").touch()
        pair["client_tls_ca"] = tmp_path / "empty.crt"
    return pair


BROKEN = {
    "no certificate": "a.crt.*No such file",
    "no key": "private key .*a.key.*No such file",
    "a folder as key": "not a regular file",
    "garbage": "cannot be used .*PEM",
    "another key": "does not belong to the certificate",
    "readable key": r"group or world access.*\(0600\)",
    "passphrase": "passphrase",
    "no authority": "client_tls_ca .*missing.crt.*No such file",
    "empty authority": "client_tls_ca .*empty.crt.*PEM",
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named_in_one_sentence(kind: str, tls_files: TlsFiles, tmp_path: Path) -> None:
    with pytest.raises(TlsError, match=BROKEN[kind]) as caught:
        contexts(**broken(tmp_path, tls_files, kind))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", BROKEN)
def test_reloading_broken_files_keeps_the_old_ones(kind: str, tls_files: TlsFiles, tmp_path: Path) -> None:
    tls = contexts(**server_pair(tls_files))
    before = tls.client_side, tls.certificate_hash
    problems = tls.reload(settings_of(**broken(tmp_path, tls_files, kind), server_tls_mode="require"))
    assert len(problems) == 1
    assert problems[0].startswith("TLS towards clients stays as it was: ")
    assert (tls.client_side, tls.certificate_hash) == before
    assert tls.server_mode == "require", "the other side is not held up by it"


def test_reloading_takes_renewed_files(tls_files: TlsFiles, tmp_path: Path) -> None:
    pair = broken(tmp_path, tls_files, "nothing")
    tls = contexts(**pair)
    before = tls.certificate_hash
    renewed = Authority(tmp_path / "new").issue("server", "localhost", ("localhost",))
    pair["client_tls_cert"].write_bytes(renewed[0].read_bytes())
    assert len(tls.reload()) == 1, "half of a pair is not taken"
    assert tls.certificate_hash == before
    pair["client_tls_key"].write_bytes(renewed[1].read_bytes())
    assert tls.reload() == []
    assert tls.certificate_hash not in (None, before)


def test_reloading_a_broken_server_side_keeps_its_mode(tls_files: TlsFiles, tmp_path: Path) -> None:
    tls = contexts(server_tls_mode="verify-full", server_tls_ca=tls_files.ca)
    before = tls.server_side
    problems = tls.reload(settings_of(server_tls_mode="verify-ca", server_tls_ca=tmp_path / "missing"))
    assert problems[0].startswith("TLS towards the server stays as it was: ")
    assert (tls.server_side, tls.server_mode) == (before, "verify-full")


@pytest.mark.parametrize(
    ("owner", "mode", "accepted"),
    [
        ("own", 0o600, True),
        ("own", 0o400, True),
        ("own", 0o640, False),
        ("own", 0o604, False),
        ("root", 0o640, True),
        ("root", 0o660, False),
        ("root", 0o644, False),
        ("other", 0o600, False),
    ],
)
def test_permissions_of_keys(
    owner: str, mode: int, accepted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.touch()
    real = os.stat(key)
    uid = {"own": 4711, "root": 0, "other": 4712}[owner]
    found = os.stat_result((0o100000 | mode, *real[1:4], uid, *real[5:10]))
    monkeypatch.setattr("proxy.tls.os.stat", lambda _: found)
    monkeypatch.setattr("proxy.tls.os.geteuid", lambda: 4711)
    if accepted:
        check_key_file(str(key))
    else:
        with pytest.raises(TlsError, match=r"owned by|world access"):
            check_key_file(str(key))


# Channel binding.


@pytest.mark.parametrize(
    ("algorithm", "name"),
    [("-sha256", "sha256"), ("-sha384", "sha384"), ("-sha512", "sha512"), ("-sha1", "sha256"), ("-md5", "sha256")],
)
def test_binds_by_the_hash_of_the_signature(algorithm: str, name: str, tmp_path: Path) -> None:
    der = self_signed(tmp_path, algorithm, ())
    assert end_point_hash(der) == hashlib.new(name, der).digest()


def test_binds_by_the_hash_of_a_pss_signature(tmp_path: Path) -> None:
    der = self_signed(tmp_path, "-sha384", ("-sigopt", "rsa_padding_mode:pss"))
    assert end_point_hash(der) == hashlib.sha384(der).digest()


def self_signed(folder: Path, algorithm: str, options: tuple[str, ...]) -> bytes:
    """By the openssl program, since the library no longer signs by hashes as weak as these."""
    key = rsa.generate_private_key(65537, 2048)
    key_file, certificate_file = folder / "key", folder / "crt"
    key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    command = ["openssl", "req", "-x509", "-new", "-key", str(key_file), algorithm, *options, "-subj", "/CN=localhost"]
    subprocess.run([*command, "-out", str(certificate_file)], check=True, capture_output=True, timeout=30)
    return ssl.PEM_cert_to_DER_cert(certificate_file.read_text())


def test_no_binding_without_a_hash(tmp_path: Path, tls_files: TlsFiles) -> None:
    template = x509.load_pem_x509_certificate(tls_files.ca.read_bytes())
    key = ed25519.Ed25519PrivateKey.generate()
    built = (
        x509.CertificateBuilder()
        .subject_name(template.subject)
        .issuer_name(template.issuer)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(template.not_valid_before_utc)
        .not_valid_after(template.not_valid_after_utc)
    )
    assert end_point_hash(built.sign(key, None).public_bytes(Encoding.DER)) is None


def test_the_first_certificate_of_a_chain_counts(tls_files: TlsFiles, tmp_path: Path) -> None:
    chain = tmp_path / "chain.crt"
    chain.write_bytes(tls_files.server_cert.read_bytes() + tls_files.ca.read_bytes())
    tls = contexts(client_tls_cert=chain, client_tls_key=tls_files.server_key)
    der = ssl.PEM_cert_to_DER_cert(tls_files.server_cert.read_text())
    assert tls.certificate_hash == hashlib.sha256(der).digest()
