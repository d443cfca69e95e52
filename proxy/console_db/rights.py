"""Who may log in to the administration database, and what for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import IntEnum

from proxy.auth.upstream_secret import dsn_user
from proxy.login import Login
from proxy.settings import ProxySettings


class Rights(IntEnum):
    """Each includes those below it."""

    NONE = 0
    SHOW = 1
    ALL = 2


def meant(settings: ProxySettings, database: str, replication: str | None) -> bool:
    """Whether a login to ``database`` is one to the administration database. A replication connection never is."""
    return bool(settings.admin_database) and database == settings.admin_database and replication is None


def rights(settings: ProxySettings, login: Login, environment: Mapping[str, str] = os.environ) -> Rights:
    """What this client may do. Where connections are read-only, so is this one."""
    admins = settings.admin_users or [dsn_user(settings.dsn, environment)]
    if login.user in admins:
        return Rights.SHOW if login.read_only else Rights.ALL
    return Rights.SHOW if login.user in settings.stats_users else Rights.NONE
