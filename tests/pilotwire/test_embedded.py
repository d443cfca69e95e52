"""The embedded server as people and tests use it: started twice, killed, moved from its port, reset, refused."""

from __future__ import annotations

import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pilotwire import embedded, postgres_files
from pilotwire.embedded import HOST, EmbeddedError, EmbeddedServer
from tests.support.ports import free_port
from tests.support.waiting import wait_until

QUICK: dict[str, str | int] = {"fsync": "off", "shared_buffers": "16MB", "max_connections": 20}


def made_in(directory: Path) -> EmbeddedServer:
    return EmbeddedServer(directory, config=QUICK, initdb_options=["--no-sync"])


@pytest.fixture(scope="module")
def same_server(run_folder: Path) -> Iterator[EmbeddedServer]:
    made = made_in(run_folder / f"embedded-{uuid.uuid4().hex}")
    yield made
    made.reset()


@pytest.fixture
def server(same_server: EmbeddedServer) -> EmbeddedServer:
    """A running server whose data the tests of this module share, since making them takes the longest."""
    same_server.start()
    return same_server


@pytest.fixture
def new_server(run_folder: Path) -> Iterator[EmbeddedServer]:
    made = made_in(run_folder / f"embedded-{uuid.uuid4().hex}")
    yield made
    made.reset()


def ask(server: EmbeddedServer, query: str, *options: str) -> str:
    return server.run("psql", "-XAtq", *options, "-c", query, server.dsn()).strip()


def test_second_start_keeps_server_port_and_data(new_server: EmbeddedServer) -> None:
    steps: list[str] = []
    new_server.start(steps.append)
    assert any("making" in step for step in steps)
    ask(new_server, "CREATE TABLE kept AS SELECT 42 AS answer")
    pid, dsn = new_server.pid, new_server.dsn()
    again = EmbeddedServer(new_server.directory, config=QUICK)
    again.start()
    assert (again.pid, again.dsn()) == (pid, dsn)
    assert new_server.stop()
    assert not new_server.running
    assert not new_server.stop()
    new_server.start()
    assert new_server.dsn() == dsn
    assert ask(new_server, "TABLE kept") == "42"


def test_it_listens_on_loopback_and_a_unix_socket_only(server: EmbeddedServer) -> None:
    assert server.pid is not None
    listening = [c for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening if c.family == socket.AF_INET} == {HOST}
    over_socket = f"host={server.socket_dir} port={server.port} user=postgres dbname=postgres"
    assert server.run("psql", "-XAtq", "-c", "SELECT inet_server_addr() IS NULL", over_socket).strip() == "t"


@pytest.mark.parametrize("children", ["notice", "are stopped"])
def test_kill_9_of_the_postmaster(server: EmbeddedServer, children: str) -> None:
    ask(server, "CREATE TABLE IF NOT EXISTS kept AS SELECT 42 AS answer")
    pid = server.pid
    assert pid is not None
    below = psutil.Process(pid).children()
    if children == "are stopped":
        for child in below:
            child.send_signal(signal.SIGSTOP)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not server.running, what="the postmaster has gone")
    server.start()
    assert server.pid != pid
    assert ask(server, "TABLE kept") == "42"
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in below)


def test_a_pid_file_that_names_somebody_else(server: EmbeddedServer) -> None:
    server.stop()
    lines = [str(os.getpid()), str(server.data), "1700000000", str(server.port), "", HOST, "0 0", "ready"]
    server.write_file("postmaster.pid", "".join(f"{line}\n" for line in lines).encode())
    assert not server.running
    server.start()
    assert ask(server, "SELECT 1") == "1"


def test_a_taken_port_is_left_to_who_has_it(server: EmbeddedServer) -> None:
    before = server.port
    server.stop()
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind((HOST, before))
        squatter.listen()
        server.start()
        assert server.port != before
    assert ask(server, "SELECT 1") == "1"


def test_a_fixed_port_that_is_taken_is_one_clear_error(run_folder: Path) -> None:
    server = EmbeddedServer(run_folder / "embedded-fixed", config=QUICK, port=free_port())
    with socket.socket() as squatter:
        squatter.bind((HOST, server._fixed_port))
        squatter.listen()
        with pytest.raises(EmbeddedError, match=r"did not start.*server\.log"):
            server.start()
    server.reset()


def test_roles_other_than_the_superuser_need_a_password(server: EmbeddedServer) -> None:
    ask(server, "CREATE ROLE app LOGIN PASSWORD 'secret'")
    assert ask(server, "SELECT rolpassword LIKE 'SCRAM-SHA-256$%' FROM pg_authid WHERE rolname = 'app'") == "t"
    with pytest.raises(EmbeddedError, match="no password supplied"):
        server.run("psql", "-XAtqw", "-c", "SELECT 1", server.dsn(user="app"))
    with_password = server.dsn(user="app").replace("app@", "app:secret@")
    assert server.run("psql", "-XAtq", "-c", "SELECT current_user", with_password).strip() == "app"


