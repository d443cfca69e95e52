"""Evaluates conditions on a table's sampled rows, with SQL's three-valued logic, for what statistics cannot judge.

The same evaluation folds constant expressions (``now() - interval '7 days'``) to the value that the server would
estimate with. What is not understood gives None, "cannot judge", never a guess and never an exception. A condition over
2000 rows takes 5 to 30 us per comparison; a budget of nodes bounds a hostile one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from planner import vectors
from planner.graph import (
    NO_PARAMETERS,
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
from planner.selectivity_values import Family
from planner.snapshot import Snapshot, TableInfo
from planner.vectors import Bools, Vector, Verdict

_NODES: Final = 2000
"""How many expressions, conditions and list items one evaluation may look at."""

Columns = Callable[[Column], Vector | None]


class _Exhausted(Exception):
    pass


def column_vector(snapshot: Snapshot, table: TableInfo, name: str) -> Vector | None:
    """A sampled column, made once per snapshot."""
    place = ("vector", table.schema, table.name, name)
    if place in snapshot.derived:
        found = snapshot.derived[place]
        return found if isinstance(found, Vector) else None
    values = table.sample.columns.get(name) if table.sample is not None else None
    made = vectors.column(values, table.columns[name].type) if values is not None and name in table.columns else None
    if name in table.columns:
        snapshot.derived[place] = made
    return made


def matching_rows(
    conditions: Sequence[Condition], snapshot: Snapshot, table: TableInfo, parameters: Parameters = NO_PARAMETERS
) -> Bools | None:
    """Which of the table's sampled rows satisfy all the conditions; None without a sample, or when some condition
    cannot be judged."""
    sample = table.sample
    if sample is None or not sample.size:
        return None
    evaluator = Evaluator(lambda column: column_vector(snapshot, table, column.name), parameters)
    matching = np.ones(sample.size, dtype=np.bool_)
    for condition in conditions:
        verdict = evaluator.verdict(condition)
        if verdict is None:
            return None
        matching &= verdict.true
    return matching


def fold(expression: Expression, parameters: Parameters = NO_PARAMETERS) -> Vector | None:
    """The value of an expression without columns, as the server computes it while planning (estimate_expression_value);
    None when it is not constant or not understood."""
    return Evaluator(_no_column, parameters).value(expression)


def _no_column(column: Column) -> Vector | None:
    return None


class Evaluator:
    """Evaluates one relation's expressions and conditions; ``columns`` gives its vectors."""

    __slots__ = ("_columns", "_nodes", "_parameters")

    def __init__(self, columns: Columns, parameters: Parameters = NO_PARAMETERS) -> None:
        self._columns = columns
        self._parameters = parameters
        self._nodes = 0

    def value(self, expression: Expression) -> Vector | None:
        """None: cannot judge."""
        try:
            return self._value(expression)
        except (_Exhausted, RecursionError, OverflowError, MemoryError):
            return None

    def verdict(self, condition: Condition) -> Verdict | None:
        """None: cannot judge."""
        try:
            return self._verdict(condition)
        except (_Exhausted, RecursionError, OverflowError, MemoryError):
            return None

    def _count(self, nodes: int = 1) -> None:
        self._nodes += nodes
        if self._nodes > _NODES:
            raise _Exhausted

    # ------------------------------------------------------------------ conditions

    def _verdict(self, condition: Condition) -> Verdict | None:
        self._count()
        match condition:
            case Compare(operator, left, right):
                one, two = self._value(left), self._value(right)
                return None if one is None or two is None else vectors.compare(operator, one, two)
            case And(children) | Or(children):
                return self._combined(children, all_of=isinstance(condition, And))
            case Not(child):
                verdict = self._verdict(child)
                return None if verdict is None else verdict.negated()
            case InList():
                return self._in_list(condition)
            case Like():
                return self._like(condition)
            case NullTest(operand, negated):
                value = self._value(operand)
                if value is None:
                    return None
                return Verdict(~value.null if negated else value.null, np.zeros_like(value.null))
            case Truth(operand):
                return self._truth(operand)
        return None

    def _combined(self, children: Sequence[Condition], *, all_of: bool) -> Verdict | None:
        result: Verdict | None = None
        for child in children:
            verdict = self._verdict(child)
            if verdict is None:
                return None
            result = verdict if result is None else result.both(verdict) if all_of else result.either(verdict)
        return result

    def _in_list(self, condition: InList) -> Verdict | None:
        operand = self._value(condition.operand)
        if operand is None:
            return None
        items: list[Vector] = []
        for expression in condition.values:
            for item in expanded(expression, self._parameters):
                value = self._value(item)
                if value is None or not value.constant:
                    return None
                items.append(value)
        verdict = vectors.within(operand, items)
        return verdict.negated() if verdict is not None and condition.negated else verdict

    def _like(self, condition: Like) -> Verdict | None:
        operand, text = self._value(condition.operand), self._value(condition.pattern)
        if operand is None or text is None or not text.constant or text.family is not Family.TEXT:
            return None
        if text.null[0]:
            return Verdict(np.zeros_like(operand.null), np.ones_like(operand.null))
        pattern = Pattern(text.words[0], ignore_case=condition.ignore_case)
        verdict = vectors.words_where(operand, pattern.matches)
        return verdict.negated() if verdict is not None and condition.negated else verdict

    def _truth(self, operand: Expression) -> Verdict | None:
        if isinstance(operand, Call) and operand.name.startswith("is "):
            return self._is(operand)
        value = self._value(operand)
        if value is not None and value.type == vectors.UNTYPED:
            value = vectors.typed(value, "boolean")
        if value is None or value.family is not Family.BOOLEAN:
            return None
        return Verdict(value.data.astype(bool) & ~value.null, value.null)

    def _is(self, call: Call) -> Verdict | None:
        """IS [NOT] DISTINCT FROM, IS [NOT] TRUE, FALSE, UNKNOWN: never NULL themselves."""
        words = call.name.split()
        negated = words[1] == "not"
        if words[-1] == "from" and len(call.args) == 2:
            one, two = self._value(call.args[0]), self._value(call.args[1])
            same = vectors.compare("=", one, two) if one is not None and two is not None else None
            if one is None or two is None or same is None:
                return None
            true = same.true | (one.null & two.null)
            return Verdict(true if negated else ~true, np.zeros_like(true))
        verdict = self._truth(call.args[0]) if len(call.args) == 1 else None
        if verdict is None:
            return None
        outcomes = {"true": verdict.true, "false": ~verdict.true & ~verdict.unknown, "unknown": verdict.unknown}
        outcome = outcomes.get(words[-1])
        if outcome is None:
            return None
        return Verdict(~outcome if negated else outcome, np.zeros_like(outcome))

    # ------------------------------------------------------------------ expressions

    def _value(self, expression: Expression) -> Vector | None:
        self._count()
        match expression:
            case Column():
                return self._columns(expression)
            case Const(value, type_):
                return vectors.constant(value, type_)
            case Param(number, type_):
                given = self._parameters.get(number)
                return None if given is None else vectors.constant(given.value, given.type or type_)
            case Cast(operand, type_):
                value = self._value(operand)
                return None if value is None else vectors.cast(value, type_)
            case Call(name, args):
                values = [self._value(arg) for arg in args]
                known = [value for value in values if value is not None]
                return _call(name, known) if len(known) == len(values) else None
            case Unknown():
                return None
        return None


