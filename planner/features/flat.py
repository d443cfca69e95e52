"""Flat features: one row of numbers per sub-plan, none of which names a table, so that a model carries over to
templates and databases that it never saw.

Training and serving both call `encode`. Whatever belongs to a relation or to a joined pair of columns is computed once
per query; a sub-plan's features are sums, minima and maxima over its relations and pairs, which are products with the
bits of its mask. Measured: 26 sub-plans of a five-table join 0.6 ms, 45 of a chain of ten tables 1.7 ms, 128 of
ten tables joined on one key 2 ms, the estimates of `planner.estimates` not counted.

All logarithms are natural. "Native" is the server's own estimate as `planner.estimates` computes it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np

from planner.features import conditions
from planner.features.keys import MATCH_PRIOR, Array, KeyClass, along, key_class, meet, weighed
from planner.graph import Column, JoinEdge, QueryBlock
from planner.selectivity_clauses import Judgement
from planner.snapshot import Snapshot, TableInfo
from planner.sql_equivalence import EquivalenceClass, Equivalences
from planner.subplans import connected

VERSION: Final = "1"
_SIZES: Final = ("tables", "filtered", "filter_selectivity")
_RELATION_SUMS: Final = (
    *(f"{name}_sum" for name in _SIZES),
    *conditions.KINDS,
    "filters",
    "filtered_relations",
    "sample_shift",
    "sample_shift_absolute",
    "judged_by_sample",
    "judged_by_default",
)
_PAIR_SUMS: Final = (
    "skew",
    "distinct_ratio",
    "key_nulls",
    "key_correlation",
    "key_joins",
    "many_to_many",
    "fan_out",
    "bare_shift",
    "filter_shift",
    "pair_shift",
    "pair_support",
)
_PAIR_MAXIMA: Final = ("skew", "top_frequency", "distinct_ratio", "fan_out")
NAMES: Final[tuple[str, ...]] = (
    "native",
    "relations",
    "edges",
    "cycles",
    *_RELATION_SUMS,
    *(f"{name}_{end}" for name in _SIZES for end in ("min", "max")),
    "join_selectivity",
    "native_over_largest",
    *(f"{name}_sum" for name in _PAIR_SUMS),
    *(f"{name}_max" for name in _PAIR_MAXIMA),
    "filter_shift_min",
    "filter_shift_max",
    "pair_shift_min",
    "pair_shift_max",
    "bare_shift_min",
    "bare_shift_max",
    "path_shift_sum",
    "path_shift_min",
    "path_shift_max",
    "class_shift",
    "class_shift_largest",
    "shared_key",
    "informed_shift",
    "unequal_joins",
    "join_conditions",
    "degree_max",
    "leaves",
    "child_min",
    "child_max",
    "child_growth",
)
_FAR: Final = 12.0
"""Shifts are cut off there: e**12 is 160,000."""


class Estimates(Protocol):
    """What is read of `planner.estimates.BlockEstimates`."""

    @property
    def block(self) -> QueryBlock: ...
    @property
    def snapshot(self) -> Snapshot: ...
    @property
    def tables(self) -> Sequence[TableInfo | None]: ...
    @property
    def equivalences(self) -> Equivalences: ...
    @property
    def connected(self) -> dict[int, tuple[int, ...]]: ...
    def table_rows(self, relation: int, /) -> float: ...
    def filter_selectivity(self, relation: int, /) -> float: ...
    def filtered_rows(self, relation: int, /) -> float: ...
    def edge_selectivity(self, edge: JoinEdge, /) -> float: ...
    def rows(self, mask: int, /) -> float: ...
    def judgement(self, relation: int, /) -> Judgement: ...
    def sample_selectivity(self, relation: int, /) -> float | None: ...
    def sample_matches(self, relation: int, /) -> np.ndarray[Any, Any] | None: ...


class Flat:
    """The featurizer of this module, as `planner.features.featurizer` gives it."""

    name = "flat"
    version = VERSION
    names = NAMES

    def inputs(self, estimates: Estimates, masks: Sequence[int]) -> dict[str, Array]:
        return {"features": encode(estimates, masks)}


def encode(estimates: Estimates, masks: Sequence[int]) -> Array:
    """float32 [sub-plans, `NAMES`], all finite. ``masks`` are sets of two and more of the block's tables that inner
    joins connect. A sub-plan's features are the same whichever others are asked for with it."""
    if not masks:
        return np.zeros((0, len(NAMES)), dtype=np.float32)
    every = connected(estimates.block, estimates)
    used = 0
    for mask in (*every, *masks):
        used |= mask
    bits = np.array([[mask >> index & 1 for index in range(used.bit_length())] for mask in masks], dtype=np.float64)
    native = np.array([_ln(estimates.rows(mask)) for mask in masks])
    relations = [index for index in range(used.bit_length()) if used >> index & 1]
    values = np.zeros((bits.shape[1], len(_RELATION_SUMS)))
    for relation in relations:
        values[relation] = _relation(estimates, relation)
    sizes = bits.sum(axis=1)
    pairs = _Pairs(estimates, used, bits)
    rows = values[:, 1]
    sums = bits @ values
    low, high = _extremes(bits, values[:, : len(_SIZES)])
    extremes = np.stack([low, high], axis=2).reshape(len(masks), -1)
    children = _children(estimates, every, masks, native, rows)
    informed = sums[:, _RELATION_SUMS.index("sample_shift")] + pairs.class_shift
    columns = [
        *(native, sizes, pairs.edges, pairs.edges - sizes + 1),
        *sums.T,
        *extremes.T,
        native - sums[:, 1],
        native - high[:, 1],
        *pairs.sums.T,
        *pairs.maxima.T,
        *pairs.shifts.T,
        *pairs.paths.T,
        *(pairs.class_shift, pairs.class_shift_largest, pairs.shared_key, informed),
        *(pairs.unequal, _conditions(estimates.block, masks), *_shape(bits, pairs.adjacency)),
        *children,
    ]
    found: Array = np.nan_to_num(np.stack(columns, axis=1), posinf=_FAR, neginf=-_FAR).astype(np.float32)
    return found


