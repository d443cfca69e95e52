"""Settings of the background explorer: whether there is one, and what it may cost the server."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from proxy.options import Seconds, option
from proxy.settings_connections import CONFIG

EXPLORER: Final = "The explorer"


class ExplorerSettings(BaseModel):
    """The part of `ProxySettings` that the explorer process goes by."""

    model_config = CONFIG

    explore: bool = option(
        False,
        group=EXPLORER,
        description="Verify in the background what makes the slowest statements faster, by running them again.",
        unit="true or false",
        reason="What is verified off the query path costs no client anything, and is used from then on.",
        warning="Your statements run more often than clients send them: read-only ones without volatile functions "
        "only, under a time limit. It needs store_literals, since it runs the statements' texts.",
        reload=True,
    )
    explore_share: float = option(
        0.02,
        group=EXPLORER,
        description="The share of the time that the explorer's statements may be running.",
        unit="0.001 to 1",
        reason="A fiftieth of one server process is not noticed, and verifies hundreds of statements a day.",
        warning="At 1 it runs one statement after the other all the time.",
        reload=True,
        ge=0.001,
        le=1.0,
    )
    explore_most_active: int = option(
        4,
        group=EXPLORER,
        description="With more statements of others running than this, the server is busy and the explorer waits.",
        unit="statements",
        reason="Under load its runs would take time from clients, and would measure little.",
        warning="Others' sessions are seen by members of pg_read_all_stats only.",
        reload=True,
        ge=0,
        le=100_000,
    )
    explore_limit: Seconds = option(
        60.0,
        group=EXPLORER,
        description="A statement that takes longer is not explored.",
        unit="seconds",
        reason="Each is run a dozen times and more.",
        warning="The slowest statements often have most to win.",
        reload=True,
        ge=0.01,
        le=86_400,
    )
    explore_interval: Seconds = option(
        600.0,
        group=EXPLORER,
        description="How often it looks for statements that were not explored yet.",
        unit="seconds",
        reason="What is known is not tried again until the schema, the data or the server has changed.",
        warning="None.",
        reload=True,
        ge=1,
        le=86_400,
    )
    explore_host: str = option(
        "",
        group=EXPLORER,
        description="host:port of a replica where the statements are run; user, password and TLS are the upstream's.",
        unit="host:port",
        reason="A physical replica has the same data, statistics and plans, and no clients that wait.",
        warning="Its hardware and settings must be like the upstream's, else what wins there may lose here.",
        reload=True,
    )
