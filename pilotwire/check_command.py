"""``pilotwire check``: validates the settings, shows each value with its origin, names the risks."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import typer

from pilotwire.config import DEFAULT, SECRETS, Loaded, load
from pilotwire.setting_options import CONFIG_OPTION, with_settings
from proxy.dsn import Host
from proxy.options import OptionDoc
from proxy.settings import ProxySettings, docs


@with_settings
def check(
    config: Path | None = CONFIG_OPTION,
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object instead of a table."),
    connect: bool = typer.Option(False, "--connect", help="Also log in to each host of the upstream."),
    **settings: Any,
) -> int:
    """Exit code 0 when all is well, 1 when no host of the upstream answers, 2 when the settings, or the files that they
    name, cannot be used."""
    from pilotwire.cli import fail

    try:
        loaded = load(config, settings)
        _read_files(loaded.settings)
    except (ValueError, OSError) as error:
        if as_json:
            print(json.dumps({"ok": False, "error": str(error)}))
            return 2
        return fail(str(error), 2)
    attempts = asyncio.run(_try_hosts(loaded.settings)) if connect else []
    reached = not attempts or any(attempt["ok"] for attempt in attempts)
    if as_json:
        print(json.dumps(_as_json(loaded, attempts, reached), indent=2))
    else:
        _print(loaded, attempts)
    if not reached:
        return fail("no host of the upstream lets us in", 1) if not as_json else 1
    return 0


def _read_files(settings: ProxySettings) -> None:
    """Reads what serving reads at its start. ValueError or OSError when it would not start."""
    from proxy.auth.authenticator import known_users
    from proxy.tls import TlsContexts

    keys = (settings.client_tls_key or settings.client_tls_cert, settings.server_tls_key or settings.server_tls_cert)
    # Root checks for a service that may run as somebody else, whose keys may then be its own.
    if os.geteuid() or all(os.stat(key).st_uid == 0 for key in keys if key):
        TlsContexts(settings)
    known_users(settings)


def _shown(name: str, value: Any) -> Any:
    """A value fit for printing: secrets masked, models as plain data."""
    if name in SECRETS:
        return "********" if value is not None else None
    if isinstance(value, list):
        return [item.model_dump() if hasattr(item, "model_dump") else item for item in value]
    return value


def _as_json(loaded: Loaded, attempts: list[dict[str, Any]], reached: bool) -> dict[str, Any]:
    values = {
        name: {
            "value": _shown(name, getattr(loaded.settings, name)),
            "origin": loaded.origins[name],
            "unit": doc.unit,
            "changes_on_reload": doc.reload,
        }
        for name, doc in docs().items()
    }
    result: dict[str, Any] = {"ok": reached, "settings": values, "warnings": loaded.warnings}
    if attempts:
        result["upstream"] = attempts
    return result


def _print(loaded: Loaded, attempts: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.text import Text

    # Without a terminal rich would cut lines at 80 columns: a file or a pipe gets them whole.
    console = Console(highlight=False, soft_wrap=True)
    group = ""
    width = max(len(name) for name in docs())
    for name, doc in docs().items():
        if doc.group != group:
            group = doc.group
            console.print(Text(f"\n{group}", style="bold"))
        origin = loaded.origins[name]
        line = Text(f"  {name:<{width}}  ")
        line.append(
            _as_text(doc, _shown(name, getattr(loaded.settings, name))), style="" if origin == DEFAULT else "cyan"
        )
        if origin != DEFAULT:
            line.append(f"  ({origin})", style="dim")
        console.print(line)
    console.print()
    for sentence in loaded.warnings:
        console.print(Text("warning: ", style="yellow").append(sentence, style="none"))
    for attempt in attempts:
        text = Text("reached: " if attempt["ok"] else "failed: ", style="green" if attempt["ok"] else "red")
        console.print(text.append(f"{attempt['host']}: {attempt['detail']}", style="none"))
    console.print(Text("The settings are valid.", style="green"))


def _as_text(doc: OptionDoc, value: Any) -> str:
    if value is None or value in ("", []):
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(item if isinstance(item, str) else json.dumps(item) for item in value)
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{text} {doc.unit}" if isinstance(value, int | float) else text


async def _try_hosts(settings: ProxySettings) -> list[dict[str, Any]]:
    """Log in to every host at once; each result says what it found or why it failed."""
    return list(await asyncio.gather(*(_try_host(settings, host) for host in settings.dsn.hosts)))


async def _try_host(settings: ProxySettings, host: Host) -> dict[str, Any]:
    import asyncpg

    user = settings.dsn.user or getpass.getuser()
    # asyncpg reads TLS files from a DSN only; everything else is given apart, so that no PG* variable gets in.
    tls: dict[str, str] = {"sslmode": settings.server_tls_mode}
    if settings.server_tls_ca and settings.server_tls_ca != "system":
        tls["sslrootcert"] = settings.server_tls_ca
    if settings.server_tls_cert:
        tls |= {"sslcert": settings.server_tls_cert, "sslkey": settings.server_tls_key}
    try:
        connection = await asyncpg.connect(
            f"postgresql://?{urlencode(tls)}",
            host=host.host,
            port=host.port,
            user=user,
            password=settings.password or "",
            passfile=os.devnull,
            database=settings.dsn.database or user,
            ssl=ssl.create_default_context() if settings.server_tls_ca == "system" else None,
            timeout=settings.connect_timeout,
        )
        try:
            version, standby, limit = await connection.fetchrow(
                "SELECT current_setting('server_version'), pg_is_in_recovery(), "
                "current_setting('max_connections')::integer"
            )
        finally:
            await connection.close(timeout=settings.connect_timeout)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        reason = " ".join(str(error).split()) or f"no answer within {settings.connect_timeout:g} seconds"
        return {"host": str(host), "ok": False, "detail": reason}
    role = "standby" if standby else "primary"
    detail = f"PostgreSQL {version}, {role}, max_connections {limit}, as user {user}"
    needed = settings.workers * (settings.pool_size + settings.pool_overflow)
    if settings.pool_mode == "transaction" and needed > limit:
        detail += f"; one user and database alone may need {needed} connections: lower pool_size or workers"
    return {"host": str(host), "ok": True, "detail": detail}
