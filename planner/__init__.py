"""SQL in, advice out: parses a query, estimates its joins, asks the models, and says what PostgreSQL should plan.

``from planner import Planner`` is the whole of it for a program that talks to PostgreSQL itself. The name is looked up
only when it is used, so that wire workers, which need `planner.messages` alone, load no parser and no model runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.planner import Decision, Planner

__all__ = ["Decision", "Planner"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from planner import planner

    return getattr(planner, name)
