"""``pilotwire top``: the console's first screen in a terminal, over the JSON API of a running instance.

Exit code 0: shown; 1: the admin port does not answer or wants a token; 2: a wrong option.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from urllib.parse import urlsplit

import typer

from pilotwire.errors import StartError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

TOKEN: Final = "PILOTWIRE_ADMIN_TOKEN"  # noqa: S105
TIMEOUT: Final = 5.0
MAX_ANSWER: Final = 8 << 20
ROWS: Final = 10
_COMMENT: Final = re.compile(r"/\*.*?\*/", re.DOTALL)
_HEALTH: Final = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}
_GRADES: Final = {"good": "green", "warning": "yellow", "danger": "red"}


def top(
    admin: Annotated[
        str,
        typer.Option(
            "--admin",
            metavar="ADDRESS",
            envvar="PILOTWIRE_ADMIN",
            help="The instance's setting admin: host:port, a URL, or the path of a Unix socket.",
        ),
    ] = "127.0.0.1:9432",
    token_file: Annotated[
        Path | None, typer.Option("--token-file", metavar="FILE", help=f"Holds the admin token; else {TOKEN}.")
    ] = None,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.2, max=3600, help="Between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and end.")] = False,
) -> int:
    """Watch a running instance: is it healthy, is it helping?"""
    client = Client(admin, _token(token_file))
    if as_json:
        print(json.dumps(look(client)))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    if once or not sys.stdout.isatty():
        console.print(screen(look(client), None))
        return 0
    return _live(client, console, interval)


def _token(file: Path | None) -> str:
    if file is None:
        return os.environ.get(TOKEN, "")
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"cannot read {file}: {getattr(error, 'strerror', None) or 'not a text'}") from None


def _live(client: Client, console: Any, interval: float) -> int:
    from rich.live import Live
    from rich.text import Text

    before: dict[str, Any] | None = None
    found = look(client)
    try:
        with Live(screen(found, None), console=console, screen=True, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                try:
                    before, found = found, look(client)
                    live.update(screen(found, before), refresh=True)
                except StartError as error:
                    # It may come back: a restart is what one would want to watch.
                    live.update(Text(f"{error}\n\nTrying again; Ctrl-C ends.", style="red"), refresh=True)
    except KeyboardInterrupt:
        return 0


class Client:
    """Asks the JSON API. ``address`` as in the option."""

    def __init__(self, address: str, token: str) -> None:
        self._path = address if address.startswith("/") else ""
        parts = urlsplit(address if "://" in address else f"http://{address}")
        if not self._path and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise typer.BadParameter("--admin is host:port, a URL, or the path of a Unix socket")
        try:
            self._port = parts.port or (443 if parts.scheme == "https" else 9432)
        except ValueError:
            raise typer.BadParameter("--admin: the port is no number below 65536") from None
        self._host = {"*": "127.0.0.1", "0.0.0.0": "127.0.0.1"}.get(parts.hostname or "", parts.hostname or "localhost")  # noqa: S104
        self._tls = parts.scheme == "https"
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self.shown = self._path or f"{self._host}:{self._port}"

    def get(self, path: str) -> Any:
        """StartError, one sentence, when there is no answer to be had."""
        connection = self._connection()
        try:
            connection.request("GET", path, headers=self._headers)
            answer = connection.getresponse()
            body = answer.read(MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            words = getattr(error, "strerror", None) or type(error).__name__
            raise StartError(f"no instance answers on its admin port at {self.shown} ({words})") from None
        finally:
            connection.close()
        if answer.status == 401:
            raise StartError(f"{self.shown} wants its admin token: set {TOKEN}, or give --token-file")
        try:
            found = json.loads(body)
        except ValueError:
            raise StartError(f"{self.shown} is not the admin port of pilotwire") from None
        if answer.status == 503:
            return None
        if answer.status != 200:
            raise StartError(f"{self.shown} answered {answer.status}")
        return found

    def _connection(self) -> http.client.HTTPConnection:
        if self._path:
            return _UnixConnection(self._path)
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=TIMEOUT)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(TIMEOUT)
        self.sock.connect(self._path)


def look(client: Client) -> dict[str, Any]:
    """Everything that is shown, as one object: ``status`` of /api/status, ``saved`` and ``lost`` queries, ``pools``."""
    status = client.get("/api/status")
    if not isinstance(status, dict) or "health" not in status:
        raise StartError(f"{client.shown} is not the admin port of pilotwire")
    saved = client.get(f"/api/memory?order=saved&limit={ROWS}") or {"queries": []}
    lost = client.get(f"/api/memory?order=lost&limit={ROWS}") or {"queries": []}
    return {
        "status": status,
        "saved": [row for row in saved["queries"] if row["saved_ms"] > 0],
        "lost": [row for row in lost["queries"] if row["saved_ms"] < 0],
        "pools": (client.get("/api/pools") or {"pools": []})["pools"],
    }


def screen(found: dict[str, Any], before: dict[str, Any] | None) -> RenderableType:
    """``before`` is the look before, for rates."""
    from rich.console import Group
    from rich.padding import Padding

    parts: list[RenderableType] = list(_head(found["status"], before["status"] if before else None))
    parts += [_models(found["status"]), _queries("saved", found["saved"]), _queries("lost", found["lost"])]
    if found["pools"]:
        parts.append(_pools(found["pools"]))
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts))


def _head(status: dict[str, Any], before: dict[str, Any] | None) -> Iterator[Text]:
    from rich.text import Text

    workers, planner, traffic, gain = status["workers"], status["planner"], status["traffic"], status["gain"]
    line = Text(status["health"].capitalize(), style=f"bold {_HEALTH[status['health']]}")
    state = "planner ready" if planner["ready"] else "planner away" if planner["wanted"] else "no planner"
    line.append(
        f"   mode {status['mode']}   up {duration(status['uptime_s'])}   "
        f"{workers['responding']} of {workers['configured']} workers   {state}",
        style="none",
    )
    for trouble in status["trouble"]:
        line.append(f"\n  {trouble['text']}", style="red" if trouble["level"] == "danger" else "yellow")
    yield line
    saved = Text("time saved today ", style="dim")
    if gain is not None and gain["known"]:
        net = gain["saved_s"] - gain["lost_s"]
        saved.append(duration(net), style=f"bold {'green' if net >= 0 else 'red'}")
        saved.append(f"   regressions {gain['regressions']}", style="red" if gain["regressions"] else "dim")
    else:
        saved.append("not measured yet", style="none")
    saved.append(f"   steered {traffic['steered']:,}   left alone {traffic['left_alone']:,}", style="dim")
    saved.append(f"\nclients {traffic['clients']:,}   waiting {traffic['waiting']:,}", style="dim")
    saved.append(f"   server connections {traffic['servers']:,}   statements {_rate(status, before)}", style="dim")
    yield saved


def _rate(status: dict[str, Any], before: dict[str, Any] | None) -> str:
    total: int = status["traffic"]["statements"]
    if before is None or status["uptime_s"] <= before["uptime_s"]:
        return f"{total:,}"
    seconds = status["uptime_s"] - before["uptime_s"]
    return f"{(total - before['traffic']['statements']) / seconds:,.1f}/s"


def _models(status: dict[str, Any]) -> Table:
    from rich.text import Text

    table = _table("model", "", "P50", "P95", "P99", "statements", right=range(2, 6))
    for row in status["models"]:
        if row["metric"] == "inference_latency":
            continue
        grade = row["grade"] or "left alone"
        times = [ms(row[name]) for name in ("p50_ms", "p95_ms", "p99_ms")]
        table.add_row(Text(row["model"]), Text(grade, style=_GRADES.get(grade, "dim")), *times, f"{row['count']:,}")
    if not table.row_count:
        table.add_row(Text("nothing steered or measured yet", style="dim"), "", "", "", "", "")
    return table


def _queries(kind: str, rows: list[dict[str, Any]]) -> Table:
    from rich.text import Text

    table = _table(f"most time {kind}", "state", "plain", "steered", kind, right=range(2, 5))
    for row in rows:
        # The terminal must not obey what a statement's text says.
        plain = "".join(char if char.isprintable() else " " for char in _COMMENT.sub(" ", row["text"]))
        text = " ".join(plain.split())
        style = "green" if kind == "saved" else "red"
        table.add_row(
            Text(text or row["fingerprint"], no_wrap=True, overflow="ellipsis"),
            row["state"],
            ms(row["plain_ms"]),
            ms(row["steered_ms"]),
            Text(ms(abs(row["saved_ms"])), style=style),
        )
    if not rows:
        table.add_row(Text("none", style="dim"), "", "", "", "")
    return table


def _pools(rows: list[dict[str, Any]]) -> Table:
    from rich.text import Text

    table = _table("pool", "mode", "clients", "active", "waiting", "servers", right=range(2, 6))
    for row in rows[:ROWS]:
        name = "".join(char for char in f"{row['user']}@{row['database']}" if char.isprintable())
        waiting = Text(f"{row['waiting']:,}", style="red" if row["waiting"] else "none")
        table.add_row(
            Text(name), row["mode"], f"{row['clients']:,}", f"{row['active']:,}", waiting, f"{row['servers']:,}"
        )
    return table


def _table(*heads: str, right: range) -> Table:
    from rich.table import Table

    table = Table(box=None, expand=True, pad_edge=False, header_style="bold")
    for number, head in enumerate(heads):
        table.add_column(
            head, ratio=None if number else 1, justify="right" if number in right else "left", no_wrap=True
        )
    return table


def duration(seconds: float) -> str:
    """Two units at most: ``1 h 5 min``."""
    sign, left = ("-" if seconds < 0 else ""), abs(seconds)
    if left < 60:
        return f"{sign}{left:.1f} s" if left < 10 else f"{sign}{left:.0f} s"
    units = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))
    parts: list[str] = []
    for name, size in units:
        if left >= size or parts:
            parts.append(f"{int(left // size)} {name}")
            left %= size
    return sign + " ".join(parts[:2])


def ms(value: float | None) -> str:
    """A duration given in milliseconds, in about three digits."""
    if value is None:
        return "-"
    if value >= 60_000:
        return duration(value / 1000)
    return f"{value / 1000:.2f} s" if value >= 1000 else f"{value:.3g} ms"
