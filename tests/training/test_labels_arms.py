"""Arms are measured on, whatever becomes of one connection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from planner.explore.runner import try_arms
from planner.explore.server import Link, OutOfStepError, connect
from planner.snapshot import Snapshot
from tests.training import shop
from training import labels_arms
from training.labels_arms import ArmBudget, ArmLabeller, ArmTimes
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


async def test_every_set_of_tables_has_its_turn(shop_dsn: str, tmp_path: Path) -> None:
    """The dearest first, but one of each set of tables before the second of any."""
    dear = "SELECT count(*) FROM orders o, items i WHERE o.id = i.order_id AND i.amount > 0"
    dear_too = "SELECT count(*) FROM items i, orders o WHERE o.id = i.order_id"
    cheap = "SELECT count(*) FROM regions"
    with TrainingSet(tmp_path / "set") as kept:
        labeller, found = ArmLabeller(shop_dsn, kept, ArmBudget(1.0)), ArmTimes()
        connection = await connect(shop_dsn)
        try:
            ordered = await labeller._ordered(connection, [cheap, dear, "SELECT FROM", dear_too], found)
        finally:
            await connection.close()
    texts = [text for _, text in ordered]
    assert texts[1] == cheap
    assert {texts[0], texts[2]} == {dear, dear_too}
    assert ordered[0][0] >= ordered[2][0] > ordered[1][0]
    assert found.reasons == {"it cannot be planned": 1}
