"""``pilotwire demo`` (what `make run` runs): an embedded PostgreSQL with a shop's data, the proxy, and what it gains.

Loads the rows, trains a model, times the workload plain and steered, shows the table and goes on serving. The second
start finds all of it done and shows the kept results at once.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from pilotwire.demo.runner import DATABASE, ROUNDS, Demo, run_demo
from pilotwire.demo.training_queries import COUNT
from pilotwire.run_command import DEFAULT_ADMIN_PORT, DEFAULT_PORT, Trial, run_trial

SERVER: Final[dict[str, str | int]] = {
    "shared_buffers": "512MB",
    "effective_cache_size": "2GB",
    "work_mem": "16MB",
    "max_wal_size": "2GB",
    "random_page_cost": "1.1",
}
"""What tuning guides ask for on a machine with an SSD. It is no neutral choice: PostgreSQL's own defaults
(random_page_cost 4) make the plain plans slower in total, and correct row counts then help some statements less and
make some slower, since the cost of an index is overestimated."""

WIDTH: Final = 120
"""Columns where no terminal says how many it has."""


def demo(
    once: Annotated[bool, typer.Option("--once", help="Stop after the table instead of serving.")] = False,
    directory: Annotated[
        Path, typer.Option("--dir", metavar="DIR", help="Where server, model and results live.", file_okay=False)
    ] = Path(".pilotwire"),
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the proxy; a free one when taken.")
    ] = DEFAULT_PORT,
    admin_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of the admin server; likewise.")
    ] = DEFAULT_ADMIN_PORT,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Other rows, other queries.")] = 1,
    rows: Annotated[
        float, typer.Option("--rows", metavar="SCALE", min=0.005, max=20, help="1 is about two million rows.")
    ] = 1.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=100, help="Counted runs of each query.")] = ROUNDS,
    queries: Annotated[
        int, typer.Option("--queries", min=20, max=5000, help="How many queries the model learns from.")
    ] = COUNT,
    fresh: Annotated[bool, typer.Option("--fresh", help="Load and train anew.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Run the workload again.")] = False,
) -> int:
    """See what it gains on a shop's database, then serve until Ctrl-C."""
    console = Console(highlight=False, soft_wrap=True)
    models = directory.absolute() / "models"

    def work(trial: Trial) -> None:
        run_demo(
            Demo(
                direct=trial.server.dsn(),
                proxy=trial.dsn,
                admin_url=trial.admin_url,
                folder=directory.absolute(),
                models=models,
                seed=seed,
                scale=rows,
                rounds=rounds,
                queries=queries,
                fresh=fresh,
                again=again,
            ),
            Console(highlight=False, width=None if console.is_terminal else WIDTH),
        )

    def tell(trial: Trial) -> str:
        program = os.path.relpath(Path(sys.executable).with_name("pilotwire"))
        direct, through = (f"{dsn.rpartition('/')[0]}/{DATABASE}" for dsn in (trial.server.dsn(), trial.dsn))
        return (
            "\nfrom here on advice is used where it was measured to win. Send the shop's statements through the proxy\n"
            "and watch in the console's Queries and Ledger what is tried and what stays:\n\n"
            f"  [bold]{shlex.quote(program)} demo-load --direct {direct} --through {through} "
            f"--seed {seed} --rows {rows:g}[/bold]"
        )

    return run_trial(
        directory,
        port,
        admin_port,
        console,
        once=once,
        config=SERVER,
        models=models,
        work=work,
        tell=tell,
        database=DATABASE,
    )
