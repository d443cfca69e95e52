"""The pgbench grid: every target in every cell, interleaved, CPU per query beside tps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import psutil

from benchmarks.pgbench import Pgbench
from benchmarks.process_costs import cpu_between, cpu_seconds, stolen_share
from benchmarks.processes import BenchmarkError
from benchmarks.ratios import Cell, Mode, Sample
from benchmarks.targets import Bench, Target, Variant

CLIENTS = (1, 8, 32)
MODES: tuple[Mode, ...] = ("simple", "extended", "prepared")
MOST_STOLEN = 0.03
"""Of all processors together; seen to change a ratio by a tenth and more when it comes in bursts."""
GRID = tuple(Cell(clients, mode) for clients, mode in product(CLIENTS, MODES))
VARIANTS = (
    Variant("direct"),
    Variant("pgbouncer", "session"),
    Variant("pgbouncer", "transaction"),
    Variant("pilotwire", "session"),
    Variant("pilotwire", "transaction"),
    Variant("pilotwire", "session", compiled=True),
    Variant("pilotwire", "transaction", compiled=True),
)


def parse_cells(text: str) -> tuple[Cell, ...]:
    """Cells from text like ``8:simple,32:prepared``; raises ValueError for anything else. '' is the whole grid."""
    if not text:
        return GRID
    cells = []
    for part in text.split(","):
        clients, _, wanted = part.strip().partition(":")
        mode: Mode | None = next((mode for mode in MODES if mode == wanted), None)
        if mode is None or not clients.isdecimal() or int(clients) < 1:
            raise ValueError(f"{part.strip()!r} is no cell: write clients:mode, like 8:simple.")
        cells.append(Cell(int(clients), mode))
    return tuple(cells)


def runs(bench: Bench, target: Target, cell: Cell) -> bool:
    """Whether the target can run the cell: an old PgBouncer loses prepared statements in transaction mode."""
    old = bench.pgbouncer is None or not bench.pgbouncer.follows_prepared
    return not (target.variant == Variant("pgbouncer", "transaction") and cell.mode == "prepared" and old)


def order_of(targets: Sequence[Target], turn: int) -> list[Target]:
    """The targets in another order each turn, so that none always runs after the same neighbour."""
    start = turn % len(targets)
    ordered = [*targets[start:], *targets[:start]]
    return ordered if (turn // len(targets)) % 2 == 0 else ordered[::-1]


def measure(
    bench: Bench,
    pgbench: Pgbench,
    targets: Sequence[Target],
    cells: Sequence[Cell],
    *,
    rounds: int,
    seconds: float,
    done: Sequence[Sample],
    progress: Callable[[str], None],
) -> Iterator[Sample]:
    """Run every target once per cell and round, taking turns, but for what `done` holds of it.

    A run during which other guests of the machine took more than `MOST_STOLEN` of the processors is repeated, as often
    in all as there are runs, so that everything takes twice its time at most. What is kept all the same says so.
    """
    have = {(sample.round, sample.cell, sample.target) for sample in done}
    turns = list(product(range(rounds), cells))
    spare = len(turns) * len(targets)
    for turn, (number, cell) in enumerate(turns):
        for target in order_of(targets, turn):
            if (number, cell, target.name) in have or not runs(bench, target, cell):
                continue
            while True:
                progress(f"round {number + 1}/{rounds}, {cell.clients} clients, {cell.mode}: {target.name}")
                sample = _run(pgbench, target, cell, number, seconds)
                if sample.stolen <= MOST_STOLEN or not spare:
                    break
                spare -= 1
                progress(f"others took {sample.stolen:.0%} of the processors: once more")
            yield sample


def _run(pgbench: Pgbench, target: Target, cell: Cell, number: int, seconds: float) -> Sample:
    clock, before = psutil.cpu_times(), cpu_seconds(target.pids())
    outcome = pgbench.run(target.port, cell.clients, cell.mode, seconds)
    after, stolen = cpu_seconds(target.pids()), stolen_share(clock, psutil.cpu_times())
    if before.keys() - after.keys():
        raise BenchmarkError(f"A process of {target.name} ended during the run.")
    return Sample(
        target.name, cell, number, outcome.tps, outcome.transactions, cpu_between(before, after), round(stolen, 4)
    )
