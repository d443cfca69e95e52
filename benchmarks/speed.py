"""The pgbench grid: every target in every cell, interleaved, CPU per query beside tps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

from benchmarks.pgbench import Pgbench
from benchmarks.process_costs import cpu_between, cpu_seconds
from benchmarks.processes import BenchmarkError
from benchmarks.ratios import Cell, Mode, Sample
from benchmarks.targets import Bench, Target, Variant

CLIENTS = (1, 8, 32)
MODES: tuple[Mode, ...] = ("simple", "extended", "prepared")
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
    progress: Callable[[str], None],
) -> Iterator[Sample]:
    """Run every target once per cell and round, yielding each sample as it is there."""
    for turn, (number, cell) in enumerate(product(range(rounds), cells)):
        for target in order_of(targets, turn):
            if not runs(bench, target, cell):
                continue
            progress(f"round {number + 1}/{rounds}, {cell.clients} clients, {cell.mode}: {target.name}")
            before = cpu_seconds(target.pids())
            outcome = pgbench.select_only(target.port, cell.clients, cell.mode, seconds)
            after = cpu_seconds(target.pids())
            if before.keys() - after.keys():
                raise BenchmarkError(f"A process of {target.name} ended during the run.")
            spent = cpu_between(before, after)
            yield Sample(target.name, cell, number, outcome.tps, outcome.transactions, spent)
