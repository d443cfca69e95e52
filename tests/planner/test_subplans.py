"""Connected sub-plans: all of them where they fit, a beam with a spine to the whole where they do not."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.estimates import BlockEstimates
from planner.graph import Column, JoinEdge, JoinKind, QueryBlock, Relation, RelationKind
from planner.resolve import resolve
from planner.snapshot import Snapshot
from planner.sql import read
from planner.subplans import MOST_PAIRS, connected, join_pairs
from tests.planner.features.shop import estimates, snapshot


def block(count: int, pairs: list[tuple[int, int]], *, same_key: bool = False) -> QueryBlock:
    """Every edge on columns of its own, or all on one."""
    relations = tuple(Relation(index, f"r{index}", RelationKind.TABLE, None, f"t{index}") for index in range(count))
    edges = tuple(
        JoinEdge(Column(left, "k" if same_key else f"l{number}"), Column(right, "k" if same_key else f"r{number}"))
        for number, (left, right) in enumerate(pairs)
    )
    return QueryBlock(0, relations, edges)


def chain(count: int) -> QueryBlock:
    return block(count, [(index, index + 1) for index in range(count - 1)])


def star(count: int) -> QueryBlock:
    return block(count, [(0, index) for index in range(1, count)])


def clique(count: int) -> QueryBlock:
    return block(count, list(itertools.combinations(range(count), 2)))


def by_definition(count: int, pairs: list[tuple[int, int]]) -> set[int]:
    found = set()
    for mask in range(1, 1 << count):
        if mask.bit_count() > 1:
            reached = mask & -mask
            for _ in range(count):
                for left, right in pairs:
                    both = 1 << left | 1 << right
                    if mask & both == both and reached & both:
                        reached |= both
            if reached == mask:
                found.add(mask)
    return found


GRAPHS = st.integers(2, 7).flatmap(
    lambda count: st.tuples(
        st.just(count),
        st.lists(
            st.tuples(st.integers(0, count - 1), st.integers(0, count - 1)).filter(lambda pair: pair[0] != pair[1]),
            max_size=12,
        ),
    )
)


@given(GRAPHS)
def test_exactly_the_connected_sets(graph: tuple[int, list[tuple[int, int]]]) -> None:
    count, pairs = graph
    found = connected(block(count, pairs))
    assert len(found) == len(set(found))
    assert set(found) == by_definition(count, pairs)
    assert [mask.bit_count() for mask in found] == sorted(mask.bit_count() for mask in found)


@given(GRAPHS, st.integers(0, 30))
def test_the_limit_holds_and_the_beam_keeps_a_spine(graph: tuple[int, list[tuple[int, int]]], limit: int) -> None:
    count, pairs = graph
    every = by_definition(count, pairs)
    found = connected(block(count, pairs), limit=limit)
    assert set(found) <= every
    assert len(found) == len(set(found)) <= limit
    if limit >= len(every):
        assert set(found) == every
    elif limit >= count:
        largest = max(mask.bit_count() for mask in every)
        top = [mask for mask in found if mask.bit_count() == largest]
        assert top
        for mask in found:
            parents = {mask & ~(1 << index) for index in range(count) if mask >> index & 1}
            assert mask.bit_count() == 2 or parents & set(found)


@pytest.mark.parametrize("made", [chain(16), star(12), clique(10), clique(14), star(25)])
def test_large_joins_keep_the_whole_and_every_size(made: QueryBlock) -> None:
    found = connected(made)
    assert len(found) <= 200
    assert found[-1] == made.everything
    assert {mask.bit_count() for mask in found} == set(range(2, len(made.relations) + 1))


def test_equalities_that_are_not_written_connect() -> None:
    """a.k = b.k AND b.k = c.k joins a with c."""
    assert connected(block(3, [(0, 1), (1, 2)], same_key=True)) == [0b011, 0b101, 0b110, 0b111]


def test_outer_joins_and_islands_divide() -> None:
    relations = tuple(
        Relation(index, f"r{index}", RelationKind.TABLE, None, "t", island=island)
        for index, island in enumerate((0, 0, 1, 1))
    )
    edges = (
        JoinEdge(Column(0, "a"), Column(1, "a")),
        JoinEdge(Column(1, "b"), Column(2, "b"), kind=JoinKind.LEFT),
        JoinEdge(Column(2, "c"), Column(3, "c")),
        JoinEdge(Column(1, "d"), Column(3, "d")),
    )
    assert connected(QueryBlock(0, relations, edges)) == [0b0011, 0b1100]


@pytest.fixture(scope="module")
def shop() -> Snapshot:
    return snapshot()


@pytest.mark.parametrize(
    "sql",
    [
        "WITH c AS (SELECT 1 AS id) SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id JOIN c ON c.id = b.id",
        "SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id JOIN unknown u ON u.id = o.id",
        "SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id JOIN (SELECT 1 AS id LIMIT 1) s ON s.id = b.id",
        "SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id LEFT JOIN item i ON i.order_id = o.id",
        "SELECT FROM buyer b JOIN orders o ON o.buyer_id = b.id, LATERAL (SELECT b.id LIMIT 1) l WHERE l.id = b.id",
    ],
)
def test_only_tables_of_inner_joins(shop: Snapshot, sql: str) -> None:
    made = estimates(sql, shop)
    names = {relation.alias: relation.bit for relation in made.block.relations}
    assert connected(made.block, made) == [names["b"] | names["o"]]


def test_nothing_to_join_gives_nothing(shop: Snapshot) -> None:
    for sql in ("SELECT 1", "SELECT FROM buyer", "SELECT FROM buyer b, orders o"):
        reading = read(sql)
        assert reading.graph is not None
        for one in resolve(reading.graph, shop, ("public",)).blocks:
            assert connected(one.block, BlockEstimates(one, shop)) == []
            assert connected(one.block) == []


def test_a_beam_keeps_the_smallest(shop: Snapshot) -> None:
    text = "SELECT FROM " + ", ".join(f"orders o{index}" for index in range(9)) + " WHERE "
    text += " AND ".join(f"o0.buyer_id = o{index}.buyer_id" for index in range(1, 9)) + " AND o7.id = 3"
    made = estimates(text, shop)
    found = connected(made.block, made, limit=40)
    assert 35 <= len(found) <= 40
    assert all(mask >> 7 & 1 for mask in found[:8])


@pytest.mark.parametrize("shape", [chain, star, clique])
def test_ten_tables_are_fast(shape: object) -> None:
    made = shape(10)  # type: ignore[operator]
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        connected(made)
        times.append(time.perf_counter() - begun)
    # Measured: 1.0 ms for the clique, twice that beside a busy machine's other work.
    assert min(times) < 0.01


def test_pairs_of_a_search_of_all_orders() -> None:
    """Known counts (Moerkotte and Neumann, 2006): chains and stars exactly, cliques roughly."""
    for count in (3, 6, 9):
        assert join_pairs(chain(count)) == (count**3 - count) / 6
        assert join_pairs(star(count)) == (count - 1) * 2 ** (count - 2)
    for count in (4, 6, 8):
        exact = (3**count - 2 ** (count + 1) + 1) / 2
        assert exact / 1.5 < join_pairs(clique(count)) < exact * 1.5
    assert join_pairs(clique(14)) == MOST_PAIRS
    assert join_pairs(star(20)) == MOST_PAIRS
    assert join_pairs(chain(30)) == (30**3 - 30) / 6


def test_counting_pairs_ends_early() -> None:
    times = []
    for _ in range(5):
        begun = time.perf_counter()
        assert join_pairs(star(60)) == MOST_PAIRS
        times.append(time.perf_counter() - begun)
    assert min(times) < 0.02
