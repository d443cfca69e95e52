"""MSCN: the graph and the data without PyTorch, training with it where it is installed, and a file that is served."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path

import asyncpg
import numpy as np
import pytest

from model_runtime.runner import session
from planner import Planner
from planner.features import sets
from planner.subplans import connected
from tests.planner.features import shop
from tests.support import mscn_model
from tests.support.models import load_model
from tests.support.postgres import Postgres
from tests.support.shop import QUERY, SCHEMA
from training.errors import TrainingError
from training.gbdt import q_errors
from training.mscn import Settings, Stopped, Trained, built, fit
from training.mscn_data import Counted, SetDataset, encode
from training.mscn_graph import graph
from training.train import Limits as Budgets
from training.train import Sources, train_model

QUICK = Settings(folds=3, members=2, hidden=16, epochs=25, batch=64)


@pytest.fixture(scope="module")
def data() -> SetDataset:
    return mscn_model.made_up()


# ---------------------------------------------------------------------- without PyTorch


def test_the_data_are_what_serving_sees(data: SetDataset) -> None:
    shot = shop.snapshot()
    query = shop.estimates("SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id WHERE b.age > 50", shot)
    masks = connected(query.block, query)
    one = encode([Counted(query, masks, [7.0] * len(masks), 3, "a")], bitmap=16)
    served = sets.Sets(one.words, sets.Options(16)).inputs(query, masks)
    for name, array in one.inputs(np.arange(len(one))).items():
        np.testing.assert_allclose(array, served[name], rtol=1e-6)
    assert one.native == pytest.approx([query.rows(mask) for mask in masks])
    assert (one.queries, one.query.tolist()) == (1, [3] * len(masks))
    assert 200 < len(data) <= 60 * 4
    assert data.parts["tables"].index.shape == (len(data), 3)


def test_empty_sub_plans_are_left_out_and_bounds_are_marked() -> None:
    query = shop.estimates(mscn_model.QUERY.format(age=1, region=1, note=1, page=1), shop.snapshot())
    masks = connected(query.block, query)
    lower = [False, False, False, True]
    found = encode([Counted(query, masks, [5.0, 7.0, 0.0, 9.0], 0, "a", lower, 0.5)], bitmap=0)
    assert (found.actual.tolist(), found.lower.tolist()) == ([5.0, 7.0, 9.0], [False, False, True])
    assert (found.weight.tolist(), found.queries) == ([0.5] * 3, 0)
    assert not found.judged.any()


def test_the_graph_computes_the_network(data: SetDataset) -> None:
    network = mscn_model.network(data, seed=3)
    made = graph(network, ratio_scale=0.5, floor=0.2)
    expected = mscn_model.answers(network, data)
    running = session(made.SerializeToString())
    ratio, spread = running.run(["log_ratio", "log_std"], data.inputs(np.arange(len(data))))
    np.testing.assert_allclose(ratio, 0.5 * expected[..., 0].mean(axis=0), atol=1e-4)
    np.testing.assert_allclose(spread, np.maximum(np.exp(expected[..., 1]).mean(axis=0), 0.2), atol=1e-4)
    # Padding changes nothing.
    wider = {
        name: np.concatenate([array, np.ones_like(array) if array.ndim == 3 else np.zeros_like(array)], axis=1)
        for name, array in data.inputs(np.arange(5)).items()
    }
    np.testing.assert_allclose(running.run(["log_ratio"], wider)[0], ratio[:5], atol=1e-5)


def test_the_small_file_is_good_and_the_same_each_time(data: SetDataset, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        mscn_model.write(tmp_path / f"{name}.onnx", data, seed=seed)
    one, two, three = ((tmp_path / f"{name}.onnx").read_bytes() for name in ("one", "two", "three"))
    assert one == two != three
    assert len(one) < 100_000
    model = load_model(tmp_path / "one.onnx")
    predicted = model.predict(data.inputs(np.arange(len(data))))["log_ratio"]
    assert q_errors(data.target, predicted)[1] < 0.8 * q_errors(data.target)[1]
    assert model.manifest.featurizer.options == {"bitmap": mscn_model.BITMAP}


async def _labelled(dsn: str, planner: Planner) -> SetDataset:
    """Every sub-plan of some variants of the query, counted."""
    connection = await asyncpg.connect(dsn)
    try:
        found = []
        for number, region in enumerate(("north", "south", "east", "west")):
            for other in ("north", "west"):
                sql = QUERY.replace("c.region = 'north'", f"c.region = '{region}'").replace(
                    "o.region = 'north'", f"o.region = '{other}'"
                )
                estimates = shop.estimates(sql, planner.snapshot)
                masks = connected(estimates.block, estimates)
                counted = [await connection.fetchval(_of(sql, mask)) for mask in masks]
                found.append(Counted(estimates, masks, [float(rows) for rows in counted], number, "one"))
        return encode(found, bitmap=16)
    finally:
        await connection.close()


def _of(sql: str, mask: int) -> str:
    """The query over some of its three tables."""
    tables = {"c": "customers c", "o": "orders o", "i": "items i"}
    kept = [alias for place, alias in enumerate(tables) if mask >> place & 1]
    joins = {"co": "o.customer_id = c.id", "oi": "i.order_id = o.id"}
    conditions = [text for pair, text in joins.items() if set(pair) <= set(kept)]
    filters = sql.partition("WHERE")[2].split("AND")
    conditions += [text for text in filters if text.strip()[0] in kept]
    return f"SELECT count(*) FROM {', '.join(tables[one] for one in kept)} WHERE {' AND '.join(conditions)}"


async def test_a_file_is_served(hinted_postgres: Postgres, tmp_path: Path) -> None:
    name = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, name)
    dsn = hinted_postgres.dsn(name)
    async with await Planner.connect(dsn) as looking:
        data = await _labelled(dsn, looking)
    mscn_model.write(tmp_path / "mscn.onnx", data)
    async with await Planner.connect(dsn, models=tmp_path) as planner:
        decision = await planner.advise(QUERY)
        assert (decision.reason, decision.model, decision.arm) == ("", "small-mscn-1.0.0", "cardinality")
        whole = max(decision.estimates, key=lambda one: len(one.aliases))
        truth = int(hinted_postgres.sql(_of(QUERY, 0b111), name))
        assert whole.rows is not None
        assert abs(np.log(whole.rows / truth)) < abs(np.log(whole.native / truth))
        # A join that it has no word for is left to the server's estimate.
        unknown = await planner.advise(QUERY.replace("i.order_id = o.id", "i.product_id = o.id"))
        assert {one.aliases for one in unknown.estimates if one.rows is None} == {("o", "i"), ("c", "o", "i")}


# ---------------------------------------------------------------------- with PyTorch


@pytest.fixture(scope="module")
def trained(data: SetDataset) -> Trained:
    pytest.importorskip("torch")
    return fit(data, QUICK, seed=1)


def test_it_learns_what_it_has_not_seen(trained: Trained, data: SetDataset) -> None:
    assert set(trained.splits) == {"templates", "random"}
    for split in trained.splits.values():
        assert (split.queries, split.sub_plans, split.native) == (60, len(data), q_errors(data.target))
        assert split.model[1] < 0.7 * split.native[1]
    assert trained.scale > 0
    assert trained.clip[0] < data.target.min() < data.target.max() < trained.clip[1]
    assert 1 <= trained.rounds <= QUICK.epochs


def test_the_same_seed_gives_the_same_file(trained: Trained, data: SetDataset) -> None:
    again, other = fit(data, QUICK, seed=1), fit(data, QUICK, seed=2)
    files = [built(one, data).graph.SerializeToString() for one in (trained, again, other)]
    assert files[0] == files[1] != files[2]


def test_the_file_answers_what_was_trained(trained: Trained, data: SetDataset) -> None:
    found = built(trained, data)
    ratio, spread = session(found.graph.SerializeToString()).run(None, data.inputs(np.arange(len(data))))
    expected = mscn_model.answers(trained.network, data)
    np.testing.assert_allclose(ratio, trained.scale * expected[..., 0].mean(axis=0), atol=1e-3)
    assert (spread > 0).all()
    assert q_errors(data.target, ratio)[1] < trained.splits["random"].native[1]
    assert found.notes["members"] == 2
    assert 0.6 < trained.within < 0.75
    assert all(len(array) == 16 for array in found.self_test.values())


def test_known_templates_have_limits_of_their_own(trained: Trained, data: SetDataset) -> None:
    assert trained.known is not None
    assert trained.known.scale >= trained.scale
    limits = built(trained, data, ["a", "b"]).abstention
    assert limits.known is not None
    assert limits.known.templates == ("a", "b")
    assert limits.known.factor == trained.known.scale / trained.scale
    assert limits.log_std == trained.log_std
    assert built(trained, data).abstention.known is None


def test_words_that_a_member_has_not_seen_stay_native(data: SetDataset) -> None:
    """One template alone has a table of its own: without it, nothing is known of that table."""
    pytest.importorskip("torch")
    shot = shop.snapshot()
    alone = shop.estimates("SELECT FROM orders o JOIN item i ON i.order_id = o.id WHERE i.price > 50", shot)
    masks = connected(alone.block, alone)
    labelled = []
    for number in range(45):
        query = shop.estimates(mscn_model.QUERY.format(age=number, region=1, note=1, page=30), shot)
        several = connected(query.block, query)
        labelled.append(Counted(query, several, [1e5] * len(several), number, f"t{number % 4}"))
    labelled.append(Counted(alone, masks, [1e6] * len(masks), 99, "alone"))
    mixed = encode(labelled, bitmap=0)
    found = fit(mixed, replace(QUICK, epochs=4), seed=0)
    assert (found.unseen[mixed.query == 99] == 0).all()
    assert (found.unseen[mixed.query != 99] != 0).any()


def test_a_lower_bound_only_pulls_up(data: SetDataset) -> None:
    """A bound that the prediction is above already teaches nothing, whatever it is."""
    pytest.importorskip("torch")
    bound = np.arange(len(data)) % 2 == 0

    def predicted(factor: float) -> float:
        actual = data.native * np.where(bound, factor, 1.0)
        found = fit(replace(data, actual=actual, lower=bound), replace(QUICK, epochs=1), seed=0)
        return float(mscn_model.answers(found.network, data)[:, bound, 0].mean())

    assert predicted(1e-3) == predicted(1e-6) < 0.1
    assert predicted(1e3) > 0.005


def test_it_can_be_stopped_and_tells_how_far_it_is(data: SetDataset) -> None:
    pytest.importorskip("torch")
    stop = threading.Event()
    told: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        if done == 2:
            stop.set()

    with pytest.raises(Stopped):
        fit(data, QUICK, seed=1, stop=stop, progress=progress)
    assert told == [(0, 25), (1, 25), (2, 25)]


def test_what_it_needs(data: SetDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    few = encode(_few(), bitmap=0)
    with pytest.raises(TrainingError, match="only 4 joins with rows were counted, at least 40"):
        fit(few, seed=0)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(TrainingError, match=r"pip install 'pilotwire\[mscn\]'"):
        fit(data, seed=0)


async def test_a_missing_library_is_told_before_anything_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(TrainingError, match=r"pip install 'pilotwire\[mscn\]'"):
        await train_model("postgresql://none", tmp_path / "m.onnx", Sources(), Budgets(), algorithm="mscn")


def _few() -> list[Counted]:
    query = shop.estimates(mscn_model.QUERY.format(age=1, region=1, note=1, page=30), shop.snapshot())
    masks = connected(query.block, query)
    return [Counted(query, masks, [1.0] * len(masks), 0, "a")]
