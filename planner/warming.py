"""Makes a fresh snapshot ready before it is used, so that no statement pays for what is computed once per snapshot.

Sampled columns become arrays, and the joins that the model was trained on are estimated once, which summarises their
keys. The largest tables come first, and all of it ends after a moment: what was not reached is computed when needed.
"""

from __future__ import annotations

import time
from typing import Final

from planner.advise import Models, Options, decide, look
from planner.sampling import column_vector
from planner.selectivity import column_model
from planner.snapshot import Snapshot
from planner.sql import read

MAX_SECONDS: Final = 1.0
MAX_JOINS: Final = 200


def warm(snapshot: Snapshot, models: Models, seconds: float = MAX_SECONDS) -> None:
    """For a thread; 1 ms for each column and 2 ms for each join, at most ``seconds``. Never raises."""
    end = time.monotonic() + seconds
    for table in sorted(snapshot.tables.values(), key=lambda table: -table.rows):
        if not table.steerable:
            continue
        for name in table.columns:
            if time.monotonic() > end:
                return
            column_model(snapshot, table, name)
            column_vector(snapshot, table, name)
    model = models.cardinality or models.hints
    for join in model.manifest.vocabulary.joins[:MAX_JOINS] if model is not None else ():
        if time.monotonic() > end:
            return
        _join(snapshot, models, join)


def _join(snapshot: Snapshot, models: Models, join: str) -> None:
    """``schema.table.column = schema.table.column``, as in `model_runtime.manifest.Vocabulary`."""
    sides = [side.split(".") for side in join.split(" = ")]
    if len(sides) != 2 or any(len(side) != 3 for side in sides):
        return
    (schema, table, column), (other_schema, other, other_column) = ([_quoted(part) for part in side] for side in sides)
    condition = f"a.{column} = b.{other_column}"
    graph = read(f"SELECT FROM {schema}.{table} a JOIN {other_schema}.{other} b ON {condition}").graph
    if graph is None:
        return
    try:
        decide(look(graph, snapshot), snapshot, models, options=Options(estimate_anyway=True))
    except Exception:
        # A model that fails is found out, and counted, by the first statement.
        return


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
