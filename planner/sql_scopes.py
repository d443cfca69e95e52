"""Whose column a name is: the scope of one query block, as PostgreSQL's parser resolves names.

An unqualified name of a block with several relations cannot be resolved without the catalog. A valid query names every
column without ambiguity, so a name that one relation is known to have is that relation's even if the columns of others
are not known, and a name that no known relation has belongs to the only relation whose columns are not known.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final, TypeAlias

from planner.graph import Column, Expression, RelationKind, Unknown

ColumnsOf: TypeAlias = Callable[[str | None, str], Collection[str] | None]
"""The columns of the table of that schema (None: by the search path) and name, or None if it is not known."""
Outputs: TypeAlias = tuple[tuple[str, Column | None], ...]

OUTER: Final = Unknown("outer column")
"""A column of an enclosing block: for this block a value that is not known, like a parameter. Compared by identity."""


class Source:
    """A relation while its block is read; `planner.graph.Relation` is made of it when the islands are known."""

    __slots__ = ("alias", "block", "columns", "kind", "lateral", "location", "name", "renamed", "sampled", "schema")

    def __init__(self, alias: str, kind: RelationKind) -> None:
        self.alias = alias
        self.kind = kind
        self.schema: str | None = None
        self.name: str | None = None
        self.block: int | None = None
        self.columns: Collection[str] | None = None  # None: not known
        self.renamed = False  # a table whose alias renames columns: names say nothing
        self.lateral = False
        self.sampled = False
        self.location = -1


class Scope:
    """The names that one block sees, and what the condition that is being read has touched so far.

    ``reads``, ``outer`` and ``opaque`` become the fields of `planner.graph.Predicate`; ``outers`` has the columns of
    enclosing blocks that were met. ``visible`` limits unqualified names to those relations (for ON); -1: all.
    """

    __slots__ = (
        "aggregates", "aliases", "block", "cache", "groups", "joins", "merged", "opaque", "outer", "outers", "parent",
        "reads", "sources", "visible", "windows",
    )  # fmt: skip

    def __init__(self, block: int, parent: Scope | None) -> None:
        self.block = block
        self.parent = parent
        self.sources: list[Source] = []
        self.aliases: dict[str, int] = {}
        self.groups: dict[str, int] = {}  # alias of a join in parentheses -> its relations
        self.merged: dict[str, list[tuple[int, Expression]]] = {}  # USING: name -> (relations, the merged column)
        self.joins = 0
        self.cache: dict[tuple[int, str], Column] = {}
        self.aggregates: list[str] = []
        self.windows = False
        self.visible = -1
        self.reads = 0
        self.outer = False
        self.opaque = False
        self.outers: list[tuple[Scope, Column]] = []

    def add(self, source: Source) -> int:
        index = len(self.sources)
        self.sources.append(source)
        # Two relations of one name are legal when their schemas differ; the bare name then means neither.
        self.aliases[source.alias] = -1 if source.alias in self.aliases else index
        return index

    def clear(self) -> None:
        """Before a condition is read."""
        self.reads = 0
        self.outer = self.opaque = False
        if self.outers:
            self.outers = []

    def column(self, relation: int, name: str) -> Expression:
        """The column as the block itself sees it, noted as read."""
        self.reads |= 1 << relation
        key = (relation, name)
        column = self.cache.get(key)
        if column is None:
            if self.sources[relation].renamed:
                self.opaque = True
                return Unknown("renamed column")
            column = self.cache[key] = Column(relation, name)
        return column

    def qualified(self, alias: str, name: str) -> Expression | None:
        """``alias.name`` as seen from this block, or None if no scope has the alias."""
        scope: Scope | None = self
        while scope is not None:
            relation = scope.aliases.get(alias, -1)
            if relation >= 0:
                return self._seen_from_here(scope, scope.column(relation, name))
            if alias in scope.groups:
                found = scope.local(name, scope.groups[alias])
                return None if isinstance(found, bool) else self._seen_from_here(scope, found)
            scope = scope.parent
        return None

    def in_schema(self, schema: str, table: str, name: str) -> Expression | None:
        """``schema.table.name``."""
        scope: Scope | None = self
        while scope is not None:
            for relation, source in enumerate(scope.sources):
                if source.name == table and source.alias == table and source.schema in (schema, None):
                    return self._seen_from_here(scope, scope.column(relation, name))
            scope = scope.parent
        return None

    def unqualified(self, name: str) -> Expression | None:
        """A bare name as seen from this block, or None if that takes a catalog (or no relation has it)."""
        scope: Scope | None = self
        while scope is not None:
            found = scope.local(name, scope.visible)
            if not isinstance(found, bool):
                return self._seen_from_here(scope, found)
            if found:
                return None
            scope = scope.parent
        return None

    def local(self, name: str, among: int, sure: bool = False) -> Expression | bool:
        """The column of that name of one of the relations ``among``; False if none has it, True if one might.

        ``sure``: one of them has it, no enclosing block.
        """
        for relations, merged in reversed(self.merged.get(name, ())):
            if relations & among == relations:
                if isinstance(merged, Column):
                    return self.column(merged.relation, merged.name)
                self.opaque = True
                return merged
        maybe = []
        for relation, source in enumerate(self.sources):
            if not among >> relation & 1:
                continue
            if source.columns is None:
                maybe.append(relation)
            elif name in source.columns:
                return self.column(relation, name)
        if len(maybe) == 1 and (sure or not self._enclosed()):
            return self.column(maybe[0], name)
        return bool(maybe)

    def _enclosed(self) -> bool:
        scope = self.parent
        while scope is not None:
            if scope.sources:
                return True
            scope = scope.parent
        return False

    def _seen_from_here(self, scope: Scope, found: Expression) -> Expression:
        if scope is self:
            return found
        inner: Scope | None = self
        while inner is not None and inner is not scope:
            inner.outer = True
            inner = inner.parent
        if isinstance(found, Column):
            self.outers.append((scope, found))
        return OUTER
