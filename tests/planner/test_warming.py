"""A fresh snapshot is made ready before it is used."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from model_runtime.manifest import Vocabulary
from planner.advise import Models, advise
from planner.snapshot import Sample, Snapshot
from planner.sql import read
from planner.warming import warm
from tests.planner.test_engine import SNAPSHOT
from tests.support.models import load_model
from tests.support.shop import constant_model

JOIN = "public.customers.id = public.orders.customer_id"


def sampled() -> Snapshot:
    tables = {
        place: replace(table, sample=Sample(500, {name: tuple(range(500)) for name in table.columns}, 0.005))
        for place, table in SNAPSHOT.tables.items()
    }
    return replace(SNAPSHOT, tables=tables, derived={})


def models(folder: Path, *joins: str) -> Models:
    return Models(load_model(constant_model(folder, vocabulary=Vocabulary(joins=joins))))


def test_a_statement_finds_everything_computed(tmp_path: Path) -> None:
    snapshot, served = sampled(), models(tmp_path, JOIN)
    warm(snapshot, served)
    ready = set(snapshot.derived)
    assert len(ready) > 9
    graph = read("SELECT FROM customers c JOIN orders o ON o.customer_id = c.id WHERE c.region > 5").graph
    assert graph is not None
    assert advise(graph, snapshot, served).sub_plans
    assert set(snapshot.derived) - ready == set(), "nothing was left to compute"


def test_odd_words_and_no_model_are_nothing(tmp_path: Path) -> None:
    odd = ("a.b = c", "public.no.id = public.orders.id", 'a."b.c = d.e.f', "public.customers.id = public.customers.id")
    warm(sampled(), models(tmp_path, *odd))
    warm(sampled(), Models())
    warm(SNAPSHOT, Models())


def test_it_ends_in_time(tmp_path: Path) -> None:
    snapshot = sampled()
    begun = time.monotonic()
    warm(snapshot, models(tmp_path, JOIN), seconds=0.0)
    assert len(snapshot.derived) <= 1
    assert time.monotonic() - begun < 5
