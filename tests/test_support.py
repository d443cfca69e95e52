"""The tests' own tools: ports, waiting, the shared server, certificates, and what is left when a run is killed."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.conftest import StartPostgres
from tests.support.ports import FIRST, LAST, free_port
from tests.support.postgres import Postgres, SqlError
from tests.support.reaper import LOCK, MARK, leftovers
from tests.support.tls import TlsFiles
from tests.support.waiting import eventually, wait_until

ROOT = Path(__file__).resolve().parent.parent


def test_ports_are_not_given_twice() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == len(ports)
    assert all(FIRST <= port <= LAST for port in ports)


def test_a_port_is_not_given_to_two_processes() -> None:
    code = "from tests.support.ports import free_port; print(*[free_port() for _ in range(20)]); input()"
    command = [sys.executable, "-c", code]
    holders = [
        subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    ports: list[str] = []
    for holder in holders:
        assert holder.stdout is not None
        ports += holder.stdout.readline().split()
    for holder in holders:
        holder.communicate("\n")
    assert len(ports) == 60
    assert len(set(ports)) == 60


async def test_waiting_tells_what_it_waited_for() -> None:
    with pytest.raises(TimeoutError, match="the moon"):
        wait_until(lambda: 0, timeout=0.05, what="the moon")
    with pytest.raises(TimeoutError, match="the sun"):
        await eventually(lambda: None, timeout=0.05, what="the sun")
    assert wait_until(lambda: 7) == 7


def test_the_shared_server_answers(postgres: Postgres) -> None:
    database = postgres.create_database()
    postgres.sql("CREATE TABLE t AS SELECT g AS a, 'x' AS b FROM generate_series(1, 2) g", database)
    assert postgres.sql("TABLE t ORDER BY a", database) == "1|x\n2|x"
    postgres.drop_database(database)
    with pytest.raises(SqlError, match=database):
        postgres.sql("SELECT 1", database)


def test_a_private_server_obeys_its_own_files(start_postgres: StartPostgres) -> None:
    server = start_postgres(config={"work_mem": "5MB"})
    assert server.sql("SHOW work_mem") == "5MB"
    role = server.create_role()
    with pytest.raises(SqlError, match="password"):
        server.sql("SELECT 1", user=role)
    server.configure(config={"work_mem": "6MB"}, hba=[f"host all {role} 127.0.0.1/32 trust"])
    server.server.wait_reloaded("work_mem", "6MB")
    assert server.sql("SELECT current_user", user=role) == role
    server.kill()
    server.start()
    assert server.sql("SELECT current_user", user=role) == role


def test_certificates_verify(tls_files: TlsFiles) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tls_files.server_cert, tls_files.server_key)
    server.load_verify_locations(tls_files.ca)
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=tls_files.ca)
    client.load_cert_chain(tls_files.client_cert, tls_files.client_key)
    a_in, a_out, b_in, b_out = ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO(), ssl.MemoryBIO()
    a = client.wrap_bio(a_in, a_out, server_hostname="127.0.0.1")
    b = server.wrap_bio(b_in, b_out, server_side=True)
    for _ in range(4):
        for side in (a, b):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            finally:
                b_in.write(a_out.read())
                a_in.write(b_out.read())
    peer = b.getpeercert()
    assert peer is not None
    assert (("commonName", "postgres"),) in peer["subject"]


def test_nothing_outlives_a_killed_run(tmp_path: Path) -> None:
    """A run killed with SIGKILL leaves neither server nor stopped process nor folder behind."""
    script = textwrap.dedent(
        """
        import subprocess, sys
        from pathlib import Path
        from tests.support.postgres import Postgres
        from tests.support.run import Run

        run = Run()
        server = Postgres(run.folder / "shared")
        server.sql("SELECT 1")
        child = subprocess.Popen(["sleep", "1000"])
        child.send_signal(19)
        print(run.folder, flush=True)
        sys.stdin.read()
        """
    )
    environment = {name: value for name, value in os.environ.items() if name != MARK}
    with subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as victim:
        assert victim.stdout is not None
        folder = Path(victim.stdout.readline().strip())
        assert (folder / LOCK).exists()
        assert "postgres" in {process.name() for process in leftovers(folder)}
        victim.send_signal(signal.SIGKILL)
    wait_until(lambda: not folder.exists(), timeout=30, what="the run's folder has gone")
    wait_until(lambda: not leftovers(folder), what="the reaper itself has ended")
