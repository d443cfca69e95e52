"""``python -m tests.conformance``: run it all, or a part, and say what differs."""

from __future__ import annotations

import dataclasses
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer import Option

from pilotwire.embedded import EmbeddedError
from tests.conformance import ledger
from tests.conformance.runner import SUITES, Comparison, Plan, compare
from tests.conformance.sources import ConformanceError
from tests.conformance.stage import Address, Mode
from tests.conformance.steering import STEERINGS, USUAL
from tests.conformance.verdict import Verdict

MODES: tuple[Mode, ...] = ("session", "transaction")
SHOWN_LINES = 40


def main(
    suite: Annotated[
        list[str] | None, Option(help=f"Only this suite, of {', '.join(SUITES)}; may be repeated.")
    ] = None,
    mode: Annotated[list[str] | None, Option(help="Only this pool mode; may be repeated.")] = None,
    steering: Annotated[
        list[str] | None,
        Option(help=f"How the proxy steers, of {', '.join(STEERINGS)}; may be repeated. Otherwise {', '.join(USUAL)}."),
    ] = None,
    schedule: Annotated[Path | None, Option(exists=True, help="Another schedule for the regression suite.")] = None,
    test: Annotated[
        list[str] | None, Option(help="Only this regression test after test_setup; may be repeated.")
    ] = None,
    spec: Annotated[list[str] | None, Option(help="Only this spec of the isolation suite; may be repeated.")] = None,
    target: Annotated[str, Option(help="HOST:PORT of a proxy that runs already, instead of one of our own.")] = "",
    server_port: Annotated[int, Option(help="Port of our own server, for a target whose upstream that is.")] = 0,
    keep: Annotated[bool, Option("--keep", help="Keep every pass's outputs and logs, and say where.")] = False,
    json_file: Annotated[Path | None, Option("--json", help="Write the verdicts as JSON, too.")] = None,
) -> None:
    """Compare PostgreSQL's and pgpool's protocol suites straight at the server and through the proxy."""
    ours = ((suite, SUITES, "suite"), (mode, MODES, "pool mode"), (steering, STEERINGS, "way of steering"))
    for given, known, what in ours:
        if unknown := [it for it in given or () if it not in known]:
            raise typer.BadParameter(f"there is no {what} {unknown[0]!r}, only {', '.join(known)}")
    plan = Plan(
        suites=suite or SUITES,
        modes=[it for it in MODES if it in (mode or MODES)],
        steerings=[it for it in STEERINGS if it in (steering or (("on",) if target else USUAL))],
        schedule=schedule.absolute() if schedule else None,
        tests=list(dict.fromkeys(["test_setup", *test])) if test else [],
        specs=list(dict.fromkeys(spec or ())),
        target=_address(target) if target else None,
        server_port=server_port,
        keep=keep,
    )
    raise typer.Exit(_run(plan, json_file))


def _run(plan: Plan, json_file: Path | None) -> int:
    console = Console(stderr=True)
    try:
        known = ledger.load()
        with _progress(console) as progress:
            task = progress.add_task("preparing", total=None)

            def show(what: str, done: int, total: int) -> None:
                progress.update(task, description=what, completed=done, total=total or None)

            found = compare(plan, show)
    except (ConformanceError, EmbeddedError, AssertionError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print("Stopped; everything that was started has been stopped.")
        return 130
    verdicts, place = found.verdicts, found.place
    narrowed = bool(plan.schedule or plan.tests or plan.specs)
    complaints = known.complaints(verdicts, complete=not narrowed)
    _show(console, verdicts, known)
    _show_delivered(console, found)
    for complaint in complaints:
        console.print(complaint, style="red", markup=False, highlight=False, soft_wrap=True)
    if json_file is not None:
        json_file.write_text(json.dumps(_report(found, known, complaints), indent=2) + "\n")
    if plan.keep:
        console.print(f"Outputs and logs: {place.results}", soft_wrap=True)
    if any(verdict.differences for verdict in verdicts):
        console.print(f"Differences in full: {place.differences}", soft_wrap=True)
    excused = sum(len(verdict.differences) for verdict in verdicts)
    passed = f"The same, but for {excused} in the ledger." if excused else "The proxy cannot be told from the server."
    console.print("Not the same." if complaints else passed)
    return 1 if complaints else 0


def _show(console: Console, verdicts: Sequence[Verdict], known: ledger.Ledger) -> None:
    table = Table("part", "files", "same", "in the ledger", "different", "differ between direct runs")
    for verdict in verdicts:
        excused = [it for it in verdict.differences if known.reason(it)]
        same = len(verdict.files) - len(verdict.differences) - len(verdict.unjudged)
        bad = len(verdict.differences) - len(excused)
        unstable = [f"{it} (not compared)" if it in verdict.unjudged else it for it in verdict.unstable]
        cells = (len(verdict.files), same, len(excused), bad)
        table.add_row(verdict.part, *map(str, cells), ", ".join(unstable) or "-")
    console.print(table)
    for difference in (it for verdict in verdicts for it in verdict.differences if known.reason(it) is None):
        lines = difference.diff.splitlines()
        more = [f"... and {len(lines) - SHOWN_LINES} lines more"] if len(lines) > SHOWN_LINES else []
        console.print("\n".join(lines[:SHOWN_LINES] + more), markup=False, highlight=False, soft_wrap=True)


def _show_delivered(console: Console, found: Comparison) -> None:
    table = Table("pass", "steered", "refused", "left alone", "why")
    for name, counted in found.delivered.items():
        table.add_row(name, *map(str, (counted.steered, counted.refused, counted.left_alone)), counted.reasons or "-")
    if found.delivered:
        console.print(table)


def _report(found: Comparison, known: ledger.Ledger, complaints: list[str]) -> dict[str, Any]:
    return {
        "passed": not complaints,
        "complaints": complaints,
        "passes": {name: dataclasses.asdict(counted) for name, counted in found.delivered.items()},
        "parts": [
            {
                "part": verdict.part,
                "files": len(verdict.files),
                "differ_between_direct_runs": list(verdict.unstable),
                "not_compared": list(verdict.unjudged),
                "differences": [
                    {"file": it.file, "sha256": it.fingerprint, "reason": known.reason(it), "diff": it.diff}
                    for it in verdict.differences
                ],
            }
            for verdict in found.verdicts
        ],
    }


def _progress(console: Console) -> Progress:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, TimeElapsedColumn(), console=console, transient=True)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise typer.BadParameter(f"{text!r} is not HOST:PORT")
    return Address(host.strip("[]"), int(port))


def _terminated(number: int, _: FrameType | None) -> None:
    # SIGTERM ends the run in the orderly way of Ctrl-C.
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    sys.argv[0] = "python -m tests.conformance"
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
