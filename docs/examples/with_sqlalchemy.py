"""SQLAlchemy Core over asyncpg, with every query of an engine advised by a hook; the rest of a program stays as it is.

DSN=postgresql://app@db/shop MODELS=models python with_sqlalchemy.py north
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from sqlalchemy import column, event, func, select, table
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from planner import Planner

customers = table("customers", column("id"), column("region"))
orders = table("orders", column("id"), column("customer_id"), column("region"))
items = table("items", column("order_id"))


def advise(engine: AsyncEngine, planner: Planner) -> None:
    """From now on the engine's statements are advised. A decision takes a millisecond or two and waits for nobody, so
    it can be made inside the hook."""

    @event.listens_for(engine.sync_engine, "before_cursor_execute", retval=True)
    def before(
        connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
    ) -> tuple[str, Any]:
        if executemany:
            return statement, parameters
        decision = planner.decide(statement, parameters)
        print("steered" if decision.steered else f"left alone: {decision.reason}", file=sys.stderr)
        for setting in decision.setup:
            cursor.execute(setting)
        return decision.sql, parameters


async def main(region: str) -> None:
    dsn = os.environ["DSN"]
    async with await Planner.connect(dsn, models=os.environ["MODELS"]) as planner:
        quiet = {"server_settings": {"pg_hint_plan.parse_messages": "debug1"}}
        engine = create_async_engine(dsn.replace("postgresql://", "postgresql+asyncpg://"), connect_args=quiet)
        advise(engine, planner)
        query = (
            select(func.count())
            .select_from(customers)
            .join(orders, orders.c.customer_id == customers.c.id)
            .join(items, items.c.order_id == orders.c.id)
            .where(customers.c.region == region, orders.c.region == region)
        )
        async with engine.begin() as connection:
            print(await connection.scalar(query))
        await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
