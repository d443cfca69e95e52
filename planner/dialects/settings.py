"""Plain planner settings: the dialect of every PostgreSQL from 14 on, and the list of settings that advice may name.

Only settings that change the plan and nothing else are allowed, with values checked here, because they end in SQL text
that is sent for a client. Rows and join orders cannot be said in settings and are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Final

from planner.advice import Advice, Rendered

NAME: Final = "settings"

Check = Callable[[str], str | None]
"""A value in the form the server writes it, or None for one that is not valid."""


def _switch(value: str) -> str | None:
    return {
        "on": "on",
        "true": "on",
        "yes": "on",
        "1": "on",
        "off": "off",
        "false": "off",
        "no": "off",
        "0": "off",
    }.get(value.lower())


def _whole(low: int, high: int) -> Check:
    def check(value: str) -> str | None:
        if not re.fullmatch(r"[0-9]{1,9}", value):
            return None
        return str(int(value)) if low <= int(value) <= high else None

    return check


def _cost(value: str) -> str | None:
    """A plain decimal from 0 to a million; the server's own limit is far above."""
    if not re.fullmatch(r"[0-9]{1,7}(\.[0-9]{1,9})?", value):
        return None
    number = float(value)
    return value if math.isfinite(number) and number <= 1_000_000 else None


def _one_of(*choices: str) -> Check:
    return lambda value: value.lower() if value.lower() in choices else None


SWITCHES: Final = (
    "enable_bitmapscan",
    "enable_gathermerge",
    "enable_hashagg",
    "enable_hashjoin",
    "enable_incremental_sort",
    "enable_indexonlyscan",
    "enable_indexscan",
    "enable_material",
    "enable_memoize",
    "enable_mergejoin",
    "enable_nestloop",
    "enable_parallel_hash",
    "enable_seqscan",
    "enable_sort",
    "geqo",
    "jit",
)
ALLOWED: Final[Mapping[str, Check]] = {
    **dict.fromkeys(SWITCHES, _switch),
    "from_collapse_limit": _whole(1, 100),
    "join_collapse_limit": _whole(1, 100),
    "max_parallel_workers_per_gather": _whole(0, 64),
    "random_page_cost": _cost,
    "seq_page_cost": _cost,
    "cpu_tuple_cost": _cost,
    "cpu_index_tuple_cost": _cost,
    "cpu_operator_cost": _cost,
    "plan_cache_mode": _one_of("auto", "force_custom_plan", "force_generic_plan"),
}
"""Every setting that advice may name; each exists since PostgreSQL 14, so that none is ever refused."""


def checked(settings: Mapping[str, str]) -> tuple[tuple[tuple[str, str], ...], tuple[str, ...]]:
    """The allowed settings in order of their names, so that equal advice gives equal text, and notes on the others."""
    good: list[tuple[str, str]] = []
    notes: list[str] = []
    for name in sorted(settings):
        check = ALLOWED.get(name)
        value = None if check is None else check(settings[name])
        if value is None:
            notes.append("setting not allowed" if check is None else "setting's value not valid")
        else:
            good.append((name, value))
    return tuple(good), tuple(dict.fromkeys(notes))


def render(advice: Advice) -> Rendered:
    """The settings alone."""
    good, notes = checked(advice.settings)
    lost = (["rows"] if advice.rows else []) + (["join order"] if advice.leading is not None else [])
    return Rendered(settings=good, dialect=NAME, notes=(*notes, *(f"{what} not expressible" for what in lost)))
