"""A model of settings: from measured arms to a file that the library serves."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model_runtime.runner import session
from planner import Planner
from planner.features import statement
from planner.memory.arms import PORTFOLIO
from planner.snapshot import Snapshot
from tests.support.models import load_model
from tests.support.mscn_model import save
from tests.training import shop
from training.dataset import ArmRun, Labelled
from training.dataset import assemble as sub_plans
from training.errors import TrainingError
from training.hints import (
    ArmTime,
    HintsDataset,
    Measured,
    Settings,
    Stopped,
    Trained,
    assemble,
    built,
    fit,
    graph,
    train,
)
from training.hints_choices import Unseen, find_known
from training.queries import Query, Workload

SLOW_PLAN: dict[str, Any] = {
    "Node Type": "Nested Loop", "Startup Cost": 1.0, "Total Cost": 9000.0, "Plan Rows": 50_000,
    "Plans": [
        {"Node Type": "Seq Scan", "Startup Cost": 0.0, "Total Cost": 50.0, "Plan Rows": 2000},
        {"Node Type": "Index Scan", "Startup Cost": 0.3, "Total Cost": 4.0, "Plan Rows": 3},
    ],
}  # fmt: skip
GOOD_PLAN: dict[str, Any] = {
    "Node Type": "Hash Join", "Startup Cost": 60.0, "Total Cost": 300.0, "Plan Rows": 50_000,
    "Plans": [{"Node Type": "Seq Scan", "Startup Cost": 0.0, "Total Cost": 50.0, "Plan Rows": 2000}],
}  # fmt: skip
BIG = (
    "SELECT count(*) FROM orders o, items i, products p "
    "WHERE o.id = i.order_id AND i.product_id = p.id AND p.price < {}"
)
SMALL = "SELECT count(*) FROM customers c, regions g WHERE c.region_id = g.id AND c.age < {}"


def measured(count: int = 60, *, noise: float = 0.05, planned: bool = False) -> list[Measured]:
    """Of large joins no_nestloop takes a fifth of the time, of small ones twice; no_hashjoin is always slower, and
    no_seqscan has the default's plan. ``planned``: it is the plan that tells, not the join."""
    chance = random.Random(4)
    found = []
    for number in range(count):
        sql = BIG if planned or number % 2 else SMALL
        ratio = 0.2 if number % 2 else 2.0
        default = chance.uniform(50, 500)
        found.append(
            Measured(
                sql.format(20 + number % 60),
                default,
                {
                    "no_nestloop": ArmTime(default * ratio * chance.uniform(1 - noise, 1 + noise)),
                    "no_hashjoin": ArmTime(default * 1.5, stopped=True),
                    "no_seqscan": ArmTime(same_plan=True),
                },
                (SLOW_PLAN if number % 2 else GOOD_PLAN) if planned else None,
                number,
            )
        )
    return found


@pytest.fixture(scope="module")
def data(shop_snapshot: Snapshot) -> HintsDataset:
    return assemble(measured(), shop_snapshot)


@pytest.fixture(scope="module")
def trained(data: HintsDataset) -> Trained:
    return fit(data, seed=1)


def test_what_was_measured_becomes_ratios(data: HintsDataset) -> None:
    assert data.arms == ("no_hashjoin", "no_nestloop", "no_seqscan")
    assert (len(data), data.left_out, data.features.shape[1]) == (60, 0, len(statement.NAMES))
    assert data.ratio[:, 0] == pytest.approx(np.log([1.5] * 60))
    assert data.ratio[1::2, 1] == pytest.approx(np.log([0.2] * 30), abs=0.06)
    assert (data.ratio[:, 2] == 0).all()
    assert len(np.unique(data.template)) == 2
    assert not data.has_plan.any()


def test_a_stopped_arm_is_never_taken_for_a_fast_one(shop_snapshot: Snapshot) -> None:
    """It was stopped at the best time so far, which says only that it is no better than that."""
    arms = {"no_hashjoin": ArmTime(20.0, stopped=True), "no_mergejoin": ArmTime(300.0, stopped=True)}
    found = assemble([Measured(SMALL.format(30), 100.0, arms)], shop_snapshot)
    assert found.ratio.tolist() == [[0.0, pytest.approx(np.log(3))]]


def test_what_the_planner_would_not_steer_is_left_out(shop_snapshot: Snapshot) -> None:
    texts = ["SELECT 1", "SELECT FROM", "SELECT * FROM orders o, nowhere n WHERE n.id = o.id", "SELECT * FROM orders"]
    arms = {"no_nestloop": ArmTime(1.0)}
    found = assemble([Measured(text, 10.0, arms) for text in texts], shop_snapshot)
    assert (len(found), found.left_out) == (0, 4)
    with pytest.raises(TrainingError, match="only 0 statements have measured arms, at least 20"):
        fit(found, seed=0)


