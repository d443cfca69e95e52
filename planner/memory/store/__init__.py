"""The store: the plan memory, the ledger, sampled executions and the history of metrics, in SQLite or PostgreSQL.

`open_store` gives a `Store`, whose methods block; `planner.memory.store.writer.Writer` writes from a thread of its own
for those who must not wait.
"""

from __future__ import annotations

from planner.memory.store.connect import Connector
from planner.memory.store.errors import StoreError
from planner.memory.store.location import Location, locate
from planner.memory.store.schema import check, upgrade
from planner.memory.store.store import Changes, Retention, Saved, Store

__all__ = ["Changes", "Location", "Retention", "Saved", "Store", "StoreError", "locate", "open_store"]


def open_store(
    url: str, *, migrate: bool = True, create: bool = True, literals: bool = False, busy_ms: int | None = None
) -> Store:
    """Opens the store at ``url`` (see `location`) and brings its schema up to date, or with ``migrate`` False refuses
    one that is not. ``create`` False refuses a SQLite file that does not exist. ``literals``: statements may be kept
    with their literals. Raises StoreError: one sentence, no secrets. Takes about 5 ms when there is nothing to do.
    """
    location = locate(url)
    connector = Connector(location, busy_ms=busy_ms) if busy_ms is not None else Connector(location)
    try:
        if create and migrate:
            connector.create_file()
        if migrate:
            upgrade(connector)
        else:
            check(connector)
        return Store(connector, literals=literals)
    except BaseException:
        connector.close()
        raise
