"""Selectivities of whole conditions on one table, as PostgreSQL's clausesel.c and dependencies.c combine them.

`TableFilters` judges the conditions on one relation of a query. It gives what the server would say, its default guesses
included, and with it how that came about.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Final

import numpy as np

from planner import vectors
from planner.graph import (
    And,
    Call,
    Cast,
    Column,
    Compare,
    Condition,
    Const,
    Expression,
    InList,
    Like,
    Not,
    NullTest,
    Or,
    Param,
    Parameters,
    Truth,
    Unknown,
)
from planner.patterns import Pattern
from planner.sampling import expanded, fold, matching_rows
from planner.selectivity import (
    DEFAULT_EQUAL,
    DEFAULT_INEQUALITY,
    DEFAULT_MATCH,
    DEFAULT_RANGE,
    ColumnModel,
    clamp,
    column_model,
    expression_model,
)
from planner.selectivity_values import Family, Key, family, key, type_name
from planner.snapshot import CommonCombinations, Sample, Snapshot, TableInfo


class Judgement(enum.IntEnum):
    """How a relation's filters were judged; a larger one is trusted less."""

    STATISTICS = 0  # from the column statistics, as the server does
    SAMPLE = 1  # the server guesses; the sample tells better
    DEFAULT = 2  # by a default guess that the server makes too
    UNKNOWN = 3  # what the server says is not known


Judged = tuple[float, Judgement]

_NEGATED: Final[Mapping[str, str]] = {"=": "<>", "<>": "=", "<": ">=", "<=": ">", ">": "<=", ">=": "<"}
_COMMUTED: Final[Mapping[str, str]] = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_UNKNOWN_ITEMS: Final = 10
"""How many elements an array has whose value is not known (scalararraysel)."""
_OPERATOR_DEFAULTS: Final[Mapping[str, float]] = {
    "~": DEFAULT_MATCH,
    "~*": DEFAULT_MATCH,
    "!~": 1.0 - DEFAULT_MATCH,
    "!~*": 1.0 - DEFAULT_MATCH,
}
_MISMATCH: Final = "mismatch"
_Value = tuple[str, Key | None]
"""``known`` with the key, ``null``, ``open`` (not known while planning), or ``mismatch``: the column is converted."""


def conjuncts(condition: Condition) -> list[Condition]:
    """The condition as an implicit AND, what all arms of an OR share pulled out (canonicalize_qual, prepqual.c)."""
    if isinstance(condition, And):
        return [part for child in condition.children for part in conjuncts(child)]
    if isinstance(condition, Not):
        pushed = _negated(condition.child)
        return [pushed] if isinstance(pushed, Not) else conjuncts(pushed)
    if not isinstance(condition, Or):
        return [condition]
    arms = [conjuncts(child) for child in condition.children]
    shared = [part for part in arms[0] if all(part in arm for arm in arms[1:])] if arms else []
    if not shared:
        return [condition]
    rests = [tuple(part for part in arm if part not in shared) for arm in arms]
    if not all(rests):  # one arm is no more than what all share
        return shared
    return [*shared, Or(tuple(rest[0] if len(rest) == 1 else And(rest) for rest in rests))]


def _negated(condition: Condition) -> Condition:
    """NOT pushed down (negate_clause, prepqual.c)."""
    match condition:
        case Compare(operator, left, right) if operator in _NEGATED:
            return Compare(_NEGATED[operator], left, right)
        case InList(operand, values, negated):
            return InList(operand, values, not negated)
        case Like(operand, pattern, negated, ignore_case):
            return Like(operand, pattern, not negated, ignore_case)
        case NullTest(operand, negated):
            return NullTest(operand, not negated)
        case And(children):
            return Or(tuple(_negated(child) for child in children))
        case Or(children):
            return And(tuple(_negated(child) for child in children))
        case Not(child):
            return child
    return Not(condition)


def plain_column(expression: Expression, table: TableInfo) -> str | None:
    """The column that an expression is, through a cast that changes nothing but the type's name."""
    if isinstance(expression, Column):
        return expression.name
    if isinstance(expression, Cast) and isinstance(expression.operand, Column):
        column = table.columns.get(expression.operand.name)
        if column is not None and relabels(column.type, type_name(expression.type)):
            return column.name
    return None


def relabels(source: str, target: str) -> bool:
    """Whether a cast between the types keeps the value's bytes, so that statistics hold for its result."""
    return source == target or (source == "character varying" and target == "text")