def test_own_config_and_hba_lines(server: EmbeddedServer) -> None:
    ask(server, "CREATE ROLE guest LOGIN")
    server.configure(config={**QUICK, "cluster.name": "it's"}, hba=["host all guest 127.0.0.1/32 trust"])
    server.wait_reloaded("cluster.name", "it's")
    wait_until(lambda: ask(server, "SELECT count(*) FROM pg_hba_file_rules WHERE user_name = '{guest}'") == "1")
    assert server.run("psql", "-XAtq", "-c", "SELECT current_user", server.dsn(user="guest")).strip() == "guest"
    server.configure(config={**QUICK, "max_connections": 30}, restart=True)
    assert ask(server, "SHOW max_connections") == "30"


def test_a_broken_setting_is_one_clear_error(run_folder: Path) -> None:
    server = EmbeddedServer(run_folder / "embedded-broken", config={"shared_buffers": "many"})
    with pytest.raises(EmbeddedError, match=r"did not start.*FATAL"):
        server.start()
    server.reset()


def test_an_interrupted_initdb_leaves_nothing_half(new_server: EmbeddedServer) -> None:
    new_server.start()
    new_server.stop()
    leftover = new_server.base / "data.new"
    leftover.mkdir()
    (leftover / "PG_VERSION").write_text("18\n")
    (new_server.data / "PG_VERSION").unlink()
    new_server.start()
    assert not leftover.exists()
    assert ask(new_server, "SELECT 1") == "1"


def test_data_of_another_version_are_refused(server: EmbeddedServer) -> None:
    server.stop()
    server.write_file("PG_VERSION", b"15\n")
    with pytest.raises(EmbeddedError, match=r"PostgreSQL 15.*pg reset"):
        server.start()
    server.write_file("PG_VERSION", b"18\n")


def test_a_long_path_moves_the_socket_only(run_folder: Path) -> None:
    server = made_in(run_folder / ("long" * 25))
    server.start()
    try:
        assert server.data.is_relative_to(server.directory)
        assert not server.socket_dir.is_relative_to(server.directory)
        target = f"host={server.socket_dir} port={server.port} user=postgres dbname=postgres"
        assert server.run("psql", "-XAtq", "-c", "SELECT 1", target).strip() == "1"
    finally:
        server.reset()
    with pytest.raises(EmbeddedError):
        _ = server.base


def test_never_started_says_so(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "nothing")
    with pytest.raises(EmbeddedError, match="start one first"):
        server.dsn()
    assert not server.running
    assert not server.stop()


def test_two_starts_at_once_make_one_server(new_server: EmbeddedServer) -> None:
    code = (
        "import sys; from pathlib import Path; from pilotwire.embedded import EmbeddedServer\n"
        f"s = EmbeddedServer(Path(sys.argv[1]), config={QUICK!r}); s.start(); print(s.pid)"
    )
    command = [sys.executable, "-c", code, str(new_server.directory)]
    starters = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    pids = {starter.communicate(timeout=60)[0].strip() for starter in starters}
    assert [starter.returncode for starter in starters] == [0, 0, 0]
    assert pids == {str(new_server.pid)}


def test_root_keeps_home_directories_closed(monkeypatch: pytest.MonkeyPatch, run_folder: Path) -> None:
    """With its directory and the wheel's files in a private place, the server runs from a public one."""
    private = run_folder / "private-home"
    private.mkdir(mode=0o700)
    monkeypatch.setattr(embedded, "PUBLIC_STATE", run_folder / "public")
    monkeypatch.setattr(postgres_files, "PUBLIC_STATE", run_folder / "public")
    if os.geteuid() == 0:  # as if the wheel lay in the private place too
        wheel = postgres_files.find_installation(None).root
        monkeypatch.setattr(postgres_files, "HOMES", (wheel.parent,))
    (run_folder / "public").mkdir(mode=0o755)
    server = EmbeddedServer(private / "project" / ".pilotwire", config=QUICK, initdb_options=["--no-sync"])
    server.start()
    try:
        assert private.stat().st_mode & 0o777 == 0o700
        if os.geteuid() != 0:  # then the server runs as ourselves and needs no other place
            assert server.base.is_relative_to(private)
            return
        assert server.base.is_relative_to(run_folder / "public")
        assert server.installation.root.is_relative_to(run_folder / "public")
        assert server.pid is not None
        assert pwd.getpwuid(psutil.Process(server.pid).uids().real).pw_name == postgres_files.ACCOUNT
        assert json.loads((server.directory / "embedded.json").read_text())["base"] == str(server.base)
    finally:
        base = server.base
        server.reset()
        assert not base.exists()


def test_homes_are_not_open_to_everyone(tmp_path: Path) -> None:
    assert not postgres_files.open_to_everyone(Path("/root/project"))
    assert not postgres_files.open_to_everyone(Path("/home/somebody/project"))
    assert postgres_files.open_to_everyone(Path("/"))
    tmp_path.chmod(0o700)
    assert not postgres_files.open_to_everyone(tmp_path / "below")


def test_another_users_directory_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "embedded.json").write_text("{")
    with pytest.raises(EmbeddedError, match="damaged"):
        EmbeddedServer(tmp_path).dsn()
