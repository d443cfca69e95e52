"""How the keys of joined columns are spread over their rows: what a product of selectivities does not know.

The server multiplies: rows of each side, filter selectivities, one over the number of distinct keys. That fails where
keys are skewed (two columns with the same frequent keys meet far more often), where three columns share their frequent
keys, and where a filter chooses rows whose keys are frequent on the other side. All three show in the common values of
pg_stats and in the samples: for a class of columns that are equated, the keys that at least two of them know are
numbered, each column has the frequency of each number, and each sampled row the number of its key.

That much is computed once per snapshot and class (0.3 ms for each column) and kept in `Snapshot.derived`; per query
remain counts of the sampled rows that pass the filters, 10 us per column, and products of small matrices.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

import numpy as np

from planner.snapshot import Snapshot, TableInfo

Array = np.ndarray[Any, Any]
Member = tuple[TableInfo, str]
"""A table and the name of a column of it."""
COMMON: Final = 64
"""The most frequent keys of a class that joins of three and more columns are summed over one by one."""
DEFAULT_DISTINCT: Final = 200.0
KEPT_CLASSES: Final = 1000
WHOLE: Final = 0.999
"""From this share of the table on a sample is the table."""
PRIOR: Final = 10.0
"""Filtered samples count as if so many unfiltered rows were among them."""
MATCH_PRIOR: Final = 4.0
"""Pairs of matching rows that are added to what two samples show and to what was expected."""


@dataclass(frozen=True, slots=True, eq=False)
class Spread:
    """One column's keys. Frequencies are shares of all rows, NULLs among them."""

    common: dict[Hashable, float]
    counts: Counter[Hashable]
    values: tuple[object, ...]
    size: int  # sampled rows
    fraction: float  # share of the table that they are
    distinct: float
    rest: float  # frequency of a key that is not common
    null_frac: float
    unique: bool
    correlation: float
    top: float  # the highest frequency
    skew: float  # ln of how much likelier two rows share their key than if all keys were equally frequent; 0 or more

    def frequencies(self, keys: Collection[Hashable]) -> Array:
        """Of keys that this column or another one of its class knows, [keys]."""
        if self.size and self.fraction >= WHOLE:
            return np.fromiter(map(self.counts.get, keys, repeat(0)), np.float64, len(keys)) / self.size
        if self.unique or not self.size:
            found = np.full(len(keys), self.rest)
        else:
            # A few rows of a large table know the sum over many keys well and a single key badly.
            seen = np.fromiter(map(self.counts.get, keys, repeat(0)), np.float64, len(keys)) / self.size
            found = (seen + self.rest) / 2
        for place, share in enumerate(map(self.common.get, keys)):
            if share is not None:
                found[place] = share
        return found

    @property
    def unseen(self) -> float:
        """The frequency of a key that nobody knows."""
        if self.size and self.fraction >= WHOLE:
            return 0.0
        return self.rest if self.unique or not self.size else self.rest / 2


def spread(snapshot: Snapshot, table: TableInfo, column: str) -> Spread:
    """Made once per snapshot and column."""
    place = ("spread", table.oid, column)
    found = snapshot.derived.get(place)
    if not isinstance(found, Spread):
        found = _spread(table, column)
        snapshot.derived[place] = found
    return found


def is_unique(table: TableInfo, column: str) -> bool:
    return any(index.unique and not index.partial and index.columns == (column,) for index in table.indexes)


def _spread(table: TableInfo, column: str) -> Spread:
    info = table.columns.get(column)
    statistics = info.statistics if info is not None else None
    rows = max(table.rows, 1.0)
    unique = is_unique(table, column)
    common: dict[Hashable, float] = {}
    distinct, null_frac = 0.0, 0.0
    if statistics is not None:
        distinct = statistics.n_distinct if statistics.n_distinct > 0 else -statistics.n_distinct * rows
        null_frac = statistics.null_frac
        for value, share in zip(statistics.common_values, statistics.common_freqs, strict=False):
            if isinstance(value, Hashable):
                common[value] = share
    distinct = rows if unique else min(max(distinct or DEFAULT_DISTINCT, 1.0), rows)
    values = table.sample.columns.get(column, ()) if table.sample is not None else ()
    try:
        counts = Counter[Any](values)
    except TypeError:  # of a type whose values are lists
        values, counts = (), Counter()
    del counts[None]
    left = max(1.0 - null_frac - sum(common.values()), 0.0)
    rest = 1.0 / rows if unique else left / max(distinct - len(common), 1.0)
    unique = unique or distinct >= 0.999 * rows
    return Spread(
        common=common,
        counts=counts,
        values=tuple(values),
        size=len(values),
        fraction=table.sample.fraction if table.sample is not None else 0.0,
        distinct=distinct,
        rest=rest,
        null_frac=null_frac,
        unique=unique,
        correlation=statistics.correlation if statistics is not None else 0.0,
        top=max(common.values(), default=0.0),
        skew=0.0 if unique else _skew(common, distinct, rest, null_frac),
    )


def _skew(common: dict[Hashable, float], distinct: float, rest: float, null_frac: float) -> float:
    others = max(distinct - len(common), 0.0)
    same = sum(share * share for share in common.values()) + others * rest * rest
    present = max(1.0 - null_frac, 1e-6)
    return math.log(max(same * distinct / (present * present), 1.0))


