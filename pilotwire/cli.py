"""The command ``pilotwire``.

Only the sub-command that was asked for is imported; of the others the list of commands knows one line of help. That
keeps ``pilotwire --help`` and ``pilotwire --version`` quick. Whatever goes wrong ends in one line on standard error:
exit code 2 for a wrong option or setting, 1 when the program could not start or do what was asked.
"""

from __future__ import annotations

import importlib
import os
import sys
from importlib import metadata
from typing import Any, NamedTuple

import typer


class Command(NamedTuple):
    """Where a sub-command lives: a function, or a ``typer.Typer`` for a group of commands."""

    module: str
    attribute: str
    help: str
    group: bool = False
    hidden: bool = False


COMMANDS = {
    "serve": Command("pilotwire.serve_command", "serve", "Run the proxy in front of a PostgreSQL server."),
    "check": Command(
        "pilotwire.check_command", "check", "Validate the settings and explain each one, without serving."
    ),
    "explain": Command(
        "pilotwire.explain_command", "explain", "Show what would be told to PostgreSQL about a statement, and why."
    ),
    "run": Command("pilotwire.run_command", "run", "Try it: an embedded PostgreSQL with the proxy in front of it."),
    "explore": Command(
        "pilotwire.explore_command", "explore", "Verify off the query path what makes statements faster."
    ),
    "collect": Command(
        "pilotwire.collect_command", "collect", "Fill a training set: a workload, true row counts, times of arms."
    ),
    "train": Command("pilotwire.train_command", "train", "Train a model on a database and a file of queries."),
    "evaluate": Command(
        "pilotwire.evaluate_command", "evaluate", "Measure whether steering pays on a workload, and write a report."
    ),
    "trainer": Command(
        "pilotwire.trainer_command", "app", "Train again on a schedule and on events; only better models serve.", True
    ),
    "demo": Command(
        "pilotwire.demo_command", "demo", "See what it gains: a shop's database and its queries, plain and steered."
    ),
    "pg": Command(
        "pilotwire.pg_commands", "app", "Manage the embedded PostgreSQL: start, stop, dsn, psql, reset.", True
    ),
    "model": Command(
        "pilotwire.model_command", "app", "Look into model files, check them, choose which one serves.", True
    ),
    "memory": Command(
        "pilotwire.memory_command", "app", "See what was learned about queries; approve, reject, freeze.", True
    ),
    "breaker": Command(
        "pilotwire.breaker_command", "app", "See what circuit breakers turned off; close one before its time.", True
    ),
    "ledger": Command(
        "pilotwire.ledger_command", "app", "See and export what was changed about steering, by whom and why.", True
    ),
    "store": Command(
        "pilotwire.store_command", "app", "The store: upgrade it, back it up, move it to PostgreSQL.", True
    ),
    "top": Command("pilotwire.top_command", "top", "Watch a running instance: is it healthy, is it helping?"),
    "demo-load": Command(
        "pilotwire.demo_load_command", "demo_load", "Fill a database with the demo's shop, send traffic."
    ),
    "config-reference": Command(
        "pilotwire.config_reference", "config_reference", "Print docs/configuration.md.", hidden=True
    ),
    "metrics-reference": Command(
        "pilotwire.metrics_reference", "metrics_reference", "Print docs/metrics.md.", hidden=True
    ),
}


def build(wanted: str | None) -> typer.Typer:
    """The program with the sub-command ``wanted`` loaded and the others known by name and help only."""
    app = typer.Typer(
        name="pilotwire",
        help="A PostgreSQL wire-protocol proxy that makes slow queries fast.",
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_program)
    for name, command in COMMANDS.items():
        target: Any = _unloaded
        if name == wanted:
            target = getattr(importlib.import_module(command.module), command.attribute)
            if command.group:
                app.add_typer(target, name=name, help=command.help)
                continue
        app.command(name, help=command.help, hidden=command.hidden)(target)
    return app


def _unloaded() -> None:
    """Stands in for a sub-command that was not asked for."""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pilotwire {metadata.version('pilotwire')}")
        raise typer.Exit


def _program(
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    pass


def fail(sentence: str, code: int) -> int:
    """Print one line on standard error, red on a terminal; returns ``code``."""
    line = f"pilotwire: {' '.join(sentence.split())}"
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        line = f"\x1b[31m{line}\x1b[0m"
    print(line, file=sys.stderr)
    return code


def run_program(arguments: list[str]) -> int:
    """Run one command line; returns the exit code."""
    from pilotwire.errors import StartError

    wanted = next((argument for argument in arguments if not argument.startswith("-")), None)
    try:
        code = build(wanted)(arguments or ["--help"], prog_name="pilotwire", standalone_mode=False)
    except typer.TyperException as error:
        # Without a word: a group without its sub-command, whose help has been shown.
        return fail(error.format_message(), 2) if error.format_message().strip() else 2
    except StartError as error:
        return fail(str(error), 1)
    except typer.Abort:
        return fail("aborted", 1)
    except BrokenPipeError:
        # The reader of our output left (head, less): nobody is there to be told, and flushing at exit would fail too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code if isinstance(code, int) else 0


def open_standard_files() -> None:
    """Opens what was closed for us of input, output and errors (``>&-``) on nothing: a connection that got one of these
    numbers would get our log lines."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 (for the whole run)


def main() -> None:
    """Entry point of the ``pilotwire`` script."""
    open_standard_files()
    sys.exit(run_program(sys.argv[1:]))
