"""The pools of one worker by name, as gauges with a bounded number of labels: those with the most clients, and the rest
under ``other``. Made for each snapshot: about 1 us for each pool, nothing for each client."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

from proxy.metrics import MAX_LABELS, Counters, Labelled
from proxy.upstream.pool import BackendPool

_FIGURES = {"servers": "pool_servers", "limit": "pool_limit", "waiting": "pool_queue"}


def pool_name(user: str, database: str) -> str:
    return f"{user}@{database}"


def fill(counters: Counters, clients: Mapping[str, int], pools: Iterable[BackendPool]) -> None:
    """Puts the gauges of pools in place. A name that is gone is told once more, with 0."""
    found: dict[str, dict[str, int]] = {"pool_clients": dict(clients), **{name: {} for name in _FIGURES.values()}}
    now = time.monotonic()
    for pool in pools:
        name = pool_name(pool.opener.user, pool.opener.database)
        state = pool.state(now)
        for figure, gauge in _FIGURES.items():
            found[gauge][name] = found[gauge].get(name, 0) + int(state[figure])
    names = {name for figures in found.values() for name in figures}
    shown = sorted(names, key=lambda name: (-clients.get(name, 0), name))[:MAX_LABELS]
    for gauge, figures in found.items():
        before: Labelled = getattr(counters, gauge)
        told = Labelled(dict.fromkeys((label for label, count in before.items() if count), 0))
        told.update({name: figures[name] for name in shown if name in figures})
        if len(names) > len(shown):
            told.update(other=sum(figures.values()) - sum(figures.get(name, 0) for name in shown))
        setattr(counters, gauge, told)
