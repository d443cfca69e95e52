"""Joins the plan memory to its store and to the workers: what has changed is written, what was written counts, and
workers are told which answers do not hold any more.

The store's writer has a thread of its own; its callbacks only touch the memory, which is thread-safe.
`Remembering.turn` is called every tenth of a second on the event loop and costs some microseconds where nothing has
happened.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from planner.control import Keeping, Limits
from planner.counters import Counters
from planner.memory.evidence import Rules
from planner.memory.guard import Policy
from planner.memory.keys import canonical_params
from planner.memory.memory import Memory
from planner.memory.records import ArmRecord, Execution, GuardRecord, HistoryPoint, LedgerEntry, QueryRecord
from planner.messages import Observed
from planner.policy import fingerprint

if TYPE_CHECKING:
    from planner.memory.store import Changes, StoreError
    from planner.memory.store.rows import Record
    from planner.memory.store.writer import Writer

TURN_SECONDS: Final = 0.1
INTERVAL_SECONDS: Final = 0.2
"""Between two transactions. With the tenth of a second here and the half in which workers collect what they tell,
less than a second of observations is ever in memory only."""
WRITTEN: Final[Mapping[type, str]] = {
    QueryRecord: "query",
    ArmRecord: "arm",
    LedgerEntry: "ledger",
    Execution: "execution",
    HistoryPoint: "history",
    GuardRecord: "guard",
}
"""What kinds of records are called in the metrics."""
MAX_SAMPLE_TEXT: Final = 65_536
CLOSE_SECONDS: Final = 2.0


class Remembering:
    """``forget(keys)`` has the workers forget the answers to these queries, all with None. Without a store the memory
    lasts as long as the process."""

    def __init__(
        self,
        memory: Memory | None,
        keeping: Keeping,
        counters: Counters,
        forget: Callable[[set[str] | None], None],
        failed: Callable[[str], None],
    ) -> None:
        self._memory = memory
        self._counters = counters
        self._forget = forget
        self._failed = failed
        self._failing = ""
        self._hanging = False
        self._writer: Writer | None = None
        if keeping.url:
            # Only here: SQLAlchemy and a driver are a quarter of what a planner process imports.
            from planner.memory.store import Retention
            from planner.memory.store.writer import Writer

            self._writer = Writer(
                keeping.url,
                self._on_committed,
                self._on_failure,
                on_changed=self._on_changed if memory is not None else None,
                interval=INTERVAL_SECONDS,
                literals=keeping.literals,
                retention=Retention(*keeping.retention) if keeping.retention is not None else None,
            )

    def turn(self) -> None:
        """Writes and tells what has changed since the last call."""
        self._look_after_writer()
        if self._memory is None:
            return
        changes = self._memory.drain()
        # In one call, so that a state and its ledger line are written by one transaction.
        if self._writer is not None and not self._writer.put(*changes.records, *changes.ledger, *changes.guards):
            self._counters.add("memory_unwritten")
        for name, count in (
            ("memory_approved", changes.approved),
            ("memory_rejected", changes.rejected),
            ("memory_regressions", changes.withdrawn),
        ):
            if count:
                self._counters.add(name, amount=count)
        if changes.everything:
            self._forget(None)
        elif changes.keys:
            self._forget(changes.keys)

    def _look_after_writer(self) -> None:
        """A store that hangs says nothing by itself; one that answers again may have nothing to write."""
        if self._writer is None:
            return
        error = self._writer.hanging()
        if error is not None and not self._hanging:
            self._on_failure(error)
        elif error is None and self._hanging and not self._writer.stats().failing:
            self._failing = ""
        self._hanging = error is not None

    def sampled(self, message: Observed, cost: float = 0.0) -> None:
        """One execution that a worker took as a sample."""
        if self._writer is None or not message.text or len(message.text) > MAX_SAMPLE_TEXT:
            return
        text = message.text.decode(errors="replace")
        decision = "steered" if message.steered else "control" if message.control else message.reason
        execution = Execution(
            at=time.time(),
            database=message.database,
            user=message.user,
            application=message.application,
            search_path=message.search_path,
            fingerprint=fingerprint(text),
            key=message.query.hex(),
            took_ms=message.took_ms,
            rows=message.rows,
            estimated_cost=cost,
            decision=decision,
            arm=message.arm,
            model=message.model,
            failed=(message.sqlstate or "failed") if message.failed else "",
            text=text,
            params=canonical_params(message.bind),
        )
        if not self._writer.put(execution):
            self._counters.add("memory_unwritten")

    def serves(self, kind: str, model: str) -> None:
        """Another model has taken over, for the ledger."""
        if self._writer is not None:
            self._writer.put(LedgerEntry(at=time.time(), kind="model", model=model, after="serves", why=f"kind {kind}"))

    @property
    def failing(self) -> str:
        """Why the store was not written when that was last tried; "" where it was."""
        return self._failing

    @property
    def breakers_open(self) -> int:
        """How many models are off by a circuit breaker, and one more where all steering is."""
        return len(self._memory.breakers_open) if self._memory is not None else 0

    def close(self) -> None:
        """Writes what waits, for at most two seconds."""
        if self._writer is not None:
            self.turn()
            self._writer.close(CLOSE_SECONDS)

    # --- in the writer's thread ------------------------------------------------------------------------------------

    def _on_committed(self, records: list[Record]) -> None:
        self._failing = ""
        for kind, count in Counter(type(record) for record in records).items():
            self._counters.add("store_written", WRITTEN[kind], count)
        if self._memory is not None:
            self._memory.committed(records)

    def _on_changed(self, changes: Changes) -> None:
        if self._memory is not None:
            self._memory.loaded(changes.queries, changes.arms, changes.guards)

    def _on_failure(self, error: StoreError) -> None:
        self._counters.add("memory_store_failures", error.kind)
        told, self._failing = self._failing, str(error)
        if not told:
            self._failed(str(error))


def policy(limits: Limits) -> Policy:
    """What an operator has set, as the memory goes by it."""
    return Policy(
        rules=Rules(min_gain=limits.min_gain, min_ms=limits.min_gain_ms),
        template_gain=limits.template_gain,
        min_calls=limits.min_calls,
        min_ms=limits.min_gain_ms * 1.2,
        min_total_ms=limits.min_total_ms,
        control_share=limits.control_share,
        canary_share=limits.canary_share,
        budget=limits.regret_budget,
        trial_share=limits.trial_share,
        max_age_s=limits.evidence_age_s,
    )
