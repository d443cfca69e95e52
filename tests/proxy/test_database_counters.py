"""Figures by database: they add up to those of the worker, and their number is bounded."""

from __future__ import annotations

from pilotwire.database_stats import StatsHistory
from proxy.database_counters import TOLD, DatabaseCounters
from proxy.declared_metrics import DATABASE_METRICS
from proxy.metrics import MAX_LABELS, Counters, labelled


def test_figures_add_up() -> None:
    own = Counters()
    own.clients_current = 3
    found = DatabaseCounters(own)
    for name, count in (("shop", 5), ("books", 7), ("shop", 1)):
        found.of(name).statements += count
    found.of("shop").backend_opened("pool")
    own.backend_closed()
    total = found.snapshot()
    assert (total["statements"], total["clients_current"], total["backends_current"]) == (13, 3, 0)
    assert dict(labelled(total, "database_statements")) == {"shop": 6, "books": 7}


def test_each_figure_is_declared() -> None:
    assert list(TOLD) == [metric.attribute for metric in DATABASE_METRICS]
    assert all(hasattr(Counters(), attribute) for attribute in TOLD.values())


def test_their_number_is_bounded() -> None:
    found = DatabaseCounters(Counters())
    for number in range(MAX_LABELS + 10):
        found.of(f"d{number}").transactions += 1
    figures = dict(labelled(found.snapshot(), "database_transactions"))
    assert len(figures) == MAX_LABELS + 1
    assert figures["other"] == 10


def test_both_directions_of_each_are_probed() -> None:
    found = DatabaseCounters(Counters())
    shop = found.of("shop")
    found.probe()
    assert shop.probe_client
    assert shop.probe_server


def test_lately_is_what_was_added_since_the_look_before() -> None:
    history = StatsHistory({"database_statements{shop}": 100.0}, 0.0)
    now = {"database_statements{shop}": 130.0, "database_statements{new}": 5.0}
    new, shop = history.databases(now, 10.0)
    assert (new.database, new.totals["database_statements"], new.lately["database_statements"]) == ("new", 5.0, 5.0)
    assert (shop.lately["database_statements"], shop.seconds) == (30.0, 10.0)
    history.look(now, 60.0)
    history.look(now, 120.0)
    (_, shop) = history.databases(now, 130.0)
    assert (shop.lately["database_statements"], shop.seconds) == (0.0, 70.0)
