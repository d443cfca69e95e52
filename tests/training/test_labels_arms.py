"""Arms are measured on, whatever becomes of one connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planner.explore.runner import try_arms
from planner.explore.server import Link, OutOfStepError
from planner.snapshot import Snapshot
from tests.training import shop
from training import labels_arms
from training.labels_arms import ArmBudget, ArmLabeller
from training.training_set import TrainingSet


async def test_a_connection_out_of_step_costs_one_statement(
    shop_dsn: str, shop_snapshot: Snapshot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server is not gone: what comes after is measured over another connection."""
    connections: list[Any] = []

    async def unlucky(link: Link, *arguments: Any, **options: Any) -> Any:
        connections.append(await link.get())
        if len(connections) == 1:
            connections[0].terminate()
            raise OutOfStepError("the connection is out of step with the server")
        return await try_arms(link, *arguments, **options)

    monkeypatch.setattr(labels_arms, "try_arms", unlucky)
    statements = shop.queries(3, seed=5)
    with TrainingSet(tmp_path / "set") as kept:
        times = await ArmLabeller(shop_dsn, kept, ArmBudget(20.0)).run(statements, shop_snapshot)
        assert (times.wanted, times.left) == (3, 0)
        assert times.reasons["the connection is out of step with the server"] == 1
        assert len({arm.statement for arm in kept.arms}) == times.measured == 2
    assert connections[1] is not connections[0]
