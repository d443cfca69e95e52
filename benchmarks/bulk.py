"""Large streams: how fast a big result and a COPY pass, and how little the worker keeps of them.

The rows are wide (8 kB), so that the path counts and not the number of messages; one narrow run beside it tells what
messages cost. COPY FROM has ``WHERE false``: the server reads and parses everything and stores nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.client import Client, message
from benchmarks.process_costs import PeakMemory, cpu_between, cpu_seconds, settled_resident
from benchmarks.processes import BenchmarkError
from benchmarks.ratios import Verdict
from benchmarks.targets import Bench, Target, Variant

MIB = 1024 * 1024
WIDE = 8000
NARROW = 80
STALL_LIMIT = 8 * MIB
STALL_BYTES = 5 * 1024 * MIB
LEAST_TAKEN = 64 * 1024
STALL_QUIET = 2.0
"""Seconds without progress after which a stream counts as stopped by back-pressure."""
VARIANTS = (
    Variant("direct"),
    Variant("pgbouncer", "session"),
    Variant("pilotwire", "session"),
    Variant("pilotwire", "transaction"),
)
STALL_VARIANTS = (
    Variant("pilotwire", "session"),
    Variant("pilotwire", "session", tls=True),
    Variant("pilotwire", "transaction"),
    Variant("pgbouncer", "session"),
)


@dataclass(frozen=True, slots=True)
class Stream:
    """One pass of one stream: bytes on the wire, seconds, the proxy's CPU seconds, and the worker's peak growth."""

    target: str
    what: str
    round: int
    size: int
    seconds: float
    cpu_seconds: float
    growth: int

    @property
    def mib_per_second(self) -> float:
        return self.size / MIB / self.seconds


@dataclass(frozen=True, slots=True)
class Stall:
    """A stream whose reader has stopped: how much the workers grew at the peak, in bytes."""

    target: str
    what: str
    growth: int


def copy_chunks(size: int, width: int = WIDE) -> Iterator[bytes]:
    """About `size` bytes of CopyData, in runs of whole messages of one row each."""
    row = message(b"d", b"y" * width + b"\n")
    run = row * max(1, 256 * 1024 // len(row))
    return itertools.repeat(run, max(1, size // len(run)))


def rows_sql(size: int, width: int) -> str:
    """A query whose result is about `size` bytes in rows of `width` bytes."""
    return f"SELECT repeat('x', {width}) FROM generate_series(1, {max(1, size // width)})"


def streams(targets: Sequence[Target], size: int, rounds: int, progress: Callable[[str], None]) -> Iterator[Stream]:
    """Pass `size` bytes each way through each target, interleaved."""
    runs: dict[str, Callable[[Client], int]] = {
        "result": lambda client: client.query(rows_sql(size, WIDE)),
        "narrow result": lambda client: client.query(rows_sql(size // 4, NARROW)),
        "COPY out": lambda client: client.query(f"COPY ({rows_sql(size, WIDE)}) TO STDOUT"),
        "COPY in": lambda client: client.copy_in("COPY bulk FROM STDIN WHERE false", copy_chunks(size)),
    }
    for number, (what, run) in itertools.product(range(rounds), runs.items()):
        for target in targets:
            progress(f"{what} of {size // MIB} MB, round {number + 1}/{rounds}: {target.name}")
            yield _stream(target, what, number, run)


def _stream(target: Target, what: str, number: int, run: Callable[[Client], int]) -> Stream:
    with contextlib.closing(Client(target.port)) as client:
        client.query("SELECT 1")
        pids = target.pids()
        before = cpu_seconds(pids)
        with PeakMemory(target.workers() if target.root is not None else []) as memory:
            start = time.perf_counter()
            size = run(client)
            spent = time.perf_counter() - start
        cpu = cpu_between(before, cpu_seconds(pids))
    return Stream(target.name, what, number, size, spent, cpu, memory.growth)


def stalls(bench: Bench, variant: Variant, progress: Callable[[str], None]) -> list[Stall]:
    """A client that does not read its 5 GB, and a COPY that the server does not read."""
    found = []
    with bench.start(variant) as target:
        for what, stall in (("unread result", _unread_result), ("unread COPY", _unread_copy)):
            progress(f"{what}: {target.name}")
            with contextlib.closing(Client(target.port, tls=bench.client_tls() if variant.tls else None)) as client:
                client.query("SELECT 1")
                found.append(Stall(target.name, what, stall(bench, target, client)))
    return found


def _unread_result(_: Bench, target: Target, client: Client) -> int:
    workers = target.workers()
    with PeakMemory(workers) as memory:
        client.send(message(b"Q", rows_sql(STALL_BYTES, WIDE).encode() + b"\0"))
        time.sleep(STALL_QUIET)
        settled_resident(workers)
    if not client.answered():
        raise BenchmarkError(f"{target.name} sent nothing of a large result.")
    return memory.growth


def _unread_copy(bench: Bench, target: Target, client: Client) -> int:
    """Another session holds the table locked, so the server never comes to read the data."""
    with contextlib.closing(Client(bench.server.port)) as holder:
        holder.query("BEGIN; LOCK TABLE bulk")
        client.send(message(b"Q", b"COPY bulk FROM STDIN WHERE false\0"))
        with PeakMemory(target.workers()) as memory:
            taken = client.fill(next(copy_chunks(MIB)), STALL_QUIET)
        holder.query("ROLLBACK")
    if taken < LEAST_TAKEN:
        raise BenchmarkError(f"{target.name} took {taken} bytes of a COPY, too few to tell anything.")
    return memory.growth


def verdicts(found: Sequence[Stall]) -> list[Verdict]:
    """One for each stalled stream of pilotwire, in MB."""
    return [
        Verdict(f"worker growth, {one.what}, {one.target}", one.growth / MIB, STALL_LIMIT / MIB, "MB")
        for one in found
        if one.target.startswith("pilotwire")
    ]
