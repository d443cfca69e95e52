"""``pilotwire ledger``: what was changed about steering, when, by whom and why, for people and for other programs.

Exit code 0: done; 1: not done, and one line says why; 2: a wrong option.
"""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from pilotwire.errors import StartError
from pilotwire.store_access import ConfigOption, StoreOption, opened
from pilotwire.store_command import new_file, new_path

app = typer.Typer(no_args_is_help=True, help="The ledger of decisions.", rich_markup_mode=None)
KINDS = ("state", "execution", "breaker", "mode", "model", "person")
_AGO = re.compile(r"(\d+(?:\.\d+)?)(s|min|h|d|w)")
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
SinceOption = Annotated[
    str, typer.Option("--since", metavar="TIME", help="2026-05-01, 2026-05-01T12:00:00Z, or how long ago: 7d, 12h.")
]
UntilOption = Annotated[str, typer.Option("--until", metavar="TIME", help="The same; that moment itself is left out.")]
KindOption = Annotated[str, typer.Option("--kind", metavar="KIND", help=f"One of {', '.join(KINDS)}.")]
KeyOption = Annotated[str, typer.Option("--key", metavar="KEY", help="Of one query.")]
DatabaseOption = Annotated[str, typer.Option("--database", metavar="NAME", help="Of one database.")]
ByOption = Annotated[str, typer.Option("--actor", metavar="NAME", help="Decided by: system, or a person's name.")]


@app.command("list")
def list_(
    store: StoreOption = "",
    config: ConfigOption = None,
    since: SinceOption = "",
    until: UntilOption = "",
    kind: KindOption = "",
    key: KeyOption = "",
    database: DatabaseOption = "",
    actor: ByOption = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=10_000, help="At most so many.")] = 50,
    before: Annotated[
        int | None, typer.Option("--before", metavar="ID", min=1, help="Only lines before this one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Show the latest lines."""
    from planner.memory.store.ledger_export import as_json as line_as_json

    filters = _filters(since, until, kind, key, database, actor)
    with opened(store, config) as open_:
        found = [line_as_json(entry) for entry in open_.ledger(limit=limit, before_id=before, **filters)]
    if as_json:
        print(json.dumps({"ok": True, "lines": found}))
        return 0
    for line in found:
        what = f"{line['before'] or '-'} -> {line['after'] or '-'}" if line["before"] or line["after"] else ""
        took = f"{line['took_ms']:.1f} ms" if line["took_ms"] else ""
        about = (line["database"], line["scope"], line["key"][:12], line["arm"], line["model"])
        parts = (line["at"][:19] + "Z", line["kind"], *about, what, took, line["actor"])
        print("  ".join(part for part in (*map(str, parts), line["why"]) if part))
    return 0


@app.command()
def export(
    store: StoreOption = "",
    config: ConfigOption = None,
    out: Annotated[str, typer.Option("--out", "-o", metavar="FILE", help="Where to; - for standard output.")] = "-",
    form: Annotated[
        str, typer.Option("--format", metavar="NAME", help="jsonl or parquet; default: by the file's name, else jsonl.")
    ] = "",
    since: SinceOption = "",
    until: UntilOption = "",
    kind: KindOption = "",
    key: KeyOption = "",
    database: DatabaseOption = "",
    actor: ByOption = "",
) -> int:
    """Write the ledger as JSON lines or Parquet, the oldest line first."""
    form = form or ("parquet" if out.endswith(".parquet") else "jsonl")
    if form not in ("jsonl", "parquet"):
        raise typer.BadParameter("--format is jsonl or parquet")
    if form == "parquet" and out == "-":
        raise typer.BadParameter("parquet needs a file: --out ledger.parquet")
    from planner.memory.store.ledger_export import json_lines, write_parquet

    with opened(store, config) as open_:
        entries = open_.stream_ledger(**_filters(since, until, kind, key, database, actor))
        if form == "parquet":
            with new_path(Path(out)) as part:
                try:
                    write_parquet(entries, part)
                except ImportError:
                    raise StartError("Parquet needs pyarrow: pip install 'pilotwire[train]'") from None
        elif out == "-":
            for line in json_lines(entries):
                sys.stdout.write(line)
            sys.stdout.flush()
        else:
            with new_file(Path(out)) as file:
                for line in json_lines(entries):
                    file.write(line.encode())
    return 0


def _filters(since: str, until: str, kind: str, key: str, database: str, actor: str) -> dict[str, Any]:
    if kind and kind not in KINDS:
        raise typer.BadParameter(f"--kind is one of {', '.join(KINDS)}")
    return {
        "since": moment(since, "--since") if since else 0.0,
        "until": moment(until, "--until") if until else None,
        "kind": kind or None,
        "key": key or None,
        "database": database or None,
        "actor": actor or None,
    }


def moment(text: str, option: str) -> float:
    """Seconds since the epoch of a moment given as a date, a time or a duration ago. Raises typer.BadParameter."""
    ago = _AGO.fullmatch(text.strip())
    if ago is not None:
        return max(0.0, time.time() - float(ago[1]) * _SECONDS[ago[2]])
    try:
        found = datetime.fromisoformat(text.strip())
        return (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise typer.BadParameter(f"{option} is a date, a time (UTC unless it says else) or a duration: 7d") from None
