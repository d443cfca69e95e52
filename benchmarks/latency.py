"""What one client feels: the time of a query and of a connection, next to the direct ones.

Every target is asked in turn in small batches, so that all of them see the same machine.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.client import Client, execute_messages, message, parse_message
from benchmarks.ratios import percentile
from benchmarks.targets import SCRAM_PASSWORD, SCRAM_USER, Bench, Target, Variant

BATCH = 100
QUERY_VARIANTS = (
    Variant("direct"),
    Variant("pgbouncer", "session"),
    Variant("pgbouncer", "transaction"),
    Variant("pilotwire", "session"),
    Variant("pilotwire", "transaction"),
)
CONNECT_VARIANTS = (
    Variant("direct"),
    Variant("direct", scram=True),
    Variant("pgbouncer", "session"),
    Variant("pgbouncer", "session", scram=True),
    Variant("pgbouncer", "transaction"),
    Variant("pilotwire", "session"),
    Variant("pilotwire", "session", scram=True),
    Variant("pilotwire", "session", tls=True),
    Variant("pilotwire", "transaction"),
    Variant("pilotwire", "transaction", scram=True),
)


@dataclass(frozen=True, slots=True)
class Times:
    """Percentiles in microseconds of one thing at one target."""

    target: str
    what: str
    count: int
    p50_us: float
    p99_us: float


def times_of(target: str, what: str, seconds: Sequence[float]) -> Times:
    """Percentiles of durations given in seconds."""
    return Times(target, what, len(seconds), percentile(seconds, 50) * 1e6, percentile(seconds, 99) * 1e6)


def queries(targets: Sequence[Target], count: int, progress: Callable[[str], None]) -> list[Times]:
    """``SELECT 1`` at one client, `count` times at each target, by the simple protocol and prepared."""
    sync = message(b"S", b"")
    kinds = {
        "simple": message(b"Q", b"SELECT 1\0"),
        "prepared": execute_messages("one"),
    }
    found: dict[tuple[str, str], list[float]] = {}
    with contextlib.ExitStack() as stack:
        clients = {}
        for target in targets:
            client = stack.enter_context(contextlib.closing(Client(target.port)))
            client.ask(parse_message("one", "SELECT 1") + sync)
            clients[target.name] = client
        for done in range(0, count, BATCH):
            progress(f"latency of SELECT 1: {done}/{count}")
            for what, request in kinds.items():
                for name, client in clients.items():
                    client.ask(request)  # not counted: wakes the path after its neighbours' turn
                    found.setdefault((name, what), []).extend(_time_queries(client, request))
    return [times_of(name, what, seconds) for (name, what), seconds in found.items()]


def _time_queries(client: Client, request: bytes) -> list[float]:
    spent = []
    for _ in range(BATCH):
        start = time.perf_counter()
        client.ask(request)
        spent.append(time.perf_counter() - start)
    return spent


def connects(bench: Bench, targets: Sequence[Target], count: int, progress: Callable[[str], None]) -> list[Times]:
    """From connect() to the first ReadyForQuery, `count` times at each target."""
    found: dict[str, list[float]] = {target.name: [] for target in targets}
    tls = bench.client_tls()
    for number in range(count):
        if number % 10 == 0:
            progress(f"time to connect: {number}/{count}")
        for target in targets:
            variant = target.variant
            user, password = (SCRAM_USER, SCRAM_PASSWORD) if variant.scram else ("postgres", "")
            start = time.perf_counter()
            client = Client(target.port, user=user, password=password, tls=tls if variant.tls else None)
            found[target.name].append(time.perf_counter() - start)
            client.query("SELECT 1")
            client.close()
    plain = {target.name: replace(target.variant, tls=False, scram=False).name for target in targets}
    ways = {target.name: way_in(target.variant) for target in targets}
    return [times_of(plain[name], ways[name], seconds[1:] or seconds) for name, seconds in found.items()]


def way_in(variant: Variant) -> str:
    """What a client of `variant` shows at the door: ``trust``, ``scram``, ``trust, tls`` or ``scram, tls``."""
    return ("scram" if variant.scram else "trust") + (", tls" if variant.tls else "")


def added(found: Sequence[Times], what: str) -> dict[str, tuple[float, float]]:
    """Microseconds that each proxy adds to the direct p50 and p99 of `what`."""
    direct = next((times for times in found if times.target == "direct" and times.what == what), None)
    if direct is None:
        return {}
    return {
        times.target: (times.p50_us - direct.p50_us, times.p99_us - direct.p99_us)
        for times in found
        if times.what == what and times is not direct
    }
