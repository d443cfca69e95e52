"""Counts by database, at no cost on the way of the bytes: each database has `Counters` of its own, which its sessions
and pools add to instead of the worker's, and the worker's figures are the sum.

Bounded: after `MAX_LABELS` databases the rest shares one.
"""

from __future__ import annotations

from typing import Final

from proxy.metrics import MAX_LABELS, OTHER, Counters, add_into

TOLD: Final = {
    "database_transactions": "transactions",
    "database_statements": "statements",
    "database_received_bytes": "bytes_from_client",
    "database_sent_bytes": "bytes_to_client",
    "database_statement_seconds": "latency_sum",
    "database_transaction_seconds": "transaction_seconds",
    "database_pool_wait_seconds": "pool_wait_seconds_sum",
    "database_statements_reprepared": "statements_reprepared",
}
"""What is told by database: key in snapshots, attribute of `Counters`."""


class DatabaseCounters:
    """``own`` counts what belongs to no database, and has the gauges."""

    def __init__(self, own: Counters) -> None:
        self._own = own
        self._found: dict[str, Counters] = {}

    def of(self, database: str) -> Counters:
        """Those that sessions and pools of this database add to."""
        found = self._found.get(database)
        if found is None:
            if len(self._found) >= MAX_LABELS:
                database = OTHER
            found = self._found.setdefault(database, Counters())
        return found

    def probe(self) -> None:
        """Has the next piece of a client's and of a server's stream measured, of each database."""
        for counters in self._found.values():
            counters.probe_client = counters.probe_server = True

    def snapshot(self) -> dict[str, float]:
        """All of them together, flat, and the figures by database; about 0.1 ms for each."""
        total = self._own.snapshot()
        for name, counters in self._found.items():
            add_into(total, counters.snapshot())
            for key, attribute in TOLD.items():
                total[f"{key}{{{name}}}"] = getattr(counters, attribute)
        return total
