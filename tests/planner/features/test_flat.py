"""Flat features: they name nothing, depend on nothing but the sub-plan, and show what the server's formula misses."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner import subplans
from planner.estimates import BlockEstimates
from planner.features import UnknownFeaturizerError, featurizer, flat, keys, known
from planner.graph import Column, JoinEdge, QueryBlock, Relation, RelationKind
from planner.resolve import ResolvedBlock
from planner.snapshot import Snapshot
from tests.planner.features.shop import Data, estimates, shop_data, snapshot

FOUR = """SELECT count(*) FROM buyer b JOIN orders o ON o.buyer_id = b.id JOIN item i ON i.order_id = o.id
          JOIN visit v ON v.buyer_id = b.id WHERE {}"""
FILTERS = (
    "true",
    "b.age > 60",
    "b.region IN (1, 2, 3) AND i.price BETWEEN 10 AND 30",
    "o.note LIKE 'n1%' OR o.note IS NULL",
    "v.page = 7 AND b.age > 90 AND b.age < 10",
    "b.id = 1",
    "lower(o.note) = 'n1' AND i.price <> 5",
)


@pytest.fixture(scope="module")
def shop() -> Snapshot:
    return snapshot()


def encoded(sql: str, shot: Snapshot) -> tuple[list[int], np.ndarray[Any, Any]]:
    made = estimates(sql, shot)
    masks = subplans.connected(made.block, made)
    return masks, flat.encode(made, masks)


def feature(rows: np.ndarray[Any, Any], name: str) -> list[float]:
    found: list[float] = rows[:, flat.NAMES.index(name)].tolist()
    return found


@pytest.mark.parametrize("where", FILTERS)
def test_one_finite_row_of_floats_per_sub_plan(shop: Snapshot, where: str) -> None:
    masks, rows = encoded(FOUR.format(where), shop)
    assert rows.shape == (len(masks), len(flat.NAMES))
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert len(set(flat.NAMES)) == len(flat.NAMES)
    assert known(featurizer("flat", flat.VERSION), estimates(FOUR.format(where), shop), masks).all()


def test_the_names_say_what_the_numbers_are(shop: Snapshot) -> None:
    made = estimates(FOUR.format("b.region IN (1, 2, 3) AND i.price BETWEEN 10 AND 30"), shop)
    rows = flat.encode(made, [0b0011, 0b1111])
    assert feature(rows, "native") == pytest.approx([math.log(made.rows(0b0011)), math.log(made.rows(0b1111))])
    assert feature(rows, "relations") == [2, 4]
    assert feature(rows, "edges") == [1, 3]
    assert feature(rows, "cycles") == [0, 0]
    assert feature(rows, "in_list") == [1, 1]
    assert feature(rows, "in_length") == pytest.approx([math.log(4)] * 2)
    assert feature(rows, "range") == [0, 2]
    assert feature(rows, "filtered_relations") == [1, 2]
    assert feature(rows, "tables_sum") == pytest.approx(
        [
            math.log(2000 * 5000),
            sum(math.log(table.rows) for table in made.tables if table is not None),
        ]
    )
    assert feature(rows, "filtered_max")[0] == pytest.approx(math.log(5000))
    assert feature(rows, "key_joins_sum")[0] == 1
    assert feature(rows, "shared_key") == [2, 3]


def test_tables_and_aliases_by_other_names_give_the_same_features(shop: Snapshot) -> None:
    sql = FOUR.format("b.age > 60 AND i.price < 50")
    renamed = sql.replace("buyer b", "zz_buyer x").replace("orders o", "zz_orders y").replace("item i", "zz_item b")
    renamed = renamed.replace("visit v", "zz_visit w").replace("o.", "y.").replace("i.order", "@order")
    renamed = renamed.replace("i.price", "@price").replace("b.", "x.").replace("v.", "w.").replace("@", "b.")
    np.testing.assert_array_equal(encoded(sql, shop)[1], encoded(renamed, snapshot(prefix="zz_"))[1])


def test_a_sub_plan_has_the_same_features_alone_and_among_others(shop: Snapshot) -> None:
    """Training leaves out sub-plans that could not be counted; serving asks for all."""
    made = estimates(FOUR.format("b.age > 60"), shop)
    masks = subplans.connected(made.block, made)
    together = flat.encode(made, masks)
    for mask, row in zip(masks, together, strict=True):
        np.testing.assert_allclose(flat.encode(made, [mask])[0], row, rtol=1e-6)
    np.testing.assert_allclose(flat.encode(made, masks[::-1]), together[::-1], rtol=1e-6)
    assert flat.encode(made, []).shape == (0, len(flat.NAMES))


def orders_of(where: Callable[[int], bool]) -> float:
    """How many orders are of buyers of such an age."""
    data = shop_data()
    chosen = {
        buyer for buyer, age in zip(data["buyer"]["id"], data["buyer"]["age"], strict=True) if where(int(str(age)))
    }
    return float(sum(buyer in chosen for buyer in data["orders"]["buyer_id"]))


def test_a_filter_that_chooses_heavy_keys_shows(shop: Snapshot) -> None:
    """The oldest buyers order most. The server thinks age says nothing about orders; the feature tells."""
    sql = "SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id WHERE b.age {}"
    for condition, where, sign in (("> 90", lambda age: age > 90, 1), ("<= 50", lambda age: age <= 50, -1)):
        made = estimates(sql.format(condition), shop)
        rows = flat.encode(made, [3])
        missed = math.log(orders_of(where) / made.rows(3))
        assert missed * sign > 0.5
        [shift] = feature(rows, "filter_shift_sum")
        assert shift * sign > 0.3
        assert abs(missed - shift) < 0.8 * abs(missed)
    assert abs(feature(flat.encode(estimates(sql.format("IS NOT NULL"), shop), [3]), "filter_shift_sum")[0]) < 0.05


def test_keys_that_are_frequent_in_three_tables_show(shop: Snapshot) -> None:
    """Three joined rows share a frequent key far more often than a product of two selectivities says."""
    sql = "SELECT FROM orders o JOIN visit v ON v.buyer_id = o.buyer_id JOIN visit w ON w.buyer_id = o.buyer_id"
    made = estimates(sql, shop)
    rows = flat.encode(made, [0b111])
    visits = Counter(shop_data()["visit"]["buyer_id"])
    actual = sum(visits[buyer] ** 2 for buyer in shop_data()["orders"]["buyer_id"])
    missed = math.log(actual / made.rows(0b111))
    [shift] = feature(rows, "class_shift")
    assert missed > 1
    assert abs(missed - shift) < 0.3 * missed


def test_filters_that_depend_on_each_other_show(shop: Snapshot) -> None:
    """age > 90 and id < 250 are the same buyers: the sample knows, the product of two shares does not."""
    sql = "SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id WHERE b.age > 90 AND b.id < 250"
    [shift] = feature(flat.encode(estimates(sql, shop), [3]), "sample_shift")
    assert shift == pytest.approx(math.log(1 / 0.125), abs=0.5)
    alone = sql.replace("AND b.id < 250", "")
    assert abs(feature(flat.encode(estimates(alone, shop), [3]), "sample_shift")[0]) < 0.3


def test_a_constant_key_joins_nothing(shop: Snapshot) -> None:
    rows = encoded(FOUR.format("b.id = 1"), shop)[1]
    assert max(map(abs, feature(rows, "class_shift"))) > 0  # item and orders still are a class
    made = estimates("SELECT FROM buyer b JOIN visit v ON v.buyer_id = b.id WHERE b.id = 1", shop)
    assert feature(flat.encode(made, [3]), "class_shift") == [0]


def test_nothing_is_needed_but_the_tables(shop: Snapshot) -> None:
    """No statistics, no samples, no rows: still numbers."""
    bare = {
        name: dataclasses.replace(
            table,
            rows=rows,
            sample=sample,
            columns={
                key: dataclasses.replace(one, statistics=None if rows == 0 else one.statistics)
                for key, one in table.columns.items()
            },
        )
        for (name, table), rows, sample in zip(shop.tables.items(), (0, 10, 0, 1e9), (None,) * 4, strict=True)
    }
    shot = dataclasses.replace(shop, tables=bare, derived={})
    for where in FILTERS:
        assert np.isfinite(encoded(FOUR.format(where), shot)[1]).all()


def test_samples_of_values_that_cannot_be_keys_are_left_out(shop: Snapshot) -> None:
    name = ("public", "orders")
    table = shop.tables[name]
    assert table.sample is not None
    columns = {**table.sample.columns, "buyer_id": tuple([1] for _ in range(table.sample.size))}
    odd = dataclasses.replace(table, sample=dataclasses.replace(table.sample, columns=columns))
    shot = dataclasses.replace(shop, tables={**shop.tables, name: odd}, derived={})
    assert np.isfinite(encoded(FOUR.format("o.note = 'n1' AND b.age > 60"), shot)[1]).all()


def star(count: int, shot: Snapshot, shape: str) -> BlockEstimates:
    """A block of ``count`` relations over the shop's tables."""
    tables = list(shot.tables.values())
    relations = tuple(
        Relation(index, f"r{index}", RelationKind.TABLE, "public", tables[index % 4].name) for index in range(count)
    )
    names = [next(iter(tables[index % 4].columns)) for index in range(count)]
    ends = [(0 if shape == "star" else index - 1, index) for index in range(1, count)]
    edges = tuple(
        JoinEdge(
            Column(left, names[left] if shape != "chain" else list(tables[left % 4].columns)[1]),
            Column(right, names[right]),
        )
        for left, right in ends
    )
    block = QueryBlock(0, relations, edges)
    return BlockEstimates(ResolvedBlock(block, tuple(tables[i % 4] for i in range(count)), ("",) * count), shot)


