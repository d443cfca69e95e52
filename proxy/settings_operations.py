"""Settings of those who run the proxy: the administration database and traces."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from proxy.options import Names, option
from proxy.settings_connections import CONFIG

DATABASE: Final = "Administration database"


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
