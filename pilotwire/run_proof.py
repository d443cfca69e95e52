"""What ``pilotwire run --once`` shows: real clients, real answers through the proxy, and what they must be."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
import urllib.request
from collections.abc import Awaitable, Callable

import asyncpg
from rich.console import Console

from pilotwire.embedded import EmbeddedServer
from pilotwire.errors import StartError

ROWS = 10_000
COUNTERS = ("pilotwire_clients_accepted_total", "pilotwire_statements_total", "pilotwire_transactions_total")
HINTED = "/*+ MergeJoin(a b) */ EXPLAIN (COSTS OFF) SELECT count(*) FROM pilot a JOIN pilot b USING (word)"

Step = tuple[str, Callable[[asyncpg.Connection], Awaitable[str]], str]


async def _version(connection: asyncpg.Connection) -> str:
    answer: str = await connection.fetchval("SHOW server_version")
    return answer


async def _copy(connection: asyncpg.Connection) -> str:
    await connection.execute("CREATE TEMP TABLE pilot (id int PRIMARY KEY, word text)")
    await connection.copy_records_to_table("pilot", records=[(n, f"word {n}") for n in range(ROWS)])
    return str(await connection.fetchval("SELECT count(*) FROM pilot"))


async def _prepared(connection: asyncpg.Connection) -> str:
    statement = await connection.prepare("SELECT word FROM pilot WHERE id = $1")
    return " ".join([await statement.fetchval(number) for number in (1, 20, 300)])


async def _rolled_back(connection: asyncpg.Connection) -> str:
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("DELETE FROM pilot")
    await transaction.rollback()
    return str(await connection.fetchval("SELECT count(*) FROM pilot"))


async def _refused(connection: asyncpg.Connection) -> str:
    try:
        await connection.fetchval("SELECT 1/0")
    except asyncpg.PostgresError as error:
        return f"{error.sqlstate} {error}"
    return "no error"


async def _cancelled(connection: asyncpg.Connection) -> str:
    try:
        await connection.execute("SELECT pg_sleep(60)", timeout=0.2)
    except TimeoutError:
        return f"cancelled, then {await connection.fetchval('SELECT 1')}"
    return "never cancelled"


async def _hinted(connection: asyncpg.Connection) -> str:
    plan = await connection.fetch(HINTED)
    return next((line[0].strip(" ->") for line in plan if "Join" in line[0]), "no join")


def _steps(server: EmbeddedServer) -> list[Step]:
    steps: list[Step] = [
        ("SHOW server_version", _version, server.version),
        (f"COPY {ROWS:,} rows in, count them", _copy, str(ROWS)),
        ("one prepared statement, three times", _prepared, "word 1 word 20 word 300"),
        ("BEGIN, DELETE, ROLLBACK, count", _rolled_back, str(ROWS)),
        ("SELECT 1/0", _refused, "22012 division by zero"),
        ("cancel a long query, ask the next", _cancelled, "cancelled, then 1"),
    ]
    if server.hint_plan.available:
        steps.append(("EXPLAIN with /*+ MergeJoin(a b) */", _hinted, "Merge Join"))
    return steps


async def _ask(dsn: str, server: EmbeddedServer, console: Console) -> None:
    connection = await asyncpg.connect(dsn, ssl=False)
    try:
        for name, step, wanted in _steps(server):
            before = time.perf_counter()
            answer = await step(connection)
            took = (time.perf_counter() - before) * 1000
            console.print(f"  {name:<38} {answer:<28} {took:8.1f} ms", markup=False, soft_wrap=True)
            if answer != wanted:
                raise StartError(f"{name} answered {answer!r} through the proxy and should have answered {wanted!r}")
    finally:
        await connection.close()


def prove(dsn: str, admin_url: str, server: EmbeddedServer, console: Console) -> None:
    """Ask through the proxy at `dsn` with asyncpg and psql and print the answers; StartError when one is wrong."""
    console.print(f"\nasyncpg {asyncpg.__version__} through {dsn}")
    try:
        asyncio.run(_ask(dsn, server, console))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise StartError(f"a query through the proxy failed: {error}") from None
    _psql(dsn, server, console)
    with urllib.request.urlopen(f"{admin_url}/metrics", timeout=5) as answer:  # noqa: S310 - always http to loopback
        lines = answer.read().decode().splitlines()
    console.print(f"\n{admin_url}/metrics")
    for line in lines:
        if line.startswith(COUNTERS):
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _psql(dsn: str, server: EmbeddedServer, console: Console) -> None:
    query = "SELECT count(*) AS tables, current_user, inet_server_port() AS server_port FROM pg_class"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    done = subprocess.run(
        [server.binary("psql"), "-X", "-d", dsn, "-c", query],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
    )
    if done.returncode or str(server.port) not in done.stdout:
        raise StartError(f"psql through the proxy failed: {done.stderr.strip() or done.stdout.strip()}")
    console.print(f"\npsql {server.version}: {query}", markup=False, soft_wrap=True)
    console.print(done.stdout.rstrip(), markup=False, soft_wrap=True)
