"""Worker memory per idle client: resident set size with the clients there, less that of the idle worker.

Each client runs one query first, because a client that never did is not what production has. Two baselines: the worker
as it was started, against which the limits are judged, and the worker after its first client left, which has loaded
what it loads once.
"""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.client import Client
from benchmarks.process_costs import settled_resident
from benchmarks.processes import BenchmarkError
from benchmarks.ratios import Verdict
from benchmarks.targets import Bench, Target, Variant

KIB = 1024


@dataclass(frozen=True, slots=True)
class Load:
    """So many idle clients of one variant, and the limit in bytes of memory for each (None: only for comparison)."""

    variant: Variant
    clients: int
    limit: int | None = None


LOADS = (
    Load(Variant("pilotwire", "transaction"), 2000, 16 * KIB),
    Load(Variant("pilotwire", "transaction", tls=True), 2000, 48 * KIB),
    Load(Variant("pilotwire", "session"), 300, 48 * KIB),
    Load(Variant("pilotwire", "session", tls=True), 300, 96 * KIB),
    Load(Variant("pgbouncer", "transaction"), 2000),
    Load(Variant("pgbouncer", "transaction", tls=True), 2000),
    Load(Variant("pgbouncer", "session"), 300),
)


@dataclass(frozen=True, slots=True)
class IdleMemory:
    """Bytes of the workers as started, after one client, and with all `clients` idle."""

    target: str
    clients: int
    started: int
    warm: int
    loaded: int
    limit: int | None

    @property
    def per_client(self) -> float:
        return (self.loaded - self.started) / self.clients

    @property
    def per_client_warm(self) -> float:
        return (self.loaded - self.warm) / self.clients


def allow_sockets(count: int) -> None:
    """Raise our own limit of open files, which the servers started from here inherit, to `count` if it is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count if hard == resource.RLIM_INFINITY else min(count, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def measure(bench: Bench, load: Load, progress: Callable[[str], None]) -> IdleMemory:
    """Start the variant, open its clients, read its memory, stop it."""
    with bench.start(load.variant) as target, contextlib.ExitStack() as stack:
        workers = target.workers()
        started = settled_resident(workers)
        _open(bench, target).close()
        warm = settled_resident(workers)
        clients = []
        for number in range(load.clients):
            clients.append(stack.enter_context(contextlib.closing(_open(bench, target))))
            if number % 100 == 0:
                progress(f"idle clients of {target.name}: {number}/{load.clients}")
        loaded = settled_resident(workers)
        for client in clients:  # a figure counts only if all of them were there all the time
            client.query("SELECT 1")
        if target.workers() != workers:
            raise BenchmarkError(f"A worker of {target.name} was replaced during the measurement.")
        return IdleMemory(target.name, load.clients, started, warm, loaded, load.limit)


def verdicts(found: list[IdleMemory]) -> list[Verdict]:
    """One for each load that has a limit, in kB per client."""
    return [
        Verdict(f"memory per idle client, {one.target}", one.per_client / KIB, one.limit / KIB, "kB")
        for one in found
        if one.limit is not None
    ]


def _open(bench: Bench, target: Target) -> Client:
    client = Client(target.port, tls=bench.client_tls() if target.variant.tls else None)
    client.query("SELECT 1")
    return client
