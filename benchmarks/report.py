"""What a run has found: written to JSON as it is, shown as tables."""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import psutil
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from benchmarks import bulk, idle_memory, latency
from benchmarks.ratios import CellRatio, Sample, Verdict, compare, verdicts
from benchmarks.speed import MOST_STOLEN

KIB, MIB = 1024, 1024 * 1024
BASELINES = {
    "pilotwire session": "pgbouncer session",
    "pilotwire transaction": "pgbouncer transaction",
    "pilotwire session compiled": "pgbouncer session",
    "pilotwire transaction compiled": "pgbouncer transaction",
}


@dataclass(slots=True)
class Results:
    """Everything measured so far; each part stays empty when it was not run."""

    settings: dict[str, Any]
    versions: dict[str, str]
    samples: list[Sample] = field(default_factory=list)
    queries: list[latency.Times] = field(default_factory=list)
    connects: list[latency.Times] = field(default_factory=list)
    memory: list[idle_memory.IdleMemory] = field(default_factory=list)
    streams: list[bulk.Stream] = field(default_factory=list)
    stalls: list[bulk.Stall] = field(default_factory=list)
    complete: bool = False

    def ratios(self) -> dict[str, list[CellRatio]]:
        """Each pilotwire mode against PgBouncer's same mode; a cell that PgBouncer cannot run there against session."""
        found = {}
        for target, baseline in BASELINES.items():
            ratios = compare(self.samples, target, baseline)
            have = {ratio.cell for ratio in ratios}
            spare = [one for one in compare(self.samples, target, "pgbouncer session") if one.cell not in have]
            if ratios or spare:
                found[target] = sorted([*ratios, *spare], key=lambda ratio: ratio.cell)
        return found

    def verdicts(self) -> list[Verdict]:
        """All promises that this run can judge."""
        speed = [verdict for target, ratios in self.ratios().items() for verdict in verdicts(target, ratios)]
        return [*speed, *idle_memory.verdicts(self.memory), *bulk.verdicts(self.stalls)]

    def as_json(self) -> str:
        """The whole run: machine, versions, settings, raw samples and what was computed from them."""
        content = {
            **head(self),
            "ratios": {target: [asdict(ratio) for ratio in ratios] for target, ratios in self.ratios().items()},
            "samples": [{**asdict(sample), "cpu_us": sample.cpu_us} for sample in self.samples],
            "queries": [asdict(times) for times in self.queries],
            "connects": [asdict(times) for times in self.connects],
            "memory": [{**asdict(one), "per_client": one.per_client} for one in self.memory],
            "streams": [{**asdict(one), "mib_per_second": one.mib_per_second} for one in self.streams],
            "stalls": [asdict(one) for one in self.stalls],
        }
        return json.dumps(content, indent=1) + "\n"