def expanded(expression: Expression, parameters: Parameters) -> Sequence[Expression]:
    """The items of an array's value, or the expression itself."""
    given = parameters.get(expression.number) if isinstance(expression, Param) else expression
    if isinstance(given, Const) and isinstance(given.value, tuple):
        item_type = given.type.removesuffix("[]") if given.type else None
        return [Const(value, item_type) for value in given.value]
    return [expression]


def _call(name: str, args: Sequence[Vector]) -> Vector | None:
    if name in {"+", "-", "*", "/", "%"} and len(args) == 2:
        return vectors.arithmetic(name, *args)
    if name in {"+", "-"} and len(args) == 1:
        return vectors.arithmetic(name, Vector("integer", np.zeros(1, np.int64), np.zeros(1, bool)), args[0])
    if name in _MOMENTS and not args:
        return vectors.constant(time.strftime(_MOMENTS[name][1], time.gmtime()), _MOMENTS[name][0])
    if name == "coalesce":
        return vectors.first_known(args)
    if name in {"||", "concat"} and args:
        return vectors.concatenated(args, skip_null=name == "concat")
    if name in _TEXT and len(args) == 1:
        return vectors.by_word(args[0], _TEXT[name])
    if name in {"length", "char_length", "character_length"} and len(args) == 1:
        return vectors.length(args[0])
    if name in {"substr", "substring", "left", "right"}:
        return _part(name, args)
    if name in {"abs", "floor", "ceil", "ceiling", "round"} and args:
        digits = int(args[1].data[0]) if len(args) == 2 and args[1].family is Family.INTEGER else 0
        return vectors.rounded(args[0], "ceil" if name == "ceiling" else name, digits) if len(args) <= 2 else None
    if name in {"extract", "date_part", "date_trunc"} and len(args) == 2:
        unit = args[0]
        if not unit.constant or unit.family is not Family.TEXT or unit.null[0]:
            return None
        function = vectors.truncated if name == "date_trunc" else vectors.extracted
        return function(unit.words[0].lower(), args[1])
    return None


_MOMENTS: Final = {
    "now": ("timestamp with time zone", "%Y-%m-%d %H:%M:%S"),
    "current_timestamp": ("timestamp with time zone", "%Y-%m-%d %H:%M:%S"),
    "transaction_timestamp": ("timestamp with time zone", "%Y-%m-%d %H:%M:%S"),
    "localtimestamp": ("timestamp without time zone", "%Y-%m-%d %H:%M:%S"),
    "current_date": ("date", "%Y-%m-%d"),
}
_TEXT: Final[dict[str, Callable[[str], str]]] = {
    "lower": str.lower,
    "upper": str.upper,
    "trim": lambda text: text.strip(" "),
    "btrim": lambda text: text.strip(" "),
    "ltrim": lambda text: text.lstrip(" "),
    "rtrim": lambda text: text.rstrip(" "),
}


def _part(name: str, args: Sequence[Vector]) -> Vector | None:
    """substr and substring by numbers, left, right."""
    numbers = []
    for arg in args[1:]:
        if not arg.constant or arg.family is not Family.INTEGER or arg.null[0]:
            return None
        numbers.append(int(arg.data[0]))
    if name in {"left", "right"} and len(numbers) == 1:
        (count,) = numbers
        if name == "left":
            return vectors.by_word(args[0], lambda text: text[:count])
        return vectors.by_word(args[0], lambda text: text[-count:] if count else "")
    if name in {"left", "right"} or not 1 <= len(numbers) <= 2:
        return None
    start = numbers[0] - 1
    end = start + numbers[1] if len(numbers) == 2 else None
    if end is not None and end < 0:
        return vectors.by_word(args[0], lambda text: "")
    return vectors.by_word(args[0], lambda text: text[max(start, 0) : end])
