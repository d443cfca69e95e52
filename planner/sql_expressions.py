"""Expressions and conditions of PostgreSQL's parse tree (pglast's JSON) as `planner.graph` has them.

Each node is ``{"Kind": body}``. What has no place in the graph becomes `Unknown`, yet is walked through, so that
functions, parameters and sub-queries inside it are seen. The cost is about a microsecond per node: plain tables of
handlers, no visitor classes.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Any, Final, TypeAlias

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
    Truth,
    Unknown,
)
from planner.sql_scopes import Scope
from planner.values import array_literal

Node: TypeAlias = dict[str, Any]

MAX_DEPTH: Final = 100
"""Levels of nesting that are followed; a query with more is left alone, and whoever walks a graph is safe."""
MAX_DIGITS: Final = 400
COMMUTED: Final = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
"""Comparison operators, and what each becomes when its sides change places."""
LIKES: Final = {"~~": (False, False), "!~~": (True, False), "~~*": (False, True), "!~~*": (True, True)}
AGGREGATES: Final = frozenset({
    "any_value", "array_agg", "avg", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "corr", "count",
    "covar_pop", "covar_samp", "every", "json_agg", "json_agg_strict", "json_object_agg", "jsonb_agg",
    "jsonb_agg_strict", "jsonb_object_agg", "max", "min", "mode", "percentile_cont", "percentile_disc", "range_agg",
    "range_intersect_agg", "regr_avgx", "regr_avgy", "regr_count", "regr_intercept", "regr_r", "regr_slope",
    "regr_sxx", "regr_sxy", "regr_syy", "stddev", "stddev_pop", "stddev_samp", "string_agg", "sum", "var_pop",
    "var_samp", "variance", "xmlagg",
})  # fmt: skip
BOOLEAN_TESTS: Final = {
    "IS_NOT_TRUE": "is not true",
    "IS_FALSE": "is false",
    "IS_NOT_FALSE": "is not false",
    "IS_UNKNOWN": "is unknown",
    "IS_NOT_UNKNOWN": "is not unknown",
}


class TooDeep(Exception):
    """The query is nested deeper than `MAX_DEPTH`."""


def kind_and_body(node: Node) -> tuple[str, Any]:
    """An empty node (the parser has some) is of kind ``""``."""
    for kind, body in node.items():
        return kind, body
    return "", {}


def names(nodes: list[Node] | None) -> list[str]:
    """The strings of a list of String nodes; others (``*``) are left out."""
    return [node["String"].get("sval", "") for node in nodes or () if "String" in node]


def type_name(body: Node) -> str:
    """The parser's own name of a type, without schema and modifiers: ``int4``, ``timestamptz``, ``int4[]``."""
    name = (names(body.get("names")) or [""])[-1]
    return f"{name}[]" if "arrayBounds" in body else name


