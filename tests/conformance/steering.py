"""How the proxy of a pass steers, from not at all to every statement that joins something.

``on`` is what users run: the settings as they come and a real model, which was trained on another schema and so leaves
everything alone. ``all`` gives it a model that trusts itself with every relation, and settings that have each join
looked at. The planner process reads the catalog every few seconds only, too seldom for tests that make their tables
right before they join them; the last three ask a planner that knows no catalog and answers whatever it is asked.
``comments`` and ``settings`` are advice that changes no plan, so that the outputs must be the server's to the byte,
plans included: what differs is the delivery's fault. ``rows`` makes up the rows of every join; plans and the order of
rows are then not compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

from planner import subplans
from planner.advice import Advice, RowsAdvice
from planner.dialects import hint_plan
from planner.messages import Answer, Ask
from planner.sql import read
from tests.proxy.steering.planner import scripted_planner
from tests.support.proxy import Proxy
from tests.support.shop import constant_model
from tests.support.waiting import wait_until

Steering = Literal["off", "on", "all", "comments", "settings", "rows"]
STEERINGS: Final[tuple[Steering, ...]] = get_args(Steering)
USUAL: Final[tuple[Steering, ...]] = ("on", "comments", "settings")
"""What a run plays where nothing else is asked for."""
UNADVISED: Final[frozenset[Steering]] = frozenset({"off", "on"})
"""Where nothing goes on with advice."""
OTHER_PLANS: Final[frozenset[Steering]] = frozenset({"all", "rows"})
"""Where other plans are chosen than the server would choose."""

# No hint: pg_hint_plan plans a UNION ALL in parallel wherever there is any hint.
COMMENT: Final = "/* \N{HEAVY CHECK MARK} advised */ ".encode()
# The server's default, which the suites leave alone.
NO_SETTING: Final = ((b"geqo_threshold", b"12"),)
ROWS: Final = (1, 30, 1000, 100_000, 10_000_000)
EAGER: Final = {"steer_min_joins": 1, "steer_deadline_ms": 10_000, "steer_min_ms": 0}
DEAR: Final = 1e6
"""Milliseconds that statements are said to take, so that none is too cheap to be asked about."""


@dataclass(frozen=True, slots=True)
class Delivered:
    """What the proxy of one pass counted: statements that joined tables and went on with advice or without, and those
    that the server refused because of it."""

    steered: int = 0
    left_alone: int = 0
    refused: int = 0
    reasons: str = ""


@contextmanager
def steered(steering: Steering, folder: Path) -> Iterator[dict[str, Any]]:
    """Settings of a proxy that steers so; ``folder`` is for its models."""
    if steering == "off":
        yield {}
    elif steering in ("on", "all"):
        folder.mkdir(parents=True)
        constant_model(folder, schema_hash="0" * 64 if steering == "on" else "")
        yield {"models": str(folder), "mode": "on", **(EAGER if steering == "all" else {})}
    else:
        with scripted_planner() as planner:
            planner.script = _SCRIPTS[steering]
            yield {"planner_socket": str(planner.path), "mode": "on", **EAGER}


def wait_until_steering(proxy: Proxy, steering: Steering) -> None:
    """Returns when the workers are connected to their planner; TimeoutError otherwise."""
    if steering != "off":
        wait_until(lambda: proxy.metrics()["pilotwire_planner_connected"] > 0, 30, "the planner serves the workers")


def delivered(proxy: Proxy, steering: Steering) -> Delivered:
    """What was steered until now. AssertionError when the proxy did not steer as it should have, all through."""
    metrics = proxy.metrics()
    if steering == "off":
        return Delivered()
    reasons = {
        name.partition('"')[2].partition('"')[0]: int(value)
        for name, value in metrics.items()
        if name.startswith("pilotwire_steering_reasons_total{") and value
    }
    found = Delivered(
        steered=int(metrics["pilotwire_steering_steered_total"]),
        left_alone=sum(reasons.values()),
        refused=int(metrics["pilotwire_steering_refused_total"]),
        reasons=", ".join(f"{name} {count}" for name, count in sorted(reasons.items(), key=lambda one: -one[1])),
    )
    assert metrics["pilotwire_planner_connected"] > 0, "the planner was lost during the run"
    if steering in ("on", "all"):
        assert metrics["pilotwire_planner_restarts_total"] == 0, "the planner process ended during the run"
        assert metrics['pilotwire_planner_models_total{outcome="accepted"}'] == 1, "the model was not accepted"
    if steering == "on":
        assert found.steered == 0, "a model of another schema steered"
    return found


def _comment(ask: Ask) -> Answer:
    return Answer(ask.number, prefix=COMMENT, model="conformance", estimated_ms=DEAR)


def _setting(ask: Ask) -> Answer:
    return Answer(ask.number, settings=NO_SETTING, model="conformance", estimated_ms=DEAR)


def made_up_rows(ask: Ask) -> Answer:
    """Rows at random, the same for the same text, for the joins that the planner would consider."""
    reading = read(ask.text.decode(errors="surrogateescape"))
    rows = []
    for block in reading.graph.blocks if reading.graph is not None else ():
        names = [(relation.bit, relation.alias) for relation in block.relations]
        for mask in subplans.connected(block):
            aliases = tuple(alias for bit, alias in names if bit & mask)
            number = hashlib.blake2b(ask.text + repr(aliases).encode(), digest_size=1).digest()[0]
            rows.append(RowsAdvice(aliases, ROWS[number % len(ROWS)]))
    prefix = hint_plan.render(Advice(rows=tuple(rows))).prefix
    reason = reading.reason or "no_join"
    return Answer(ask.number, prefix=prefix.encode(), reason=reason, model="conformance", estimated_ms=DEAR)


_SCRIPTS: Final[dict[Steering, Callable[[Ask], Answer | None]]] = {
    "comments": _comment,
    "settings": _setting,
    "rows": made_up_rows,
}