@pytest.mark.parametrize(("count", "shape", "limit_ms"), [(5, "star", 0.8), (10, "chain", 3.0), (10, "star", 3.0)])
def test_encoding_is_fast(shop: Snapshot, count: int, shape: str, limit_ms: float) -> None:
    """Four times the limits count here: beside other work the fastest of 15 took 6.3 ms that takes 2.4 alone. Whether
    the limits themselves are kept, `make bench-steer` says."""
    made = star(count, shop, shape)
    masks = subplans.connected(made.block, made)
    flat.encode(made, masks)
    times = []
    for _ in range(15):
        begun = time.perf_counter()
        flat.encode(made, masks)
        times.append((time.perf_counter() - begun) * 1000)
    assert min(times) < 4 * limit_ms


def test_what_is_kept_has_a_bound(shop: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "KEPT_CLASSES", 3)
    tables = list(shop.tables.values())
    for left in tables:
        for right in tables:
            keys.key_class(shop, [(left, next(iter(left.columns))), (right, next(iter(right.columns)))])
    kept = shop.derived["key classes"]
    assert isinstance(kept, dict)
    assert len(kept) <= 3


NUMBERS = st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(left=NUMBERS, right=NUMBERS, low=st.integers(-1, 10))
def test_whole_samples_count_joins_exactly(left: list[int | None], right: list[int | None], low: int) -> None:
    data: dict[str, Data] = {"l": {"k": [*left, 3], "f": list(range(len(left) + 1))}, "r": {"k": [*right, 3]}}
    shot = snapshot(data)
    tables = list(shot.tables.values())
    made = keys.key_class(shot, [(tables[0], "k"), (tables[1], "k")])
    assert tables[0].sample is not None
    passing = np.array([value > low for value in tables[0].sample.columns["f"]])  # type: ignore[operator]
    chosen = [key for number, key in enumerate(data["l"]["k"]) if number > low]
    meeting = keys.meet(made, [passing, None])
    assert meeting.pairs[0, 1] == sum(one == other for one in chosen for other in data["r"]["k"] if one is not None)
    assert np.isfinite(meeting.shift).all()
    exact = sum(one == other for one in data["l"]["k"] for other in data["r"]["k"] if one is not None)
    assert np.exp(meeting.bare[0, 1]) == pytest.approx(exact / len(data["l"]["k"]) / len(data["r"]["k"]), rel=1e-6)


def test_another_version_is_not_there() -> None:
    for name, version in (("flat", "0"), ("other", "1"), ("sets", "1")):
        with pytest.raises(UnknownFeaturizerError):
            featurizer(name, version)
