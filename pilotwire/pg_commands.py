"""``pilotwire pg``: the embedded PostgreSQL of a directory, for anybody."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer

from pilotwire.embedded import EmbeddedError, EmbeddedServer

T = TypeVar("T")
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
    _try(lambda: server.start(lambda step: typer.echo(f"{step} ...", err=True)))
    if not server.hint_plan.available:
        typer.echo(server.hint_plan.reason, err=True)
    _show(_facts(server), server.dsn(), as_json)


@app.command()
def stop(directory: Directory = DEFAULT, as_json: Json = False) -> None:
    """Stop the server and keep its data."""
    server = EmbeddedServer(directory)
    stopped = _try(server.stop) if directory.exists() else False
    _show({"stopped": stopped}, "stopped" if stopped else "it was not running", as_json)


@app.command()
def dsn(
    directory: Directory = DEFAULT,
    database: Annotated[str, typer.Option(help="The database to name in the DSN.")] = "postgres",
    as_json: Json = False,
) -> None:
    """Print the server's DSN, running or not."""
    server = EmbeddedServer(directory)
    address = _try(lambda: server.dsn(database))
    _show(_facts(server), address, as_json)


@app.command(context_settings={"ignore_unknown_options": True})
def psql(
    directory: Directory = DEFAULT,
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[PSQL OPTIONS]...")] = None,
) -> None:
    """Open psql on the running server; what follows `--` goes to psql."""
    server = EmbeddedServer(directory)
    if not _try(lambda: server.running):
        _fail(f"No server runs in {directory}: start it with `pilotwire pg start --dir {directory}`.")
    program = str(_try(lambda: server.binary("psql")))
    os.execv(program, [program, "-d", server.dsn(), *(arguments or [])])  # noqa: S606 - becoming psql is the point


@app.command()
def reset(directory: Directory = DEFAULT, as_json: Json = False) -> None:
    """Stop the server and remove its data."""
    if directory.exists():
        _try(EmbeddedServer(directory).reset)
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


def _try(action: Callable[[], T]) -> T:
    try:
        return action()
    except EmbeddedError as error:
        _fail(str(error))


def _fail(sentence: str) -> NoReturn:
    typer.echo(f"pilotwire: {sentence}", err=True)
    raise typer.Exit(1)