def kept(path: Path, seconds: float) -> Results:
    """What a run has kept in its JSON, to go on with: pgbench's runs that nobody disturbed, and latencies. (Memory and
    streams take minutes, and are measured anew.) Raises ValueError for another file, and for runs of another length.
    """
    try:
        content = json.loads(path.read_text())
        length = content["settings"]["seconds"]
        samples = TypeAdapter(list[Sample]).validate_python(content["samples"])
        queries, connects = (
            TypeAdapter(list[latency.Times]).validate_python(content[name]) for name in ("queries", "connects")
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no run of this benchmark: {error}") from None
    if length != seconds:
        raise ValueError(f"{path} holds runs of {length} seconds: go on with --seconds {length}.")
    clean = [sample for sample in samples if sample.stolen <= MOST_STOLEN]
    return Results({}, content["versions"], samples=clean, queries=queries, connects=connects)


def machine() -> dict[str, Any]:
    """The machine a run belongs to."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_mib": psutil.virtual_memory().total // MIB,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": list(os.getloadavg()),
    }


def show(results: Results, console: Console) -> None:
    """Print every table that has something in it, the promises last."""
    _show_grid(results, console)
    for target, ratios in results.ratios().items():
        _show_ratios(target, ratios, console)
    _show_times("Added latency, one client, SELECT 1 (µs)", results.queries, console)
    _show_times("Time to connect (µs)", results.connects, console)
    _show_memory(results.memory, console)
    _show_streams(results, console)
    show_verdicts(results.verdicts(), console)


def _show_grid(results: Results, console: Console) -> None:
    if not results.samples:
        return
    targets = list(dict.fromkeys(sample.target for sample in sorted(results.samples, key=lambda one: one.target)))
    table = Table(title="pgbench -S: tps (CPU µs per query), medians of the rounds", title_justify="left")
    table.add_column("clients, mode")
    for target in targets:
        table.add_column(target, justify="right")
    for cell in sorted({sample.cell for sample in results.samples}):
        row = [str(cell)]
        for target in targets:
            found = [one for one in results.samples if one.cell == cell and one.target == target]
            if not found:
                row.append("-")
                continue
            tps = statistics.median(one.tps for one in found)
            cpu = statistics.median(one.cpu_us for one in found)
            row.append(f"{tps:,.0f} ({cpu:.1f})" if cpu else f"{tps:,.0f}")
        table.add_row(*row)
    console.print(table)
    disturbed = sum(one.stolen > MOST_STOLEN for one in results.samples)
    if disturbed:
        console.print(
            f"[yellow]{disturbed} of {len(results.samples)} runs while others took more than {MOST_STOLEN:.0%} of the "
            "processors: measure again on a quiet machine.[/]"
        )


def _show_ratios(target: str, ratios: Sequence[CellRatio], console: Console) -> None:
    table = Table(title=f"{target} / {BASELINES[target]}", title_justify="left")
    for name in ("clients, mode", "tps ratio", "lowest and highest round", "CPU ratio"):
        table.add_column(name, justify="left" if name == "clients, mode" else "right")
    for one in ratios:
        cpu = "-" if one.cpu_ratio is None else f"{one.cpu_ratio:.2f}"
        table.add_row(
            str(one.cell), f"{one.tps_ratio:.2f}", f"{one.tps_ratio_low:.2f} .. {one.tps_ratio_high:.2f}", cpu
        )
    console.print(table)


def _show_times(title: str, found: Sequence[latency.Times], console: Console) -> None:
    if not found:
        return
    table = Table(title=title, title_justify="left")
    for name in ("target", "what", "p50", "p99", "p50 added", "p99 added"):
        table.add_column(name, justify="left" if name in {"target", "what"} else "right")
    for times in found:
        extra = latency.added(found, times.what).get(times.target)
        more = ["", ""] if extra is None else [f"{extra[0]:+,.0f}", f"{extra[1]:+,.0f}"]
        table.add_row(times.target, times.what, f"{times.p50_us:,.0f}", f"{times.p99_us:,.0f}", *more)
    console.print(table)


def _show_memory(found: Sequence[idle_memory.IdleMemory], console: Console) -> None:
    if not found:
        return
    table = Table(title="Worker memory per idle client (kB, resident)", title_justify="left")
    for name in ("target", "clients", "per client", "after a first client", "idle worker (MB)"):
        table.add_column(name, justify="left" if name == "target" else "right")
    for one in found:
        figures = (one.per_client / KIB, one.per_client_warm / KIB)
        table.add_row(one.target, str(one.clients), *(f"{value:.1f}" for value in figures), f"{one.started / MIB:.1f}")
    console.print(table)


def _show_streams(results: Results, console: Console) -> None:
    if not results.streams and not results.stalls:
        return
    table = Table(title="Large streams: medians of the rounds", title_justify="left")
    for name in ("target", "stream", "MB/s", "CPU s per GB", "peak growth of the worker (MB)"):
        table.add_column(name, justify="left" if name in {"target", "stream"} else "right")
    for target, what in dict.fromkeys((one.target, one.what) for one in results.streams):
        found = [one for one in results.streams if (one.target, one.what) == (target, what)]
        speed = statistics.median(one.mib_per_second for one in found)
        cpu = statistics.median(one.cpu_seconds / one.size * 1024 * MIB for one in found)
        growth = max(one.growth for one in found) / MIB
        proxied = target != "direct"
        table.add_row(
            target, what, f"{speed:,.0f}", f"{cpu:.2f}" if proxied else "", f"{growth:.1f}" if proxied else ""
        )
    for stall in results.stalls:
        table.add_row(stall.target, stall.what, "", "", f"{stall.growth / MIB:.1f}")
    console.print(table)


class Run(Protocol):
    """What every benchmark's results have."""

    complete: bool
    versions: dict[str, str]
    settings: dict[str, object]

    def verdicts(self) -> list[Verdict]: ...


def head(run: Run) -> dict[str, object]:
    """What every benchmark's JSON begins with: when, on what machine, with what, and whether promises were kept."""
    return {
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "complete": run.complete,
        "machine": machine(),
        "versions": run.versions,
        "settings": run.settings,
        "verdicts": [{**asdict(verdict), "passed": verdict.passed} for verdict in run.verdicts()],
    }


def show_verdicts(found: Sequence[Verdict], console: Console) -> None:
    """A table of what was promised and measured; nothing for none."""
    if not found:
        return
    table = Table(title="What was promised", title_justify="left")
    for name in ("promise", "measured", "limit", ""):
        table.add_column(name, justify="right" if name in {"measured", "limit"} else "left")
    for one in found:
        sign = ">=" if one.higher_is_better else "<="
        word = "[green]pass[/]" if one.passed else "[red]FAIL[/]"
        table.add_row(one.name, f"{one.value:.2f} {one.unit}", f"{sign} {one.limit:g} {one.unit}", word)
    console.print(table)