def test_it_learns_and_says_how_sure_it_is(trained: Trained, data: HintsDataset) -> None:
    assert trained.arms == data.arms
    assert trained.scale == 1
    split = trained.splits["random"]
    assert (split.queries, split.sub_plans) == (60, 180)
    assert split.model[1] < 1.3 < split.native[1]
    ratios, spreads = trained.predict(data.features)
    assert np.abs(ratios - data.ratio).mean() < 0.2
    assert (spreads >= 0.05).all()


def test_a_template_not_seen_gets_no_arm(trained: Trained, data: HintsDataset) -> None:
    """Each of the two templates behaves unlike the other: judged without its own, nothing is sure."""
    assert trained.choices.before == pytest.approx(trained.choices.after, rel=0.01)
    assert trained.choices.best < 0.8 * trained.choices.before
    assert trained.choices.steered == 0
    assert (trained.predict(data.features)[1][:, 1] > 0.5).all()


def test_new_values_of_a_known_template_get_their_arm(trained: Trained, data: HintsDataset) -> None:
    """Both templates were trained on: statements kept out are surely steered where it helps, and nowhere else."""
    assert trained.known is not None
    choices = trained.known.choices
    assert (choices.steered, choices.slower) == (30, 0)
    assert choices.after == pytest.approx(choices.best, rel=0.01)
    known = built(trained, data).abstention.known
    assert known is not None
    assert known.spread == trained.known.stretch / trained.stretch < 1
    assert known.templates == trained.templates == tuple(sorted(data.templates))


async def test_known_templates_are_served(trained: Trained, data: HintsDataset, shop_dsn: str, tmp_path: Path) -> None:
    save(tmp_path / "arms.onnx", built(trained, data), "arms")
    async with await Planner.connect(shop_dsn, models=tmp_path) as planner:
        assert (await planner.advise(BIG.format(33))).arm == "no_nestloop"
        assert (await planner.advise(SMALL.format(33))).reason in ("no_change", "uncertain")
        other = "SELECT count(*) FROM orders o, items i WHERE o.id = i.order_id AND i.amount < 33"
        assert not (await planner.advise(other)).steered


def unseen(*wins: tuple[float, float]) -> Unseen:
    """One arm of thirty statements of 100 ms: predicted and true ln ratios, the rest stay as they are."""
    rows = [*wins, *[(0.0, 0.0)] * (30 - len(wins))]
    return Unseen(
        truth=np.array([[true] for _, true in rows]),
        ratios=np.array([[predicted] for predicted, _ in rows]),
        spreads=np.full((30, 1), 0.5),
        default_ms=np.full(30, 100.0),
    )


def test_how_sure_is_sure_enough() -> None:
    arm = [PORTFOLIO["no_nestloop"]]
    good = find_known(unseen(*[(-0.7, -1.0)] * 12), 1.0, 3, arm)
    assert good is not None
    assert (good.choices.steered, good.choices.slower, good.outside_ranges) == (12, 0, 3)
    # The less sure half would make statements slower: the search ends before it.
    mixed = find_known(unseen(*[(-0.7, -1.0)] * 12, *[(-0.3, 0.5)] * 6), 1.0, 0, arm)
    assert mixed is not None
    assert (mixed.choices.steered, mixed.choices.slower) == (12, 0)
    assert mixed.stretch > good.stretch
    assert find_known(unseen(*[(-0.7, 0.5)] * 12), 1.0, 0, arm) is None
    assert find_known(unseen(*[(-0.7, -1.0)] * 4), 1.0, 0, arm) is None


def test_the_same_seed_gives_the_same_file(trained: Trained, data: HintsDataset) -> None:
    again, other = fit(data, seed=1), fit(data, seed=2)
    files = [built(one, data).graph.SerializeToString() for one in (trained, again, other)]
    assert files[0] == files[1] != files[2]


def test_the_graph_answers_what_was_trained(trained: Trained, data: HintsDataset) -> None:
    ratios, spreads = session(graph(trained).SerializeToString()).run(None, {"features": data.inputs})
    expected = trained.predict(data.inputs)
    np.testing.assert_allclose(ratios, expected[0], atol=1e-5)
    np.testing.assert_allclose(spreads, expected[1], atol=1e-5)


def several_templates(count: int = 120) -> list[Measured]:
    """Many templates, so that large joins not seen are like others that were."""
    chance = random.Random(7)
    found = []
    for number, text in enumerate(shop.queries(count, seed=3)):
        large = text.count(",") >= 2
        default = chance.uniform(50, 500)
        ratio = (0.15 if large else 1.8) * chance.uniform(0.9, 1.1)
        found.append(Measured(text, default, {"no_nestloop": ArmTime(default * ratio)}, None, number))
    return found


