"""Query blocks of a parse tree: FROM, joins, WHERE, sub-queries, CTEs and set operations as `planner.graph` has them.

`Builder` reads one statement in one pass. Names are resolved on the way, with the catalog's columns where a `ColumnsOf`
is given; without one, unqualified names of blocks with several relations stay open and ``pending`` is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from planner.graph import (
    Column,
    Compare,
    Const,
    Expression,
    JoinEdge,
    JoinKind,
    Predicate,
    QueryBlock,
    Relation,
    RelationKind,
    Truth,
    Unknown,
)
from planner.sql_expressions import COMMUTED, Expressions, Node, kind_and_body, names
from planner.sql_joins import Conjunct, Join, JoinTree, mask_of, settle
from planner.sql_or import common_to_all
from planner.sql_scopes import OUTER, ColumnsOf, Outputs, Scope, Source

OPERATIONS: Final = {"SETOP_UNION": "union", "SETOP_INTERSECT": "intersect", "SETOP_EXCEPT": "except"}
_OUTER_KINDS: Final = {"JOIN_LEFT", "JOIN_RIGHT", "JOIN_FULL"}
_OWN_CLAUSES: Final = {"withClause", "sortClause", "limitCount", "limitOffset", "lockingClause"}
_NEVER_PULLED_UP: Final = {"groupClause", "havingClause", "withClause", "limitOffset", "lockingClause"}
_SUB_QUERY: Final = Truth(Unknown("sub-query"))
_OWN_TARGETS: Final = {"UpdateStmt", "DeleteStmt", "MergeStmt"}


class Correlated:
    """A condition of a sub-query's WHERE that compares one of its columns with one of the block around it."""

    __slots__ = ("inner", "operator", "outer")

    def __init__(self, operator: str, outer: Column, inner: Column) -> None:
        self.operator = operator
        self.outer = outer
        self.inner = inner