class TableFilters:
    """Judges conditions on one relation. Cheap to make; a comparison costs about 5 us, an IN list 1 us an item."""

    __slots__ = ("_expression", "_parameters", "_snapshot", "_table")

    def __init__(self, snapshot: Snapshot, table: TableInfo, parameters: Parameters) -> None:
        self._snapshot = snapshot
        self._table = table
        self._parameters = parameters
        self._expression = expression_model(table.rows)

    def all_of(self, conditions: Sequence[Condition]) -> Judged:
        """clauselist_selectivity: the product, range pairs of one expression put together, functional dependencies
        between columns taken into account."""
        judged = [(condition, *self.one(condition)) for condition in conditions]
        worst = max((judgement for _, _, judgement in judged), default=Judgement.STATISTICS)
        if len(judged) == 1:
            return judged[0][1], worst
        share, used = 1.0, set[int]()
        if self._table.extended:
            share, used = self._combined(judged)
            dependent, dependent_used = self._dependent(judged, used)
            share, used = share * dependent, used | dependent_used
        ranges: dict[Expression, list[float | None]] = {}
        for place, (condition, selectivity, _) in enumerate(judged):
            if place in used:
                continue
            bound = self._bound(condition)
            if bound is None:
                share *= selectivity
                continue
            expression, upper = bound
            pair = ranges.setdefault(expression, [None, None])
            before = pair[upper]
            pair[upper] = selectivity if before is None else min(before, selectivity)
        for expression, (lower, upper_share) in ranges.items():
            share *= self._range(expression, lower, upper_share)
        return clamp(share), worst

    def _range(self, expression: Expression, lower: float | None, upper: float | None) -> float:
        if lower is None or upper is None:
            return (lower if upper is None else upper) or 0.0
        if DEFAULT_INEQUALITY in {lower, upper}:
            return DEFAULT_RANGE
        share = lower + upper - 1.0 + self._model(expression).null()
        if share > 0.0:
            return share
        return DEFAULT_RANGE if share < -0.01 else 1.0e-10

    def _bound(self, condition: Condition) -> tuple[Expression, bool] | None:
        """What an inequality bounds, and whether from above."""
        if not isinstance(condition, Compare) or condition.operator in {"=", "<>"}:
            return None
        if _constant_like(condition.right):
            return condition.left, condition.operator[0] == "<"
        if _constant_like(condition.left):
            return condition.right, condition.operator[0] == ">"
        return None

    def any_of(self, conditions: Sequence[Condition]) -> Judged:
        """clauselist_selectivity_or."""
        share, worst = 0.0, Judgement.STATISTICS
        for condition in conditions:
            selectivity, judgement = self.one(condition)
            share = share + selectivity - share * selectivity
            worst = max(worst, judgement)
        return clamp(share), worst

    def one(self, condition: Condition) -> Judged:
        """clause_selectivity."""
        match condition:
            case Compare(operator, left, right):
                return self._compare(operator, left, right)
            case And(children):
                return self.all_of(children)
            case Or(children):
                return self.any_of(children)
            case Not(child):
                share, judgement = self.one(child)
                return 1.0 - share, judgement
            case InList():
                return self._in_list(condition)
            case Like():
                return self._like(condition)
            case NullTest(operand, negated):
                name = plain_column(operand, self._table)
                share = self._model(operand).null(negated=negated)
                return share, Judgement.STATISTICS if name is not None else Judgement.DEFAULT
            case Truth(operand):
                return self._truth(operand)
        return 0.5, Judgement.UNKNOWN

    # ------------------------------------------------------------------ the operands

    def _model(self, expression: Expression) -> ColumnModel:
        name = plain_column(expression, self._table)
        return self._expression if name is None else column_model(self._snapshot, self._table, name)

    def value(self, name: str, expression: Expression) -> _Value:
        """What a column is compared with, as a key of the column's family."""
        info = self._table.columns.get(name)
        kind = family(info.type) if info is not None else Family.OTHER
        literal: Expression | None = expression
        if isinstance(expression, Param):
            literal = self._parameters.get(expression.number)
        if isinstance(literal, Const) and not _is_cast(literal):
            if literal.value is None:
                return "null", None
            if _converts_column(kind, literal):
                return _MISMATCH, None
            found = key(literal.value, kind)
            if isinstance(found, str) and info is not None and info.type == "character":
                found = found.rstrip(" ")
            return ("open" if found is None else "known"), found
        folded = fold(expression, self._parameters)
        if folded is None:
            return "open", None
        typed = vectors.typed(folded, info.type if info is not None else "text")
        if typed is None or typed.span is not None or not typed.constant:
            return "open", None
        if typed.null[0]:
            return "null", None
        if typed.family is not kind and not {typed.family, kind} <= _NUMBERS:
            return "open", None
        if kind is Family.INTEGER and typed.family is not Family.INTEGER:
            return _MISMATCH, None
        return "known", typed.words[0] if kind is Family.TEXT else typed.data[0].item()

    # ------------------------------------------------------------------ single conditions

    def _compare(self, operator: str, left: Expression, right: Expression) -> Judged:
        name = plain_column(left, self._table)
        if name is None and plain_column(right, self._table) is not None:
            left, right, operator = right, left, _COMMUTED.get(operator, operator)
            name = plain_column(left, self._table)
        negated = operator == "<>"
        if name is None or _reads_columns(right):
            return self._compare_expression(operator, left, right)
        model = column_model(self._snapshot, self._table, name)
        state, found = self.value(name, right)
        if state == "null":
            return 0.0, Judgement.STATISTICS
        if state == _MISMATCH:
            return self._compare_expression(operator, Unknown("cast"), Const(0))
        if found is None:
            if operator in {"=", "<>"}:
                return model.equal_unknown(negated=negated), Judgement.DEFAULT
            return DEFAULT_INEQUALITY, Judgement.DEFAULT
        known = Judgement.STATISTICS if model.analyzed else Judgement.DEFAULT
        if isinstance(found, bool) and operator in {"=", "<>"}:
            # simplify_boolean_equality (clauses.c) makes it the column itself, or NOT the column.
            return (model.true() if found is not negated else 1.0 - model.true()), known
        if operator in {"=", "<>"}:
            return model.equal(found, negated=negated), known
        share = model.compare(operator, found)
        return share, Judgement.DEFAULT if share == DEFAULT_INEQUALITY else known

    def _compare_expression(self, operator: str, left: Expression, right: Expression) -> Judged:
        """A comparison that reads no plain column: with a constant it has the default number of distinct values."""
        one, two = fold(left, self._parameters), fold(right, self._parameters)
        if one is not None and two is not None:
            verdict = vectors.compare(operator, one, two)
            if verdict is not None and not (_reads_columns(left) or _reads_columns(right)):
                return float(verdict.true[0]), Judgement.STATISTICS
        how = Judgement.UNKNOWN if any("" in index.columns for index in self._table.indexes) else Judgement.DEFAULT
        if operator not in {"=", "<>"}:
            return DEFAULT_INEQUALITY, how
        sided = one is not None or two is not None or isinstance(right, Const | Param)
        share = self._expression.equal_unknown() if sided else DEFAULT_EQUAL
        return 1.0 - share if operator == "<>" else share, how

    def _in_list(self, condition: InList) -> Judged:
        """scalararraysel."""
        operator = "<>" if condition.negated else "="
        items = [item for value in condition.values for item in expanded(value, self._parameters)]
        single = len(condition.values) == 1 and isinstance(condition.values[0], Param)
        if single and items and isinstance(items[0], Param):
            share, judgement = self._compare(operator, condition.operand, Unknown("array element"))
            total = share**_UNKNOWN_ITEMS if condition.negated else 1.0 - (1.0 - share) ** _UNKNOWN_ITEMS
            return clamp(total), judgement
        worst = Judgement.STATISTICS
        separate = 1.0 if condition.negated else 0.0  # as if each item had its luck
        disjoint = separate  # as if no two items were equal
        for item in items:
            share, judgement = self._compare(operator, condition.operand, item)
            worst = max(worst, judgement)
            if condition.negated:
                separate *= share
                disjoint += share - 1.0
            else:
                separate = separate + share - separate * share
                disjoint += share
        return clamp(disjoint if 0.0 <= disjoint <= 1.0 else separate), worst

    def _like(self, condition: Like) -> Judged:
        name = plain_column(condition.operand, self._table)
        text = fold(condition.pattern, self._parameters)
        if text is not None and text.null[0]:
            return 0.0, Judgement.STATISTICS
        default = 1.0 - DEFAULT_MATCH if condition.negated else DEFAULT_MATCH
        if text is None or text.family is not Family.TEXT:
            return default, Judgement.DEFAULT
        model = self._expression if name is None else column_model(self._snapshot, self._table, name)
        pattern = Pattern(text.words[0], ignore_case=condition.ignore_case)
        share = model.like(pattern, negated=condition.negated)
        # Without statistics, or with too few values for its histogram to be a sample, the pattern's own form decides.
        known = model.analyzed and (len(model.histogram) >= 10 or model.common_sum > 0.9 or pattern.exact)
        return share, Judgement.STATISTICS if known else Judgement.DEFAULT

    def _truth(self, operand: Expression) -> Judged:
        name = plain_column(operand, self._table)
        if name is not None:
            model = column_model(self._snapshot, self._table, name)
            return model.true(), Judgement.STATISTICS if model.analyzed else Judgement.DEFAULT
        folded = fold(operand, self._parameters)
        if folded is not None and not _reads_columns(operand):
            value = vectors.typed(folded, "boolean")
            if value is not None and value.family is Family.BOOLEAN:
                return float(bool(value.data[0]) and not value.null[0]), Judgement.STATISTICS
        if isinstance(operand, Call):
            return self._truth_call(operand)
        return 0.5, Judgement.UNKNOWN

    def _truth_call(self, call: Call) -> Judged:
        """booltestsel, DistinctExpr, and functions that nothing is known of."""
        if call.name in {"is distinct from", "is not distinct from"} and len(call.args) == 2:
            share, judgement = self._compare("=", *call.args)
            return (share if call.name == "is not distinct from" else 1.0 - share), judgement
        if call.name.startswith("is ") and len(call.args) == 1:
            name = plain_column(call.args[0], self._table)
            model = self._expression if name is None else column_model(self._snapshot, self._table, name)
            if not model.analyzed:
                return 0.5, Judgement.DEFAULT
            word = call.name.rsplit(" ", 1)[1]
            true = model.common.get(True, clamp(1.0 - model.null_frac - model.common.get(False, 0.0)))
            shares = {"true": true, "false": clamp(1.0 - true - model.null_frac), "unknown": model.null_frac}
            share = shares.get(word, 0.5)
            return clamp(1.0 - share if " not " in call.name else share), Judgement.STATISTICS
        if call.name in _OPERATOR_DEFAULTS:
            return _OPERATOR_DEFAULTS[call.name], Judgement.UNKNOWN
        return 0.3333333, Judgement.UNKNOWN

    # ------------------------------------------------------------------ extended statistics

    def _combined(self, judged: Sequence[tuple[Condition, float, Judgement]]) -> tuple[float, set[int]]:
        """statext_mcv_clauselist_selectivity: conditions on several columns looked up among their common combinations.
        The product of those conditions, and the places of the conditions that it accounts for."""
        share = 1.0
        used: set[int] = set()
        columns = {place: _columns(condition) for place, (condition, _, _) in enumerate(judged)}
        while True:
            candidates = []
            for extended in self._table.extended:
                covered = [
                    place
                    for place, names in columns.items()
                    if place not in used and names and names <= set(extended.columns)
                ]
                matched = {name for place in covered for name in columns[place] or ()}
                if extended.common is not None and len(matched) > 1:
                    candidates.append((len(matched), -len(extended.columns), covered, extended.common))
            if not candidates:
                return share, used
            _, _, places, common = max(candidates, key=lambda item: item[:2])
            found = self._looked_up([judged[place][0] for place in places], common)
            used |= set(places)
            share *= _product(judged[place][1] for place in places) if found is None else found

    def _looked_up(self, conditions: Sequence[Condition], common: CommonCombinations) -> float | None:
        """mcv_clauselist_selectivity and mcv_combine_selectivities (mcv.c)."""
        simple = TableFilters(self._snapshot, replace(self._table, extended=()), self._parameters).all_of(conditions)[0]
        sample = Sample(len(common.freqs), common.values)
        apart = Snapshot("", 0, {})  # nothing of these few rows is kept among what is derived from the tables
        matching = matching_rows(conditions, apart, replace(self._table, sample=sample), self._parameters)
        if matching is None:
            return None
        known = float(np.dot(matching, common.freqs))
        other = clamp(simple - float(np.dot(matching, common.base_freqs)))
        return clamp(known + min(other, 1.0 - sum(common.freqs)))

    def _dependent(
        self, judged: Sequence[tuple[Condition, float, Judgement]], used_before: set[int]
    ) -> tuple[float, set[int]]:
        """dependencies_clauselist_selectivity: equalities on columns one of which follows from others. The product of
        those conditions, and the places of the conditions that it accounts for."""
        degrees = {item: degree for extended in self._table.extended for item, degree in extended.dependencies.items()}
        if not degrees:
            return 1.0, set()
        places: dict[str, list[int]] = {}
        for place, (condition, _, _) in enumerate(judged):
            name = self._equated(condition) if place not in used_before else None
            if name is not None:
                places.setdefault(name, []).append(place)
        shares = {name: _product(judged[place][1] for place in found) for name, found in places.items()}
        applied: list[tuple[frozenset[str], str, float]] = []
        left = set(places)
        while len(left) > 1:
            usable = [
                (len(names), degree, names, implied)
                for (names, implied), degree in degrees.items()
                if implied in left and names <= left
            ]
            if not usable:
                break
            _, degree, names, implied = max(usable, key=lambda item: item[:2])
            applied.append((names, implied, degree))
            left.discard(implied)
        if not applied:
            return 1.0, set()
        taking_part = {name for names, implied, _ in applied for name in (*names, implied)}
        # P(a, b) = f * min(P(a), P(b)) + (1 - f) * P(a) * P(b), the conditional form for each implied column.
        for names, implied, degree in reversed(applied):
            implying, own = _product(shares[name] for name in names), shares[implied]
            if implying <= own:
                shares[implied] = degree + (1.0 - degree) * own
            elif implying > 0.0:
                shares[implied] = degree * own / implying + (1.0 - degree) * own
        used = {place for name in taking_part for place in places[name]}
        return clamp(_product(shares[name] for name in taking_part)), used

    def _equated(self, condition: Condition) -> str | None:
        """The column that the condition equates with constants (dependency_is_compatible_clause)."""
        match condition:
            case Compare("=", left, right) if not _reads_columns(right):
                return plain_column(left, self._table)
            case InList(operand, _, False):
                return plain_column(operand, self._table)
            case Truth(operand) | Not(Truth(operand)):
                return plain_column(operand, self._table)
            case Or(children):
                names = {self._equated(child) for child in children}
                return names.pop() if len(names) == 1 else None
        return None