async def test_it_is_served(shop_dsn: str, shop_snapshot: Snapshot, tmp_path: Path) -> None:
    """A stock server without pg_hint_plan: the settings come out where the arm is surely faster, and nowhere else."""
    data = assemble(several_templates(), shop_snapshot)
    trained = fit(data, seed=1)
    choices = trained.choices
    assert choices.steered > 10
    assert choices.slower == 0
    assert choices.after < 0.8 * choices.before
    save(tmp_path / "arms.onnx", built(trained, data), "arms")
    assert load_model(tmp_path / "arms.onnx").manifest.arms == {"no_nestloop": PORTFOLIO["no_nestloop"]}
    reasons: dict[str, int] = {}
    async with await Planner.connect(shop_dsn, models=tmp_path) as planner:
        stock = replace(planner.snapshot, capabilities=frozenset())
        object.__setattr__(planner._watcher, "snapshot", stock)
        for one in several_templates():
            decision = await planner.advise(one.text)
            large = one.text.count(",") >= 2
            reasons[decision.reason] = reasons.get(decision.reason, 0) + 1
            if decision.steered:
                assert large, one.text
                assert decision.setup == ("SET LOCAL enable_nestloop = 'off'",)
                assert (decision.arm, decision.model, decision.sql) == ("no_nestloop", "arms-1.0.0", one.text)
                assert decision.expected_gain > 1.25
    assert reasons[""] > 20
    assert set(reasons) <= {"", "no_change", "uncertain", "out_of_range"}


async def test_a_plan_tells_what_the_statement_does_not(shop_dsn: str, shop_snapshot: Snapshot, tmp_path: Path) -> None:
    data = assemble(measured(80, planned=True), shop_snapshot)
    assert data.has_plan.all()
    save(tmp_path / "arms.onnx", built(fit(data, seed=1), data), "arms")
    sql = BIG.format(41)
    async with await Planner.connect(shop_dsn, models=tmp_path) as planner:
        assert (await planner.advise(sql, plan=SLOW_PLAN)).arm == "no_nestloop"
        for plan in (GOOD_PLAN, None, {"no": "plan"}):
            assert not (await planner.advise(sql, plan=plan)).steered


def test_it_is_trained_from_a_training_set(shop_snapshot: Snapshot) -> None:
    """Statuses of runs as labelling writes them: what failed is not known, the default tells the plan."""
    queries, arms = [], []
    for one in measured(30, planned=True):
        queries.append(Query(one.query + 1, one.text))
        arms.append(ArmRun(one.query, "default", "timed", one.default_ms, one.default_ms, {"Plan": one.plan}))
        nestloop, hashjoin = one.arms["no_nestloop"], one.arms["no_hashjoin"]
        arms += [
            ArmRun(one.query, "no_nestloop", "timed", nestloop.ms, one.default_ms),
            ArmRun(one.query, "no_hashjoin", "stopped", hashjoin.ms, one.default_ms),
            ArmRun(one.query, "no_seqscan", "same_plan", 0.0, one.default_ms),
            ArmRun(one.query, "no_mergejoin", "failed", 0.0, one.default_ms),
        ]
    labelled = Labelled(shop_snapshot, ("public",), Workload(tuple(queries)), (), sub_plans([], {}), tuple(arms))
    found = train(labelled, seed=1)
    assert (found.kind, list(found.arms)) == ("hints", ["no_hashjoin", "no_nestloop", "no_seqscan"])
    assert found.notes["statements"] == 30
    data = assemble(measured(30, planned=True), shop_snapshot)
    assert found.graph.SerializeToString() == built(fit(data, seed=1), data).graph.SerializeToString()


def test_where_nothing_can_be_learned_nothing_is_chosen(shop_snapshot: Snapshot) -> None:
    chance = random.Random(2)
    noise = [
        Measured(text, 100.0, {"no_nestloop": ArmTime(100 * chance.choice([0.3, 3.0]))}, None, number)
        for number, text in enumerate(shop.queries(60, seed=5))
    ]
    trained = fit(assemble(noise, shop_snapshot), seed=1)
    assert trained.choices.steered <= 3
    assert trained.choices.after <= 1.02 * trained.choices.before


def test_it_can_be_stopped(data: HintsDataset) -> None:
    stop = threading.Event()
    told: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append(done)
        assert done <= total
        if done == 2:
            stop.set()

    with pytest.raises(Stopped):
        fit(data, Settings(members=3), seed=1, stop=stop, progress=progress)
    assert told == [0, 1, 2]


@pytest.mark.parametrize(
    "plan",
    [
        None,
        {},
        {"Node Type": "Sort"},
        {"Node Type": 5, "Plans": 3, "Total Cost": "x"},
        {**GOOD_PLAN, "Total Cost": float("nan")},
        {**GOOD_PLAN, "Plans": [None]},
    ],
)
def test_what_is_no_plan_is_no_plan(plan: Mapping[str, Any] | None) -> None:
    assert not any(statement.described(plan))
    assert statement.described(GOOD_PLAN)[0] == 1
