"""The SQL that counts the rows of a sub-plan: what a join of some of a block's relations really produces.

The conditions come out of the statement's own parse tree, so that they mean what they meant there: the WHERE and the
inner ON clauses are cut into conjuncts, and a sub-plan keeps those that read nothing but its relations. What equalities
imply is added, as PostgreSQL adds it: with ``a.x = b.x``, ``b.x = c.x`` and ``c.x = 7`` the join of a and b alone is on
``a.x = b.x`` and both are filtered by 7. Aliases become table names, and tables and conditions are sorted, so that
equal sub-plans of different statements have equal texts and are counted once.

A count comes in two forms. The plain one joins and counts. The factored one (`training.factoring`) never joins many to
many, so a join of billions of rows costs one pass over each table.

Conditions above the joins do not belong to a sub-plan and are left out: EXISTS and IN (SELECT), which become joins of
their own, and what an outer join's ON says. A sub-plan with anything else that cannot be moved into a statement of its
own (other sub-queries, parameters, references to an enclosing query) is not counted. No I/O here; `training.labels`
runs what this makes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pglast import ast
from pglast.enums import A_Expr_Kind, BoolExprType, JoinType, SubLinkType
from pglast.parser import parse_sql
from pglast.stream import RawStream
from pglast.visitors import Visitor

from planner.graph import QueryBlock, Relation, RelationKind
from planner.snapshot import TableInfo
from training.factoring import Item, Key, factored, quoted

_NAME: Final = 24  # characters of a table's name in an alias: PostgreSQL cuts at 63 bytes, after our number


@dataclass(frozen=True, slots=True)
class Count:
    """How to count one sub-plan. ``plain`` is also its identity; both forms return one row with one value.
    ``relations`` is how many are joined."""

    plain: str
    factored: str | None = None
    relations: int = 2


@dataclass(frozen=True, slots=True)
class Select:
    """A SELECT's tree, and where in the text the names of its FROM begin, in bytes, sorted; -1 for what has none."""

    tree: Any
    places: tuple[int, ...]


@dataclass(slots=True)
class _Conjunct:
    """One condition: ``relations`` is what it reads, ``text`` is with the new aliases."""

    relations: int
    text: str