class Builder(Expressions):
    """Reads one statement into ``blocks``; raises `TooDeep`. Parse trees of a shape that the parser never makes may
    raise anything."""

    def __init__(self, columns_of: ColumnsOf | None = None) -> None:
        super().__init__()
        self.blocks: list[QueryBlock] = []
        self.columns_of = columns_of
        self.ctes: dict[str, int] = {}
        self.read_only = True
        self.targeted: list[tuple[str, Expression]] = []  # the target list of the block that is being read
        self.open: dict[int, list[str]] = {}  # CTEs of WITH RECURSIVE while they are read: block -> column names
        self.recursive: set[int] = set()

    # ------------------------------------------------------------------ blocks

    def child(self, query: Node) -> int:
        return self.select(query, self.scope)[0]

    def select(
        self,
        query: Node,
        parent: Scope | None,
        operation: str | None = None,
        correlates: bool = False,
        wanted: bool = True,
    ) -> tuple[int, list[Correlated]]:
        """Reads a SELECT (or what else may stand in its place) as a block of its own, and returns its index.

        ``correlates``: comparisons with columns of ``parent``'s block are returned and left out of the predicates,
        since they become edges there. ``wanted``: somebody in the query reads the output columns.
        """
        self.enter()
        kind, body = kind_and_body(query)
        index = len(self.blocks)
        self.blocks.append(QueryBlock(index, (), set_operation=operation))
        scope, ctes = self.scope, self.ctes
        self.scope = Scope(index, parent)
        if "withClause" in body:
            self.ctes = dict(ctes)
            self.with_clause(body["withClause"])
        correlated: list[Correlated] = []
        if kind != "SelectStmt":
            self.modification(index, kind, body)
        elif body.get("op", "SETOP_NONE") != "SETOP_NONE":
            self.set_operation(index, body, operation)
        else:
            self.blocks[index] = self.plain(index, body, operation, correlated if correlates else None, wanted)
        self.scope, self.ctes = scope, ctes
        self.depth -= 1
        return index, correlated

    def plain(
        self, index: int, body: Node, operation: str | None, correlated: list[Correlated] | None, wanted: bool
    ) -> QueryBlock:
        scope = self.scope
        items = [self.from_item(item) for item in body.get("fromClause", ())]
        where: list[Conjunct] = []
        if "whereClause" in body:
            self.conjuncts(body["whereClause"], where, True, correlated)
        if "valuesLists" in body:
            self.walk(body["valuesLists"])
            outputs: Outputs | None = _numbered(body)
        else:
            outputs = self.targets(body.get("targetList", ()), wanted)
        group_by = self.group_by(body) if "groupClause" in body else ()
        self.walk(body.get("havingClause"))
        self.walk(body.get("windowClause"))
        if "sortClause" in body or "distinctClause" in body:
            self.by_output(body)
        limit, offset = self.count(body, "limitCount"), self.count(body, "limitOffset")
        if "lockingClause" in body or "intoClause" in body:
            self.read_only = False
        settled = settle(items, where, len(scope.sources))
        relations = [_relation(at, source, settled.islands[at]) for at, source in enumerate(scope.sources)]
        return QueryBlock(
            index=index,
            relations=tuple(relations),
            edges=tuple(settled.edges),
            predicates=tuple(settled.predicates),
            outer_predicates=tuple(settled.outer_predicates),
            group_by=group_by,
            aggregates=tuple(scope.aggregates),
            distinct="distinctClause" in body,
            having="havingClause" in body,
            order_by="sortClause" in body,
            windows=scope.windows,
            limit=limit,
            offset=offset,
            set_operation=operation,
            locking="lockingClause" in body,
            outputs=outputs,
            recursive=index in self.recursive,
        )

    def set_operation(self, index: int, body: Node, operation: str | None) -> None:
        """A chain such as ``a UNION b EXCEPT c`` leans to the left: its arms are siblings, told apart by operator."""
        waiting: list[tuple[Node, str]] = []
        node = body
        while True:
            name = OPERATIONS.get(node.get("op", ""), "") + (" all" if node.get("all") else "")
            waiting.append(({"SelectStmt": node["rarg"]}, name))
            left = node["larg"]
            if left.get("op", "SETOP_NONE") == "SETOP_NONE" or not left.keys().isdisjoint(_OWN_CLAUSES):
                waiting.append(({"SelectStmt": left}, name))
                break
            node = left
        arms = tuple([self.select(arm, self.scope.parent, name)[0] for arm, name in reversed(waiting)])
        first = self.blocks[arms[0]].outputs
        limit, offset = self.count(body, "limitCount"), self.count(body, "limitOffset")
        self.blocks[index] = QueryBlock(
            index=index,
            relations=(),
            order_by="sortClause" in body,
            limit=limit,
            offset=offset,
            set_operation=operation,
            outputs=None if first is None else tuple([(name, None) for name, _ in first]),
            arms=arms,
            recursive=index in self.recursive,
        )

    def modification(self, index: int, kind: str, body: Node) -> None:
        """A data-modifying CTE: its relations are named for the sake of their aliases, and nothing more is said."""
        self.read_only = False
        target = body.get("relation")
        if kind in _OWN_TARGETS and target is not None:
            self.table(target)
        for item in [*body.get("fromClause", ()), *body.get("usingClause", ())]:
            self.from_item(item)
        if "sourceRelation" in body:
            self.from_item(body["sourceRelation"])
        for key, part in body.items():
            if key == "selectStmt":
                self.select(part, self.scope.parent)
            elif key not in {"relation", "fromClause", "usingClause", "sourceRelation", "withClause"}:
                self.walk(part)
        returned = body.get("returningClause", {}).get("exprs", ()) or body.get("returningList", ())
        relations = [_relation(at, source, at) for at, source in enumerate(self.scope.sources)]
        self.blocks[index] = QueryBlock(index, tuple(relations), outputs=self.targets(returned, True))

    def with_clause(self, body: Node) -> None:
        for item in body.get("ctes", ()):
            cte = item["CommonTableExpr"]
            name = cte.get("ctename", "")
            renamed = names(cte.get("aliascolnames"))
            place = len(self.blocks)
            if body.get("recursive"):
                self.ctes[name] = place
                self.open[place] = renamed
            index, _ = self.select(cte["ctequery"], self.scope.parent)
            self.open.pop(place, None)
            self.ctes[name] = index
            if renamed:
                outputs = _renamed(self.blocks[index].outputs, renamed)
                self.blocks[index] = replace(self.blocks[index], outputs=outputs)

    def cte_outputs(self, block: int) -> Outputs | None:
        if block not in self.open:
            return self.blocks[block].outputs
        self.recursive.add(block)
        if self.open[block]:
            return tuple([(name, None) for name in self.open[block]])
        # The arm that does not recurse comes first and has been read.
        first = self.blocks[block + 1]
        return first.outputs if first.set_operation is not None else None

    # ------------------------------------------------------------------ parts of a block

    def targets(self, targets: Sequence[Node], wanted: bool) -> Outputs | None:
        """Output columns; None if a star stands for columns that are not known."""
        pending, blocks = self.pending, len(self.blocks)
        outputs: list[tuple[str, Column | None]] = []
        targeted: list[tuple[str, Expression]] = []
        complete = True
        for target in targets:
            body = target.get("ResTarget", {})
            value = body.get("val", {})
            kind, inner = kind_and_body(value)
            if kind == "ColumnRef" and "String" not in inner["fields"][-1]:
                complete = self.star(inner["fields"], outputs) and complete
                targeted.append(("", Unknown("star")))
                continue
            found = self.expression(value)
            name = body.get("name") or _output_name(kind, inner)
            targeted.append((name, found))
            outputs.append((name, found if type(found) is Column else None))
        self.targeted = targeted
        if not wanted:
            if len(self.blocks) == blocks:
                self.pending = pending
        elif not complete and self.columns_of is None:
            self.pending = True
        return tuple(outputs) if complete else None

    def star(self, fields: list[Node], outputs: list[tuple[str, Column | None]]) -> bool:
        """Adds what ``*`` or ``alias.*`` stands for; tells whether that is known."""
        scope = self.scope
        wanted = names(fields)
        for relation, source in enumerate(scope.sources):
            if wanted and source.alias != wanted[-1]:
                continue
            if source.columns is None:
                return False
            outputs += [(name, Column(relation, name)) for name in source.columns]
        return True

    def group_by(self, body: Node) -> tuple[Expression, ...]:
        """A number or a name that is no column's stands for an output column."""
        found: list[Expression] = []
        for node in body["groupClause"]:
            kind, inner = kind_and_body(node)
            meant: Expression | None = None
            if kind == "A_Const" and "ival" in inner:
                place = inner["ival"].get("ival", 0)
                meant = self.targeted[place - 1][1] if 0 < place <= len(self.targeted) else Unknown("output column")
            elif kind == "ColumnRef" and len(inner["fields"]) == 1:
                name = inner["fields"][0].get("String", {}).get("sval", "")
                # A column goes before an output's name; one that is only supposed to be there does not.
                known = any(source.columns is not None and name in source.columns for source in self.scope.sources)
                meant = (None if known else dict(self.targeted).get(name)) or self.scope.unqualified(name)
            found.append(self.expression(node) if meant is None else meant)
        return tuple(found)

    def by_output(self, body: Node) -> None:
        """ORDER BY and DISTINCT ON: a bare name there is mostly an output column's, so it is not looked up."""
        nodes = [item.get("SortBy", {}).get("node", {}) for item in body.get("sortClause", ())]
        for node in (*nodes, *body.get("distinctClause", ())):
            kind, inner = kind_and_body(node)
            if kind and not (kind == "ColumnRef" and len(inner["fields"]) == 1):
                self.walk(node)

    def count(self, body: Node, key: str) -> Expression | None:
        if key not in body:
            return None
        found = self.expression(body[key])
        return None if isinstance(found, Const) and found.value is None else found

    # ------------------------------------------------------------------ FROM

    def from_item(self, node: Node) -> JoinTree:
        kind, body = kind_and_body(node)
        if kind == "RangeVar":
            return self.table(body)
        if kind == "JoinExpr":
            self.enter()
            join = self.join(body)
            self.depth -= 1
            return join
        if kind == "RangeSubselect":
            return self.sub_select(body)
        if kind == "RangeTableSample":
            self.walk([body.get("args"), body.get("repeatable")])
            found = self.from_item(body["relation"])
            if isinstance(found, int):
                self.scope.sources[found].sampled = True
            return found
        return self.function(kind, body)

    def table(self, body: Node) -> int:
        name = body.get("relname", "")
        alias = body.get("alias", {})
        schema = body.get("schemaname")
        block = self.ctes.get(name) if schema is None else None
        source = Source(alias.get("aliasname") or name, RelationKind.TABLE if block is None else RelationKind.CTE)
        source.name, source.schema = name, schema
        source.location = body.get("location", -1)
        renamed = names(alias.get("colnames"))
        if block is not None:
            source.block = block
            source.columns = _columns(self.cte_outputs(block), renamed)
        else:
            source.renamed = bool(renamed)
            if self.columns_of is not None and not renamed:
                source.columns = self.columns_of(schema, name)
        return self.scope.add(source)

    def sub_select(self, body: Node) -> int:
        alias = body.get("alias", {})
        renamed = names(alias.get("colnames"))
        query = body["subquery"]
        select = query.get("SelectStmt", {})
        lateral = bool(body.get("lateral"))
        name = alias.get("aliasname", "")
        if "valuesLists" in select and select.keys().isdisjoint(_OWN_CLAUSES):
            self.walk(select["valuesLists"])
            source = Source(name, RelationKind.VALUES)
            source.columns = _columns(_numbered(select), renamed)
        else:
            index, _ = self.select(query, self.scope if lateral else self.scope.parent)
            source = Source(name, RelationKind.SUBQUERY)
            source.block = index
            source.columns = _columns(self.blocks[index].outputs, renamed)
        source.lateral = lateral
        return self.scope.add(source)

    def function(self, kind: str, body: Node) -> int:
        """A function, XMLTABLE, JSON_TABLE in FROM; each may refer to what stands before it."""
        alias = body.get("alias", {})
        called = kind.lower()
        calls = body.get("functions", ())
        if calls:
            first, inner = kind_and_body(calls[0].get("List", {}).get("items", [{}])[0])
            called = (names(inner.get("funcname")) or [first.lower()])[-1]
        self.walk({key: part for key, part in body.items() if key != "alias"})
        source = Source(alias.get("aliasname") or called, RelationKind.FUNCTION)
        source.name = called
        source.lateral = bool(body.get("lateral"))
        listed = [item.get("ColumnDef", {}).get("colname", "") for item in body.get("coldeflist", ())]
        source.columns = names(alias.get("colnames")) or listed or None
        return self.scope.add(source)

    def join(self, body: Node) -> Join:
        left = self.from_item(body["larg"])
        right = self.from_item(body["rarg"])
        how = body.get("jointype", "JOIN_INNER")
        turned = how == "JOIN_RIGHT"
        kind = {"JOIN_INNER": JoinKind.INNER, "JOIN_FULL": JoinKind.FULL}.get(how, JoinKind.LEFT)
        masks = mask_of(left), mask_of(right)
        conditions = self.common_columns(body, masks, how)
        if "quals" in body:
            visible, self.scope.visible = self.scope.visible, masks[0] | masks[1]
            self.conjuncts(body["quals"], conditions, how not in _OUTER_KINDS, None)
            self.scope.visible = visible
        group = body.get("alias", {}).get("aliasname")
        if group:
            self.scope.groups[group] = masks[0] | masks[1]
        if turned:
            return Join(kind, right, left, masks[1], masks[0], conditions)
        return Join(kind, left, right, masks[0], masks[1], conditions)

    def common_columns(self, body: Node, masks: tuple[int, int], how: str) -> list[Conjunct]:
        """The equalities of USING and NATURAL; unqualified names mean the merged columns from here on."""
        scope = self.scope
        common = names(body.get("usingClause"))
        if body.get("isNatural"):
            left, right = self.column_names(masks[0]), self.column_names(masks[1])
            if left is None or right is None:
                self.pending = True
                return []
            common = sorted(left & right)
        conditions = []
        for name in common:
            scope.clear()
            one, other = (self.one_of(name, mask) for mask in masks)
            conditions.append(Conjunct(Compare("=", one, other), scope.reads, scope.outer, scope.opaque))
            merged: Expression = other if how == "JOIN_RIGHT" else one
            if how == "JOIN_FULL":
                merged = Unknown("merged column")
            scope.merged.setdefault(name, []).append((masks[0] | masks[1], merged))
        return conditions

    def one_of(self, name: str, mask: int) -> Expression:
        """A column that one of those relations is known to have."""
        found = self.scope.local(name, mask, sure=True)
        if isinstance(found, bool):
            self.pending = True
            return self.unknown(f"column {name}")
        return found

    def column_names(self, mask: int) -> set[str] | None:
        found: set[str] = set()
        for relation, source in enumerate(self.scope.sources):
            if mask >> relation & 1:
                if source.columns is None:
                    return None
                found.update(source.columns)
        return found

    # ------------------------------------------------------------------ conditions

    def conjuncts(
        self, node: Node, into: list[Conjunct], semi_joins: bool, correlated: list[Correlated] | None
    ) -> None:
        """Takes a condition apart at its ANDs. ``semi_joins``: EXISTS and IN with a sub-query may become edges."""
        kind, body = kind_and_body(node)
        if kind == "BoolExpr" and body.get("boolop") == "AND_EXPR":
            self.enter()
            for item in body["args"]:
                self.conjuncts(item, into, semi_joins, correlated)
            self.depth -= 1
            return
        if kind == "BoolExpr" and body.get("boolop") == "OR_EXPR":
            common, rest = common_to_all(body["args"])
            if common:
                self.enter()
                for item in (*common, *rest):
                    self.conjuncts(item, into, semi_joins, correlated)
                self.depth -= 1
                return
        scope = self.scope
        scope.clear()
        if semi_joins and kind in _MAYBE_SEMI_JOIN:
            found = self.semi_join(kind, body)
            if found is not None:
                into.append(found)
                return
        elif kind == "A_Expr" and "RowExpr" in body.get("lexpr", ()):
            parts = _compared_rows(body)
            if parts:
                for part in parts:
                    self.conjuncts(part, into, semi_joins, correlated)
                return
        condition = self.condition(node)
        if (
            correlated is not None
            and type(condition) is Compare
            and condition.right is OUTER
            and type(condition.left) is Column
            and scope.outers[0][0] is scope.parent
        ):
            correlated.append(Correlated(condition.operator, scope.outers[0][1], condition.left))
            return
        into.append(Conjunct(condition, scope.reads, scope.outer, scope.opaque))

    def semi_join(self, kind: str, body: Node) -> Conjunct | None:
        """``[NOT] EXISTS``, ``[NOT] IN`` and ``<> ALL`` with a sub-query; None for anything else."""
        negated = kind == "BoolExpr"
        if negated:
            if body.get("boolop") != "NOT_EXPR" or "SubLink" not in body["args"][0]:
                return None
            body = body["args"][0]["SubLink"]
        what = body.get("subLinkType")
        operator = (names(body.get("operName")) or ["="])[-1]
        if what == "ALL_SUBLINK" and operator == "<>" and not negated:
            negated, operator = True, "="
        elif what not in {"EXISTS_SUBLINK", "ANY_SUBLINK"} or operator not in COMMUTED:
            return None
        scope = self.scope
        query = body["subselect"]
        tests: list[Expression] = []
        if what != "EXISTS_SUBLINK":
            test = body["testexpr"]
            tests = [self.expression(item) for item in test.get("RowExpr", {}).get("args", (test,))]
        select = query.get("SelectStmt", {})
        # A LIMIT means nothing to EXISTS.
        plain = select.keys().isdisjoint(_NEVER_PULLED_UP) and not (tests and "limitCount" in select)
        index, correlated = self.select(query, scope, correlates=plain, wanted=bool(tests))
        if self.blocks[index].aggregates or self.blocks[index].windows:
            self.take_back(index, correlated)
        join = JoinKind.ANTI if negated else JoinKind.SEMI
        edges = [JoinEdge(item.outer, item.inner, COMMUTED[item.operator], join, index) for item in correlated]
        outputs = self.blocks[index].outputs or ()
        for test, (_, output) in zip(tests, outputs, strict=False):
            if type(test) is Column and output is not None:
                edges.append(JoinEdge(test, output, operator, join, index))
        return Conjunct(_SUB_QUERY, scope.reads, scope.outer, True, tuple(edges))

    def take_back(self, index: int, correlated: list[Correlated]) -> None:
        """The server runs such a sub-query for each outer row: what compares with that row filters its scans."""
        block = self.blocks[index]
        filters = [
            Predicate(Compare(item.operator, item.inner, OUTER), 1 << item.inner.relation, outer=True)
            for item in correlated
        ]
        self.blocks[index] = replace(block, predicates=(*block.predicates, *filters))
        correlated.clear()


