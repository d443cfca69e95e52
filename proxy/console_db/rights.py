"""Who may log in to the administration database, and what for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from enum import IntEnum

from proxy.auth.upstream_secret import dsn_user
from proxy.login import Login
from proxy.logs import Log
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
    if login.user in admins(settings, environment):
        return Rights.SHOW if login.read_only else Rights.ALL
    return Rights.SHOW if login.user in settings.stats_users else Rights.NONE


def admins(settings: ProxySettings, environment: Mapping[str, str] = os.environ) -> list[str]:
    """Who may do everything: those of ``admin_users``, and where nobody is named the DSN's user."""
    return settings.admin_users or [dsn_user(settings.dsn, environment)]


def say_who(settings: ProxySettings, log: Log) -> None:
    """One line at the start where the DSN's user, which may well be an application's, is the administrator."""
    if settings.admin_database and not settings.admin_users:
        log.event(
            "admin_users_not_set",
            level="warning",
            admin=admins(settings)[0],
            detail="the DSN's user may PAUSE and KILL in the administration database: name people in admin_users",
        )
