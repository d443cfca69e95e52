"""`pilotwire top` against a made-up admin port, and against none."""

from __future__ import annotations

import fcntl
import http.server
import io
import json
import os
import pty
import signal
import socketserver
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pilotwire import top_command
from pilotwire.cli import run_program

STATUS: dict[str, Any] = {
    "health": "degraded",
    "trouble": [{"level": "warning", "text": "No model serves."}],
    "mode": "shadow",
    "uptime_s": 4000.0,
    "workers": {"configured": 2, "responding": 2},
    "planner": {"wanted": True, "ready": False},
    "traffic": {"clients": 3, "servers": 2, "waiting": 1, "statements": 1234, "steered": 10, "left_alone": 90},
    "gain": {"known": True, "saved_s": 3720.0, "lost_s": 60.0, "regressions": 2},
    "models": [
        {"model": "cardinality-3", "metric": "statement_latency", "grade": "danger", "p50_ms": 10.0, "p95_ms": 1234.0,
         "p99_ms": 2000.0, "count": 50},
        {"model": "cardinality-3", "metric": "inference_latency", "grade": None, "p50_ms": 1.0, "p95_ms": 1.0,
         "p99_ms": 1.0, "count": 50},
    ],
}  # fmt: skip
HOSTILE = {"text": "/* app */ SELECT\x1b[2J  1\n FROM t", "fingerprint": "f", "state": "approved", "plain_ms": 50.0,
           "steered_ms": None, "saved_ms": 90_000.0}  # fmt: skip
PAGES: dict[str, Any] = {
    "/api/status": STATUS,
    "/api/memory?order=saved&limit=10": {"queries": [HOSTILE]},
    "/api/memory?order=lost&limit=10": {"queries": [HOSTILE]},
    "/api/pools": {"pools": [{"user": "app", "database": "shop", "mode": "session", "clients": 3, "active": 1,
                              "waiting": 1, "servers": 2}]},
}  # fmt: skip


class Admin(http.server.BaseHTTPRequestHandler):
    pages: dict[str, Any] = PAGES
    token = ""

    def do_GET(self) -> None:
        wanted = f"Bearer {self.token}" if self.token else None
        known = self.pages.get(self.path)
        status = 401 if wanted is not None and self.headers["Authorization"] != wanted else 200 if known else 503
        body = known if isinstance(known, bytes) else json.dumps(known or {"detail": "away"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def admin() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Admin) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_once_shows_health_gain_models_queries_and_pools(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(["top", "--admin", admin, "--once"]) == 0
    shown = capsys.readouterr().out
    for words in ("Degraded", "No model serves", "mode shadow", "1 h 1 min", "regressions 2", "cardinality-3", "danger",
                  "1.23 s", "SELECT [2J 1 FROM t", "1 min 30 s", "app@shop"):  # fmt: skip
        assert words in shown
    # A statement's text must not steer the terminal.
    assert "\x1b" not in shown


def test_json_is_one_object(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_program(["top", "--admin", f"http://{admin}", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["status", "saved", "lost", "pools"]
    assert len(found["saved"]) == 1
    assert found["lost"] == []


def test_a_token_comes_from_the_environment_or_a_file(
    admin: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Admin, "token", "s3cret")
    monkeypatch.delenv(top_command.TOKEN, raising=False)
    assert run_program(["top", "--admin", admin, "--once"]) == 1
    assert "wants its admin token" in capsys.readouterr().err
    monkeypatch.setenv(top_command.TOKEN, "s3cret")
    assert run_program(["top", "--admin", admin, "--once"]) == 0
    monkeypatch.delenv(top_command.TOKEN)
    (tmp_path / "token").write_text("s3cret\n")
    assert run_program(["top", "--admin", admin, "--once", "--token-file", str(tmp_path / "token")]) == 0
    assert run_program(["top", "--admin", admin, "--token-file", str(tmp_path / "none")]) == 1


def test_a_store_that_is_away_leaves_the_rest(
    admin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Admin, "pages", {"/api/status": {**STATUS, "gain": None, "models": []}})
    assert run_program(["top", "--admin", admin, "--once"]) == 0
    shown = capsys.readouterr().out
    assert "not measured yet" in shown
    assert "nothing steered or measured yet" in shown


@pytest.mark.parametrize("pages", [{"/api/status": b"<html>"}, {"/api/status": [1]}])
def test_another_server_is_told_apart(
    admin: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], pages: dict[str, Any]
) -> None:
    monkeypatch.setattr(Admin, "pages", pages)
    assert run_program(["top", "--admin", admin, "--once"]) == 1
    assert "is not the admin port of pilotwire" in capsys.readouterr().err


def test_nobody_there_and_wrong_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_program(["top", "--admin", "127.0.0.1:1", "--once"]) == 1
    assert run_program(["top", "--admin", str(tmp_path / "no.sock"), "--once"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 2
    assert "Connection refused" in error
    assert run_program(["top", "--admin", "ftp://x", "--once"]) == 2
    assert run_program(["top", "--admin", "127.0.0.1:99999", "--once"]) == 2
    assert run_program(["top", "--interval", "0"]) == 2


def test_over_a_unix_socket(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
        daemon_threads = True

        def get_request(self) -> tuple[Any, Any]:
            request, _ = super().get_request()
            return request, ("local", 0)

    path = tmp_path / "admin.sock"
    with Server(str(path), Admin) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        assert run_program(["top", "--admin", str(path), "--once"]) == 0
        server.shutdown()
    assert "Degraded" in capsys.readouterr().out


def test_on_a_terminal_it_is_live_until_ctrl_c(admin: str) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "pilotwire", "top", "--admin", admin, "--interval", "0.2"],
        stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while seen.count(b"Degraded") < 3:
        seen += os.read(ours, 65536)
    process.send_signal(signal.SIGINT)
    try:
        while os.read(ours, 65536):
            pass
    except OSError:
        pass
    os.close(ours)
    assert process.wait(10) == 0


def test_statements_become_a_rate_with_the_second_look() -> None:
    found = {"status": STATUS, "saved": [], "lost": [], "pools": []}
    later = {**STATUS, "uptime_s": 4002.0, "traffic": {**STATUS["traffic"], "statements": 1334}}
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(top_command.screen({**found, "status": later}, found))
    assert "statements 50.0/s" in console.export_text()


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59, "59 s"), (60, "1 min 0 s"), (3661, "1 h 1 min"), (90_000, "1 d 1 h"),
     (-75, "-1 min 15 s")],
)  # fmt: skip
def test_durations_have_two_units(seconds: float, words: str) -> None:
    assert top_command.duration(seconds) == words
