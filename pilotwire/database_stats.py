"""The figures of each database, since the start and lately, out of the merged counters: what SHOW STATS tells.

A snapshot is kept once a minute, and the one before it: so that what is told as lately reaches one to two minutes back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from proxy.console_db.tables import DatabaseStats
from proxy.database_counters import TOLD
from proxy.metrics import labelled

STATS_SECONDS: Final = 60.0

Figures = dict[str, dict[str, float]]


class StatsHistory:
    """``totals`` are the merged counters, ``now`` is a monotonic clock."""

    def __init__(self, totals: Mapping[str, float], now: float) -> None:
        self._before = self._last = (now, _by_database(totals))

    def look(self, totals: Mapping[str, float], now: float) -> None:
        """To be called once in `STATS_SECONDS`."""
        self._before, self._last = self._last, (now, _by_database(totals))

    def databases(self, totals: Mapping[str, float], now: float) -> Sequence[DatabaseStats]:
        """By name."""
        since, before = self._before
        found = _by_database(totals)
        return [
            DatabaseStats(name, figures, _difference(figures, before.get(name, {})), max(now - since, 1.0))
            for name, figures in sorted(found.items())
        ]


def _difference(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    return {name: value - before.get(name, 0.0) for name, value in now.items()}


def _by_database(totals: Mapping[str, float]) -> Figures:
    found: Figures = {}
    for name in TOLD:
        for database, value in labelled(totals, name):
            found.setdefault(database, {})[name] = value
    return found
