"""Progress of long commands: bars on a terminal, a line a step elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from training.steps import Step, Tell

if TYPE_CHECKING:
    from rich.progress import TaskID


@contextlib.contextmanager
def progress_bars(*, quiet: bool) -> Iterator[Tell]:
    """Shows the steps on standard error: bars on a terminal, one line a step elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        seen: set[str] = set()

        def line(step: Step) -> None:
            if not quiet and step.name not in seen:
                seen.add(step.name)
                total = f" ({step.total})" if step.total else ""
                console.print(f"{step.name}{total} ...", soft_wrap=True)

        yield line
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def show(step: Step) -> None:
            total = step.total or None
            if step.name not in tasks:
                for earlier in tasks.values():
                    bars.update(earlier, completed=1, total=1, visible=False)
                tasks[step.name] = bars.add_task(step.name, total=total, note="")
            bars.update(tasks[step.name], completed=step.done, total=total, note=step.note)

        yield show
