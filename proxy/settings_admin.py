"""Settings of what people look at: the console, the JSON API and the history behind them."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from proxy.options import Seconds, option
from proxy.settings_connections import CONFIG

ADMIN: Final = "Console and history"


class AdminSettings(BaseModel):
    """Durations are seconds, latencies milliseconds."""

    model_config = CONFIG

    history_interval: Seconds = option(
        300.0,
        group=ADMIN,
        description="How often the latencies of each model and version are collected into the store; also how "
        "far back the latencies reach that are shown as those of now.",
        unit="seconds",
        reason="Five minutes show a change soon enough, and a year of them is some hundred thousand rows.",
        warning="Of short intervals with few statements the high percentiles say little.",
        reload=True,
        ge=1,
        le=86400,
    )
    latency_good_ms: float = option(
        100.0,
        group=ADMIN,
        description="Below this, the 95th percentile of what a model's statements take is shown as good.",
        unit="milliseconds",
        reason="People notice an answer that takes longer.",
        warning="It colours the console only; alerts have limits of their own.",
        reload=True,
        gt=0,
        le=3_600_000,
    )
    latency_warning_ms: float = option(
        200.0,
        group=ADMIN,
        description="Below this, and not good, it is shown as a warning; from here on as danger.",
        unit="milliseconds",
        reason="Twice what is good.",
        warning="It must not be less than latency_good_ms.",
        reload=True,
        gt=0,
        le=3_600_000,
    )
