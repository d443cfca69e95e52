"""The planner's answers as decisions: what of them may reach a statement at all.

A prefix or a setting that a worker does not know for harmless is no advice, whoever answers at the planner's socket.
"""

from __future__ import annotations

import re
from typing import Final

from planner.messages import Answer
from proxy.steering import Decision

_SETTINGS_LIMIT: Final = 50
# Only these are ever set, by name and value: a mistake would end the client's own transaction.
_SETTING: Final = re.compile(
    rb"(?:(?:enable_[a-z_]{3,40}|geqo|jit)=(?:on|off)"
    rb"|(?:(?:from|join)_collapse_limit|geqo_threshold|max_parallel_workers_per_gather)=\d{1,9}"
    rb"|(?:(?:random|seq)_page_cost|cpu_(?:tuple|index_tuple|operator)_cost|parallel_(?:setup|tuple)_cost"
    rb"|cursor_tuple_fraction|hash_mem_multiplier)=\d{1,9}(?:\.\d{1,9})?"
    rb"|(?:min_parallel_(?:table|index)_scan_size|effective_cache_size|work_mem)=\d{1,9}(?:kB|MB|GB)?"
    rb"|plan_cache_mode=(?:auto|force_custom_plan|force_generic_plan)"
    rb"|pg_plan_advice\.advice=[\x20-\x7e]{0,4000})\Z"
)


def decision_of(answer: Answer, *, repeatable: bool = True) -> Decision:
    """A decision that can be delivered, or one to leave the statement alone; ``repeatable``: it may be run twice."""
    if b"\0" in answer.prefix:
        return Decision("unusable_advice")
    if len(answer.settings) > _SETTINGS_LIMIT or not all(
        _SETTING.match(name + b"=" + value) for name, value in answer.settings
    ):
        return Decision("unusable_advice")
    budget = answer.budget_ms if answer.budget_ms > 0 else 0.0
    if budget and not (repeatable or answer.approved):
        decision = Decision("not_repeatable")
    else:
        budget = budget if repeatable else 0.0
        decision = Decision(
            answer.reason or "no_advice", answer.prefix, answer.settings, answer.model, budget, answer.approved
        )
    decision.query = answer.query
    decision.arm = answer.arm
    decision.dialect = answer.dialect
    decision.share = answer.share
    return decision