class BlockCounts:
    """The counts of one query block. ``tables`` are the block's relations as resolved, None where unknown, ``blocks``
    those of its statement, whose output columns tell whose a bare name is."""

    def __init__(
        self, select: Any, block: QueryBlock, tables: Sequence[TableInfo | None], blocks: Sequence[QueryBlock] = ()
    ) -> None:
        self._block = block
        self._tables = tables
        self._columns = [
            _columns(relation, table, blocks) for relation, table in zip(block.relations, tables, strict=True)
        ]
        self._elsewhere = len(tables)  # the place of columns that no relation is known to have: an outer row's, mostly
        self._position = {relation.alias: relation.index for relation in block.relations}
        self._aliases = _new_aliases(tables)
        self._only = 0  # relations written with ONLY
        self._merged: set[str] = set()  # columns of USING
        self._blocked = 0  # relations that cannot be counted
        self._nullable = 0  # relations on the nullable side of an outer join
        for relation in block.relations:
            if relation.kind is not RelationKind.TABLE or relation.sampled or tables[relation.index] is None:
                self._blocked |= relation.bit
        self._conjuncts: list[_Conjunct] = []
        self._classes: list[set[Key]] = []
        self._constants: dict[Key, str] = {}
        conditions: list[Any] = []
        for item in select.fromClause or ():
            self._walk_from(item, False, conditions)
        conditions += _conjuncts(select.whereClause)
        for condition in conditions:
            self._take(condition)

    def count(self, mask: int) -> Count | None:
        """How to count the inner join of these relations; None when that cannot be stated."""
        if mask & self._blocked:
            return None
        items = {index: self._item(index) for index in range(len(self._tables)) if mask >> index & 1}
        others = []
        for conjunct in self._conjuncts:
            if conjunct.relations & ~mask:
                continue
            if conjunct.relations.bit_count() == 1:
                items[conjunct.relations.bit_length() - 1].conditions.append(conjunct.text)
            else:
                others.append(conjunct.text)
        classes = []
        for members in self._classes:
            inside = sorted(
                (key for key in members if mask >> key[0] & 1), key=lambda key: (self._aliases[key[0]], key[1])
            )
            if inside and any(relation == self._elsewhere for relation, _ in members):
                return None
            constant = next((self._constants[key] for key in sorted(members) if key in self._constants), None)
            if constant is not None:
                for key in (key for key in inside if key not in self._constants):
                    items[key[0]].conditions.append(f"({self._column(key)} = {constant})")
            classes.append(inside)
        for item in items.values():
            item.conditions[:] = sorted(set(item.conditions))
        return Count(
            self._plain(items, classes, others),
            None if others else factored(items, classes),
            mask.bit_count(),
        )

    def _plain(self, items: dict[int, Item], classes: list[list[Key]], others: list[str]) -> str:
        conditions = {text for item in items.values() for text in item.conditions} | set(others)
        for members in classes:
            for left, right in itertools.pairwise(members):
                conditions.add(f"({self._column(left)} = {self._column(right)})")
        tables = ", ".join(sorted(item.source for item in items.values()))
        where = f" WHERE {' AND '.join(sorted(conditions))}" if conditions else ""
        return f"SELECT count(*) FROM {tables}{where}"  # noqa: S608

    def _item(self, index: int) -> Item:
        table = self._tables[index]
        assert table is not None
        only = "ONLY " if self._only >> index & 1 else ""
        source = f"{only}{quoted(table.schema)}.{quoted(table.name)} AS {quoted(self._aliases[index])}"
        unique = [
            frozenset(key.columns) for key in table.indexes if key.unique and not key.partial and all(key.columns)
        ]
        return Item(self._aliases[index], source, table.rows, unique)

    def _column(self, key: Key) -> str:
        return f"{quoted(self._aliases[key[0]])}.{quoted(key[1])}"

    # ------------------------------------------------------------------ reading the tree

    def _walk_from(self, node: Any, nullable: bool, conditions: list[Any]) -> None:
        if not isinstance(node, ast.JoinExpr):
            self._leaf(node, nullable)
            return
        kind = node.jointype
        self._walk_from(node.larg, nullable or kind in (JoinType.JOIN_RIGHT, JoinType.JOIN_FULL), conditions)
        self._walk_from(node.rarg, nullable or kind in (JoinType.JOIN_LEFT, JoinType.JOIN_FULL), conditions)
        if node.isNatural or node.alias is not None:
            self._blocked = self._block.everything
        elif kind == JoinType.JOIN_INNER:
            conditions += _conjuncts(node.quals)
            for name in node.usingClause or ():
                self._using(name.sval, node)
        elif node.usingClause:
            self._blocked = self._block.everything

    def _leaf(self, node: Any, nullable: bool) -> None:
        position = self._position.get(_alias(node) or "")
        if position is None:
            self._blocked = self._block.everything
            return
        alias = getattr(node, "alias", None)
        renamed = alias is not None and alias.colnames
        if renamed:
            self._columns[position] = None
        if nullable:
            self._nullable |= 1 << position
        if nullable or renamed or not isinstance(node, ast.RangeVar):
            self._blocked |= 1 << position
        elif not node.inh:
            self._only |= 1 << position

    def _using(self, name: str, join: Any) -> None:
        """An inner join's USING (name): the first relation on each side that has the column."""
        sides = []
        for side in (join.larg, join.rarg):
            places = [self._position.get(_alias(leaf) or "") for leaf in _leaves(side)]
            sides.append(next((place for place in places if place is not None and self._has(place, name)), None))
        if sides[0] is None or sides[1] is None:
            self._blocked = self._block.everything
            return
        self._merged.add(name)
        self._join((sides[0], name), (sides[1], name))

    def _has(self, index: int, column: str) -> bool:
        columns = self._columns[index]
        return columns is not None and column in columns

    def _take(self, condition: Any) -> None:
        """Sort one conjunct of WHERE or ON into filters, equalities and other conditions."""
        if _is_join_of_its_own(condition):
            return
        found = _References()
        found(condition)
        if not found.portable:
            # What the sub-query's own FROM hides may not be ours: then a relation is blocked for nothing.
            may_read = 0
            for reference in found.columns:
                may_read |= self._may_read(reference)
            self._blocked |= may_read or self._block.everything
            return
        keys = [self._resolve(reference) for reference in found.columns]
        known = [key for key in keys if key is not None]
        outside = any(relation == self._elsewhere for relation, _ in known)
        relations = 0
        for key in known:
            relations |= (1 << key[0]) & self._block.everything
        if len(known) < len(keys) or not relations:
            self._blocked = self._block.everything
            return
        joins = _is_equality(condition) and {type(condition.lexpr), type(condition.rexpr)} == {ast.ColumnRef}
        if outside and not joins:
            self._blocked |= relations
            return
        if _is_equality(condition) and isinstance(condition.lexpr, ast.ColumnRef):
            if isinstance(condition.rexpr, ast.ColumnRef):
                self._join(known[0], known[1])
                return
            if _is_constant(condition.rexpr):
                self._constants.setdefault(known[0], RawStream()(condition.rexpr))
        elif _is_equality(condition) and isinstance(condition.rexpr, ast.ColumnRef) and _is_constant(condition.lexpr):
            self._constants.setdefault(known[0], RawStream()(condition.lexpr))
        self._conjuncts.append(_Conjunct(relations, f"({self._render(condition, found.columns, known)})"))
        if relations.bit_count() > 1 and _is_or(condition):
            for relation in range(relations.bit_length()):
                implied = self._restriction(condition, 1 << relation) if relations >> relation & 1 else ""
                if implied:
                    self._conjuncts.append(_Conjunct(1 << relation, implied))

    def _restriction(self, condition: Any, relation: int) -> str:
        """What an OR over several relations says of one alone, as `planner.sql_or.restriction`: the server filters by
        it below the join. "" if it says nothing."""
        arms = []
        for arm in condition.args:
            parts = []
            for part in _conjuncts(arm):
                found = _References()
                found(part)
                keys = [key for reference in found.columns if (key := self._resolve(reference)) is not None]
                if {1 << key[0] for key in keys} == {relation}:
                    parts.append(f"({self._render(part, found.columns, keys)})")
                elif _is_or(part):
                    parts += [text for text in [self._restriction(part, relation)] if text]
            if not parts:
                return ""
            arms.append(" AND ".join(parts))
        return f"({' OR '.join(arms)})"

    def _render(self, condition: Any, references: Sequence[Any], keys: Sequence[Key]) -> str:
        """A condition's text under the new aliases. The tree is left as it was: others may read it too."""
        before = [reference.fields for reference in references]
        for reference, key in zip(references, keys, strict=True):
            reference.fields = (ast.String(sval=self._aliases[key[0]]), ast.String(sval=key[1]))
        text: str = RawStream()(condition)
        for reference, fields in zip(references, before, strict=True):
            reference.fields = fields
        return text

    def _resolve(self, reference: Any) -> Key | None:
        """The relation and column that a reference means in this block, or None if that is not certain."""
        if not all(isinstance(field, ast.String) for field in reference.fields):
            return None
        names = [field.sval for field in reference.fields]
        if len(names) == 1:
            places = [index for index in range(len(self._tables)) if self._has(index, names[0])]
            if len(places) == 1 or (places and names[0] in self._merged):
                return places[0], names[0]
            return None if places else (self._elsewhere, names[0])
        if len(names) == 2:
            position = self._position.get(names[0])
            if position is None:
                return self._elsewhere, ".".join(names)
            return (position, names[1]) if self._columns[position] is None or self._has(position, names[1]) else None
        return None

    def _may_read(self, reference: Any) -> int:
        """The relations of this block that a reference somewhere in a sub-query may mean."""
        names = [field.sval or "" for field in reference.fields if isinstance(field, ast.String)]
        if len(names) > 2:
            return self._block.everything
        if not names:
            return 0  # the star of the sub-query
        position = self._position.get(names[0])
        may_read = 0 if position is None else 1 << position  # a bare name may be a whole row
        if len(reference.fields) == 1:
            for index in range(len(self._tables)):
                may_read |= self._has(index, names[0]) << index
        return may_read

    def _join(self, left: Key, right: Key) -> None:
        """left = right: put both into one equivalence class. Nullable sides are not equal in all rows."""
        if left == right:
            # x = x says that x is not null.
            self._conjuncts.append(_Conjunct(1 << left[0], f"({self._column(left)} IS NOT NULL)"))
            return
        if self._nullable & (1 << left[0] | 1 << right[0]):
            return
        merged = {left, right}
        apart = []
        for members in self._classes:
            if members & merged:
                merged |= members
            else:
                apart.append(members)
        self._classes = [*apart, merged]


