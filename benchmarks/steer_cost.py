"""What a decision costs: in the wire worker, in the planner process, and to a stream of short joins.

The first two run the product's own code in this process, without sockets, since their limits are microseconds and
milliseconds; the third is pgbench through the running proxy, with steering on and off in turn.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.pgbench import parse
from benchmarks.processes import BenchmarkError
from benchmarks.ratios import Verdict
from pilotwire.demo.workload import draw_literals
from pilotwire.embedded import EmbeddedServer
from planner.messages import Answer
from planner.planner import Planner
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.settings import ProxySettings
from proxy.steering.steerer import LEVELS, SessionSteering, Steerer
from proxy.steering.template import template

if TYPE_CHECKING:
    from benchmarks.steer_results import Results

CACHED_US: Final = 5.0
TEMPLATE_US: Final = 15.0
FIVE_MS: Final = 3.0
TEN_MS: Final = 10.0
STREAM: Final = 0.9
REPEATS: Final = 20_000
DECISIONS: Final = 60
TEXT: Final = (
    "SELECT c.name, sum(oi.quantity * oi.unit_price) AS revenue FROM orders o "
    "JOIN order_items oi ON oi.order_id = o.id JOIN products p ON p.id = oi.product_id "
    "JOIN categories c ON c.id = p.category_id WHERE o.ordered_at >= '2024-03-{day}' AND o.total > {amount} "
    "AND c.department = 'Books' GROUP BY c.name LIMIT {few}"
)
"""300 bytes with literals, as a program without bind parameters sends them."""
FIVE: Final = (
    "SELECT count(*) FROM customers cu JOIN orders o ON o.customer_id = cu.id "
    "JOIN order_items oi ON oi.order_id = o.id JOIN products p ON p.id = oi.product_id "
    "JOIN categories c ON c.id = p.category_id WHERE cu.country = {country} AND cu.tier = {tier} "
    "AND o.ordered_at >= {quarter} AND o.total > {amount} AND c.department = {department}"
)
TEN: Final = (
    "SELECT count(*) FROM customers cu JOIN orders o ON o.customer_id = cu.id JOIN stores st ON st.id = o.store_id "
    "JOIN promotions pr ON pr.id = o.promotion_id JOIN order_items oi ON oi.order_id = o.id "
    "JOIN products p ON p.id = oi.product_id JOIN categories c ON c.id = p.category_id "
    "JOIN payments pa ON pa.order_id = o.id JOIN shipments s ON s.order_id = o.id "
    "JOIN returns r ON r.order_id = oi.order_id AND r.line_no = oi.line_no WHERE cu.country = {country} "
    "AND st.region = {region} AND pr.kind = {kind} AND pa.method = {method} AND s.carrier = {carrier} "
    "AND r.reason = {reason} AND c.department = {department} AND o.total > {amount}"
)
SHORT: Final = """\\set c random(1, {customers})
SELECT o.id, o.total, p.name, oi.quantity FROM orders o JOIN order_items oi ON oi.order_id = o.id
JOIN products p ON p.id = oi.product_id WHERE o.customer_id BETWEEN :c AND :c + 60 ORDER BY o.total DESC LIMIT 20;
"""
"""A three-table join of about a millisecond; every execution brings another value."""


def measure(
    results: Results,
    server: EmbeddedServer,
    direct: str,
    proxied: str,
    models: Path,
    seconds: float,
    rounds: int,
    report: Callable[[str], None],
) -> None:
    """Fill the costs and what was promised of them into `results`."""
    report("cost: decisions in the worker")
    cached, key = asyncio.run(cached_us()), template_us()
    report("cost: decisions in the planner")
    five, ten = asyncio.run(first_decisions(direct, models))
    costs = results.costs
    costs |= {
        "cached decision, exactly repeated text (us)": cached,
        "template key of a text with literals (us per 300 bytes)": key,
        "first decision, five tables (ms)": five,
        "first decision, ten tables (ms)": ten,
    }
    promises = [
        Verdict("a cached decision", cached, CACHED_US, "us"),
        Verdict("a template key, 300 bytes", key, TEMPLATE_US, "us"),
        Verdict("first decision, five tables", five, FIVE_MS, "ms"),
        Verdict("first decision, ten tables", ten, TEN_MS, "ms"),
    ]
    for mode in ("simple", "prepared"):
        report(f"cost: short joins, {mode}")
        steered, plain = stream(server, proxied, mode, seconds, rounds)
        name = "literals in the text" if mode == "simple" else "prepared"
        costs |= {
            f"short joins, {name}: tps steered": steered,
            f"short joins, {name}: tps with steering off": plain,
        }
        promises.append(Verdict(f"tps of short joins, {name}", steered / plain, STREAM, "", True))
    results.cost_verdicts += promises


async def cached_us() -> float:
    """Microseconds that a `SessionSteering` takes for a text whose advice is known, median of several batches."""
    settings = ProxySettings.model_validate(
        {"upstream": "postgresql://postgres@127.0.0.1/demo", "planner_socket": "/-"}
    )
    log = Log("benchmark", "human", "error")
    steerer = Steerer(settings, Counters(), log)
    steerer.level = LEVELS["on"]
    session = SessionSteering(steerer, "demo", "postgres", {})
    text = TEXT.format(day="01", amount=100, few=10).encode()
    known = session.known(text, b"\0\0")
    assert known is not None
    # What the planner's answer leaves behind, so that nothing but the look-up is timed.
    known.template.answered(_decision())
    key = (steerer.cache.scope("demo", "postgres", "", ""), known.text, known.types, None)
    steerer.cache.remember(key, _decision())
    if not session.query(text).prefix:
        raise BenchmarkError("The cached decision was not found again: this measures something else.")
    batches = []
    for _ in range(7):
        started = time.perf_counter()
        for _ in range(REPEATS):
            session.query(text)
            session.done(0.001, b"C\0\0\0\x0dSELECT 1\0Z\0\0\0\x05I")
        batches.append((time.perf_counter() - started) / REPEATS * 1e6)
    log.close()
    return statistics.median(batches)


def _decision() -> Any:
    from proxy.steering.answers import decision_of as made

    return made(
        Answer(1, prefix=b"/*+ Rows(o oi #1000) */ ", reason="", scope="values", model="m-1", dialect="hint_plan")
    )


def template_us() -> float:
    """Microseconds per 300 bytes for the template key of a text with literals, median of several batches."""
    texts = [TEXT.format(day=f"{day:02}", amount=day * 7, few=day).encode() for day in range(1, 29)]
    batches = []
    for _ in range(7):
        started = time.perf_counter()
        for number in range(REPEATS // 4):
            template(texts[number % len(texts)])
        batches.append((time.perf_counter() - started) / (REPEATS // 4) * 1e6)
    return statistics.median(batches) * 300 / statistics.fmean(map(len, texts))


async def first_decisions(direct: str, models: Path) -> tuple[float, float]:
    """Milliseconds of a decision on a text never seen, joining five and ten tables; medians."""
    draw = random.Random(7)
    found = []
    async with await Planner.connect(direct, models=models) as planner:
        for text in (FIVE, TEN):
            times = []
            for number in range(DECISIONS):
                sql = text.format(**draw_literals(draw, 1.0), amount=number)
                started = time.perf_counter()
                planner.decide(sql)
                times.append((time.perf_counter() - started) * 1000)
            found.append(statistics.median(times[5:]))
    return found[0], found[1]


def stream(server: EmbeddedServer, proxied: str, mode: str, seconds: float, rounds: int) -> tuple[float, float]:
    """Medians of tps with steering on and off; one client, as the promise is about what one waits."""
    script = server.directory / f"short-{mode}.sql"
    customers = server.run("psql", "-XAtq", "-d", proxied, "-c", "SELECT max(id) - 30 FROM customers").strip()
    script.write_text(SHORT.format(customers=customers))
    runs = []
    for number in range(rounds):
        pair = {}
        for on in (True, False) if number % 2 == 0 else (False, True):
            pair[on] = _pgbench(server, proxied, script, mode, seconds, on=on)
        runs.append((pair[True], pair[False]))
    return statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)


def _pgbench(server: EmbeddedServer, dsn: str, script: Path, mode: str, seconds: float, *, on: bool) -> float:
    command = [
        str(server.binary("pgbench")), "-n", "-M", mode, "-c", "1", "-j", "1", "-T", str(max(1, round(seconds))),
        "-f", str(script), dsn,
    ]  # fmt: skip
    environment = {**os.environ, "PGOPTIONS": f"-c pilotwire.mode={'on' if on else 'off'}"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=seconds + 60)
    if done.returncode:
        raise BenchmarkError(f"pgbench failed: {done.stderr.strip()[-400:]}")
    return parse(done.stdout).tps
