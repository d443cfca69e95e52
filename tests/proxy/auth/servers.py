"""Real PostgreSQL servers whose pg_hba.conf asks each test user in another way.

``AuthServer`` is the embedded one (no TLS in its build); ``TlsServer`` one of the system's, for channel binding.
"""

from __future__ import annotations

import datetime
import os
import pwd
import shutil
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pilotwire.embedded import EmbeddedServer

PASSWORD = 'sé"cret'
ROLES = f"""
SET password_encryption = 'scram-sha-256';
CREATE ROLE scram_user LOGIN PASSWORD '{PASSWORD}';
CREATE ROLE forever_user LOGIN PASSWORD '{PASSWORD}' VALID UNTIL 'infinity';
CREATE ROLE expired_user LOGIN PASSWORD '{PASSWORD}' VALID UNTIL '2000-01-01 00:00:00+00';
CREATE ROLE bare_user LOGIN;
CREATE ROLE odd_user LOGIN PASSWORD E'a\\u00a0b\\u00adc';
CREATE ROLE raw_user LOGIN PASSWORD E'x\\u2028\\u00e9';
CREATE ROLE clear_user LOGIN PASSWORD '{PASSWORD}';
CREATE ROLE trusted_user LOGIN;
CREATE ROLE asker LOGIN PASSWORD 'asker' SUPERUSER;
CREATE ROLE "quote""d; DROP TABLE x --" LOGIN PASSWORD '{PASSWORD}';
SET password_encryption = 'md5';
CREATE ROLE md5_user LOGIN PASSWORD '{PASSWORD}';
"""
FEW_ROUNDS = f"""
SET password_encryption = 'scram-sha-256'; SET scram_iterations = 7;
CREATE ROLE few_rounds_user LOGIN PASSWORD '{PASSWORD}';
"""
HBA = (
    "host all postgres 127.0.0.1/32 trust",
    "host all trusted_user 127.0.0.1/32 trust",
    "host all clear_user 127.0.0.1/32 password",
    "host all md5_user 127.0.0.1/32 md5",
    "host replication all 127.0.0.1/32 scram-sha-256",
    "host all all 127.0.0.1/32 scram-sha-256",
)


class AuthServer:
    def __init__(self, directory: Path) -> None:
        self._server = EmbeddedServer(directory, hba=HBA, hint_plan=False, config={"fsync": "off"})
        self._server.start()
        self.host, self.port = self._server.host, self._server.port

    async def sql(self, text: str) -> list[asyncpg.Record]:
        """Run as superuser; the rows of the last statement when it is a single one."""
        connection = await asyncpg.connect(host=self.host, port=self.port, user="postgres", database="postgres")
        try:
            return list(await connection.fetch(text)) if text.startswith("SELECT") else await _run(connection, text)
        finally:
            await connection.close()

    def restart(self) -> None:
        self._server.configure(restart=True)

    def stop(self) -> None:
        self._server.stop()
        self._server.reset()


async def _run(connection: asyncpg.Connection, text: str) -> list[asyncpg.Record]:
    await connection.execute(text)
    return []


class TlsServer:
    """A server of the system's packages with a certificate of its own, answering TLS on 127.0.0.1."""

    def __init__(self, bin_dir: Path, certificates: Certificates) -> None:
        self._bin = bin_dir
        account = pwd.getpwnam("postgres") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        self._user = account.pw_name if os.geteuid() == 0 else None
        self._base = Path(tempfile.mkdtemp(prefix="pilotwire-tls-"))
        os.chown(self._base, account.pw_uid, account.pw_gid)
        self.data = self._base / "data"
        self._run("initdb", "-D", str(self.data), "-U", "postgres", "-A", "trust", "--no-locale", "-E", "UTF8")
        for name, source in (
            ("server.crt", certificates.server_cert),
            ("server.key", certificates.server_key),
            ("root.crt", certificates.authority),
        ):
            path = self.data / name
            path.write_bytes(source.read_bytes())
            path.chmod(0o600)
            os.chown(path, account.pw_uid, account.pw_gid)
        (self.data / "pg_hba.conf").write_text(
            "hostnossl all postgres 127.0.0.1/32 trust\n"
            "hostssl all cert_user 127.0.0.1/32 cert\n"
            "hostssl all tls_only 127.0.0.1/32 trust\n"
            "hostnossl all clear_only 127.0.0.1/32 trust\n"
            "host all tls_only,clear_only 127.0.0.1/32 reject\n"
            "host all all 127.0.0.1/32 scram-sha-256\n"
        )
        self.host, self.port = "127.0.0.1", free_port()
        with (self.data / "postgresql.conf").open("a") as config:
            config.write(
                f"listen_addresses = '127.0.0.1'\nport = {self.port}\nunix_socket_directories = ''\nssl = on\n"
                "ssl_ca_file = 'root.crt'\nfsync = off\n"
            )
        self._run("pg_ctl", "start", "-w", "-s", "-D", str(self.data), "-l", str(self._base / "log"))

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-s", "-m", "immediate", "-D", str(self.data))
        shutil.rmtree(self._base)

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._bin / program, *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            timeout=90,
            user=self._user,
        )


def system_postgres() -> Path | None:
    """The programs of the newest PostgreSQL server of the system's packages."""
    found = [path for path in Path("/usr/lib/postgresql").glob("*/bin/postgres") if path.is_file()]
    return max(found, key=lambda path: float(path.parts[-3])).parent if found else None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Certificates:
    """An authority, a server certificate, and one client certificate each for ``cert_user`` and ``other_user``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ca_key = ec.generate_private_key(ec.SECP256R1())
        self._ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "pilotwire test authority")])
        self.authority = folder / "authority.crt"
        ca = self._builder(self._ca_name, self._ca_key.public_key()).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.authority.write_bytes(ca.sign(self._ca_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        self.server_cert, self.server_key = self.issue("localhost")
        self.client = {name: self.issue(name) for name in ("cert_user", "other_user")}

    def issue(self, common_name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        certificate = self._builder(subject, key.public_key()).sign(self._ca_key, hashes.SHA256())
        cert_path, key_path = self._folder / f"{common_name}.crt", self._folder / f"{common_name}.key"
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.touch(mode=0o600)
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_path, key_path

    def server_hash(self) -> bytes:
        """tls-server-end-point: the hash, by the signature's own algorithm, of the certificate."""
        certificate = x509.load_pem_x509_certificate(self.server_cert.read_bytes())
        return certificate.fingerprint(hashes.SHA256())

    def server_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_cert, self.server_key)
        context.load_verify_locations(self.authority)
        context.verify_mode = ssl.CERT_OPTIONAL
        return context

    def _builder(self, subject: x509.Name, public_key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._ca_name)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
