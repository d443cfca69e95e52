"""``pilotwire explain``: what would be told to PostgreSQL about one statement, why, and what comes of it."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pilotwire.config import SettingsError, load
from pilotwire.errors import StartError
from pilotwire.setting_options import CONFIG_OPTION
from proxy.settings import ProxySettings

if TYPE_CHECKING:
    from pilotwire.explain_collect import Explained
    from planner.advise import Models

_STDIN = "-"
_TYPES = (
    "bool", "int2", "int4", "int8", "float4", "float8", "numeric", "date", "time", "timestamp", "timestamptz",
    "interval", "uuid",
)  # fmt: skip
_PARAMETERS: list[str] = typer.Option(
    [], "--param", "-p", metavar="VALUE", help="The value of $1, then of $2 ...; repeat it for each."
)


def explain(
    statement: str = typer.Argument(..., metavar="SQL", help="The statement, or - to read it from standard input."),
    upstream: str | None = typer.Option(
        None, "--upstream", metavar="DSN", help="The PostgreSQL server; also PILOTWIRE_UPSTREAM."
    ),
    models: str | None = typer.Option(None, "--models", metavar="FOLDER", help="Folder of model files (.onnx)."),
    param: list[str] = _PARAMETERS,
    search_path: str | None = typer.Option(None, "--search-path", metavar="SCHEMAS", help="As in SET search_path."),
    analyze: bool = typer.Option(
        False, "--analyze", help="Run the statement both ways, in read-only transactions, and count true rows."
    ),
    timeout: float = typer.Option(30.0, "--timeout", metavar="SECONDS", help="Limit for each statement that is run."),
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
    config: Path | None = CONFIG_OPTION,
) -> int:
    """Nothing is written, and without --analyze nothing is executed. Exit code 0 also when no advice is given."""
    from pilotwire.cli import fail

    try:
        settings = load(config, {"upstream": upstream, "models": models}).settings
    except SettingsError as error:
        return fail(str(error), 2)
    sql = sys.stdin.read() if statement == _STDIN else statement
    found = asyncio.run(_explain(settings, sql, param, search_path, analyze, timeout))
    if as_json:
        print(json.dumps(as_plain(found), indent=2))
        return 0
    from rich.console import Console

    from pilotwire.explain_view import show

    show(found, Console(highlight=False))
    return 0


async def _explain(
    settings: ProxySettings, sql: str, param: list[str], search_path: str | None, analyze: bool, seconds: float
) -> Explained:
    import asyncpg

    from model_runtime.store import ModelStore
    from pilotwire.explain_collect import explain as collect
    from pilotwire.planner_process import upstream
    from planner.advise import Models
    from planner.catalog import load as read_catalog
    from planner.catalogs import connector
    from planner.graph import Const

    login = upstream(settings)
    try:
        connection = await connector(login, login.database)()
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or f"no answer within {login.connect_timeout:g} seconds"
        raise StartError(f"cannot reach {settings.dsn.text()}: {reason}") from None
    try:
        if search_path is not None:
            await connection.execute("SELECT set_config('search_path', $1, false)", search_path)
        chosen = Models()
        if settings.models:
            store = ModelStore(settings.models, record=False)
            await asyncio.to_thread(store.reload)
            store.close()
            chosen = Models(store.current("cardinality"), store.current("hints"))
        snapshot = await read_catalog(connection, sample_rows=settings.sample_rows)
        await _values_in_text(connection)
        params = {number: Const(value) for number, value in enumerate(param, 1)}
        found = await collect(connection, snapshot, chosen, sql, params, analyze=analyze, seconds=seconds)
        _note_models(settings, chosen, found)
        return found
    except (OSError, asyncpg.PostgresError) as error:
        raise StartError(f"the catalog cannot be read: {' '.join(str(error).split())}") from None
    finally:
        await connection.close(timeout=5)


async def _values_in_text(connection: Any) -> None:
    """Parameters are sent as they were written, for the server to read as the type that it gives them."""
    for name in _TYPES:
        await connection.set_type_codec(name, schema="pg_catalog", encoder=str, decoder=str, format="text")


def _note_models(settings: ProxySettings, models: Models, found: Explained) -> None:
    if models.cardinality is None and models.hints is None and found.reason == "no_model":
        found.notes.append(
            f"There is no good model in {settings.models}: see `pilotwire model list --models {settings.models}`."
            if settings.models
            else "Name a folder of models with --models."
        )


def as_plain(found: Explained) -> dict[str, Any]:
    """Everything as JSON's types."""
    from pilotwire.explain_reasons import sentence

    plans = {"plain": found.plain, "steered": found.steered}
    return {
        "statement": found.sql,
        "fingerprint": found.fingerprint,
        "steered": not found.reason,
        "reason": found.reason,
        "why": sentence(found),
        "model": found.outcome.model if found.outcome is not None else "",
        "estimated_ms": found.outcome.estimated_ms if found.outcome is not None else None,
        "blocks": [
            {
                "relations": [asdict(relation) for relation in block.relations],
                "joins": [asdict(edge) for edge in block.edges],
            }
            for block in (found.graph.blocks if found.graph is not None else ())
        ],
        "sub_plans": [
            {
                "block": one.block,
                "aliases": list(one.aliases),
                "native": one.native,
                "model": one.rows,
                "true": found.true_rows.get((one.block, one.mask)),
                "reason": one.reason,
            }
            for one in found.sub_plans
        ],
        "dialect": found.dialect,
        "advice": found.dialects,
        "plans": {
            name: None
            if plan is None
            else {
                "cost": plan.cost,
                "planning_ms": plan.planning_ms,
                "execution_ms": plan.execution_ms,
                "steps": [
                    {"depth": depth, "step": node.name, "rows": node.rows, "actual": node.actual}
                    for depth, node in plan.root.walk()
                ],
            }
            for name, plan in plans.items()
        },
        "notes": found.notes,
    }
