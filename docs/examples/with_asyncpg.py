"""A program that talks to PostgreSQL by asyncpg and has its queries advised in its own process, without the proxy.

DSN=postgresql://app@db/shop MODELS=models python with_asyncpg.py "SELECT ... WHERE o.region = $1" north
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import asyncpg

from planner import Planner


async def fetch(connection: Any, planner: Planner, sql: str, *params: Any) -> Any:
    """``connection.fetch`` with advice, where there is any."""
    decision = await planner.advise(sql, params)
    print("steered" if decision.steered else f"left alone: {decision.reason}", file=sys.stderr)
    async with connection.transaction():
        # Only where pg_hint_plan is missing is advice told in settings; they end with the transaction.
        for statement in decision.setup:
            await connection.execute(statement)
        return await connection.fetch(decision.sql, *params)


async def main(sql: str, params: list[str]) -> None:
    dsn = os.environ["DSN"]
    # Made once, at the program's start: it reads the catalog, and keeps it fresh.
    async with await Planner.connect(dsn, models=os.environ["MODELS"]) as planner:
        # Hints that are not obeyed are told at this level; nobody has to see it.
        connection = await asyncpg.connect(dsn, server_settings={"pg_hint_plan.parse_messages": "debug1"})
        try:
            for row in await fetch(connection, planner, sql, *params):
                print(*row)
        finally:
            await connection.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
