"""Connecting by asyncpg to the first of several hosts that will do, each within a time of its own.

asyncpg walks through hosts by itself, but under one limit for all of them: a host that is switched off, or behind a
network that drops its packets, would use it up, and the next one would never be asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlencode

import asyncpg
from asyncpg.exceptions import TargetServerAttributeNotMatched

from proxy.dsn import Host
from proxy.tls import TlsContexts

# What a host says, or does, that is starting, stopping, or not there behind a balancer that accepts for it.
_NEXT_HOST: Final = (OSError, asyncpg.CannotConnectNowError, asyncpg.ConnectionDoesNotExistError)


def passes(target_session_attrs: str) -> tuple[str, ...]:
    """What to ask all hosts for, one after another: with ``prefer-standby`` a standby, and then whatever is there."""
    return ("standby", "any") if target_session_attrs == "prefer-standby" else (target_session_attrs,)


async def connect_first(
    dsn: str | None = None, *, hosts: Sequence[Host], target_session_attrs: str, limit: float, **options: Any
) -> Any:
    """An asyncpg connection to the first host that ``target_session_attrs`` wants, ``limit`` seconds for each.

    ``dsn`` and ``options`` are asyncpg's, so that this can be a pool's way to connect; the hosts are not in it. Raises
    what the last host that was tried failed with, or the refusal of one after which no other is asked:
    asyncpg.PostgresError, OSError, asyncpg.InterfaceError.
    """
    failure: BaseException = ConnectionError("no host is configured")
    gone: set[Host] = set()
    for wanted in passes(target_session_attrs):
        for host in (it for it in hosts if it not in gone):
            try:
                return await asyncpg.connect(
                    dsn, host=host.host, port=host.port, target_session_attrs=wanted, timeout=limit, **options
                )
            except TargetServerAttributeNotMatched:
                failure = ConnectionError(f"none of the hosts is {target_session_attrs} (target_session_attrs)")
            except _NEXT_HOST as error:
                gone.add(host)
                failure = error
    raise failure


def tls_options(tls: TlsContexts, hosts: Sequence[Host]) -> dict[str, Any]:
    """What asyncpg is told about encryption: the context with our certificates, but for the modes that fall back. For
    those it makes contexts of its own, and takes the names of certificates from a DSN alone."""
    mode = tls.server_mode
    if mode == "disable" or all(host.is_unix for host in hosts):
        return {"ssl": False}
    if mode not in ("allow", "prefer"):
        return {"ssl": tls.server_side}
    certificate, key = tls.server_pair
    if not certificate:
        return {"ssl": mode}
    return {"dsn": "postgresql://?" + urlencode({"sslmode": mode, "sslcert": certificate, "sslkey": key})}
