"""Sets of tables, joins and predicates over a vocabulary, and abstention outside it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from model_runtime.manifest import SetFeatures, Vocabulary
from planner import subplans
from planner.features import UnknownFeaturizerError, featurizer, known, sets
from planner.snapshot import Snapshot
from tests.planner.features.shop import estimates, snapshot

THREE = "SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id JOIN visit v ON v.buyer_id = b.id WHERE {}"
TRAINED = "b.age > 60 AND b.region IN (1, 2) AND v.page IS NOT NULL AND o.note LIKE 'n%'"


@pytest.fixture(scope="module")
def shop() -> Snapshot:
    return snapshot()


@pytest.fixture(scope="module")
def words(shop: Snapshot) -> sets.Words:
    return sets.vocabulary([estimates(THREE.format(TRAINED), shop)])


def made(words: sets.Words, bitmap: int = 0) -> sets.Sets:
    found = featurizer("sets", sets.VERSION, words, {"bitmap": bitmap} if bitmap else {})
    assert isinstance(found, sets.Sets)
    return found


def test_the_vocabulary_is_what_the_workload_reads(words: sets.Words) -> None:
    assert words.tables == ("public.buyer", "public.orders", "public.visit")
    assert words.columns == ("public.buyer.age", "public.buyer.region", "public.orders.note", "public.visit.page")
    assert words.joins == (
        "public.buyer.id = public.orders.buyer_id",
        "public.buyer.id = public.visit.buyer_id",
        "public.orders.buyer_id = public.visit.buyer_id",
    )


def test_it_fits_a_manifest(words: sets.Words) -> None:
    vocabulary = Vocabulary(tables=words.tables, columns=words.columns, joins=words.joins, operators=words.operators)
    SetFeatures(**made(words, 16).names)
    assert made(words).names == sets.Sets(vocabulary).names


def test_each_sub_plan_has_its_own_elements(shop: Snapshot, words: sets.Words) -> None:
    query = estimates(THREE.format(TRAINED), shop)
    masks = subplans.connected(query.block, query)
    assert masks == [0b011, 0b101, 0b110, 0b111]
    featurize = made(words)
    found = featurize.inputs(query, masks)
    assert {name: array.shape for name, array in found.items()} == {
        "tables": (4, 3, 3 + 5),
        "tables_mask": (4, 3),
        "joins": (4, 3, 3 + 6),
        "joins_mask": (4, 3),
        "predicates": (4, 4, 4 + 13 + 2),
        "predicates_mask": (4, 4),
    }
    assert all(array.dtype == np.float32 and np.isfinite(array).all() for array in found.values())
    assert found["tables_mask"].sum(axis=1).tolist() == [2, 2, 2, 3]
    assert found["joins_mask"].sum(axis=1).tolist() == [1, 1, 1, 3]
    assert found["predicates_mask"].sum(axis=1).tolist() == [3, 3, 2, 4]
    for part in ("tables", "joins", "predicates"):
        assert not found[part][found[f"{part}_mask"] == 0].any()
    native = featurize.names["tables"].index("native")
    assert found["tables"][3, :, native] == pytest.approx([np.log(query.rows(0b111))] * 3, rel=1e-6)
    np.testing.assert_allclose(found["tables"][3, :, :3], np.eye(3))


def test_values_lie_between_the_columns_ends(shop: Snapshot, words: sets.Words) -> None:
    featurize = made(words)
    place = featurize.names["predicates"].index("value")
    seen = []
    for age in (-5, 20, 60, 100, 900):
        query = estimates(THREE.format(f"b.age > {age}"), shop)
        seen.append(float(featurize.inputs(query, [0b111])["predicates"][0, 0, place]))
    assert seen[0] == 0
    assert seen[-1] == 1
    assert seen == sorted(seen)
    assert seen[2] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        (THREE.format("b.age > 5"), [True] * 4),
        (THREE.format("b.id > 5"), [False, False, True, False]),
        (THREE.format("b.age > 5 OR b.region = 1"), [True] * 4),
        (
            "SELECT FROM buyer b JOIN orders o ON o.id = b.id JOIN visit v ON v.buyer_id = b.id",
            [False, True, False, False],
        ),
        (
            "SELECT FROM buyer b JOIN item o ON o.order_id = b.id JOIN visit v ON v.buyer_id = b.id",
            [False, True, False, False],
        ),
    ],
    ids=["known", "column", "or", "join", "table"],
)
def test_an_unknown_word_makes_its_sub_plans_unknown(
    shop: Snapshot, words: sets.Words, sql: str, expected: list[bool]
) -> None:
    query = estimates(sql, shop)
    masks = [0b011, 0b101, 0b110, 0b111]
    featurize = made(words)
    assert known(featurize, query, masks).tolist() == expected
    assert all(np.isfinite(array).all() for array in featurize.inputs(query, masks).values())


def test_bits_say_which_sampled_rows_pass(shop: Snapshot, words: sets.Words) -> None:
    buyer = shop.tables["public", "buyer"]
    assert buyer.sample is not None
    ages = set()
    for bound in (10, 30, 60, 90):
        found = made(words, 64).inputs(estimates(THREE.format(f"b.age > {bound}"), shop), [0b111])["tables"]
        ages.add(found[0, 0, -64:].sum())
        passing = sum(age > bound for age in buyer.sample.columns["age"] if isinstance(age, int)) / buyer.sample.size
        assert found[0, 0, -64:].mean() == pytest.approx(passing, abs=0.2)
        assert found[0, 1, -64:].all(), "no filter: every row passes"
    assert len(ages) > 2
    assert set(np.unique(found[0, 0, -64:])) == {0.0, 1.0}


def test_a_row_has_the_same_bit_in_another_sample(shop: Snapshot, words: sets.Words) -> None:
    """Rows that leave the sample, or come at another place, change no bit but their own."""
    buyer = shop.tables["public", "buyer"]
    assert buyer.sample is not None
    order = np.random.default_rng(2).permutation(buyer.sample.size)[: buyer.sample.size - 20]
    columns = {name: tuple(values[row] for row in order) for name, values in buyer.sample.columns.items()}
    moved = replace(buyer, sample=replace(buyer.sample, size=len(order), columns=columns))
    other = replace(shop, tables={**shop.tables, ("public", "buyer"): moved}, derived={})
    one, two = (made(words, 64).inputs(estimates(THREE.format("b.age > 60"), it), [0b111]) for it in (shop, other))
    assert (one["tables"][0, 0, -64:] != two["tables"][0, 0, -64:]).sum() <= 6


def test_what_the_sample_cannot_judge_has_no_bits(shop: Snapshot, words: sets.Words) -> None:
    place = made(words, 16).names["tables"].index("sampled")
    for condition, judged in (("b.age > 60", 1.0), ("strange(b.age) > 60", 0.0)):
        found = made(words, 16).inputs(estimates(THREE.format(condition), shop), [0b111])["tables"]
        assert found[0, :, place].tolist() == [judged, 1.0, 1.0]
        assert found[0, 0, -16:].any() == bool(judged)


def test_training_sees_the_same_elements(shop: Snapshot, words: sets.Words) -> None:
    query = estimates(THREE.format(TRAINED), shop)
    masks = subplans.connected(query.block, query)
    inputs = made(words, 16).inputs(query, masks)
    for part, (rows, index) in made(words, 16).elements(query, masks).items():
        again = np.vstack([np.zeros((1, rows.shape[1])), rows])[index]
        if part == "tables":
            again[:, :, made(words).native_place] = inputs[part][:, :, made(words).native_place]
        np.testing.assert_array_equal(again, inputs[part])
        np.testing.assert_array_equal(index > 0, inputs[f"{part}_mask"])
    np.testing.assert_array_equal(
        sets.native_logarithms(query, masks), inputs["tables"][:, 0, made(words).native_place]
    )


def test_no_sub_plans_and_no_predicates_have_shapes_too(shop: Snapshot, words: sets.Words) -> None:
    query = estimates(THREE.format("true"), shop)
    featurize = made(words)
    assert featurize.inputs(query, [])["tables"].shape == (0, 1, 8)
    found = featurize.inputs(query, [0b111])
    assert found["predicates"].shape == (1, 1, 19)
    assert not found["predicates_mask"].any()


@pytest.mark.parametrize("options", [{"bitmap": -1}, {"bitmap": 9999}, {"bitmap": "8"}, {"other": 1}])
def test_options_are_checked(words: sets.Words, options: dict[str, object]) -> None:
    with pytest.raises(UnknownFeaturizerError, match="bitmap"):
        featurizer("sets", sets.VERSION, words, options)