def _columns(relation: Relation, table: TableInfo | None, blocks: Sequence[QueryBlock]) -> Collection[str] | None:
    """The names of a relation's columns; None: not known."""
    if table is not None:
        return table.columns
    if relation.block is None or relation.block >= len(blocks):
        return None
    outputs = blocks[relation.block].outputs
    return None if outputs is None else [name for name, _ in outputs]


def selects(text: str) -> list[Select]:
    """Every SELECT of a statement, as pglast's tree. Raises pglast's ParseError."""
    found = _Selects(text)
    for raw in parse_sql(text):
        found(raw)
    return found.found


def source_of(block: QueryBlock, candidates: Sequence[Select]) -> Any | None:
    """The SELECT that a block was read from: the one whose FROM has its names at the same places of the text. None for
    a block without any table."""
    wanted = tuple(sorted(relation.location for relation in block.relations))
    if not any(location >= 0 for location in wanted):
        return None
    return next((select.tree for select in candidates if select.places == wanted), None)


class _Selects(Visitor):
    def __init__(self, text: str) -> None:
        self.found: list[Select] = []
        self._text = text

    def visit_SelectStmt(self, ancestors: Any, node: Any) -> None:  # noqa: N802
        if node.fromClause:
            leaves = (leaf for item in node.fromClause for leaf in _leaves(item))
            self.found.append(Select(node, tuple(sorted(self._place(leaf) for leaf in leaves))))

    def _place(self, leaf: Any) -> int:
        """Where a table's name begins, in bytes as the planner has it; pglast's trees count characters."""
        if isinstance(leaf, ast.RangeTableSample):
            leaf = leaf.relation
        if not isinstance(leaf, ast.RangeVar):
            return -1
        place: int = leaf.location or 0
        return place if self._text.isascii() else len(self._text[:place].encode())


