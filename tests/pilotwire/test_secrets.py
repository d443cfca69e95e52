"""Secrets are planted wherever a running instance gets some, and looked for wherever it lets something out."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import asyncpg
import psutil
import pytest

from proxy.console_db.commands import SHOWN
from tests.support.postgres import Postgres
from tests.support.proxy import Proxy
from tests.support.shop import constant_model
from tests.support.waiting import wait_until

StartProxy = Callable[..., Proxy]
SERVER, CLIENT, TOKEN, LITERAL = "planted-upstream", "planted-client", "planted-token", "planted-literal"
PLANTED = (SERVER, CLIENT, TOKEN, LITERAL)
PAGES = (
    "/metrics", "/api/status", "/api/settings", "/api/clients", "/api/pools", "/api/decisions", "/api/memory",
    "/api/ledger", "/api/models", "/api/health/", "/api/metrics/", "/api/openapi.json", "/healthz", "/readyz",
)  # fmt: skip


@pytest.fixture
def spans() -> Iterator[tuple[str, list[bytes]]]:
    """A collector's address, and what is sent to it."""
    got: list[bytes] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            got.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1/traces", got
    server.shutdown()
    server.server_close()


def page(target: Proxy, path: str, token: str = TOKEN) -> str:
    """The body with its headers, of refusals too."""
    asked = urllib.request.Request(target.admin_url + path, headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return f"{answer.headers}{answer.read().decode()}"
    except urllib.error.HTTPError as error:
        with error:
            return f"{error.headers}{error.read().decode()}"


async def use(target: Proxy) -> str:
    """Logs in rightly and wrongly, runs and fails statements with a literal; everything that clients were told."""
    told = []
    client = await asyncpg.connect(target.dsn(password=SERVER), statement_cache_size=0)
    for number in range(3):
        await client.execute(f"SELECT {number}, '{LITERAL}' FROM pg_class a JOIN pg_class b ON a.oid = b.oid LIMIT 1")
        await client.fetch("SELECT $1::text FROM pg_class a, pg_class b WHERE a.oid = b.oid LIMIT 1", LITERAL)
    for database, user, password in (
        ("postgres", "", "wrong"),
        ("nowhere", "", SERVER),
        ("postgres", "somebody", CLIENT),
    ):
        try:
            await asyncpg.connect(target.dsn(database, user, password=password))
        except asyncpg.PostgresError as error:
            told.append(str(error))
    await client.close()
    return "\n".join(told)


def administer(target: Proxy) -> str:
    """Every SHOW, and a secret where none belongs, by psql."""
    shown = (*SHOWN, "upstream_password", "admin_token", "upstream")
    commands = [part for name in shown for part in ("-c", f"SHOW {name}")]
    done = subprocess.run(
        ["psql", "-XAt", *commands, "-c", f"SET upstream_password = '{SERVER}-2'", target.dsn("pilotwire")],
        env={**os.environ, "PGPASSWORD": SERVER},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "upstream_password|********" in done.stdout, done
    return done.stdout + done.stderr


def test_nothing_planted_comes_out(
    proxy: StartProxy,
    postgres: Postgres,
    spans: tuple[str, list[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    endpoint, sent = spans
    monkeypatch.delenv("SPT_NOENV")  # by which processes of a test run can be found when all else is gone
    users = tmp_path / "users.txt"
    users.touch(mode=0o600)
    users.write_text(f'"somebody" "{CLIENT}"\n')
    models = tmp_path / "models"
    models.mkdir()
    constant_model(models)
    store = tmp_path / "store.db"
    target = proxy(
        auth="scram-sha-256", users_file=str(users), evidence="measured", store=str(store), models=str(models),
        otel_endpoint=endpoint, log_slow_ms=0, log_format="json", workers=2, pool_mode="transaction",
        env={"PILOTWIRE_UPSTREAM_PASSWORD": SERVER, "PILOTWIRE_ADMIN_TOKEN": TOKEN}, executed=True,
    )  # fmt: skip
    wait_until(lambda: "planner_ready" in target.log_text(), 30, "the planner process is there")
    out = asyncio.run(use(target)) + administer(target)
    wait_until(lambda: bool(sent), 30, "spans were sent")
    for path in PAGES:
        out += page(target, path)
        out += page(target, path, "planted-guess")
    out += page(target, f"/api/metrics/history/?hours={TOKEN}") + page(target, f"/api/memory?state={TOKEN}&limit=x")
    for file in (Path(__file__).parents[2] / "proxy" / "admin" / "console").glob("*.*"):
        out += page(target, f"/console/{file.name}")
    children = psutil.Process(target.process.pid).children(recursive=True)
    assert len(children) >= 3
    for process in children:
        out += " ".join(process.cmdline()) + str(process.environ())
    out += " ".join(psutil.Process(target.process.pid).cmdline())
    target.stop()
    out += target.log_text() + b"".join(sent).decode(errors="replace")
    for file in tmp_path.glob("store.db*"):
        out += file.read_bytes().decode(errors="replace")
    assert "slow_statement" in out
    assert json.loads(target.log_text().splitlines()[-1])["event"] == "ended"
    # What a client asked for in a wrong parameter may be told back by nobody but himself.
    for secret in (*PLANTED, "planted-guess"):
        assert secret not in out, out[max(out.index(secret) - 200, 0) : out.index(secret) + 50]