def _ln(value: float) -> float:
    """Of rows or of a selectivity, away from zero."""
    return math.log(value) if value > 1e-30 else -69.0


def _relation(estimates: Estimates, relation: int) -> list[float]:
    """One relation's share of `_RELATION_SUMS`."""
    predicates = (*estimates.block.filters(relation), *estimates.equivalences.filters(relation))
    rows = _ln(max(estimates.table_rows(relation), 1.0))
    filtered = _ln(max(estimates.filtered_rows(relation), 1.0))
    selectivity = _ln(max(estimates.filter_selectivity(relation), 1e-9))
    shift, judged = 0.0, Judgement.STATISTICS
    if predicates:
        judged = estimates.judgement(relation)
        seen = estimates.sample_selectivity(relation)
        if seen is not None:
            shift = min(max(_ln(max(seen, 1e-9)) - selectivity, -_FAR), _FAR)
    return [
        rows,
        filtered,
        selectivity,
        *conditions.counted(predicates),
        float(len(predicates)),
        float(bool(predicates)),
        shift,
        abs(shift),
        float(judged is Judgement.SAMPLE),
        float(judged > Judgement.SAMPLE),
    ]


def _extremes(bits: Array, values: Array) -> tuple[Array, Array]:
    """Least and largest over each sub-plan's relations: [sub-plans, values] each."""
    inside = bits[:, :, None] > 0
    return np.where(inside, values, np.inf).min(axis=1), np.where(inside, values, -np.inf).max(axis=1)


def _conditions(block: QueryBlock, masks: Sequence[int]) -> Array:
    """How many join conditions that are no edges each sub-plan has."""
    joining = [predicate.relations for predicate in block.predicates if predicate.relations.bit_count() > 1]
    return np.array([sum(mask & one == one for one in joining) for mask in masks], dtype=np.float64)


def _shape(bits: Array, adjacency: Array) -> tuple[Array, Array]:
    """The highest degree over the number of other relations (1 for a star), and the share of leaves."""
    degrees = (bits @ adjacency) * bits
    others = np.maximum(bits.sum(axis=1) - 1, 1)
    return degrees.max(axis=1) / others, ((degrees == 1) * bits).sum(axis=1) / (others + 1)


def _children(
    estimates: Estimates, every: Sequence[int], masks: Sequence[int], native: Array, rows: Array
) -> tuple[Array, Array, Array]:
    """Native estimates of the sub-plans with one relation less: the least, the largest, and how far this one is above
    the largest. Nothing is said of those that are not among all connected ones, ``every``."""
    known = {mask: _ln(estimates.rows(mask)) for mask in every}
    known.update((1 << index, value) for index, value in enumerate(rows.tolist()))
    found = np.empty((len(masks), 2))
    for row, mask in enumerate(masks):
        below = []
        left = mask
        while left:
            bit = left & -left
            left ^= bit
            child = known.get(mask ^ bit)
            if child is not None:
                below.append(child)
        found[row] = (min(below), max(below)) if below else native[row]
    return found[:, 0], found[:, 1], native - found[:, 1]


