"""Selectivities of conditions on one column, by the formulas of PostgreSQL's selfuncs.c and like_support.c.

`ColumnModel` is a column's statistics in a form to compute with: common values by key, the histogram as keys; made once
per snapshot and column. Each method names the server's function that it follows, so that the estimate of a query
is the server's own and what a model learns is the server's error.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, cast

from planner.patterns import Pattern
from planner.selectivity_values import Family, Key, family, following, key, scalars
from planner.snapshot import ColumnInfo, Snapshot, TableInfo

DEFAULT_EQUAL: Final = 0.005
DEFAULT_INEQUALITY: Final = 0.3333333333333333
DEFAULT_RANGE: Final = 0.005
DEFAULT_MATCH: Final = 0.005
DEFAULT_UNKNOWN: Final = 0.005
DEFAULT_DISTINCT: Final = 200.0
_LEAST_MATCH: Final = 0.0001


def clamp(probability: float) -> float:
    """CLAMP_PROBABILITY."""
    return 0.0 if probability < 0.0 else 1.0 if probability > 1.0 else probability


def clamp_rows(rows: float) -> float:
    """clamp_row_est (costsize.c): a whole number from 1 to 1e100."""
    if not rows > 1.0:  # NaN too
        return 1.0
    return float(round(rows)) if rows < 1e15 else min(rows, 1e100)


class ColumnModel:
    """What the server can say of one column. ``distinct`` is get_variable_numdistinct, ``guessed`` tells that it is the
    default. ``analyzed`` is False without statistics; the methods then give the server's defaults."""

    __slots__ = (
        "analyzed", "common", "common_sum", "distinct", "family", "frequencies", "greatest", "guessed", "histogram",
        "least", "null_frac", "ordered", "rows", "unique",
    )  # fmt: skip

    def __init__(self, column: ColumnInfo | None, rows: float, *, unique: bool = False) -> None:
        self.family = family(column.type) if column is not None else Family.OTHER
        self.rows = rows
        self.unique = unique
        statistics = column.statistics if column is not None else None
        self.analyzed = statistics is not None
        self.null_frac = 0.0
        self.common: dict[Key, float] = {}
        self.frequencies: tuple[float, ...] = ()
        self.histogram: tuple[Key, ...] = ()
        self.least: Key | None = None
        self.greatest: Key | None = None
        distinct = 2.0 if self.family is Family.BOOLEAN else 0.0
        if statistics is not None and column is not None:
            self.null_frac = statistics.null_frac
            distinct = statistics.n_distinct
            keys = [key(value, self.family) for value in statistics.common_values]
            self.frequencies = statistics.common_freqs
            self.common = {
                value: share for value, share in zip(keys, self.frequencies, strict=False) if value is not None
            }
            bounds = [key(value, self.family) for value in statistics.histogram]
            if None not in bounds:
                self.histogram = cast(tuple[Key, ...], tuple(bounds))
            self.least, self.greatest = key(column.least, self.family), key(column.greatest, self.family)
        self.common_sum = sum(self.frequencies)
        # Sorted otherwise than by code points (another collation, an enum): no binary search.
        self.ordered = self.family is not Family.OTHER and _is_sorted(self.histogram)
        self.distinct, self.guessed = self._distinct(-(1.0 - self.null_frac) if unique else distinct)

    def _distinct(self, distinct: float) -> tuple[float, bool]:
        """get_variable_numdistinct."""
        if distinct > 0.0:
            return clamp_rows(distinct), False
        if self.rows <= 0.0:
            return DEFAULT_DISTINCT, True
        if distinct < 0.0:
            return clamp_rows(-distinct * self.rows), False
        if self.rows < DEFAULT_DISTINCT:
            return clamp_rows(self.rows), False
        return DEFAULT_DISTINCT, True

    # ------------------------------------------------------------------ equality

    def equal(self, value: Key, *, negated: bool = False) -> float:
        """var_eq_const: ``column = value``, or ``<>``."""
        if self.unique and self.rows >= 1.0:
            share = 1.0 / self.rows
        elif not self.analyzed:
            share = 1.0 / self.distinct
        else:
            known = self.common.get(value)
            share = self._uncommon() if known is None else known
        return clamp(1.0 - share - self.null_frac if negated else share)

    def _uncommon(self) -> float:
        share = clamp(1.0 - self.common_sum - self.null_frac)
        others = self.distinct - len(self.frequencies)
        if others > 1:
            share /= others
        return min(share, self.frequencies[-1]) if self.frequencies else share

    def equal_unknown(self, *, negated: bool = False) -> float:
        """var_eq_non_const: ``column = something`` that is not known while planning."""
        if self.unique and self.rows >= 1.0:
            share = 1.0 / self.rows
        elif not self.analyzed:
            share = 1.0 / self.distinct
        else:
            share = (1.0 - self.null_frac) / max(self.distinct, 1.0)
            if self.frequencies:
                share = min(share, self.frequencies[0])
        return clamp(1.0 - share - self.null_frac if negated else share)

    # ------------------------------------------------------------------ inequality

    def compare(self, operator: str, value: Key) -> float:
        """scalarineqsel: ``column operator value`` for ``< <= > >=``."""
        if not self.analyzed or self.family is Family.OTHER:
            return DEFAULT_INEQUALITY
        matching = _COMPARE[operator]
        try:
            common = sum(share for known, share in self.common.items() if matching(known, value))
            part = self._histogram(operator, value)
        except TypeError:
            return DEFAULT_INEQUALITY
        rest = 1.0 - self.null_frac - self.common_sum
        return clamp(rest * (0.5 if part is None else part) + common)

    def _histogram(self, operator: str, value: Key) -> float | None:
        """ineq_histogram_selectivity; None without a histogram."""
        bounds = self.histogram
        count = len(bounds)
        if count < 2:
            return None
        if not self.ordered:
            return self._unordered(operator, value)
        greater, strict_below = operator[0] == ">", operator in {"<", ">="}
        place, low, high, current = self._bin(value, strict_below)
        if place <= 0:
            fraction = 0.0
        elif place >= count:
            fraction = 1.0
        else:
            equal = 0.0
            if place == 1 or strict_below:
                others = self.distinct - len(self.frequencies)
                equal = 1.0 / others if others > 1 else 0.0
            inside = _within(value, low, high)
            fraction = (place - 1 + inside) / (count - 1)
            if place == 1:
                fraction += equal * (1.0 - inside)
            if strict_below:
                fraction -= equal
        share = 1.0 - fraction if greater else fraction
        if current:
            return clamp(share)
        cutoff = 0.01 / (count - 1)
        return min(max(share, cutoff), 1.0 - cutoff)

    def _bin(self, value: Key, strict_below: bool) -> tuple[int, Key, Key, bool]:
        """Where the value falls: the histogram entry that ends its bin, both ends of the bin, and whether an end was
        replaced by the column's present least or greatest value, as the server does by a look at an index."""
        bounds = self.histogram
        last = len(bounds) - 1
        search: Callable[..., int] = bisect_left if strict_below else bisect_right
        place = search(bounds, value, 1, last) if last > 1 else 1
        low, high, current = bounds[place - 1], bounds[place], False
        below = _COMPARE["<" if strict_below else "<="]
        if place == 1:
            if self.least is not None:
                low, current = self.least, True
            if not below(low, value):
                return 0, low, high, current
        if place == last:
            if self.greatest is not None:
                high, current = self.greatest, True
            if below(high, value):
                return last + 1, low, high, current
        return place, low, high, current

    def _unordered(self, operator: str, value: Key) -> float:
        matching = _COMPARE[operator]
        bounds = self.histogram
        share = sum(1 for bound in bounds if matching(bound, value)) / len(bounds)
        cutoff = 0.01 / (len(bounds) - 1)
        return min(max(share, cutoff), 1.0 - cutoff)

    # ------------------------------------------------------------------ patterns

    def like(self, pattern: Pattern, *, negated: bool = False) -> float:
        """patternsel_common: ``column LIKE pattern``."""
        if pattern.exact:
            share = self.equal(pattern.prefix)
        else:
            bounds = self.histogram if self.analyzed else ()
            share = -1.0
            if len(bounds) >= 10:  # histogram_selectivity, without the outermost entries
                share = sum(1 for bound in bounds[1:-1] if pattern.matches(str(bound))) / (len(bounds) - 2)
            if len(bounds) < 100:
                guess = (self._prefix(pattern.prefix) if pattern.prefix else 1.0) * pattern.rest
                weight = len(bounds) / 100.0
                share = guess if share < 0 else share * weight + guess * (1.0 - weight)
            share = min(max(share, _LEAST_MATCH), 1.0 - _LEAST_MATCH)
            common = sum(part for known, part in self.common.items() if pattern.matches(str(known)))
            share = share * (1.0 - self.null_frac - self.common_sum) + common
        return clamp(1.0 - share - self.null_frac if negated else share)

    def _prefix(self, prefix: str) -> float:
        """prefix_selectivity."""
        share = self._histogram(">=", prefix) if self.analyzed else None
        if share is None:
            return DEFAULT_MATCH
        above = following(prefix)
        if above is not None:
            share = (self._histogram("<", above) or 0.0) + share - 1.0
        return max(share, self.equal(prefix))

    # ------------------------------------------------------------------ NULL and boolean

    def null(self, *, negated: bool = False) -> float:
        """nulltestsel."""
        if not self.analyzed:
            return 1.0 - DEFAULT_UNKNOWN if negated else DEFAULT_UNKNOWN
        return 1.0 - self.null_frac if negated else self.null_frac

    def true(self) -> float:
        """boolvarsel."""
        return self.equal(True) if self.analyzed else 0.5


