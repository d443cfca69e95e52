"""``pilotwire breaker``: circuit breakers, which turn a model or all steering off where too much was lost.

They close by themselves after a pause and a few good trials. A person who knows the reason to be gone closes one at
once; running proxies take that up within a second or so. Exit code 0: done; 1: not done, and one line says why; 2: a
wrong option.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotwire.fitted_table import Column, fitted
from pilotwire.memory_command import output_console, time_text
from pilotwire.store_access import ActorOption, ConfigOption, JsonOption, StoreOption, WhyOption, opened, person

if TYPE_CHECKING:
    from planner.memory.breaker import Standing

app = typer.Typer(no_args_is_help=True, help="Circuit breakers.", rich_markup_mode=None)
SourceArgument = Annotated[
    str, typer.Argument(metavar="SOURCE", help="A model and version as `list` shows it, or: everything.")
]
CoversOption = Annotated[
    str, typer.Option("--covers", metavar="WHAT", help="Only the model's breaker of its trials, or of its use.")
]
STYLES = {"open": "red", "half_open": "yellow", "closed": "green"}


@app.command("list")
def list_(store: StoreOption = "", config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """List them: that over all steering, and two for each model that has been judged."""
    from planner.memory.store.breakers import standing

    with opened(store, config) as open_:
        found = standing(open_)
    if as_json:
        print(json.dumps({"ok": True, "breakers": [as_plain(one) for one in found]}))
        return 0
    from rich.text import Text

    rows = []
    for one in found:
        plain = as_plain(one)
        position = Text(plain["position"], style=STYLES[plain["position"]])
        until = Text(plain["until"] or "-")
        rows.append((
            Text(plain["source"]), Text(plain["covers"]), position, until, Text(f"{one.bad} of {one.outcomes}"),
        ))  # fmt: skip
    names = ("source", "covers", "position", "until", "bad outcomes")
    console = output_console()
    console.print(fitted(console, [Column(name, right=name == "bad outcomes") for name in names], rows))
    return 0


@app.command()
def close(
    source: SourceArgument,
    covers: CoversOption = "",
    store: StoreOption = "",
    config: ConfigOption = None,
    actor: ActorOption = "",
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> int:
    """Close what is open, before its pause is over: steering goes on, and is watched as before."""
    from planner.memory.store.breakers import close as close_

    if covers not in ("", "trials", "use"):
        raise typer.BadParameter("--covers is trials or use")
    who = person(actor)
    with opened(store, config) as open_:
        found = close_(open_, source, covers, actor=who, why=why)
    if as_json:
        changed = [{"source": source, "covers": one.covers, "before": str(one.position)} for one in found]
        print(json.dumps({"ok": True, "actor": who, "closed": changed}))
        return 0
    for one in found:
        print(f"{source}, {one.covers}: {one.position} -> closed")
    return 0


def as_plain(one: Standing) -> dict[str, Any]:
    """As ``--json`` prints it."""
    from planner.memory.store.breakers import called

    return {
        "source": called(one),
        "covers": one.covers,
        "position": str(one.position),
        "until": time_text(one.until),
        "bad": one.bad,
        "outcomes": one.outcomes,
    }
