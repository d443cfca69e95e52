"""Between the memory and its store: what is approved counts after its commit, and a broken store costs nothing."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from planner.control import Keeping, Limits
from planner.counters import Counters
from planner.memory.memory import Memory
from planner.memory.records import MODEL_ARM, State
from planner.memory.store import open_store
from planner.memory.store.decisions import decide
from planner.messages import Observed
from planner.remembering import Remembering, policy
from tests.planner.memory.test_memory import ARM, FACTS, KEY, MODEL, ask, pairs, plain, seen
from tests.support.waiting import wait_until


class Instance:
    """One planner process's memory and store."""

    def __init__(self, url: str) -> None:
        self.memory = Memory(policy(Limits(evidence="measured")), durable=bool(url))
        self.forgotten: list[set[str] | None] = []
        self.failures: list[str] = []
        self.counters = Counters()
        self.remembering = Remembering(
            self.memory, Keeping(url), self.counters, self.forgotten.append, self.failures.append
        )

    def until(self, true: Callable[[], bool]) -> None:
        def turned() -> bool:
            self.remembering.turn()
            return true()

        wait_until(turned, 10)

    def win(self) -> None:
        ask(self.memory, ARM)
        plain(self.memory)
        ask(self.memory, ARM)
        pairs(self.memory, ARM.arm, 30.0)