class _References(Visitor):
    """The column references of a condition, and whether the condition can stand in another statement."""

    def __init__(self) -> None:
        self.columns: list[Any] = []
        self.portable = True

    def visit_ColumnRef(self, ancestors: Any, node: Any) -> None:  # noqa: N802
        self.columns.append(node)

    def visit_SubLink(self, ancestors: Any, node: Any) -> None:  # noqa: N802
        self.portable = False

    def visit_ParamRef(self, ancestors: Any, node: Any) -> None:  # noqa: N802
        self.portable = False


def _conjuncts(node: Any) -> Iterator[Any]:
    """What an OR's arms have in common comes out of it, as in `planner.sql_or.common_to_all`."""
    if isinstance(node, ast.BoolExpr) and node.boolop == BoolExprType.AND_EXPR:
        for child in node.args or ():
            yield from _conjuncts(child)
    elif isinstance(node, ast.BoolExpr) and node.boolop == BoolExprType.OR_EXPR:
        arms = [{RawStream()(part): part for part in _conjuncts(arm)} for arm in node.args or ()]
        common = {text for text in set(arms[0]).intersection(*arms[1:]) if _portable(arms[0][text])}
        yield from (part for text, part in arms[0].items() if text in common)
        rest = [[part for text, part in arm.items() if text not in common] for arm in arms]
        if all(rest):
            yield _joined(BoolExprType.OR_EXPR, [_joined(BoolExprType.AND_EXPR, parts) for parts in rest])
    elif node is not None:
        yield node


def _joined(operation: BoolExprType, parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else ast.BoolExpr(boolop=operation, args=tuple(parts))


def _portable(condition: Any) -> bool:
    found = _References()
    found(condition)
    return found.portable


def _is_or(condition: Any) -> bool:
    return isinstance(condition, ast.BoolExpr) and condition.boolop == BoolExprType.OR_EXPR


def _is_join_of_its_own(condition: Any) -> bool:
    """EXISTS, NOT EXISTS and IN (SELECT) become semi and anti joins; NOT IN stays a filter."""
    kinds = {SubLinkType.EXISTS_SUBLINK, SubLinkType.ANY_SUBLINK}
    if isinstance(condition, ast.BoolExpr) and condition.boolop == BoolExprType.NOT_EXPR:
        (condition,) = condition.args or (None,)
        kinds = {SubLinkType.EXISTS_SUBLINK}
    return isinstance(condition, ast.SubLink) and condition.subLinkType in kinds


def _is_equality(node: Any) -> bool:
    return (
        isinstance(node, ast.A_Expr)
        and node.kind == A_Expr_Kind.AEXPR_OP
        and [name.sval for name in node.name or ()] == ["="]
        and node.lexpr is not None
    )


def _is_constant(node: Any) -> bool:
    while isinstance(node, ast.TypeCast):
        node = node.arg
    return isinstance(node, ast.A_Const) and not node.isnull


def _alias(node: Any) -> str | None:
    if isinstance(node, ast.RangeTableSample):
        node = node.relation
    alias = getattr(node, "alias", None)
    name: str | None = alias.aliasname if alias is not None else getattr(node, "relname", None)
    return name


def _leaves(node: Any) -> Iterator[Any]:
    """What a FROM item joins."""
    if isinstance(node, ast.JoinExpr):
        yield from _leaves(node.larg)
        yield from _leaves(node.rarg)
    else:
        yield node


def _new_aliases(tables: Sequence[TableInfo | None]) -> list[str]:
    """One per relation: the table's name, and a number from the second relation of that name on."""
    seen: Counter[str] = Counter()
    aliases = []
    for table in tables:
        name = table.name[:_NAME] if table is not None else "?"
        seen[name] += 1
        aliases.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return aliases