@dataclass(frozen=True, slots=True, eq=False)
class KeyClass:
    """The columns of one class. ``codes[i]`` numbers the key of each sampled row of column i: from 0 the known keys,
    then one number for all others, then one for NULL. ``frequencies`` is [columns, numbers]. ``common`` are the numbers
    of the most frequent keys."""

    spreads: tuple[Spread, ...]
    codes: tuple[Array, ...]
    frequencies: Array
    common: Array
    totals: Array  # [columns, numbers]: sampled rows by number
    meeting: Array  # [i, j]: mean frequency in j of the keys of i's rows, over i's sample

    def counted(self, passing: Sequence[Array | None]) -> Array:
        """[columns, numbers]: how many sampled rows pass their relation's filters; None: there are none."""
        width = self.frequencies.shape[1]
        return np.stack(
            [
                self.totals[index]
                if passed is None
                else np.bincount(_passed(self.codes[index], passed), minlength=width)
                for index, passed in enumerate(passing)
            ]
        ).astype(np.float64)


def _passed(codes: Array, passed: Array | None) -> Array:
    """A column that the sample has no values of has no codes either, whatever passes."""
    return codes if passed is None or len(passed) != len(codes) else codes[passed]


def key_class(snapshot: Snapshot, members: Sequence[Member]) -> KeyClass:
    """Made once per snapshot and members, in their order."""
    place = tuple((table.oid, column) for table, column in members)
    kept = snapshot.derived.get("key classes")
    if not isinstance(kept, dict):
        kept = {}
        snapshot.derived["key classes"] = kept
    found = kept.get(place)
    if not isinstance(found, KeyClass):
        if len(kept) >= KEPT_CLASSES:
            kept.clear()
        found = kept[place] = _key_class([spread(snapshot, table, column) for table, column in members])
    return found


def _key_class(spreads: Sequence[Spread]) -> KeyClass:
    known = Counter[Hashable]()
    for one in spreads:
        known.update(one.counts.keys() | one.common.keys())
    shared = [key for key, times in known.items() if times > 1]
    other, null = len(shared), len(shared) + 1
    numbers: dict[Any, int] = {key: number for number, key in enumerate(shared)}
    frequencies = np.zeros((len(spreads), other + 2))
    for index, one in enumerate(spreads):
        frequencies[index, :other] = one.frequencies(shared)
        frequencies[index, other] = one.unseen
    numbers[None] = null
    codes = [np.fromiter(map(numbers.get, one.values, repeat(other)), np.int64, one.size) for one in spreads]
    totals = np.stack([np.bincount(row, minlength=other + 2) for row in codes]).astype(np.float64)
    sizes = np.maximum(totals.sum(axis=1, keepdims=True), 1.0)
    frequent = sorted({numbers[key] for one in spreads for key in one.common if key in numbers})
    highest = frequencies[:, frequent].max(axis=0) if frequent else np.zeros(0)
    order = np.argsort(-highest, kind="stable")[:COMMON]
    return KeyClass(
        spreads=tuple(spreads),
        codes=tuple(codes),
        frequencies=frequencies,
        common=np.array(frequent, dtype=np.int64)[order],
        totals=totals,
        meeting=(totals @ frequencies.T) / sizes,
    )


@dataclass(frozen=True, slots=True, eq=False)
class Meeting:
    """What one query's filters make of a class; natural logarithms, [columns, columns] unless said otherwise."""

    bare: Array  # selectivity of the join without filters, by common values and samples; 0 where nothing is known
    shift: Array  # [i, j]: how much more frequent in j the keys of i's rows are for i's filters
    pairs: Array  # matching rows of the two filtered samples (a count)
    weights: Array  # [columns, numbers]: frequency of each key given the filters
    shares: Array  # [columns, common keys]: frequency of each given the filters
    rest: Array  # [columns]: share of all other keys together, given the filters
    others: Array  # [columns]: how many other keys there are


def meet(keys: KeyClass, passing: Sequence[Array | None]) -> Meeting:
    """``passing``: per column which rows of its sample pass the filters of its relation, None for all."""
    counted = keys.counted(passing)
    sizes = counted.sum(axis=1, keepdims=True)
    known = keys.meeting > 0
    safe = np.where(known, keys.meeting, 1.0)
    shift = np.log((counted @ keys.frequencies.T + PRIOR * safe) / ((sizes + PRIOR) * safe))
    both = known & known.T
    bare = np.where(both, (np.log(safe) + np.log(safe.T)) / 2, 0.0)
    real = counted[:, :-2]
    weights = (counted + PRIOR * keys.frequencies) / (sizes + PRIOR)
    # The rows of unknown keys have one number and many keys.
    weights[:, -2:] = keys.frequencies[:, -2:]
    shares = weights[:, keys.common]
    nulls = np.array([one.null_frac for one in keys.spreads])
    return Meeting(
        bare=bare,
        shift=np.where(known, shift, 0.0),
        pairs=real @ real.T,
        weights=weights,
        shares=shares,
        rest=np.maximum(1.0 - nulls - shares.sum(axis=1), 1e-9),
        others=np.array([max(one.distinct - len(keys.common), 1.0) for one in keys.spreads]),
    )


def weighed(keys: KeyClass, meeting: Meeting, place: int, passed: Array | None) -> Array:
    """[columns, rows]: what one relation's filtered rows meet in each column of the class, by their keys in column
    ``place``."""
    return np.take(meeting.weights, _passed(keys.codes[place], passed), axis=1)


def along(first: Array, second: Array) -> Array:
    """Of one relation with a column in each of two classes, `weighed` in both: [columns of the first, columns of the
    second], ln of how much more often its filtered rows meet both others than if the one told nothing of the other. 0
    where nothing is known."""
    count = first.shape[1]
    if not count or count != second.shape[1]:
        return np.zeros((len(first), len(second)))
    apart = np.outer(first.sum(axis=1), second.sum(axis=1)) / (count * count)
    together = (first @ second.T) / count
    known = apart > 0
    safe = np.where(known, apart, 1.0)
    share = count / (count + MATCH_PRIOR)
    return np.where(known, np.log(share * together / safe + 1 - share), 0.0)
