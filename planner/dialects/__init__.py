"""Advice as text that a server obeys, in the richest dialect that the server understands.

`hint_plan` writes a pg_hint_plan comment, `plan_advice` the setting of PostgreSQL 19's pg_plan_advice, and `settings`
plain planner settings for every server. Which of them applies is known at run time from the snapshot's capabilities.
Nothing here raises: advice that a dialect cannot express is left out and named in `Rendered.notes`.
"""

from __future__ import annotations

from collections.abc import Collection

from planner.advice import Advice, Rendered
from planner.dialects import hint_plan, plan_advice, settings

__all__ = ["hint_plan", "plan_advice", "render", "settings"]


def render(advice: Advice, capabilities: Collection[str]) -> Rendered:
    """``advice`` for a server with these capabilities (`planner.snapshot.Snapshot.capabilities`)."""
    if hint_plan.CAPABILITY in capabilities:
        return hint_plan.render(advice)
    if plan_advice.CAPABILITY in capabilities:
        return plan_advice.render(advice)
    return settings.render(advice)
