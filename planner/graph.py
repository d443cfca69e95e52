"""What a query asks for, free of syntax and of any database: blocks of relations, join edges and filter conditions.

A `QueryGraph` is one statement; each SELECT in it (CTE, sub-query, arm of a UNION) is a `QueryBlock` of its own. A
relation's place in its block is its index, and a set of relations is an int with the bit ``1 << index`` for each.
Nothing here knows whether a table exists: `planner.resolve` joins a graph to a catalog snapshot.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

# ---------------------------------------------------------------------- expressions


@dataclass(frozen=True, slots=True)
class Const:
    """A literal: int, float, Decimal, str, bool or None; ``type`` is the name it was cast to, if it was."""

    value: object
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Param:
    """``$number`` (from 1), whose value comes at Bind; ``type`` as for `Const`."""

    number: int
    type: str | None = None


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the block's relation with that index. Names are as PostgreSQL stores them (folded, unquoted)."""

    relation: int
    name: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function or operator: ``name`` is lower-case without schema (``lower``, ``+``, ``||``, ``date_trunc``)."""

    name: str
    args: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Cast:
    operand: Expression
    type: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Something that is not understood; ``what`` names the parse node or the reason."""

    what: str


Expression: TypeAlias = Const | Param | Column | Call | Cast | Unknown
Parameters: TypeAlias = Mapping[int, Const]
"""Values of ``$1``, ``$2`` ... as far as they are known."""
NO_PARAMETERS: Final[Parameters] = {}

# ---------------------------------------------------------------------- conditions


@dataclass(frozen=True, slots=True)
class Compare:
    """``left operator right``; operator is one of ``= <> < <= > >=``. BETWEEN is two of them in an `And`."""

    operator: str
    left: Expression
    right: Expression


@dataclass(frozen=True, slots=True)
class InList:
    """``operand IN (values)`` and ``= ANY (array)``; negated: NOT IN and ``<> ALL``."""

    operand: Expression
    values: tuple[Expression, ...]
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Like:
    operand: Expression
    pattern: Expression
    negated: bool = False
    ignore_case: bool = False


@dataclass(frozen=True, slots=True)
class NullTest:
    """``operand IS NULL``; negated: IS NOT NULL."""

    operand: Expression
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Truth:
    """A boolean expression that stands for itself: a boolean column, a function that returns one."""

    operand: Expression


@dataclass(frozen=True, slots=True)
class And:
    children: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Or:
    children: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Not:
    child: Condition


Condition: TypeAlias = Compare | InList | Like | NullTest | Truth | And | Or | Not


@dataclass(frozen=True, slots=True)
class Predicate:
    """One conjunct of WHERE or ON. ``relations`` is the set of the block's relations that it reads; exactly one bit:
    a filter on that relation; more: a join condition that is not an edge. ``outer`` tells that it also reads relations
    of an enclosing block, ``opaque`` that some part of it is `Unknown` or a sub-query."""

    condition: Condition
    relations: int
    outer: bool = False
    opaque: bool = False


def relations_of(node: Condition | Expression) -> int:
    """The set of relations whose columns a condition or expression reads."""
    if isinstance(node, Column):
        return 1 << node.relation
    if isinstance(node, Const | Param | Unknown):
        return 0
    found = 0
    for name in node.__slots__:
        value = getattr(node, name)
        for part in value if isinstance(value, tuple) else (value,):
            if not isinstance(part, str | bool):
                found |= relations_of(part)
    return found


# ---------------------------------------------------------------------- relations and joins


class RelationKind(enum.StrEnum):
    TABLE = "table"  # or a view: the catalog tells
    CTE = "cte"
    SUBQUERY = "subquery"
    FUNCTION = "function"
    VALUES = "values"


class JoinKind(enum.StrEnum):
    INNER = "inner"
    LEFT = "left"  # the left column's side is preserved; RIGHT is turned round
    FULL = "full"
    SEMI = "semi"  # EXISTS, IN (SELECT): the right side is a relation of the block `JoinEdge.block`
    ANTI = "anti"


