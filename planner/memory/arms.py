"""The arms that ship with the product: sets of planner settings that transferred between databases.

Chosen from published and own measurements of single planner switches: these came within 2 to 5 % of all eleven on every
database tried. The portfolio transfers, the choice per query does not: an arm is only ever used on evidence.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

PORTFOLIO: Final = MappingProxyType({
    "no_hashjoin": {"enable_hashjoin": "off"},
    "no_mergejoin": {"enable_mergejoin": "off"},
    "no_nestloop_mergejoin": {"enable_nestloop": "off", "enable_mergejoin": "off"},
    "no_indexscan": {"enable_indexscan": "off", "enable_indexonlyscan": "off"},
    "random_page_cost_4": {"random_page_cost": "4"},
    "no_nestloop": {"enable_nestloop": "off"},
    "no_seqscan": {"enable_seqscan": "off"},
})  # fmt: skip
"""Name to settings, in the order in which they are to be tried when nothing else is known."""
CUSTOM_PLAN: Final = "force_custom_plan"
CUSTOM_PLAN_SETTINGS: Final = MappingProxyType({"plan_cache_mode": "force_custom_plan"})
"""One more arm, for prepared statements only."""
