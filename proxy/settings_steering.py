"""The settings of steering: whether advice is asked for, how long it is waited for, and what is remembered of it.

Declarations only; proxy/settings.py completes them to ``ProxySettings``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from proxy.options import Bytes, option
from proxy.settings_connections import CONFIG

SteeringMode = Literal["off", "observe", "shadow", "canary", "on"]

STEERING = "Steering"


class SteeringSettings(BaseModel):
    """Times are milliseconds, sizes are bytes, '' is "not set"."""

    model_config = CONFIG

    mode: SteeringMode = option(
        "on",
        group=STEERING,
        description="on: advice is asked for and followed. canary: it is followed in a share of the executions "
        "(canary_share). shadow: it is asked for and counted, and nothing is "
        "changed. observe: statements are only measured. off: none of it.",
        unit="name",
        reason="shadow shows on real work what would be steered before anything is; canary risks little.",
        warning="Without models there is no advice, whatever this says. A client turns steering off for itself by SET "
        "pilotwire.mode = 'off', one statement by the comment /* pilotwire: off */. SIGUSR2 to the supervisor, or "
        "POST /api/mode, changes the mode at once, until it is changed back.",
        reload=True,
    )
    canary_share: float = option(
        0.1,
        group=STEERING,
        description="In mode canary, the share of the executions with advice that are steered; the others are the "
        "control group.",
        unit="share",
        reason="Few executions show whether steering gains, and few are at risk.",
        warning="Each execution is drawn by itself: the same statement runs now with advice, now without.",
        reload=True,
        ge=0,
        le=1,
    )
    planner_socket: str = option(
        "",
        group=STEERING,
        description="Path of the Unix socket where the planner process answers.",
        unit="absolute path",
        reason="Set by itself where pilotwire starts its own planner; given here, workers use one that runs already.",
        warning="Whoever can listen there decides how queries are planned.",
        reload=False,
    )
    steer_deadline_ms: float = option(
        20.0,
        group=STEERING,
        description="The longest that a statement waits for advice; it never waits more than a tenth of the time that "
        "statements of its kind take.",
        unit="milliseconds",
        reason="A decision takes a few milliseconds; advice that comes too late is kept for the next time.",
        warning="It is how much later a statement can start while the planner process hangs.",
        reload=True,
        ge=0,
        le=10_000,
    )
    steer_min_joins: int = option(
        3,
        group=STEERING,
        description="A statement of a kind not seen before waits for advice if it joins at least so many tables.",
        unit="tables",
        reason="A long report is often asked once only, and joins several tables; a short query rarely does.",
        warning="1 makes the first statement of every kind wait, short ones included.",
        reload=True,
        ge=1,
        le=1000,
    )
    steer_cache_entries: int = option(
        10_000,
        group=STEERING,
        description="Decisions that each worker remembers.",
        unit="decisions",
        reason="A statement that comes again is decided in some microseconds.",
        warning="Smaller than the number of different statements in use, the planner is asked again and again.",
        reload=False,
        ge=100,
        le=10_000_000,
    )
    steer_cache_bytes: Bytes = option(
        32 << 20,
        group=STEERING,
        description="Memory that the decisions of each worker may take, with the texts and parameters they are for.",
        unit="bytes",
        reason="Texts of reports are long; a limit by count alone would not bound the memory.",
        warning="The least recently used are forgotten.",
        reload=False,
        shown_default="32MB",
        ge=1 << 20,
        le=1 << 34,
    )
