"""pg_plan_advice of PostgreSQL 19: the join order as its advice language, in the setting ``pg_plan_advice.advice``.

The language has no row estimates, so those are left out; planner settings go along as settings. A join order there is
a list whose first element is the outermost relation, each further one joined as the inner side; an inner side that is
a join itself is a list of its own (contrib/pg_plan_advice/README).
"""

from __future__ import annotations

from typing import Final

from planner.advice import Advice, JoinTree, Rendered
from planner.dialects.settings import checked

NAME: Final = "plan_advice"
CAPABILITY: Final = "plan_advice"
SETTING: Final = "pg_plan_advice.advice"


def render(advice: Advice) -> Rendered:
    """The settings, and the join order as one more."""
    good, notes = checked(advice.settings)
    if advice.rows:
        notes = (*notes, "rows not expressible")
    if advice.leading is not None and not isinstance(advice.leading, str):
        good = (*good, (SETTING, f"JOIN_ORDER({_order(advice.leading)})"))
    return Rendered(settings=good, dialect=NAME, notes=notes)


def _order(tree: JoinTree) -> str:
    """The chain of outer sides, innermost first, is the list; a tree of n relations costs n steps."""
    inner: list[str] = []
    while not isinstance(tree, str):
        tree, side = tree
        inner.append(_quoted(side) if isinstance(side, str) else f"({_order(side)})")
    return " ".join([_quoted(tree), *reversed(inner)])


def _quoted(alias: str) -> str:
    return '"' + alias.replace('"', '""') + '"'