class Expressions:
    """Reads expressions in ``scope``, and notes ``functions`` and ``parameters``. Blocks are a subclass's matter."""

    def __init__(self) -> None:
        self.scope = Scope(0, None)
        self.functions: set[str] = set()
        self.parameters = 0
        self.pending = False  # a name could not be resolved without the catalog
        self.depth = 0

    def child(self, query: Node) -> int:
        """Reads a sub-query that stands in an expression; the index of its block."""
        raise NotImplementedError

    # ------------------------------------------------------------------ expressions

    def expression(self, node: Node) -> Expression:
        for kind, body in node.items():
            leaf = _LEAVES.get(kind)
            if leaf is not None:
                return leaf(self, body)
            self.enter()
            branch = _BRANCHES.get(kind)
            found = self.unknown(kind, body) if branch is None else branch(self, body)
            self.depth -= 1
            return found
        return self.unknown("nothing")

    def enter(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooDeep

    def unknown(self, what: str, body: object = None) -> Expression:
        if body:
            self.walk(body)
        self.scope.opaque = True
        return Unknown(what)

    def walk(self, part: object) -> None:
        """Looks for functions, parameters, columns and sub-queries in something that is not understood."""
        if isinstance(part, list):
            for item in part:
                self.walk(item)
        elif isinstance(part, dict):
            self.enter()
            for key, value in part.items():
                if key in _LEAVES or key in _BRANCHES:
                    self.expression({key: value})
                elif key == "SelectStmt":
                    self.child({key: value})
                elif isinstance(value, dict | list):
                    self.walk(value)
            self.depth -= 1

    def column(self, body: Node) -> Expression:
        fields = body["fields"]
        last = fields[-1].get("String")
        if last is None:  # a star: a whole row
            return self.unknown("whole row")
        name = last.get("sval", "")
        found: Expression | None
        if len(fields) == 2:
            alias = fields[0]["String"].get("sval", "")
            relation = self.scope.aliases.get(alias, -1)
            if relation >= 0:  # nearly always
                return self.scope.column(relation, name)
            found = self.scope.qualified(alias, name)
        elif len(fields) == 1:
            found = self.scope.unqualified(name)
            if found is None:
                self.pending = True
        elif len(fields) == 3:
            schema, table = names(fields[:2])
            found = self.scope.in_schema(schema, table, name)
        else:
            found = None
        if found is None:
            self.scope.opaque = True
            return Unknown(f"column {name}")
        return found

    def constant(self, body: Node) -> Expression:
        for key, part in body.items():
            if key == "ival":
                return Const(part.get("ival", 0))
            if key == "sval":
                return Const(part.get("sval", ""))
            if key == "fval":
                return self.number(part.get("fval", "0"))
            if key == "boolval":
                return Const(part.get("boolval", False))
            if key == "isnull":
                return Const(None)
            if key == "bsval":
                return Const(part.get("bsval", ""), "bit")
        return Const(0)

    def number(self, text: str) -> Expression:
        """A number that is no int4: a bigger integer, a numeric, or another base."""
        try:
            return Const(int(text, 0))
        except ValueError:
            pass
        try:
            number = Decimal(text)
        except InvalidOperation:
            return self.unknown("number")
        # Whoever turns such a number into an int would make one of that many digits.
        return Const(number) if abs(number.adjusted()) <= MAX_DIGITS else self.unknown("number")

    def parameter(self, body: Node) -> Expression:
        number = int(body.get("number", 0))
        self.parameters = max(self.parameters, number)
        return Param(number)

    def cast(self, body: Node) -> Expression:
        name = type_name(body.get("typeName", {}))
        operand = self.expression(body.get("arg", {}))
        if isinstance(operand, Const) and operand.type is None:
            if name.endswith("[]") and isinstance(operand.value, str):
                values = array_literal(operand.value, name[:-2])
                return Cast(operand, name) if values is None else Const(values, name)
            return Const(operand.value, name)
        if isinstance(operand, Param) and operand.type is None:
            return Param(operand.number, name)
        return Cast(operand, name)

    def call(self, body: Node) -> Expression:
        name = (names(body.get("funcname")) or [""])[-1]
        self.functions.add(name)
        arguments = tuple([self.expression(argument) for argument in body.get("args", ())])
        for extra in ("agg_order", "agg_filter", "over"):
            if extra in body:
                self.walk(body[extra])
        if "over" in body:
            self.scope.windows = True
            return self.unknown("window function")
        if name in AGGREGATES or not body.keys().isdisjoint(_ONLY_AGGREGATES):
            self.scope.aggregates.append(name)
        return Call(name, arguments)

    def operator(self, body: Node) -> Expression:
        """An operator where a value is wanted; comparisons are calls here too."""
        kind = body.get("kind", "")
        if kind == "AEXPR_NULLIF":
            return Call("nullif", (self.expression(body["lexpr"]), self.expression(body["rexpr"])))
        if kind in {"AEXPR_OP", "AEXPR_LIKE", "AEXPR_ILIKE", "AEXPR_SIMILAR"}:
            name = body["name"][-1]["String"]["sval"]
            arguments = [self.expression(body[side]) for side in ("lexpr", "rexpr") if side in body]
            return Call(name, tuple(arguments))
        if kind in {"AEXPR_DISTINCT", "AEXPR_NOT_DISTINCT"}:
            name = "is distinct from" if kind == "AEXPR_DISTINCT" else "is not distinct from"
            return Call(name, (self.expression(body["lexpr"]), self.expression(body["rexpr"])))
        return self.unknown(kind or "A_Expr", body)

    def sub_query(self, body: Node) -> Expression:
        if "testexpr" in body:
            self.walk(body["testexpr"])
        self.child(body.get("subselect", {}))
        return self.unknown("sub-query")

    def several(self, name: str, body: Node, key: str = "args") -> Expression:
        return Call(name, tuple([self.expression(item) for item in body.get(key, ())]))

    # ------------------------------------------------------------------ conditions

    def condition(self, node: Node) -> Condition:
        for kind, body in node.items():
            reader = _CONDITIONS.get(kind)
            if reader is None:
                break
            self.enter()
            found = reader(self, body)
            self.depth -= 1
            return found
        return Truth(self.expression(node))

    def boolean(self, body: Node) -> Condition:
        children = tuple([self.condition(item) for item in body.get("args", ())])
        kind = body.get("boolop")
        if kind == "AND_EXPR":
            return And(children)
        if kind == "OR_EXPR":
            return Or(children)
        return Not(children[0])

    def null_test(self, body: Node) -> Condition:
        return NullTest(self.expression(body.get("arg", {})), body.get("nulltesttype") == "IS_NOT_NULL")

    def boolean_test(self, body: Node) -> Condition:
        test = BOOLEAN_TESTS.get(body.get("booltesttype", ""))
        if test is None:  # IS TRUE says nothing more to a WHERE
            return self.condition(body.get("arg", {}))
        return Truth(Call(test, (self.expression(body.get("arg", {})),)))

    def comparison(self, body: Node) -> Condition:
        kind = body.get("kind", "")
        if kind == "AEXPR_OP":
            name = body["name"][-1]["String"]["sval"]
            left, right = body.get("lexpr"), body.get("rexpr")
            if left is not None and right is not None:
                if name in COMMUTED:
                    return self.compare(name, left, right)
                if name in LIKES:
                    negated, ignore_case = LIKES[name]
                    return Like(self.expression(left), self.expression(right), negated, ignore_case)
        elif kind == "AEXPR_IN":
            return self.in_list(body)
        elif kind in {"AEXPR_LIKE", "AEXPR_ILIKE"}:
            negated, ignore_case = LIKES.get(body["name"][-1]["String"]["sval"], (False, False))
            return Like(self.expression(body["lexpr"]), self.expression(body["rexpr"]), negated, ignore_case)
        elif kind.startswith("AEXPR_OP_A"):
            return self.any_or_all(body, kind)
        elif kind.startswith(("AEXPR_BETWEEN", "AEXPR_NOT_BETWEEN")):
            return self.between(body, kind)
        return Truth(self.operator(body))

    def compare(self, name: str, left: Node, right: Node) -> Condition:
        if "RowExpr" in left and "RowExpr" in right:
            return self.compare_rows(name, left["RowExpr"].get("args", ()), right["RowExpr"].get("args", ()))
        return oriented(name, self.expression(left), self.expression(right))

    def compare_rows(self, name: str, left: list[Node], right: list[Node]) -> Condition:
        if name == "=" and len(left) == len(right):
            return And(tuple([self.compare(name, one, other) for one, other in zip(left, right, strict=True)]))
        return Truth(Call(f"row {name}", tuple([self.expression(item) for item in (*left, *right)])))

    def in_list(self, body: Node) -> Condition:
        """``IN`` with one value is a plain comparison, as the server's parser makes it."""
        negated = body["name"][-1]["String"]["sval"] == "<>"
        left = body["lexpr"]
        items = body.get("rexpr", {}).get("List", {}).get("items", ())
        if len(items) == 1:
            return self.compare("<>" if negated else "=", left, items[0])
        if "RowExpr" in left:
            alternatives = Or(tuple([self.compare("=", left, item) for item in items]))
            return Not(alternatives) if negated else alternatives
        return InList(self.expression(left), tuple([self.expression(item) for item in items]), negated)

    def any_or_all(self, body: Node, kind: str) -> Condition:
        """``= ANY (array)`` and ``<> ALL (array)`` are lists; arrays written out are taken apart."""
        name = body["name"][-1]["String"]["sval"]
        every = kind == "AEXPR_OP_ALL"
        operand, array = self.expression(body["lexpr"]), self.expression(body["rexpr"])
        if (name, every) not in {("=", False), ("<>", True)}:
            return Truth(Call(f"{name} {'all' if every else 'any'}", (operand, array)))
        return InList(operand, _elements(array), every)

    def between(self, body: Node, kind: str) -> Condition:
        operand = self.expression(body["lexpr"])
        items = body.get("rexpr", {}).get("List", {}).get("items", ())
        low, high = (self.expression(item) for item in items)
        negated = kind.startswith("AEXPR_NOT")
        ways = [(low, high), (high, low)] if kind.endswith("_SYM") else [(low, high)]
        if negated:
            outside = tuple([Or((oriented("<", operand, a), oriented(">", operand, b))) for a, b in ways])
            return outside[0] if len(outside) == 1 else And(outside)
        inside = tuple([And((oriented(">=", operand, a), oriented("<=", operand, b))) for a, b in ways])
        return inside[0] if len(inside) == 1 else Or(inside)


def oriented(name: str, left: Expression, right: Expression) -> Compare:
    """A column stands on the left of what is none, and a value on the right of what is none."""
    one, other = type(left), type(right)
    if (other is Column and one is not Column) or (one in _VALUES and other not in _VALUES):
        return Compare(COMMUTED[name], right, left)
    return Compare(name, left, right)


def _elements(array: Expression) -> tuple[Expression, ...]:
    """The values of an array that is written out, or the array itself."""
    if isinstance(array, Call) and array.name == "array":
        return array.args
    if isinstance(array, Const):
        values = array_literal(array.value, "text") if isinstance(array.value, str) else array.value
        element = array.type[:-2] if array.type else None
        return tuple([Const(value, element) for value in values]) if isinstance(values, tuple) else (array,)
    if isinstance(array, Cast) and isinstance(array.operand, Call) and array.operand.name == "array":
        element = array.type.removesuffix("[]")
        items = array.operand.args
        return tuple([Const(i.value, element) if isinstance(i, Const) else Cast(i, element) for i in items])
    return (array,)


_VALUES: Final = frozenset({Const, Param})
_ONLY_AGGREGATES: Final = frozenset({"agg_star", "agg_distinct", "agg_filter", "agg_within_group", "agg_order"})
_Reader: TypeAlias = Callable[[Any, Any], Expression]

_LEAVES: Final[dict[str, _Reader]] = {
    "ColumnRef": Expressions.column,
    "A_Const": Expressions.constant,
    "ParamRef": Expressions.parameter,
}
_BRANCHES: Final[dict[str, _Reader]] = {
    "TypeCast": Expressions.cast,
    "FuncCall": Expressions.call,
    "A_Expr": Expressions.operator,
    "SubLink": Expressions.sub_query,
    "A_ArrayExpr": lambda self, body: self.several("array", body, "elements"),
    "CoalesceExpr": lambda self, body: self.several("coalesce", body),
    "RowExpr": lambda self, body: self.several("row", body),
    "MinMaxExpr": lambda self, body: self.several("least" if body.get("op") == "IS_LEAST" else "greatest", body),
    "SQLValueFunction": lambda self, body: Call(body.get("op", "").removeprefix("SVFOP_").lower(), ()),
    "BoolExpr": lambda self, body: self.several(body.get("boolop", "").removesuffix("_EXPR").lower(), body),
    "NullTest": lambda self, body: Call(
        "is not null" if body.get("nulltesttype") == "IS_NOT_NULL" else "is null",
        (self.expression(body.get("arg", {})),),
    ),
}
_CONDITIONS: Final[dict[str, Callable[[Any, Any], Condition]]] = {
    "A_Expr": Expressions.comparison,
    "BoolExpr": Expressions.boolean,
    "NullTest": Expressions.null_test,
    "BooleanTest": Expressions.boolean_test,
}
