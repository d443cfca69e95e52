"""Settings of those who run the proxy: the administration database, traces, and how predictions are watched."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from proxy.options import Names, Seconds, option
from proxy.settings_connections import CONFIG

DATABASE: Final = "Administration database"
TRACES: Final = "Traces"
ACCURACY: Final = "Accuracy of predictions"


class OperationsSettings(BaseModel):
    """See docs/admin-database.md, and docs/operating.md for traces."""

    model_config = CONFIG

    admin_database: str = option(
        "pilotwire",
        group=DATABASE,
        description="Name of the virtual database that answers SHOW, PAUSE, RELOAD and so on; empty for none.",
        unit="name",
        reason="Whoever knows PgBouncer's console finds it in the place where it is expected.",
        warning="A database of the server with the same name cannot be reached: give this one another name then.",
        reload=True,
        max_length=63,
    )
    admin_users: Names = option(
        [],
        group=DATABASE,
        description="Users who may do everything in the administration database, separated by commas.",
        unit="names",
        reason="They log in as to any other database.",
        warning="They can pause every database and end every client: name people, not applications.",
        reload=True,
        shown_default="the DSN's user",
    )
    stats_users: Names = option(
        [],
        group=DATABASE,
        description="Users who may use SHOW in the administration database, and nothing else there.",
        unit="names",
        reason="For what reads figures again and again.",
        warning="SHOW tells names of users, databases and applications, and the settings, without secrets.",
        reload=True,
    )
    otel_endpoint: str = option(
        "",
        group=TRACES,
        description="Where spans are sent by OTLP over HTTP, for example http://127.0.0.1:4318/v1/traces; empty for "
        "no traces.",
        unit="URL",
        reason="A trace then shows what the proxy decided and what the server took, below the client's own span.",
        warning="It needs the extra pilotwire[otel]. A span costs its statement 2 us, and the worker some 0.1 ms of "
        "computing in a thread: with thousands of statements a second lower otel_share.",
        reload=False,
        pattern=r"^(https?://[^\s@/]+(/[^\s@]*)?)?$",
    )
    otel_share: float = option(
        1.0,
        group=TRACES,
        description="Share of the statements without a traceparent of the client's that get a span.",
        unit="share",
        reason="All of them where the collector samples; less where there are thousands a second.",
        warning="Statements that belong to a client's sampled trace always get one.",
        reload=True,
        ge=0,
        le=1,
    )
    accuracy_samples: float = option(
        0.0,
        group=ACCURACY,
        description="How many statements an hour are run once more by EXPLAIN (ANALYZE), off the query path, to "
        "compare the rows of the joins inside them with what was predicted; 0: none.",
        unit="statements an hour",
        reason="The rows that a client gets tell how good the prediction for a whole statement was, and are watched "
        "always; those of the joins inside it show in a plan that was run.",
        warning="The statements are run as the user of the DSN: read-only ones without volatile functions, without "
        "their rows being sent, and only while the server is not busy (explore_most_active).",
        reload=True,
        ge=0,
        le=3600,
    )
    accuracy_limit: Seconds = option(
        5.0,
        group=ACCURACY,
        description="Such a run is cancelled after this long.",
        unit="seconds",
        reason="What takes longer is not worth its cost to the server.",
        warning="Predictions for statements that take longer are not looked at.",
        reload=True,
        ge=0.01,
        le=3600,
    )