class _Pairs:
    """Everything that belongs to joined pairs of columns, per sub-plan."""

    def __init__(self, estimates: Estimates, used: int, bits: Array) -> None:
        count, width = bits.shape
        self.adjacency = np.zeros((width, width))
        self.class_shift = np.zeros(count)
        self.class_shift_largest = np.zeros(count)
        self.shared_key = np.zeros(count)
        self.edges = np.zeros(count)
        values: list[list[float]] = []
        weights: list[Array] = []
        classes: list[_Class] = []
        found = estimates.equivalences
        for group in found.classes:
            members = _members(estimates, group, used)
            if len(members) < 2:
                continue
            present = bits[:, [member.relation for member in members]]
            size = present.sum(axis=1)
            self.edges += np.maximum(size - 1, 0)
            self.shared_key = np.maximum(self.shared_key, size)
            places = [(one, two) for one in range(len(members)) for two in range(one + 1, len(members))]
            for one, two in places:
                left, right = members[one].relation, members[two].relation
                self.adjacency[left, right] = self.adjacency[right, left] = 1
            if group.constant is not None:
                continue
            # Of k columns that are equal, k - 1 pairs count; taken evenly from all pairs.
            even = 2 / np.maximum(size, 2)
            weights += [present[:, one] * present[:, two] * even for one, two in places]
            joined = _Class(estimates, group, members)
            classes.append(joined)
            values += [joined.pair(one, two) for one, two in places]
            shift = joined.shift(present, size)
            self.class_shift += shift
            larger = np.abs(shift) > np.abs(self.class_shift_largest)
            self.class_shift_largest = np.where(larger, shift, self.class_shift_largest)
        self.unequal = np.zeros(count)
        for edge in found.others:
            left, right = edge.left.relation, edge.right.relation
            if edge.relations & ~used == 0:
                self.adjacency[left, right] = self.adjacency[right, left] = 1
                self.unequal += bits[:, left] * bits[:, right]
        self.edges += self.unequal
        np.fill_diagonal(self.adjacency, 0)
        self._summarise(count, values, weights)
        self.paths = _paths(estimates, classes, bits)

    def _summarise(self, count: int, values: list[list[float]], weights: list[Array]) -> None:
        wanted = len(_PAIR_SUMS)
        if not values:
            self.sums = np.zeros((count, wanted))
            self.maxima = np.zeros((count, len(_PAIR_MAXIMA)))
            self.shifts = np.zeros((count, 6))
            return
        table = np.array(values)
        weight = np.stack(weights, axis=1)
        self.sums = weight @ table[:, :wanted]
        places = [*(_PAIR_SUMS.index(name) for name in ("filter_shift", "pair_shift", "bare_shift"))]
        inside = weight[:, :, None] > 0
        upper = [_PAIR_SUMS.index("skew"), wanted, _PAIR_SUMS.index("distinct_ratio"), _PAIR_SUMS.index("fan_out")]
        self.maxima = np.where(inside, table[:, upper], 0.0).max(axis=1)
        shifts = table[:, places]
        low = np.where(inside, shifts, 0.0).min(axis=1)
        high = np.where(inside, shifts, 0.0).max(axis=1)
        self.shifts = np.stack([low, high], axis=2).reshape(count, -1)


def _members(estimates: Estimates, group: EquivalenceClass, used: int) -> list[Column]:
    """The class's columns of the relations in question, one of each relation."""
    found: dict[int, Column] = {}
    for member in group.members:
        if used >> member.relation & 1 and estimates.tables[member.relation] is not None:
            found.setdefault(member.relation, member)
    return list(found.values())