@dataclass(frozen=True, slots=True)
class Relation:
    """``alias`` is the name that plans and hints use (the table's own without an alias). ``island`` numbers the groups
    of relations that inner joins alone connect: an outer join separates its nullable side. Rows of a set of relations
    can be stated absolutely only within one island."""

    index: int
    alias: str
    kind: RelationKind
    schema: str | None = None
    name: str | None = None
    block: int | None = None  # the block of a CTE or sub-query
    island: int = 0
    lateral: bool = False
    sampled: bool = False  # TABLESAMPLE
    location: int = field(default=-1, compare=False, repr=False)  # of a name in the text, in bytes; -1: it has none

    @property
    def bit(self) -> int:
        return 1 << self.index


@dataclass(frozen=True, slots=True)
class JoinEdge:
    """``left operator right`` between two relations of the block. Self joins are edges between two relations of one
    table. For SEMI and ANTI the right column belongs to the child block ``block``; such edges connect no sub-plans."""

    left: Column
    right: Column
    operator: str = "="
    kind: JoinKind = JoinKind.INNER
    block: int | None = None

    @property
    def relations(self) -> int:
        return 1 << self.left.relation | (0 if self.block is not None else 1 << self.right.relation)


@dataclass(frozen=True, slots=True)
class QueryBlock:
    """One SELECT. ``predicates`` has the filters and the join conditions that are no edges; conditions of an outer
    join's ON that are not edges are in ``outer_predicates``, since they do not filter the preserved side."""

    index: int
    relations: tuple[Relation, ...]
    edges: tuple[JoinEdge, ...] = ()
    predicates: tuple[Predicate, ...] = ()
    outer_predicates: tuple[Predicate, ...] = ()
    group_by: tuple[Expression, ...] = ()
    aggregates: tuple[str, ...] = ()
    distinct: bool = False
    having: bool = False
    order_by: bool = False
    windows: bool = False
    limit: Expression | None = None
    offset: Expression | None = None
    set_operation: str | None = None  # the operator whose arm this block is: union, union all, intersect, except
    locking: bool = False  # FOR UPDATE and the like
    outputs: tuple[tuple[str, Column | None], ...] | None = None  # names in order, with the column if it is a plain one
    arms: tuple[int, ...] = ()  # a set operation is a block without relations; these are the blocks of its arms
    recursive: bool = False  # a CTE that refers to itself

    @property
    def everything(self) -> int:
        return (1 << len(self.relations)) - 1

    def filters(self, relation: int) -> tuple[Predicate, ...]:
        """The predicates on that relation alone."""
        bit = 1 << relation
        return tuple(predicate for predicate in self.predicates if predicate.relations == bit)


class Command(enum.StrEnum):
    """The steered kinds of statement; the query's text is the same inside each."""

    SELECT = "select"
    EXPLAIN = "explain"
    DECLARE = "declare"
    COPY = "copy"
    CREATE_TABLE_AS = "create table as"
    INSERT = "insert"
    REFRESH = "refresh"
    PREPARE = "prepare"


@dataclass(frozen=True, slots=True)
class QueryGraph:
    """One statement. ``blocks[0]`` is the outermost. ``parameters`` is the highest ``$n``."""

    command: Command
    blocks: tuple[QueryBlock, ...]
    parameters: int = 0
    functions: frozenset[str] = field(default=frozenset())  # names of all functions called, lower-case, for volatility
    read_only: bool = True  # no data-modifying CTE, no FOR UPDATE, no INTO
    draft: str | None = field(default=None, compare=False, repr=False)  # the text, while `planner.sql.qualify` is due

    @property
    def aliases(self) -> Sequence[str]:
        """Of all blocks, duplicates included."""
        return [relation.alias for block in self.blocks for relation in block.relations]

    @property
    def joined(self) -> int:
        """How many relations the block with most of them joins."""
        return max((len(block.relations) for block in self.blocks), default=0)