_MAYBE_SEMI_JOIN: Final = {"SubLink", "BoolExpr"}


def _compared_rows(body: Node) -> list[Node]:
    """``(a, b) = (c, d)`` as two comparisons; nothing for other comparisons of rows."""
    right = body.get("rexpr", {})
    if body.get("kind") != "AEXPR_OP" or names(body.get("name")) != ["="] or "RowExpr" not in right:
        return []
    sides = body["lexpr"]["RowExpr"].get("args", ()), right["RowExpr"].get("args", ())
    if len(sides[0]) != len(sides[1]):
        return []
    return [{"A_Expr": {**body, "lexpr": one, "rexpr": other}} for one, other in zip(*sides, strict=True)]


def _relation(index: int, of: Source, island: int) -> Relation:
    return Relation(index, of.alias, of.kind, of.schema, of.name, of.block, island, of.lateral, of.sampled, of.location)


def _numbered(body: Node) -> Outputs:
    """The columns of VALUES."""
    first = body["valuesLists"][0].get("List", {}).get("items", ())
    return tuple([(f"column{place}", None) for place in range(1, len(first) + 1)])


def _renamed(outputs: Outputs | None, renamed: list[str]) -> Outputs | None:
    """New names for the first columns."""
    if outputs is None:
        return None
    first = [(name, column) for name, (_, column) in zip(renamed, outputs, strict=False)]
    return (*first, *outputs[len(first) :])


def _columns(outputs: Outputs | None, renamed: list[str]) -> list[str] | None:
    outputs = _renamed(outputs, renamed)
    return None if outputs is None else [name for name, _ in outputs]


def _output_name(kind: str, body: Node) -> str:
    """The name that an output column gets without AS."""
    if kind == "ColumnRef":
        return names(body["fields"])[-1]
    if kind == "FuncCall":
        return (names(body.get("funcname")) or ["?column?"])[-1]
    if kind == "TypeCast":
        found = _output_name(*kind_and_body(body.get("arg", {})))
        return found if found != "?column?" else (names(body.get("typeName", {}).get("names")) or [found])[-1]
    return {"CoalesceExpr": "coalesce", "CaseExpr": "case", "A_ArrayExpr": "array"}.get(kind, "?column?")
