"""``pilotwire memory``: what the plan memory knows, and a person's word on it.

Decisions are written into the store, with a line in the ledger; running proxies take them up within a second or so. A
query is named by its key, or by enough of the key's beginning. Exit code 0: done; 1: not done, and one line says why;
2: a wrong option.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotwire.fitted_table import Column, fitted
from pilotwire.store_access import ActorOption, ConfigOption, JsonOption, StoreOption, WhyOption, opened, person

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from planner.memory.records import ArmRecord, QueryRecord
    from planner.memory.store import Store

app = typer.Typer(no_args_is_help=True, help="The plan memory, and decisions about it.", rich_markup_mode=None)
KeyArgument = Annotated[str, typer.Argument(metavar="KEY", help="A query's key, or its first digits (at least four).")]
ArmArgument = Annotated[
    str, typer.Argument(metavar="ARM", help="Which way of planning it; needed when there are several.")
]
STATES = ("candidate", "trial", "approved", "rejected", "expired", "preferred", "frozen")
STATES_SHOWN = {"preferred": 0, "approved": 1, "trial": 2, "expired": 3}
"""Arms that are named in a list, in this order."""
STYLES = {"approved": "green", "preferred": "bold green", "rejected": "red", "frozen": "cyan", "trial": "yellow"}


@app.command("list")
def list_(
    store: StoreOption = "",
    config: ConfigOption = None,
    database: Annotated[str, typer.Option("--database", metavar="NAME", help="Only of this database.")] = "",
    state: Annotated[
        str, typer.Option("--state", metavar="STATE", help=f"Only with an arm in this state: {', '.join(STATES)}.")
    ] = "",
    fingerprint: Annotated[str, typer.Option("--fingerprint", metavar="TEXT", help="Only with this one.")] = "",
    template: Annotated[str, typer.Option("--template", metavar="KEY", help="Only of this template.")] = "",
    order: Annotated[
        str, typer.Option("--order", metavar="NAME", help="The most first of: total_ms, calls, last_seen, updated.")
    ] = "total_ms",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=10_000, help="At most so many.")] = 50,
    offset: Annotated[int, typer.Option("--offset", metavar="N", min=0, help="Leave out the first ones.")] = 0,
    as_json: JsonOption = False,
) -> int:
    """List what is remembered: queries with the states of their arms, those with the most time first."""
    if state and state not in STATES:
        raise typer.BadParameter(f"--state is one of {', '.join(STATES)}")
    if order not in ("total_ms", "calls", "last_seen", "updated"):
        raise typer.BadParameter("--order is one of total_ms, calls, last_seen, updated")
    with opened(store, config) as open_:
        queries = open_.queries(
            database or None,
            limit=limit,
            order=order,
            offset=offset,
            template=template or None,
            fingerprint=fingerprint or None,
            state=state if state and state != "frozen" else None,
            frozen=True if state == "frozen" else None,
        )
        arms = _arms(open_, queries)
    if as_json:
        found = [query_as_json(query) | {"arms": [arm_as_json(arm) for arm in arms[query.key]]} for query in queries]
        print(json.dumps({"ok": True, "queries": found}))
        return 0
    _table(queries, arms, state)
    return 0


@app.command()
def show(key: KeyArgument, store: StoreOption = "", config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Show one query: its arms, what was measured, and the latest lines of its ledger."""
    from planner.memory.store.ledger_export import as_json as line_as_json

    with opened(store, config) as open_:
        query, arms = _find(open_, key)
        ledger = open_.ledger(key=query.key, limit=20)
    if as_json:
        facts = {"query": query_as_json(query), "arms": [arm_as_json(arm) for arm in arms]}
        print(json.dumps({"ok": True} | facts | {"ledger": [line_as_json(entry) for entry in ledger]}))
        return 0
    console = output_console()
    _print_query(console, query, arms)
    for entry in ledger:
        change = f"{entry.before or '-'} -> {entry.after or '-'}"
        if entry.kind == "execution":
            change = f"took {entry.took_ms:.1f} ms"
        console.print(f"  {time_text(entry.at)}  {entry.arm or '':<22} {change:<24} {entry.actor}: {entry.why}")
    return 0


