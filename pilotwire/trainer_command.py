"""``pilotwire trainer``: a process beside serving that trains again, and hands a model over only if it is better.

It trains on a schedule and on events: enough new statements in the store, estimates that drifted, a schema that
changed, or no model that serves. What it does and what it set aside is told by ``pilotwire trainer status``. Exit code
0: stopped, or with --once everything due was done; 1: it could not be done, and one line says why; 2: a wrong option;
130: interrupted.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotwire import interrupting
from pilotwire.errors import StartError

if TYPE_CHECKING:
    from rich.text import Text

    from training.trainer.jobs import Job
    from training.trainer.trainer import Settings

INTERRUPTED = 130
SHOWN = 12
STYLES = {"waiting": "cyan", "running": "yellow", "done": "green", "set_aside": "red"}

app = typer.Typer(
    help="Train again on a schedule and on events; a model is handed over only if it is better than the serving one.",
    rich_markup_mode=None,
)
State = Annotated[
    Path | None,
    typer.Option(
        "--state", metavar="DIR", envvar="PILOTWIRE_TRAINER_STATE", help="Where jobs, counts and reports are kept."
    ),
]


Upstream = Annotated[
    str,
    typer.Option(
        "--upstream", metavar="DSN", envvar="PILOTWIRE_UPSTREAM", help="The database, read only: postgresql://..."
    ),
]
ArmsBudget = Annotated[
    float,
    typer.Option(
        "--arms-budget",
        metavar="SECONDS",
        min=0,
        help="Train a model of settings too, running statements under each for so long; 0: off.",
    ),
]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    upstream: Upstream = "",
    models: Annotated[
        Path | None,
        typer.Option("--models", metavar="DIR", envvar="PILOTWIRE_MODELS", help="The folder that is served from."),
    ] = None,
    store: Annotated[
        str,
        typer.Option("--store", metavar="URL", envvar="PILOTWIRE_STORE", help="Statements that the proxy saw; 'none'."),
    ] = "",
    queries: Annotated[
        Path | None, typer.Option("--queries", metavar="FILE", help="Statements to train on beside the store's.")
    ] = None,
    state: State = None,
    name: Annotated[str, typer.Option("--name", help="The model's file in the folder, without .onnx.")] = "trained",
    schedule: Annotated[
        str, typer.Option("--schedule", metavar="CRON", help="Five fields, UTC: '0 3 * * *' is every day at three.")
    ] = "",
    on_queries: Annotated[
        int, typer.Option("--on-queries", metavar="N", min=0, help="So many new statements in the store; 0: off.")
    ] = 500,
    on_drift: Annotated[
        float, typer.Option("--on-drift", metavar="FACTOR", min=0, help="The typical q-error grew so much; 0: off.")
    ] = 2.0,
    drift_every: Annotated[
        float, typer.Option("--drift-every", metavar="SECONDS", min=1, help="Between two looks at the estimates.")
    ] = 21_600.0,
    on_schema: Annotated[bool, typer.Option("--on-schema/--no-on-schema", help="Tables or columns changed.")] = True,
    margin: Annotated[
        float, typer.Option("--margin", min=0, max=10, help="By how much a model must be better: 0.05 is 5 %.")
    ] = 0.05,
    held_out: Annotated[
        float, typer.Option("--held-out", min=0.05, max=0.9, help="Share of the statements that judge, the latest.")
    ] = 0.25,
    days: Annotated[float, typer.Option("--days", min=0.01, help="How far back the store is read.")] = 14.0,
    label_dsn: Annotated[
        str,
        typer.Option("--label-dsn", metavar="DSN", envvar="PILOTWIRE_LABEL_DSN", help="Count there, on a replica."),
    ] = "",
    count_budget: Annotated[
        float, typer.Option("--count-budget", metavar="SECONDS", min=1, help="For counting joins, in each attempt.")
    ] = 300.0,
    arms_budget: ArmsBudget = 0.0,
    run_budget: Annotated[
        float, typer.Option("--run-budget", metavar="SECONDS", min=1, help="For running the statements that judge.")
    ] = 300.0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=100, help="Counted runs of each.")] = 3,
    check_every: Annotated[
        float, typer.Option("--check-every", metavar="SECONDS", min=0.1, help="Between two looks for events.")
    ] = 60.0,
    attempts: Annotated[int, typer.Option("--attempts", min=1, help="Then a job is set aside.")] = 5,
    retry_after: Annotated[
        float, typer.Option("--retry-after", metavar="SECONDS", min=0, help="After the first failure; it doubles.")
    ] = 60.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1)] = 0,
    now: Annotated[bool, typer.Option("--now", help="Train at once, whatever the events say.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Do what is due and end.")] = False,
) -> int:
    """Run the trainer."""
    if context.invoked_subcommand is not None:
        return 0
    if not upstream:
        raise typer.BadParameter("give the database with --upstream")
    if models is None:
        raise typer.BadParameter("give the folder that is served from with --models")
    from training.trainer.trainer import Settings

    if not name or "/" in name or name.startswith("."):
        raise typer.BadParameter("--name is the plain name of a file")
    settings = Settings(
        dsn=upstream, models=models, state=_folder(state), store=_store(store, queries), queries=queries, name=name,
        schedule=schedule, on_queries=on_queries, on_drift=on_drift, on_schema=on_schema, margin=margin,
        held_out=held_out, days=days, drift_every=drift_every, check_every=check_every, label_dsn=label_dsn,
        count_budget=count_budget, arms_budget=arms_budget, run_budget=run_budget, rounds=rounds, seed=seed,
        max_attempts=attempts, first_delay=retry_after,
    )  # fmt: skip
    return _run(settings, once=once, now=now)


@app.command()
def status(
    state: State = None, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> int:
    """Show what the trainer does, did, and set aside."""
    import msgspec
    from rich.console import Console

    from training.trainer import files
    from training.trainer.events import Marks
    from training.trainer.jobs import Jobs
    from training.trainer.trainer import MARKS, STATUS, Status

    folder = _folder(state)
    if not folder.is_dir():
        raise StartError(f"no trainer has worked in {folder}")
    running = files.locked(folder)
    known = Jobs(folder / "jobs").known()
    told = files.read(folder / STATUS, Status) or Status()
    marks = files.read(folder / MARKS, Marks) or Marks()
    if as_json:
        print(
            json.dumps(
                {
                    "ok": True,
                    "running": running,
                    "state": str(folder),
                    "status": msgspec.to_builtins(told),
                    "marks": msgspec.to_builtins(marks),
                    "jobs": [msgspec.to_builtins(job) for job in known],
                    "set_aside": [job.id for job in known if job.state == "set_aside"],
                }
            )
        )
        return 0
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"the trainer {'runs' if running else 'does not run'} ({folder})")
    if told.looked:
        console.print(f"looked for events {_ago(told.looked)}, {told.new_statements} new statements since the last job")
    if told.next_scheduled > time.time():
        minutes = (told.next_scheduled - time.time()) / 60
        console.print(f"the schedule comes in {f'{minutes:.0f} min' if minutes < 90 else f'{minutes / 60:.1f} h'}")
    if told.trouble:
        console.print(f"trouble: {told.trouble}", markup=False, style="yellow")
    aside = [job for job in known if job.state == "set_aside"]
    shown = [*aside, *[job for job in known if job.state != "set_aside"][: SHOWN - min(len(aside), SHOWN - 1)]]
    for job in shown:
        console.print(_described(job, running))
    if not known:
        console.print("no jobs yet")
    if aside:
        console.print(f"{len(aside)} set aside: look into the error, then: pilotwire trainer retry JOB")
    return 0


@app.command()
def retry(job: Annotated[str, typer.Argument(metavar="JOB", help="As status shows it.")], state: State = None) -> int:
    """Have a job that was set aside tried again."""
    from training.errors import TrainingError
    from training.trainer.jobs import Jobs

    try:
        Jobs(_folder(state) / "jobs").retry(job)
    except TrainingError as error:
        raise StartError(str(error)) from None
    typer.echo(f"job {job} is tried again at the trainer's next look")
    return 0


# ---------------------------------------------------------------------- running


def _run(settings: Settings, *, once: bool, now: bool) -> int:
    from pilotwire.cli import fail
    from training.errors import TrainingError
    from training.trainer import files
    from training.trainer.trainer import Trainer

    stopped: list[int] = []

    async def main() -> bool:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None

        def stop(number: int) -> None:
            stopped.append(number)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop, number)
        return await Trainer(settings, _say).run(once=once, now=now)

    try:
        with files.Lock(settings.state):
            return 0 if interrupting.run(main()) else 1
    except TrainingError as error:
        raise StartError(str(error)) from None
    except asyncio.CancelledError:
        if signal.SIGINT in stopped:
            return fail(
                "interrupted: what was counted is kept, and the job is taken up by the next trainer", INTERRUPTED
            )
        return 0


def _say(line: str) -> None:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    print(f"{stamp} {' '.join(line.split())}", file=sys.stderr, flush=True)


def _folder(state: Path | None) -> Path:
    """The state folder; beside the store's by default."""
    from proxy.settings_store import state_folder

    return state if state is not None else state_folder() / "trainer"


