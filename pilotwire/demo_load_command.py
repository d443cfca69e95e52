"""``pilotwire demo-load``: the shop of the demo in a database of one's own, and traffic through a proxy in front of it.

For an installation that is to be looked at: `deploy/compose.yaml` runs it. The database's tables of the same names are
replaced, so it wants a database for itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from typing import Annotated

import asyncpg
import typer
from rich.console import Console

from pilotwire import interrupting
from pilotwire.demo.load import is_loaded, load
from pilotwire.demo.traffic import run
from pilotwire.errors import StartError


def demo_load(
    direct: Annotated[
        str, typer.Option(metavar="DSN", help="The database to fill; its tables of the same names are replaced.")
    ],
    through: Annotated[str, typer.Option(metavar="DSN", help="The same database, through the proxy.")],
    clients: Annotated[int, typer.Option(min=1, max=1000, help="Connections that send statements.")] = 4,
    seconds: Annotated[float, typer.Option(min=0, help="How long; 0 is until Ctrl-C.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Other rows, other statements.")] = 1,
    rows: Annotated[
        float, typer.Option("--rows", metavar="SCALE", min=0.005, max=20, help="1 is about two million rows.")
    ] = 1.0,
) -> int:
    """Fill a database with the demo's shop and send its statements through a proxy. Passwords come from PGPASSWORD."""
    console = Console(highlight=False, soft_wrap=True)
    try:
        interrupting.run(_work(direct, through, clients, seconds, seed, rows, console))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StartError(f"{direct.rpartition('@')[2]}: {error}") from None
    return 0


async def _work(
    direct: str, through: str, clients: int, seconds: float, seed: int, scale: float, console: Console
) -> None:
    work = asyncio.current_task()
    assert work is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, work.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        if not await is_loaded(direct, seed, scale):
            console.print("loading the shop")
            count = await load(direct, seed, scale, lambda _what, _share: None)
            console.print(f"{count:,} rows loaded")
        await run(through, clients=clients, seconds=seconds, seed=seed, scale=scale, report=console.print)