@app.command()
def approve(
    key: KeyArgument,
    arm: ArmArgument = "",
    store: StoreOption = "",
    config: ConfigOption = None,
    actor: ActorOption = "",
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> int:
    """Have an arm replayed; it is withdrawn by itself if it turns out to be slower."""
    return _decide("approve", key, arm, store, config, actor, why, as_json)


@app.command()
def reject(
    key: KeyArgument,
    arm: ArmArgument = "",
    store: StoreOption = "",
    config: ConfigOption = None,
    actor: ActorOption = "",
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> int:
    """Have an arm neither used nor tried, until the schema, the data or the server changes."""
    return _decide("reject", key, arm, store, config, actor, why, as_json)


@app.command()
def prefer(
    key: KeyArgument,
    arm: ArmArgument = "",
    store: StoreOption = "",
    config: ConfigOption = None,
    actor: ActorOption = "",
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> int:
    """Have an arm used whatever the evidence; it is never withdrawn by itself."""
    return _decide("prefer", key, arm, store, config, actor, why, as_json)


@app.command()
def freeze(
    key: KeyArgument,
    store: StoreOption = "",
    config: ConfigOption = None,
    actor: ActorOption = "",
    why: WhyOption = "",
    template: Annotated[
        bool, typer.Option("--template", help="All queries of its kind, whatever their values.")
    ] = False,
    as_json: JsonOption = False,
) -> int:
    """Have a query left alone: it runs as the client sent it, until `unfreeze`."""
    return _decide("opt_out" if template else "freeze", key, "", store, config, actor, why, as_json)


@app.command()
def unfreeze(
    key: KeyArgument,
    store: StoreOption = "",
    config: ConfigOption = None,
    actor: ActorOption = "",
    why: WhyOption = "",
    template: Annotated[bool, typer.Option("--template", help="What `freeze --template` froze.")] = False,
    as_json: JsonOption = False,
) -> int:
    """End a `freeze`."""
    return _decide("opt_in" if template else "unfreeze", key, "", store, config, actor, why, as_json)


@app.command()
def release(
    key: KeyArgument,
    store: StoreOption = "",
    config: ConfigOption = None,
    actor: ActorOption = "",
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> int:
    """Take back what people decided about a query: its arms are verified again."""
    return _decide("release", key, "", store, config, actor, why, as_json)


@app.command()
def forget(
    key: KeyArgument,
    store: StoreOption = "",
    config: ConfigOption = None,
    actor: ActorOption = "",
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> int:
    """Remove all that is known of a query, except its lines in the ledger; it is learned anew."""
    return _decide("forget", key, "", store, config, actor, why, as_json)


# ---------------------------------------------------------------------- doing


def _decide(action: str, key: str, arm: str, store: str, config: Any, actor: str, why: str, as_json: bool) -> int:
    from planner.memory.store.decisions import decide, find_key

    who = person(actor)
    with opened(store, config) as open_:
        whole = find_key(open_, key)
        before = {record.arm: record.state for record in open_.arms(whole)}
        saved = decide(open_, whole, action, arm, actor=who, why=why)
        query = open_.query(whole)
    changed = [{"arm": one.arm, "before": before.get(one.arm), "after": one.state} for one in saved.arms]
    frozen = query.opted_out if query is not None else False
    if as_json:
        facts = {"ok": True, "key": whole, "action": action, "actor": who, "arms": changed, "frozen": frozen}
        print(json.dumps(facts | {"known": query is not None}))
        return 0
    words: dict[str, Callable[[], str]] = {
        "freeze": lambda: "is frozen: it is left alone",
        "unfreeze": lambda: "is no longer frozen",
        "opt_out": lambda: "and all of its template are left alone",
        "opt_in": lambda: "and all of its template may be steered again",
        "forget": lambda: "is forgotten",
    }
    for one in changed:
        print(f"{whole}: {one['arm']} {one['before'] or '(new)'} -> {one['after']}")
    if action in words:
        print(f"{whole} {words[action]()}")
    return 0


def _find(store: Store, key: str) -> tuple[QueryRecord, list[ArmRecord]]:
    from planner.memory.store.decisions import DecisionError, find_key

    whole = find_key(store, key)
    query = store.query(whole)
    if query is None:
        raise DecisionError(f"no query {whole} is remembered")
    return query, store.arms(whole)


def _arms(store: Store, queries: Sequence[QueryRecord]) -> dict[str, list[ArmRecord]]:
    found: dict[str, list[ArmRecord]] = {query.key: [] for query in queries}
    keys = list(found)
    for start in range(0, len(keys), 500):
        for arm in store.arms(keys=keys[start : start + 500]):
            found[arm.key].append(arm)
    return found


# -------------------------------------------------------------------- showing


def query_as_json(query: QueryRecord) -> dict[str, Any]:
    """A query as the commands print it; ``statement`` has its literals hashed unless they are kept."""
    return {
        "key": query.key,
        "template": query.template,
        "is_template": query.key == query.template,
        "database": query.database,
        "search_path": query.search_path,
        "fingerprint": query.fingerprint,
        "statement": query.text or query.shape,
        "frozen": query.opted_out,
        "calls": query.calls,
        "total_ms": round(query.total_ms, 3),
        "unsteered_p50_ms": _middle(query.baseline),
        "first_seen": time_text(query.first_seen),
        "last_seen": time_text(query.last_seen),
        "updated": time_text(query.updated),
        "actor": query.actor,
    }


def arm_as_json(arm: ArmRecord) -> dict[str, Any]:
    return {
        "arm": arm.arm,
        "state": str(arm.state),
        "model": arm.model or None,
        "settings": dict(arm.advice.settings),
        "rows": [{"aliases": list(aliases), "rows": rows} for aliases, rows in arm.advice.rows],
        "runs": arm.runs,
        "losses": arm.losses,
        "steered_p50_ms": _middle(arm.latencies),
        "unsteered_p50_ms": _middle(arm.baseline),
        "expected_gain": arm.expected_gain or None,
        "measured_gain": arm.measured_gain or None,
        "why": arm.why,
        "actor": arm.actor,
        "updated": time_text(arm.updated),
    }


def _table(queries: Sequence[QueryRecord], arms: dict[str, list[ArmRecord]], wanted: str) -> None:
    from rich.text import Text

    console = output_console()
    if not queries:
        console.print("nothing is remembered that fits")
        return
    between = "\n" if console.is_terminal else ", "
    rows = [
        (
            Text(query.key[:12]), Text(f"{query.calls:,}"), Text(f"{query.total_ms / 1000:,.1f} s"),
            Text(query.database), Text(between).join(states(query, arms[query.key], wanted)),
            Text(" ".join((query.text or query.shape or f"fingerprint {query.fingerprint}").split())),
        )
        for query in queries
    ]  # fmt: skip
    columns = (
        Column("key"), Column("calls", right=True), Column("total", right=True), Column("database", 1),
        Column("arms", 3), Column("statement", 3),
    )  # fmt: skip
    console.print(fitted(console, columns, rows))


def states(query: QueryRecord, arms: Sequence[ArmRecord], wanted: str = "") -> list[Text]:
    """What stands of a query's arms in a list: those in use, on trial or to be verified again, and those in the state
    that was asked for; of the others how many there are."""
    from rich.text import Text

    found = [Text("frozen", style=STYLES["frozen"])] if query.opted_out else []
    others: dict[str, int] = {}
    for arm in sorted(arms, key=lambda arm: (STATES_SHOWN.get(arm.state, len(STATES_SHOWN)), -arm.measured_gain)):
        if arm.state not in STATES_SHOWN and arm.state != wanted:
            others[arm.state] = others.get(arm.state, 0) + 1
            continue
        gain = f" {arm.measured_gain:.2f}x" if arm.measured_gain else ""
        found.append(Text(f"{arm.state}{gain} {arm.arm}", style=STYLES.get(arm.state, "")))
    counted = ", ".join(f"{count} {state}" for state, count in sorted(others.items()))
    return [*found, Text(counted, style="dim")] if counted else found or [Text("-")]


def _print_query(console: Console, query: QueryRecord, arms: Sequence[ArmRecord]) -> None:
    from rich.text import Text

    console.print(Text(query.key, style="bold"))
    facts = {
        "database": query.database,
        "search_path": query.search_path,
        "fingerprint": query.fingerprint,
        "template": query.template,
        "statement": query.text or query.shape or "-",
        "values": query.params or "-",
        "calls": f"{query.calls:,}, {query.total_ms / 1000:,.1f} s in total",
        "unsteered": f"{_ms(_middle(query.baseline))} (p50 of the latest {len(query.baseline)})",
        "seen": f"{time_text(query.first_seen) or '-'} to {time_text(query.last_seen) or '-'}",
        "frozen": f"yes, by {query.actor}" if query.opted_out else "no",
    }
    for name, fact in facts.items():
        console.print(Text.assemble((f"  {name:<12} ", "dim"), fact))
    for arm in arms:
        console.print(Text.assemble((f"  {arm.arm}  ", "bold"), (str(arm.state), STYLES.get(arm.state, ""))))
        settings = ", ".join(f"{name} = {value}" for name, value in arm.advice.settings)
        rows = ", ".join(f"{' '.join(aliases)}: {count:g}" for aliases, count in arm.advice.rows)
        gain = f"{arm.measured_gain:.2f}x" if arm.measured_gain else "-"
        lines = {
            "advice": "; ".join(part for part in (settings, rows) if part) or "-",
            "model": arm.model or "-",
            "measured": f"{_ms(_middle(arm.latencies))} against {_ms(_middle(arm.baseline))} unsteered, gain {gain}, "
            f"{arm.runs} runs, {arm.losses} lost",
            "since": f"{time_text(arm.updated) or '-'} by {arm.actor}" + (f": {arm.why}" if arm.why else ""),
        }
        for name, fact in lines.items():
            console.print(Text.assemble((f"    {name:<10} ", "dim"), fact))


def output_console() -> Console:
    """Standard output, for tables."""
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    # Without a terminal rich would cut lines at 80 columns: a file or a pipe gets them whole.
    return console if console.is_terminal else Console(highlight=False, soft_wrap=True, markup=False, width=200)


def _middle(values: Sequence[float]) -> float | None:
    from statistics import median

    return round(median(values), 3) if values else None


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f} ms"


def time_text(seconds: float) -> str | None:
    """A moment as the commands print it; None where there is none."""
    if not seconds or not math.isfinite(seconds):
        return None
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (OverflowError, OSError, ValueError):
        return None
