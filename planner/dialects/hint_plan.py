"""pg_hint_plan: advice as one comment in front of the statement.

Rows are absolute (``#n``): a factor (``*n``) would compound, since the estimate of a join is built from its corrected
parts. Names are quoted always; a name that could end or open a comment cannot be written at all, and what names it is
left out.

PostgreSQL gives up looking at all join orders above certain sizes: it plans at most ``join_collapse_limit`` explicit
joins together, and from ``geqo_threshold`` relations on it searches at random and pg_hint_plan's joins are ignored. The
comment lifts both limits, but only where a full search is affordable: 14 relations joined on one key take it longer
than 16 seconds, 14 in a chain 3 ms.
"""

from __future__ import annotations

import math
from typing import Final

from planner.advice import Advice, JoinTree, Rendered, RowsAdvice
from planner.dialects.settings import checked

NAME: Final = "hint_plan"
CAPABILITY: Final = "hint_plan"
MAX_ROWS_HINTS: Final = 200
"""pg_hint_plan compares every hint with every other: 511 cost 14 ms of planning, 2047 300 ms."""
MOST_ROWS: Final = 10**15
COLLAPSE_LIMIT: Final = 8
GEQO_THRESHOLD: Final = 12
"""The server's defaults for from_collapse_limit, join_collapse_limit and geqo_threshold."""
MAX_PAIRS: Final = 6000.0
"""Pairs of sub-plans that a full search may weigh; each takes the server 4 to 8 us, half of it under Leading."""
UNCOUNTED_RELATIONS: Final = 12
"""Up to this size the limits are lifted where nobody counted the pairs."""
BEFORE_PLANNING: Final = frozenset({"plan_cache_mode"})
"""Settings that act before the planner reads the comment, and so must be settings here too."""


def render(advice: Advice) -> Rendered:
    """The comment, with a blank behind it; `Rendered.settings` holds only what a comment cannot do."""
    settings, notes = checked(advice.settings)
    lifted, limit_notes = _limits(advice, {name for name, _ in settings})
    rows, row_notes = _rows(advice.rows)
    hints = list(rows)
    notes = (*notes, *limit_notes, *row_notes)
    if advice.leading is not None and not isinstance(advice.leading, str):
        if "limits kept" in limit_notes:
            notes = (*notes, "join order not expressible")
        elif all(_writable(alias) for alias in _aliases(advice.leading)):
            hints.append(f"Leading({_tree(advice.leading)})")
        else:
            notes = (*notes, "name not expressible")
    inside = [setting for setting in settings if setting[0] not in BEFORE_PLANNING]
    if hints:
        inside += lifted
    hints += [f"Set({name} {value})" for name, value in inside]
    prefix = f"/*+ {' '.join(hints)} */ " if hints else ""
    outside = tuple(setting for setting in settings if setting[0] in BEFORE_PLANNING)
    return Rendered(prefix=prefix, settings=outside, dialect=NAME, notes=tuple(dict.fromkeys(notes)))


def _limits(advice: Advice, named: set[str]) -> tuple[list[tuple[str, str]], tuple[str, ...]]:
    """The settings that make the server look at all join orders, without those that the advice names itself."""
    if advice.relations <= COLLAPSE_LIMIT:
        return [], ()
    affordable = advice.join_pairs <= MAX_PAIRS if advice.join_pairs else advice.relations <= UNCOUNTED_RELATIONS
    if not affordable:
        return [], ("limits kept",)
    limit = str(min(max(advice.relations, 20), 100))
    wanted = [("join_collapse_limit", limit), ("from_collapse_limit", limit)]
    if advice.relations >= GEQO_THRESHOLD:
        wanted.insert(0, ("geqo", "off"))
    return [setting for setting in wanted if setting[0] not in named], ()


def _rows(advice: tuple[RowsAdvice, ...]) -> tuple[list[str], list[str]]:
    """One hint per set of aliases, the first that names it; as many as are affordable, in the order given."""
    hints: dict[frozenset[str], str] = {}
    notes: list[str] = []
    # A statement has few aliases and up to hundreds of hints.
    quoted = {alias: _quoted(alias) for alias in {name for one in advice for name in one.aliases} if _writable(alias)}
    for one in advice:
        names = frozenset(one.aliases)
        if len(names) < 2 or len(names) != len(one.aliases) or math.isnan(one.rows):
            notes.append("rows not valid")
        elif not names <= quoted.keys():
            notes.append("name not expressible")
        elif len(hints) >= MAX_ROWS_HINTS:
            notes.append("too many rows")
            break
        elif names not in hints:
            # A value below 1 makes the server warn the client, and infinity has no integer.
            rows = round(min(max(one.rows, 1.0), MOST_ROWS))
            hints[names] = f"Rows({' '.join([quoted[alias] for alias in one.aliases])} #{rows})"
    return list(hints.values()), notes


def _tree(tree: JoinTree) -> str:
    if isinstance(tree, str):
        return _quoted(tree)
    outer, inner = tree
    return f"({_tree(outer)} {_tree(inner)})"


def _aliases(tree: JoinTree) -> list[str]:
    if isinstance(tree, str):
        return [tree]
    return [*_aliases(tree[0]), *_aliases(tree[1])]


def _writable(alias: str) -> bool:
    """Comments nest in SQL, so an opening is as bad as an end; no encoding holds a zero byte."""
    return bool(alias) and "*/" not in alias and "/*" not in alias and "\0" not in alias


def _quoted(alias: str) -> str:
    return '"' + alias.replace('"', '""') + '"'
