"""The command itself, as processes: help, versions, exit codes, and one line for every mistake."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pilotwire.cli import COMMANDS
from pilotwire.config import SECRETS
from proxy.settings import docs
from tests.support.postgres import Postgres
from tests.support.tls import TlsFiles

UPSTREAM = "postgresql://app@127.0.0.1:1/shop"


def pilotwire(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command without a terminal and without the caller's PILOTWIRE_* variables."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PILOTWIRE_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "pilotwire", *arguments],
        env=environment | {"COLUMNS": "200"} | variables,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def one_line(result: subprocess.CompletedProcess[str], code: int) -> str:
    assert result.returncode == code
    assert result.stdout == ""
    assert result.stderr.startswith("pilotwire: ")
    assert result.stderr.count("\n") == 1
    assert "geheim" not in result.stderr
    return result.stderr


def test_version() -> None:
    result = pilotwire("--version")
    assert (result.returncode, result.stdout) == (0, f"pilotwire {metadata.version('pilotwire')}\n")


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_the_commands(arguments: tuple[str, ...]) -> None:
    result = pilotwire(*arguments)
    assert (result.returncode, result.stderr) == (0, "")
    for name, command in COMMANDS.items():
        assert (command.help in result.stdout) is not command.hidden, name
    assert "\x1b" not in result.stdout


def test_help_loads_no_command() -> None:
    script = (
        "import sys\nfrom pilotwire.cli import run_program\nassert run_program(['--help']) == 0\n"
        "late = {'pydantic', 'pydantic_settings', 'asyncpg', 'fastapi', 'uvloop', 'prometheus_client', 'scramp'}\n"
        "assert not late & sys.modules.keys(), late & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, timeout=60)


@pytest.mark.parametrize("command", ["serve", "check"])
def test_help_of_a_command_lists_all_settings(command: str) -> None:
    result = pilotwire(command, "--help")
    assert result.returncode == 0
    for name in docs():
        assert (f"--{name.replace('_', '-')}" in result.stdout) is (name not in SECRETS)
    assert "[[listeners]]" in result.stdout
    assert "[IPv6]:port" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("srve",), "serve"),
        (("serve", "--no-such"), "--no-such"),
        (("serve",), "--upstream"),
        (("serve", "--upstream"), "--upstream"),
        (("serve", "--upstream", "postgresql://app:geheim@h/d"), "PILOTWIRE_UPSTREAM"),
        (("serve", "--upstream-password", "geheim"), "PILOTWIRE_UPSTREAM"),
        (("serve", "--upstream", UPSTREAM, "--pool-size", "x"), "pool_size 'x' (command line)"),
        (("serve", "--upstream", UPSTREAM, "--listen", "0.0.0.0:6432"), "no password is known"),
        (("serve", "--upstream", UPSTREAM, "--listen", "0.0.0.0:6432", "--auth", "trust"), "loopback"),
        (("serve", "--upstream", UPSTREAM, "--takeover"), "control_socket"),
        (("serve", "--config", "/no/such/file"), "No such file"),
        (("check", "--config", "/no/such/file"), "No such file"),
        (("check", "--upstream", "postgresql://u@h/d?sslmode=maybe"), "server_tls_mode"),
        (("serve", "--upstream", UPSTREAM, "--listen", "a..b:6432", "--auth", "relay"), 'listen "a..b:6432"'),
        (("serve", "--upstream", "postgresql://app@a..b/shop", "--auth", "relay"), "a host of the DSN"),
        (
            ("check", "--upstream", UPSTREAM, "--users-file", __file__),
            f"{__file__}, line 1: the secret must stand in double quotes",
        ),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: tuple[str, ...], words: str) -> None:
    assert words in one_line(pilotwire(*arguments), 2)


@pytest.mark.parametrize(
    ("key", "words"), [("open", "has group or world access"), ("another", "does not belong to the certificate")]
)
def test_a_key_that_cannot_be_used(tls_files: TlsFiles, tmp_path: Path, key: str, words: str) -> None:
    """With a password for the upstream the certificates are read before there is any worker."""
    path = tmp_path / "key"
    path.write_bytes((tls_files.server_key if key == "open" else tls_files.client_key).read_bytes())
    path.chmod(0o644 if key == "open" else 0o600)
    arguments = ("--client-tls-cert", str(tls_files.server_cert), "--client-tls-key", str(path))
    for command, code in (("serve", 1), ("check", 2)):
        upstream = "postgresql://app:geheim@127.0.0.1:1/shop"
        result = pilotwire(command, *arguments, PILOTWIRE_UPSTREAM=upstream, PILOTWIRE_LOG_LEVEL="error")
        assert words in one_line(result, code)
    as_json = pilotwire("check", "--json", *arguments, PILOTWIRE_UPSTREAM="postgresql://app@127.0.0.1:1/shop")
    assert as_json.returncode == 2
    assert words in json.loads(as_json.stdout)["error"]
    if os.geteuid() == 0:
        os.chown(path, 1, 1)  # the service's own, which root's check cannot judge
        assert pilotwire("check", *arguments, "--upstream", UPSTREAM).returncode == 0


def test_no_host_is_what_is_wanted(postgres: Postgres) -> None:
    arguments = ("--upstream", postgres.dsn(), "--auth", "trust", "--target-session-attrs", "standby")
    result = pilotwire("serve", *arguments, PILOTWIRE_LOG_LEVEL="error")
    assert "none of the hosts is standby (target_session_attrs)" in one_line(result, 1)


def test_colours_only_on_a_terminal() -> None:
    leader, follower = os.openpty()
    try:
        for variables, coloured in (({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False)):
            environment = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
            for arguments in (["serve", "--no-such"], ["check", "--upstream", UPSTREAM, "--pool-size", "3"]):
                process = subprocess.Popen(
                    [sys.executable, "-m", "pilotwire", *arguments],
                    env=environment | variables,
                    stdout=follower,
                    stderr=follower,
                )
                # Read while it writes: a terminal holds a few kilobytes only.
                seen = ""
                while process.poll() is None or select.select([leader], [], [], 0)[0]:
                    if select.select([leader], [], [], 0.1)[0]:
                        seen += os.read(leader, 1 << 16).decode(errors="replace")
                # Colours are escape sequences that end in m with a number; bold alone is not a colour.
                assert any(f"\x1b[{colour}m" in seen for colour in (31, 32, 33, 36)) is coloured, seen
    finally:
        os.close(leader)
        os.close(follower)


def test_check_shows_values_origins_and_risks(tmp_path: Path) -> None:
    config = tmp_path / "p.toml"
    config.write_text("pool_size = 7\n")
    result = pilotwire(
        "check", "--config", str(config), "--session-reuse", PILOTWIRE_UPSTREAM="postgresql://app:geheim@127.0.0.1/shop"
    )
    assert (result.returncode, result.stderr) == (0, "")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert f"pool_size 7 connections ({config})" in lines
    assert "upstream postgresql://app@127.0.0.1:5432/shop (environment)" in lines
    assert "upstream_password ******** (environment, in upstream)" in lines
    assert "session_reuse true (command line)" in lines
    assert "auth scram-sha-256 (worked out from other settings)" in lines
    assert "queue_timeout 30 seconds" in lines
    assert any(line.startswith("warning: session_reuse") for line in lines)
    assert "geheim" not in result.stdout


def test_check_as_json() -> None:
    result = pilotwire("check", "--json", PILOTWIRE_UPSTREAM="postgresql://app:geheim@127.0.0.1/shop")
    shown = json.loads(result.stdout)
    assert (result.returncode, shown["ok"], "geheim" in result.stdout) == (0, True, False)
    assert shown["settings"].keys() == docs().keys()
    assert shown["settings"]["upstream_password"]["value"] == "********"
    assert shown["settings"]["pool_size"] == {
        "value": 20,
        "origin": "default",
        "unit": "connections",
        "changes_on_reload": True,
    }
    bad = pilotwire("check", "--json", "--pool-size", "x", "--upstream", UPSTREAM)
    assert bad.returncode == 2
    assert "pool_size" in json.loads(bad.stdout)["error"]


def test_check_connect_says_why_no_host_answers() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        upstream = f"postgresql://app@127.0.0.1:{closed.getsockname()[1]}/shop"
        result = pilotwire("check", "--connect", "--upstream", upstream)
        assert result.returncode == 1
        assert "failed: 127.0.0.1" in result.stdout
        assert result.stderr == "pilotwire: no host of the upstream lets us in\n"
        as_json = pilotwire("check", "--connect", "--json", "--upstream", upstream)
        assert (as_json.returncode, json.loads(as_json.stdout)["upstream"][0]["ok"]) == (1, False)


def test_check_connect_describes_each_host(postgres: Postgres) -> None:
    role = postgres.create_role("geheim")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        hosts = f"{postgres.host}:{postgres.port},127.0.0.1:{closed.getsockname()[1]}"
        result = pilotwire(
            "check", "--connect", "--json", PILOTWIRE_UPSTREAM=f"postgresql://{role}:geheim@{hosts}/postgres"
        )
    live, dead = json.loads(result.stdout)["upstream"]
    assert result.returncode == 0
    assert (live["ok"], dead["ok"]) == (True, False)
    assert "primary, max_connections" in live["detail"]
    assert f"as user {role}" in live["detail"]


def test_check_connect_over_a_unix_socket_warns_of_too_large_pools(postgres: Postgres) -> None:
    upstream = f"host={postgres.socket_dir} port={postgres.port} user={postgres.user} dbname=postgres"
    large = ("--pool-mode", "transaction", "--pool-size", "9000")
    result = pilotwire("check", "--connect", "--upstream", upstream, *large)
    assert result.returncode == 0
    assert "may need 9010 connections" in result.stdout


def test_check_connect_gives_the_servers_own_reason(postgres: Postgres) -> None:
    upstream = f"postgresql://{postgres.user}@{postgres.host}:{postgres.port}/no_such_database"
    result = pilotwire("check", "--connect", "--upstream", upstream)
    assert result.returncode == 1
    assert 'database "no_such_database" does not exist' in result.stdout


def test_the_reference_is_printed() -> None:
    assert pilotwire("config-reference").stdout == (Path(__file__).parents[2] / "docs/configuration.md").read_text()


def test_a_reader_that_leaves_is_no_error() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-m", "pilotwire", "config-reference"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    os.close(write_end)
    assert (result.returncode, result.stderr) == (1, b"")
