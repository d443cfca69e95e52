"""How good a model's estimates are now: a few recent statements, counted afresh."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Final

import asyncpg

from planner.advise import Models
from planner.catalog_load import load
from training.errors import TrainingError
from training.evaluate.cases import read_cases
from training.evaluate.contenders import decide
from training.evaluate.truth import Truth, find_truth
from training.labels import connect
from training.queries import Workload
from training.trainer.events import mean_error

STATEMENTS: Final = 40
BUDGET: Final = 30.0
COUNT_SECONDS: Final = 3.0
LEAST_JOINS: Final = 20


def typical(error: float) -> float:
    """A mean |ln(estimate / true)| as a q-error."""
    return math.exp(error)


async def present_error(dsn: str, workload: Workload, models: Models) -> float | None:
    """The mean |ln(estimate / true)| of the models over the joins of the workload's last `STATEMENTS` statements, at
    the cost of `BUDGET` seconds of counting at most; None where fewer than `LEAST_JOINS` could be counted. Raises
    TrainingError."""
    connection = await connect(dsn)
    try:
        snapshot = await load(connection)
        search_path = tuple(await connection.fetchval("SELECT current_schemas(false)::text[]"))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise TrainingError(f"the catalog cannot be read: {' '.join(str(error).split())}") from None
    finally:
        await connection.close(timeout=5)
    cases, _ = read_cases(Workload(workload.queries[-STATEMENTS:]), snapshot, search_path)
    with tempfile.TemporaryDirectory(prefix="pilotwire-drift-") as folder:
        # Counts of an earlier look are of earlier data.
        truth = Truth()
        await find_truth(
            truth, dsn, cases, snapshot, search_path, Path(folder), budget=BUDGET, count_seconds=COUNT_SECONDS
        )
    predicted = {case.name: decide(case.sql, models, snapshot, search_path).predicted or {} for case in cases}
    pairs = []
    for one in truth.sub_plans:
        rows = predicted[one.case].get((one.block, one.mask))
        if one.true >= 1:
            pairs.append((one.native if rows is None else rows, one.true))
    return mean_error(pairs) if len(pairs) >= LEAST_JOINS else None
