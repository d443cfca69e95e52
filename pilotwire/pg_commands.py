"""``pilotwire pg``: the embedded PostgreSQL of a directory, for anybody."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from pilotwire.embedded import EmbeddedError, EmbeddedServer

app = typer.Typer(
    no_args_is_help=True,
    help="Manage an embedded PostgreSQL 18 in a directory.",
    rich_markup_mode=None,
)
Directory = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="The server's directory; made by start.", file_okay=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
DEFAULT = Path(".pilotwire/pg")


@app.command()
def start(directory: Directory = DEFAULT, as_json: Json = False) -> None:
    """Start the server, making its data first; does nothing when it runs already."""
    server = EmbeddedServer(directory)
    server.start(lambda step: typer.echo(f"{step} ...", err=True))
    if not server.hint_plan.available:
        typer.echo(server.hint_plan.reason, err=True)
    _show(_facts(server), server.dsn(), as_json)


@app.command()
def stop(directory: Directory = DEFAULT, as_json: Json = False) -> None:
    """Stop the server and keep its data."""
    server = EmbeddedServer(directory)
    stopped = directory.exists() and server.stop()
    _show({"stopped": stopped}, "stopped" if stopped else "it was not running", as_json)


@app.command()
def dsn(
    directory: Directory = DEFAULT,
    database: Annotated[str, typer.Option(help="The database to name in the DSN.")] = "postgres",
    as_json: Json = False,
) -> None:
    """Print the server's DSN, running or not."""
    server = EmbeddedServer(directory)
    _show(_facts(server), server.dsn(database), as_json)


@app.command(context_settings={"ignore_unknown_options": True})
def psql(
    directory: Directory = DEFAULT,
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[PSQL OPTIONS]...")] = None,
) -> None:
    """Open psql on the running server; what follows `--` goes to psql."""
    server = EmbeddedServer(directory)
    if not server.running:
        raise EmbeddedError(f"No server runs in {directory}: start it with `pilotwire pg start --dir {directory}`.")
    program = str(server.binary("psql"))
    os.execv(program, [program, "-d", server.dsn(), *(arguments or [])])  # noqa: S606 - becoming psql is the point


@app.command()
def reset(directory: Directory = DEFAULT, as_json: Json = False) -> None:
    """Stop the server and remove its data."""
    if directory.exists():
        EmbeddedServer(directory).reset()
    _show({"reset": True}, f"{directory} holds no data any more", as_json)


def _facts(server: EmbeddedServer) -> dict[str, Any]:
    return {
        "dsn": server.dsn(),
        "host": server.host,
        "port": server.port,
        "socket_dir": str(server.socket_dir),
        "data": str(server.data),
        "log": str(server.log_file),
        "pid": server.pid,
        "version": server.version,
        "hint_plan": server.hint_plan_installed,
    }


def _show(facts: dict[str, Any], sentence: str, as_json: bool) -> None:
    typer.echo(json.dumps(facts) if as_json else sentence)