class _Class:
    """One class of equated columns in this query."""

    def __init__(self, estimates: Estimates, group: EquivalenceClass, members: Sequence[Column]) -> None:
        self.relations = [member.relation for member in members]
        written = {(edge.left, edge.right): edge for edge in group.written}
        tables = [estimates.tables[member.relation] for member in members]
        named = [(table, member.name) for table, member in zip(tables, members, strict=True) if table is not None]
        self.keys: KeyClass = key_class(estimates.snapshot, named)
        self.meeting = meet(self.keys, [_passing(estimates, member.relation) for member in members])
        self.rows = [_ln(max(estimates.table_rows(member.relation), 1.0)) for member in members]
        self.filtered = [_ln(max(estimates.filtered_rows(member.relation), 1.0)) for member in members]
        count = len(members)
        self.selectivity = np.zeros((count, count))
        for one in range(count):
            for two in range(one + 1, count):
                left, right = members[one], members[two]
                edge = written.get((left, right)) or written.get((right, left)) or JoinEdge(left, right)
                self.selectivity[one, two] = self.selectivity[two, one] = _ln(estimates.edge_selectivity(edge))

    def pair(self, one: int, two: int) -> list[float]:
        """`_PAIR_SUMS` of two of the columns, and their higher top frequency."""
        left, right = self.keys.spreads[one], self.keys.spreads[two]
        native = self.selectivity[one, two]
        bare = self.meeting.bare[one, two]
        # Two filtered samples meet in so many pairs, where the server's formula expects so many.
        supported = left.fraction > 0 and right.fraction > 0
        expected = self.filtered[one] + self.filtered[two] + native + _ln(left.fraction) + _ln(right.fraction)
        seen = float(self.meeting.pairs[one, two])
        fan_out = max(
            self.rows[one] - math.log(left.distinct) if not left.unique else 0.0,
            self.rows[two] - math.log(right.distinct) if not right.unique else 0.0,
        )
        key = left.unique or right.unique
        return [
            left.skew + right.skew,
            abs(math.log(left.distinct / right.distinct)),
            -math.log(max((1 - left.null_frac) * (1 - right.null_frac), 1e-6)),
            abs(left.correlation) + abs(right.correlation),
            float(key),
            float(not key),
            max(fan_out, 0.0),
            _cut(bare - native) if bare else 0.0,
            _cut(self.meeting.shift[one, two] + self.meeting.shift[two, one]),
            _cut(math.log(seen + MATCH_PRIOR) - math.log(math.exp(min(expected, 40.0)) + MATCH_PRIOR))
            if supported
            else 0.0,
            math.log1p(seen),
            max(left.top, right.top),
        ]

    def shift(self, present: Array, size: Array) -> Array:
        """ln of the join's rows by common keys over the native ones, [sub-plans]: the frequencies of each common key in
        all columns multiplied, added up, and all other keys taken as spread evenly."""
        meeting = self.meeting
        common = np.exp(present @ np.log(np.maximum(meeting.shares, 1e-12))).sum(axis=1)
        fewest = np.where(present > 0, meeting.others, np.inf).min(axis=1)
        rest = np.exp(present @ np.log(meeting.rest / meeting.others)) * np.minimum(fewest, 1e15)
        pairs = (present @ self.selectivity * present).sum(axis=1) / 2
        native = pairs * 2 / np.maximum(size, 2)
        ratio = np.log(np.maximum(common + rest, 1e-30)) - native
        return np.where(size > 1, np.clip(ratio, -_FAR, _FAR), 0.0)


JOINED: Final = ("skew", "fan_out", "bare_shift", "filter_shift", "pair_shift")
"""Of `_PAIR_SUMS`, what `joined` tells of a pair of columns."""


def joined(estimates: Estimates, group: EquivalenceClass, used: int) -> dict[tuple[Column, Column], list[float]]:
    """`JOINED` of each pair of a class's columns, one column of each of the relations ``used``: what statistics and
    samples say of that join beyond the native estimate."""
    members = _members(estimates, group, used)
    if len(members) < 2 or group.constant is not None:
        return {}
    found = _Class(estimates, group, members)
    places = [_PAIR_SUMS.index(name) for name in JOINED]
    return {
        (members[one], members[two]): [found.pair(one, two)[place] for place in places]
        for one in range(len(members))
        for two in range(one + 1, len(members))
    }


def _paths(estimates: Estimates, classes: Sequence[_Class], bits: Array) -> Array:
    """Sum, least and largest over all paths of two joins on different keys, [sub-plans, 3]."""
    shifts: list[Array] = []
    present: list[Array] = []
    sides: dict[tuple[int, int], Array] = {}  # a relation with many keys is on many paths

    def side(place: int, relation: int) -> Array:
        found = sides.get((place, relation))
        if found is None:
            joined = classes[place]
            at = joined.relations.index(relation)
            found = weighed(joined.keys, joined.meeting, at, _passing(estimates, relation))
            sides[place, relation] = found
        return found

    for place, left in enumerate(classes):
        for beyond, right in enumerate(classes[place + 1 :], place + 1):
            for relation in set(left.relations) & set(right.relations):
                one, other = left.relations.index(relation), right.relations.index(relation)
                found = along(side(place, relation), side(beyond, relation))
                ends = np.ones(found.shape, dtype=bool)
                ends[one, :] = ends[:, other] = False
                first, second = np.nonzero(ends)
                shifts.append(found[first, second])
                ends_in = bits[:, np.array(left.relations)[first]] * bits[:, np.array(right.relations)[second]]
                present.append(ends_in * bits[:, [relation]])
    if not shifts:
        return np.zeros((len(bits), 3))
    weight, values = np.hstack(present), np.concatenate(shifts)
    inside = np.where(weight > 0, values, 0.0)
    return np.stack([inside.sum(axis=1), inside.min(axis=1), inside.max(axis=1)], axis=1)


def _cut(value: float) -> float:
    return min(max(value, -_FAR), _FAR)


def _passing(estimates: Estimates, relation: int) -> Array | None:
    """Which sampled rows pass, None for all and for what cannot be judged."""
    if not estimates.block.filters(relation) and not estimates.equivalences.filters(relation):
        return None
    return estimates.sample_matches(relation)