def test_written_then_used_then_there_for_the_next(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    first = Instance(url)
    first.win()
    assert not ask(first.memory, ARM).approved
    first.until(lambda: ask(first.memory, ARM).approved)
    assert any(KEY in keys for keys in first.forgotten if keys)
    with open_store(url) as store:
        assert [arm.arm for arm in store.arms(key=KEY, state=State.APPROVED)] == [ARM.arm]
        assert [line.after for line in store.ledger(key=KEY, kind="state")] == ["approved", "trial"]
    written = first.counters.snapshot()
    assert written["store_written{arm}"] >= 1
    assert written["store_written{ledger}"] >= 2
    second = Instance(url)
    second.until(lambda: len(second.memory) == 1)
    assert ask(second.memory).approved
    # A person decides, elsewhere; both hear of it.
    with open_store(url) as store:
        decide(store, KEY, "reject", ARM.arm, actor="ann", why="no")
    for one in (first, second):
        one.until(lambda one=one: ask(one.memory, ARM).reason == "nothing_left_to_try")  # type: ignore[misc]
        one.remembering.close()


def test_the_evidence_of_two_instances_adds_up(tmp_path: Path) -> None:
    """Neither has enough for a verdict, both together have; and each change of state is one line, whoever made it."""
    first, second = (Instance(f"sqlite:///{tmp_path}/store.db") for _ in range(2))
    for one in (first, second):
        ask(one.memory, ARM)
        plain(one.memory)
        ask(one.memory, ARM)
        pairs(one.memory, ARM.arm, 60.0, runs=3)
    for one in (first, second):
        # Both believe that they began the trial.
        one.until(lambda one=one: one.counters.snapshot().get("store_written{arm}", 0) > 0)  # type: ignore[misc]

    def runs(one: Instance) -> int:
        (entry,) = one.memory.entries()
        return len(entry.arms[ARM.arm].pairs)

    second.until(lambda: runs(second) == 6)
    first.until(lambda: runs(first) == 6)
    pairs(first.memory, ARM.arm, 60.0, runs=1)
    for one in (first, second):
        one.until(lambda one=one: ask(one.memory, ARM).approved)  # type: ignore[misc]
    with open_store(f"sqlite:///{tmp_path}/store.db") as store:
        (arm,) = store.arms(key=KEY)
        assert (len(arm.latencies), len(arm.moments)) == (7, 7)
        lines = [(line.before, line.after, line.scope) for line in store.ledger(key=KEY, kind="state")]
        assert lines == [("trial", "approved", "query"), ("candidate", "trial", "query")]
        of_the_template = store.ledger(key=FACTS.template, kind="state")
        assert [(line.after, line.scope) for line in of_the_template] == [("trial", "template")]
    for one in (first, second):
        one.remembering.close()


def test_breakers_and_what_trials_may_cost_outlive_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    first = Instance(url)
    for number in range(8):
        key = f"{number:032x}"
        facts = replace(FACTS, key=key, typical_ms=1000.0)
        ask(first.memory, MODEL, facts=facts)
        plain(first.memory, key=key, took=1000.0)
        ask(first.memory, MODEL, facts=facts)
        seen(first.memory, MODEL_ARM, 1000.0, key, stopped_ms=4000.0)
    assert first.memory.breakers_open == ("m-1",)
    left = first.memory.trials_left_ms
    assert left < 0
    first.remembering.close()
    second = Instance(url)
    second.until(lambda: second.memory.breakers_open == ("m-1",))
    assert second.memory.trials_left_ms == pytest.approx(left, abs=1.0)
    second.remembering.close()


def test_a_store_that_is_gone_costs_nothing_and_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no database at all" * 1000)
    instance = Instance(f"sqlite:///{tmp_path}/file")
    instance.win()
    wait_until(lambda: bool(instance.failures), 10)
    for _ in range(50):
        instance.remembering.turn()
    choice = ask(instance.memory, ARM)
    assert (choice.arm, choice.approved, choice.share) == (ARM.arm, False, 0.5)
    begun = time.perf_counter()
    instance.remembering.close()
    assert time.perf_counter() - begun < 5
    assert len(instance.failures) == 1
    assert any(name.startswith("memory_store_failures") for name in instance.counters.snapshot())


def test_a_store_that_hangs_is_told_of_while_it_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("planner.memory.store.writer.SLOW_SECONDS", 0.2)
    open_store(f"sqlite:///{tmp_path}/store.db").close()
    other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    one = Instance(f"sqlite:///{tmp_path}/store.db")
    one.win()
    one.until(lambda: bool(one.failures))
    assert one.failures[0].endswith("does not answer")
    assert one.counters.snapshot()["memory_store_failures{slow}"] == 1
    other.close()
    one.until(lambda: not one.remembering.failing)
    one.until(lambda: ask(one.memory, ARM).approved)
    one.remembering.close()


def test_without_a_store_memory_lasts_as_long_as_the_process() -> None:
    instance = Instance("")
    instance.win()
    assert ask(instance.memory).approved
    instance.remembering.turn()
    assert any(KEY in keys for keys in instance.forgotten if keys)
    instance.remembering.close()


def test_samples_become_executions(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    instance = Instance(url)
    text = b"SELECT * FROM orders WHERE region = 'secret north'"
    sample = Observed("shop", b"t", 12.5, False, rows=7, reason="few_calls", text=text, query=bytes.fromhex(KEY))
    instance.remembering.sampled(sample)
    instance.remembering.sampled(Observed("shop", b"t", 12.5, False))
    instance.remembering.serves("cardinality", "sales-1")
    with open_store(url) as store:
        wait_until(lambda: bool(store.executions()), 10)
        (found,) = store.executions()
        assert (found.took_ms, found.rows, found.decision, found.key) == (12.5, 7, "few_calls", KEY)
        assert found.fingerprint
        assert "secret" not in found.text
        assert [line.model for line in store.ledger(kind="model")] == ["sales-1"]
    instance.remembering.close()


def test_policy_follows_the_settings() -> None:
    made = policy(Limits(min_gain=1.5, min_gain_ms=10.0, control_share=0.2, regret_budget=3.0, evidence_age_s=5.0))
    assert (made.rules.min_gain, made.rules.min_ms, made.min_ms) == (1.5, 10.0, 12.0)
    assert (made.control_share, made.budget, made.max_age_s) == (0.2, 3.0, 5.0)
    memory = Memory(made)
    ask(memory, ARM, facts=replace(FACTS, typical_ms=11.0))
    memory.configure(replace(made, min_ms=100.0))
    assert ask(memory, facts=replace(FACTS, typical_ms=11.0)).reason == "too_fast"
