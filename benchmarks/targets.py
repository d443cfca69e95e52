"""The servers under comparison: PostgreSQL itself, PgBouncer and pilotwire, each in one of its modes."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import shutil
import ssl
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from benchmarks import huge_pages, pgbouncer
from benchmarks.pgbouncer import PgBouncerProgram, PoolMode
from benchmarks.process_costs import family
from benchmarks.processes import HOST, BenchmarkError, free_port, server_process
from pilotwire.embedded import EmbeddedServer
from pilotwire.postgres_files import Account, server_account

WORKER_SECONDS = 10.0
Kind = Literal["direct", "pgbouncer", "pilotwire"]

POOL_SIZE = 40
"""Server connections for a user and database, the same for both proxies: above the most active clients, so that
the cost of the wire is compared and not the length of a queue."""
SESSION_CLIENTS = 400
TRANSACTION_CLIENTS = 4000
SCRAM_USER = "bench"
SCRAM_PASSWORD = "bench-secret"
SHARED_MEMORY = 640 << 20
"""Bytes: PostgreSQL's shared buffers and what else it shares."""
CONFIG: dict[str, str | int] = {
    "shared_buffers": "512MB",
    "max_connections": SESSION_CLIENTS + 100,
    "fsync": "off",
    "autovacuum": "off",
    "jit": "off",
    "max_wal_size": "4GB",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """Which server, in which mode, whether its clients come with TLS or a password, and of pilotwire which build."""

    kind: Kind
    pool_mode: PoolMode = "session"
    tls: bool = False
    scram: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        extras = [extra for extra, on in (("tls", self.tls), ("scram", self.scram), ("compiled", self.compiled)) if on]
        mode = [] if self.kind == "direct" else [self.pool_mode]
        return " ".join([self.kind, *mode, *extras])


@dataclass(frozen=True, slots=True)
class Target:
    """A running variant: its port, and the root process of the proxy (None when direct)."""

    variant: Variant
    port: int
    root: int | None = None

    @property
    def name(self) -> str:
        return self.variant.name

    def pids(self) -> list[int]:
        """All processes of the proxy, none when direct."""
        return [] if self.root is None else family(self.root)

    def workers(self) -> list[int]:
        """The processes that hold clients: PgBouncer's only one, pilotwire's workers without the supervisor."""
        if self.variant.kind == "pgbouncer":
            return self.pids()
        # The port is open a moment before the first worker is there.
        deadline = time.monotonic() + WORKER_SECONDS
        while not (workers := [pid for pid in self.pids() if "pilotwire: worker" in _command_line(pid)]):
            if time.monotonic() > deadline:
                raise BenchmarkError(f"{self.name} has no worker process.")
            time.sleep(0.05)
        return workers


@dataclass(slots=True)
class Bench:
    """What all measurements share: the server, the programs, and a directory that every account can enter."""

    server: EmbeddedServer
    work: Path
    pgbouncer: PgBouncerProgram | None
    account: Account | None
    report: Callable[[str], None]
    compiled: Path | None = None  # the folder of the compiled build
    models: Path | None = None  # with models, pilotwire steers
    python: str = field(default=sys.executable)

    def private(self, name: str, kind: Kind) -> Path:
        """A file that only the account of that proxy may read: each refuses secrets that belong to somebody else."""
        return self.work / f"{kind}-{name}"

    def give(self, name: str, content: bytes) -> None:
        """Write a secret once for each proxy."""
        for kind, account in (("pilotwire", None), ("pgbouncer", self.account)):
            path = self.work / f"{kind}-{name}"
            path.touch(mode=0o600)
            path.write_bytes(content)
            if account is not None:
                shutil.chown(path, account.uid, account.gid)

    def client_tls(self) -> ssl.SSLContext:
        """A client's context that checks nothing: verification is the client's cost."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context

    def can_run(self, variant: Variant) -> bool:
        if variant.compiled and self.compiled is None:
            return False
        return variant.kind != "pgbouncer" or self.pgbouncer is not None

    @contextlib.contextmanager
    def start(self, variant: Variant) -> Iterator[Target]:
        """Run `variant` until the block ends."""
        target = Target(variant, self.server.port)
        if variant.kind == "direct":
            yield target
        elif variant.kind == "pgbouncer":
            if self.pgbouncer is None:
                raise BenchmarkError("There is no PgBouncer to run.")
            settings = pgbouncer_settings(variant, self)
            name = variant.name.replace(" ", "-")
            running = pgbouncer.running(
                self.pgbouncer,
                self.work,
                name,
                settings=settings,
                upstream_port=self.server.port,
                account=self.account,
            )
            with running as (port, pid):
                yield replace(target, port=port, root=pid)
        else:
            with self._pilotwire(variant) as (port, pid):
                yield replace(target, port=port, root=pid)

    @contextlib.contextmanager
    def _pilotwire(self, variant: Variant) -> Iterator[tuple[int, int]]:
        port, admin = free_port(), free_port()
        command = [
            self.python, "-m", "pilotwire", "serve",
            "--upstream", f"postgresql://postgres@{HOST}:{self.server.port}/postgres",
            "--listen", f"{HOST}:{port}", "--admin", f"{HOST}:{admin}",
            "--workers", "1", "--pool-mode", variant.pool_mode,
        ]  # fmt: skip
        log = self.work / f"{variant.name.replace(' ', '-')}.log"
        with server_process(command, port, log, environment=pilotwire_settings(variant, self)) as pid:
            yield port, pid


def pgbouncer_settings(variant: Variant, bench: Bench) -> dict[str, str | int]:
    """What goes over PgBouncer's defaults; its logging of connections stays on, as pilotwire's does."""
    clients = SESSION_CLIENTS if variant.pool_mode == "session" else TRANSACTION_CLIENTS
    settings: dict[str, str | int] = {
        "auth_type": "scram-sha-256" if variant.scram else "trust",
        "auth_file": str(bench.private("users.txt", "pgbouncer")),
        "pool_mode": variant.pool_mode,
        "default_pool_size": SESSION_CLIENTS if variant.pool_mode == "session" else POOL_SIZE,
        "max_client_conn": clients,
    }
    if bench.pgbouncer is not None and bench.pgbouncer.follows_prepared:
        settings["max_prepared_statements"] = 200
    if variant.tls:
        settings |= {
            "client_tls_sslmode": "require",
            "client_tls_cert_file": str(bench.private("server.crt", "pgbouncer")),
            "client_tls_key_file": str(bench.private("server.key", "pgbouncer")),
        }
    return settings


def pilotwire_settings(variant: Variant, bench: Bench) -> dict[str, str]:
    """What goes over pilotwire's defaults, as environment variables."""
    settings = {
        "PILOTWIRE_AUTH": "scram-sha-256" if variant.scram else "trust",
        "PILOTWIRE_MAX_CLIENTS": str(TRANSACTION_CLIENTS),
        "PILOTWIRE_DRAIN_TIMEOUT": "1",
        "PILOTWIRE_STATE_DIR": str(bench.work),
    }
    if bench.models is not None:
        settings["PILOTWIRE_MODELS"] = str(bench.models)
    if variant.compiled:
        settings |= {"PYTHONPATH": str(bench.compiled), "PYTHONSAFEPATH": "1"}
    if variant.scram:
        settings["PILOTWIRE_USERS_FILE"] = str(bench.private("users.txt", "pilotwire"))
    if variant.pool_mode == "transaction":
        settings |= {"PILOTWIRE_POOL_SIZE": str(POOL_SIZE), "PILOTWIRE_POOL_OVERFLOW": "0"}
    else:
        settings |= {"PILOTWIRE_POOL_SIZE": str(SESSION_CLIENTS), "PILOTWIRE_POOL_OVERFLOW": "0"}
    if variant.tls:
        settings |= {
            "PILOTWIRE_CLIENT_TLS_MODE": "require",
            "PILOTWIRE_CLIENT_TLS_CERT": str(bench.private("server.crt", "pilotwire")),
            "PILOTWIRE_CLIENT_TLS_KEY": str(bench.private("server.key", "pilotwire")),
        }
    return settings


@contextlib.contextmanager
def prepared_bench(
    report: Callable[[str], None],
    program: Path | None = None,
    *,
    want_pgbouncer: bool = True,
    compiled: Path | None = None,
    models: Path | None = None,
) -> Iterator[Bench]:
    """A fresh server, a PgBouncer, certificates and users in a temporary directory; all gone when the block ends."""
    account = server_account()
    work = Path(tempfile.mkdtemp(prefix="pilotwire-bench-"))
    work.chmod(0o755)
    server = EmbeddedServer(work / "postgres", config=CONFIG, hint_plan=False)
    pages = contextlib.ExitStack()
    try:
        found = pgbouncer.find(work, report, program) if want_pgbouncer else None
        pages.enter_context(huge_pages.reserved(SHARED_MEMORY, report))
        server.start(report)
        bench = Bench(server, work, found, account, report, compiled, models)
        _write_certificate(bench)
        bench.give("users.txt", f'"postgres" ""\n"{SCRAM_USER}" "{SCRAM_PASSWORD}"\n'.encode())
        server.run(
            "psql", "-XAtq", "-d", server.dsn(), "-c",
            f"CREATE ROLE {SCRAM_USER} LOGIN PASSWORD '{SCRAM_PASSWORD}';"
            "CREATE TABLE bulk (line text); GRANT ALL ON bulk TO PUBLIC",
        )  # fmt: skip
        yield bench
    finally:
        server.stop()
        pages.close()
        shutil.rmtree(work, ignore_errors=True)


def _write_certificate(bench: Bench) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmark")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=7))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    bench.give("server.key", pem)
    bench.give("server.crt", certificate.public_bytes(serialization.Encoding.PEM))


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