_NUMBERS: Final = frozenset({Family.INTEGER, Family.NUMERIC, Family.FLOAT})


def _converts_column(kind: Family, literal: Const) -> bool:
    """Whether the server converts the column to the literal's type, and so looks at an expression."""
    value = family(literal.type) if literal.type else None
    if value is None and isinstance(literal.value, Decimal | float):
        value = Family.NUMERIC
    if kind is Family.INTEGER:
        return value in {Family.NUMERIC, Family.FLOAT}
    return kind is Family.NUMERIC and value is Family.FLOAT


def _is_cast(literal: Const) -> bool:
    """Whether a number was cast to something else than a number of its kind, like ``2.5::int`` or ``5::text``."""
    if literal.type is None or not isinstance(literal.value, int | float | Decimal) or isinstance(literal.value, bool):
        return False
    kind = family(literal.type)
    return kind is Family.TEXT or (kind is Family.INTEGER and not isinstance(literal.value, int))


def _product(shares: Iterable[float]) -> float:
    result = 1.0
    for share in shares:
        result *= share
    return result


def _columns(condition: Condition) -> set[str] | None:
    """The columns that a condition compares with constants (statext_is_compatible_clause); None for any other form."""
    match condition:
        case Compare(_, Column(_, name), right) if not _reads_columns(right):
            return {name}
        case InList(Column(_, name), _, _) | NullTest(Column(_, name), _) | Truth(Column(_, name)):
            return {name}
        case And(children) | Or(children):
            parts = [_columns(child) for child in children]
            return None if None in parts else {name for part in parts if part is not None for name in part}
        case Not(child):
            return _columns(child)
    return None


def _reads_columns(expression: Expression) -> bool:
    match expression:
        case Column():
            return True
        case Call(_, args):
            return any(_reads_columns(arg) for arg in args)
        case Cast(operand, _):
            return _reads_columns(operand)
    return False


def _constant_like(expression: Expression) -> bool:
    return not _reads_columns(expression)