def expression_model(rows: float) -> ColumnModel:
    """For an expression over a table of that many rows, which has no statistics of its own."""
    return ColumnModel(None, rows)


def column_model(snapshot: Snapshot, table: TableInfo, name: str) -> ColumnModel:
    """The model of a table's column, made once per snapshot. Unknown columns have one without statistics."""
    place = ("column", table.schema, table.name, name)
    found = snapshot.derived.get(place)
    if not isinstance(found, ColumnModel):
        column = table.columns.get(name)
        unique = any(index.unique and not index.partial and index.columns == (name,) for index in table.indexes)
        found = ColumnModel(column, table.rows, unique=unique)
        if column is not None:
            found = snapshot.derived.setdefault(place, found)
    assert isinstance(found, ColumnModel)
    return found


def join_equal(left: ColumnModel, right: ColumnModel) -> float:
    """eqjoinsel_inner: ``left = right`` between two relations. About 15 us with common values on both sides."""
    if not (left.common and right.common):
        present = (1.0 - left.null_frac) * (1.0 - right.null_frac)
        return clamp(present / max(left.distinct, right.distinct))
    matched = [(share, right.common[value]) for value, share in left.common.items() if value in right.common]
    product = clamp(sum(one * other for one, other in matched))
    one_matched, two_matched = clamp(sum(one for one, _ in matched)), clamp(sum(two for _, two in matched))
    one_alone, two_alone = clamp(left.common_sum - one_matched), clamp(right.common_sum - two_matched)
    one_other = clamp(1.0 - left.null_frac - one_matched - one_alone)
    two_other = clamp(1.0 - right.null_frac - two_matched - two_alone)

    def total(alone: float, other: float, facing: ColumnModel, facing_alone: float, facing_other: float) -> float:
        result = product
        if facing.distinct > len(facing.frequencies):
            result += alone * facing_other / (facing.distinct - len(facing.frequencies))
        if facing.distinct > len(matched):
            result += other * (facing_other + facing_alone) / (facing.distinct - len(matched))
        return result

    from_left = total(one_alone, one_other, right, two_alone, two_other)
    from_right = total(two_alone, two_other, left, one_alone, one_other)
    return clamp(min(from_left, from_right))


_COMPARE: Final[dict[str, Callable[[Key, Key], bool]]] = {
    "<": lambda left, right: left < right,  # type: ignore[operator]
    "<=": lambda left, right: left <= right,  # type: ignore[operator]
    ">": lambda left, right: left > right,  # type: ignore[operator]
    ">=": lambda left, right: left >= right,  # type: ignore[operator]
}


def _is_sorted(bounds: Sequence[Key]) -> bool:
    try:
        return all(one <= two for one, two in pairwise(bounds))  # type: ignore[operator]
    except TypeError:
        return False


def _within(value: Key, low: Key, high: Key) -> float:
    """How far into a bin a value lies, from 0 to 1."""
    placed = scalars(value, low, high)
    if placed is None:
        return 0.5
    at, start, end = placed
    if end <= start:
        return 0.5
    if at <= start:
        return 0.0
    if at >= end:
        return 1.0
    inside = (at - start) / (end - start)
    return inside if 0.0 <= inside <= 1.0 else 0.5