def _store(url: str, queries: Path | None) -> str:
    """The store's URL; "" for none. The default store is used only where it exists already."""
    from planner.memory.store import StoreError, locate

    if url == "none" or (not url and queries is not None):
        return ""
    if not url:
        default = _folder(None).parent / "store.db"
        return f"sqlite:///{default}" if default.exists() else ""
    try:
        return locate(url).url
    except StoreError as error:
        raise StartError(str(error)) from None


# ---------------------------------------------------------------------- showing


def _described(job: Job, running: bool) -> Text:
    from rich.text import Text

    state: Any = str(job.state)
    text = Text(f"{job.id}  ").append(f"{state.replace('_', ' '):<9}", style=STYLES[state])
    text.append(f"  {'; '.join(job.reasons)}")
    if state == "done":
        text.append(f"\n    {job.outcome.replace('_', ' ')}: {job.why}", style="green" if job.outcome != "kept" else "")
        if job.report:
            text.append(f"\n    {job.report}", style="dim")
    elif state == "running":
        gone = "" if running else " (its trainer is gone; the next one takes it up)"
        text.append(f"\n    attempt {job.attempts}, {_ago(job.started)}: {job.step or 'begun'}{gone}")
    elif job.errors:
        when = f"; again in {max(job.not_before - time.time(), 0):.0f} s" if state == "waiting" else ""
        count = "1 attempt failed" if job.attempts == 1 else f"{job.attempts} attempts failed, the last"
        failed = f"{count} with" if job.attempts else "to be tried again; it failed with"
        text.append(f"\n    {failed}: {job.errors[-1]}{when if job.attempts else ''}", style="yellow")
    return text


def _ago(moment: float) -> str:
    seconds = max(time.time() - moment, 0.0)
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min ago"
    return f"{seconds / 3600:.0f} h ago"
