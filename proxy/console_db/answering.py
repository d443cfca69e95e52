"""The supervisor's side of the administration database: a command in, a table or what became of it out.

What is asked and answered are plain values, for the control channel. A message there has a limit, so long tables come
in pages; `session` asks for the next one when the client has taken the last.
"""

from __future__ import annotations

import re
from typing import Any, Final

from pydantic import SecretStr

from proxy.admin.source import Latency, NotFoundError, PlannerUnavailableError, RefusedError, UnavailableError
from proxy.console_db import tables
from proxy.console_db.commands import SHOWN, CommandError
from proxy.console_db.source import ConsoleSource
from proxy.console_db.tables import Table
from proxy.settings import docs

PAGE: Final = 500
"""Clients in one message; a name may be long, and the message may not."""
MAX_QUERIES: Final = 200
MAX_SERVERS: Final = 5000
HIDDEN: Final = "********"
_ID: Final = re.compile(r"\d{1,3}\.\d{1,18}")


async def answer(source: ConsoleSource, request: dict[str, Any], version: str) -> dict[str, Any]:
    """``request`` has verb, name, value, actor, and after (of the page before). The answer has a tag and perhaps a
    table, notices and busy (ask again until it is 0), or a failure. Never raises for what a client may have sent."""
    try:
        return await _answer(source, request, version)
    except CommandError as error:
        failure = error
    except RefusedError as error:
        failure = CommandError("22023", str(error))
    except NotFoundError as error:
        failure = CommandError("42704", str(error))
    except (UnavailableError, PlannerUnavailableError) as error:
        failure = CommandError("55000", str(error))
    return {"failure": [failure.sqlstate, failure.text, failure.hint]}


async def _answer(source: ConsoleSource, request: dict[str, Any], version: str) -> dict[str, Any]:
    name, actor = str(request["name"]), str(request["actor"])
    match request["verb"]:
        case "SHOW":
            table = await _show(source, name, str(request["after"]), version)
            return {"tag": "SHOW", "table": table.to_wire()}
        case "RELOAD":
            return await _reload(source)
        case "PAUSE":
            return await _pause(source, name, actor, begin=not request["after"])
        case "RESUME":
            await source.resume(name, actor)
            return {"tag": "RESUME"}
        case "KILL":
            return await _kill(source, name)
        case "SET":
            await _set(source, name, str(request["value"]), actor)
            return {"tag": "SET"}
    raise CommandError("42601", f"no command {request['verb']}")


async def _show(source: ConsoleSource, name: str, after: str, version: str) -> Table:
    match name:
        case "help":
            return tables.help_table()
        case "version":
            return tables.version(version)
        case "stats":
            return tables.stats(await source.stats())
        case "pools":
            return tables.pools(await source.pools(), source.paused)
        case "databases":
            return tables.databases(source.settings, await source.pools(), source.paused)
        case "clients":
            return tables.clients(await source.clients(after, PAGE), PAGE)
        case "servers":
            return tables.servers((await source.servers())[:MAX_SERVERS])
        case "models":
            planner = source.status().planner
            return tables.models(planner.models if planner is not None else (), await _latencies(source))
        case "decisions":
            return tables.decisions((await source.fresh_status()).totals)
        case "memory":
            found, _ = await source.memory.queries("saved", 0, MAX_QUERIES, None, None, "")
            return tables.memory(found)
        case "config":
            return tables.config(_config(source))
    shown = {row[0]: row[1] for row in _config(source)}
    if name not in shown:
        what = ", ".join(word.upper() for word in SHOWN)
        raise CommandError("42704", f'unrecognized configuration parameter "{name[:60]}"', f"SHOW takes {what}.")
    return tables.setting(name, shown[name])


async def _latencies(source: ConsoleSource) -> tuple[Latency, ...]:
    return (await source.latencies()).latest


def _config(source: ConsoleSource) -> list[tuple[str, str, str, bool]]:
    """Name, value, default, follows a reload. Secrets are never shown; no other setting holds one: a DSN's password is
    moved out of it when it is read."""
    settings = source.settings
    plain = settings.model_dump(mode="json")
    found = []
    for name, doc in docs().items():
        value = HIDDEN if isinstance(getattr(settings, name), SecretStr) else _text(plain[name])
        found.append((name, value, doc.default, doc.reload))
    return found


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, dict):
        return " ".join(f"{name}={_text(item)}" for name, item in value.items())
    return str(value)


async def _reload(source: ConsoleSource) -> dict[str, Any]:
    outcome = await source.reload()
    if outcome.refused:
        raise CommandError("F0000", f"the settings stay as they were: {outcome.refused}")
    notices = [f"changed: {', '.join(outcome.changed)}"] if outcome.changed else []
    if outcome.restart:
        notices.append(f"changed in the file, but needs a restart: {', '.join(outcome.restart)}")
    return {"tag": "RELOAD", "notices": notices}


async def _pause(source: ConsoleSource, name: str, actor: str, *, begin: bool) -> dict[str, Any]:
    if name and name == source.settings.admin_database:
        raise CommandError("42501", "the administration database cannot be paused")
    if not begin:
        return {"tag": "PAUSE", "busy": await source.busy(name)}
    await source.pause(name, actor)
    if source.settings.pool_mode == "transaction":
        return {"tag": "PAUSE", "busy": await source.busy(name)}
    kept = sum(pool.servers for pool in await source.pools() if not name or pool.database == name)
    notices = [f"{kept} server connections stay with their clients until those leave; new logins wait"] if kept else []
    return {"tag": "PAUSE", "notices": notices}


async def _kill(source: ConsoleSource, client: str) -> dict[str, Any]:
    if not _ID.fullmatch(client):
        raise CommandError("22023", f'"{client[:60]}" is no id of a client', "SHOW CLIENTS tells the ids.")
    if not await source.kill(client):
        raise CommandError("42704", f"there is no client {client}")
    return {"tag": "KILL"}


async def _set(source: ConsoleSource, name: str, value: str, actor: str) -> None:
    if name == "mode":
        try:
            await source.set_mode(value, actor, "SET")
        except ValueError as error:
            raise CommandError("22023", str(error)) from None
        return
    if name not in docs():
        raise CommandError("42704", f'unrecognized configuration parameter "{name[:60]}"', "SHOW CONFIG lists them.")
    await source.set(name, value, actor)
