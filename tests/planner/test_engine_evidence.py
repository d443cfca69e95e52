"""The engine with a plan memory: trials and replay as answers, EXPLAIN, modes by rule, what a broken model leaves."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from model_runtime.store import ModelStore
from planner.blackbox import Recorder
from planner.control import Limits
from planner.counters import Counters
from planner.engine import Engine
from planner.memory.arms import CUSTOM_PLAN, PORTFOLIO
from planner.memory.memory import Memory
from planner.memory.records import MODEL_ARM, ArmRecord, State
from planner.messages import Answer, Ask, Observed
from planner.policy import ModeError, fingerprint, modes
from planner.remembering import policy
from planner.snapshot import Snapshot
from planner.weighing import Verification
from tests.planner.test_engine import SNAPSHOT, ask
from tests.support.shop import QUERY, constant_model


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelStore]:
    folder = tmp_path_factory.mktemp("models")
    constant_model(folder)
    store = ModelStore(folder)
    store.reload()
    yield store
    store.close()


class Server:
    """Plays the workers and the server: statements run under the engine's answers."""

    def __init__(self, store: ModelStore | None, **limits: Any) -> None:
        chosen = Limits(**{"evidence": "measured", **limits})
        self.memory = Memory(policy(chosen), verify=True)
        self.counters = Counters()
        self.looked_at: list[Verification] = []
        self.engine = Engine(store, chosen, self.counters, Recorder(-1), (), self.memory, self._verify)
        self.dice = random.Random(1)
        self.plans: dict[str, str] = {}

    def _verify(self, what: Verification) -> None:
        self.looked_at.append(what)
        self.memory.verified(what.key, what.arm, self.plans.get(what.arm, "honoured"))

    def answer(self, asked: Ask, snapshot: Snapshot = SNAPSHOT) -> Answer:
        return self.engine.at_once(asked, snapshot) or self.engine.answer(asked, snapshot, 0)

    def run(self, asked: Ask, times: dict[str, float], runs: int = 40) -> Answer:
        for _ in range(runs):
            answer = self.answer(asked)
            steered = bool(answer.arm) and self.dice.random() < answer.share
            took = times.get(answer.arm, 100.0) if steered else 100.0
            self.engine.observed(
                Observed(
                    asked.database, asked.template, took, steered, query=answer.query, arm=answer.arm,
                    control=bool(answer.arm) and not steered,
                )
            )  # fmt: skip
        return self.answer(asked)


def test_a_models_advice_is_tried_first_and_replayed_when_the_model_is_gone(store: ModelStore) -> None:
    server = Server(store)
    server.plans = dict.fromkeys(PORTFOLIO, "same_plan")
    first = server.answer(ask(QUERY))
    assert (first.reason, first.scope, first.arm, first.prefix) == ("few_calls", "once", "", b"")
    assert len(first.query) == 16
    answer = server.run(ask(QUERY), {MODEL_ARM: 20.0})
    assert (answer.arm, answer.approved, answer.share, answer.scope) == (MODEL_ARM, True, 0.95, "values")
    assert b"Rows(" in answer.prefix
    assert answer.budget_ms == pytest.approx(200.0)
    assert answer.model == "times-e2-1.0.0"
    # The plan was looked at first, with the statement's own text and search_path.
    assert (server.looked_at[0].arm, server.looked_at[0].text) == (MODEL_ARM, QUERY)
    without = Server(None)
    without.memory.loaded(*_records(server.memory))
    replayed = without.answer(ask(QUERY))
    assert (replayed.prefix, replayed.approved) == (answer.prefix, True)


def _records(memory: Memory) -> tuple[list[Any], list[Any]]:
    entries = memory.entries()
    return [one.record for one in entries], [arm.copied() for one in entries for arm in one.arms.values()]


def test_the_portfolio_needs_no_model() -> None:
    server = Server(None)
    server.plans = dict.fromkeys(PORTFOLIO, "same_plan") | {"no_nestloop": "honoured"}
    answer = server.run(ask(QUERY), {"no_nestloop": 30.0})
    assert (answer.arm, answer.approved, answer.model) == ("no_nestloop", True, "")
    assert answer.prefix == b"/*+ Set(enable_nestloop off) */ "
    assert [one.arm for one in server.looked_at] == [*PORTFOLIO]


def test_prepared_statements_try_a_custom_plan_and_values_have_keys_of_their_own() -> None:
    server = Server(None)
    server.plans = dict.fromkeys(PORTFOLIO, "same_plan")
    text = QUERY.replace("'north'", "$1")
    asks = [
        ask(text, bind=struct.pack("!HHi", 0, 1, len(value)) + value + b"\0\0", types=(25,))
        for value in (b"north", b"south")
    ]
    answer = server.run(asks[0], {CUSTOM_PLAN: 20.0})
    assert (answer.arm, answer.settings) == (CUSTOM_PLAN, ((b"plan_cache_mode", b"force_custom_plan"),))
    other = server.answer(asks[1])
    assert other.query != answer.query
    assert not other.approved
    # Without values there is no plan of their own.
    without = server.run(ask(QUERY, bind=struct.pack("!HHH", 0, 0, 0)), {})
    assert (without.arm, without.reason) == ("", "nothing_left_to_try")


def test_why_nothing_comes_of_a_statement_that_cannot_be_stopped() -> None:
    server = Server(None)
    asked = ask(QUERY)
    for _ in range(12):
        answer = server.answer(asked)
        told = Observed(asked.database, asked.template, 100.0, False, query=answer.query, reason="not_repeatable")
        server.engine.observed(told)
    (entry,) = server.memory.entries()
    first = entry.arms[entry.order[0]].record
    assert (first.state, first.runs) == (State.CANDIDATE, 0)
    assert "cannot be stopped" in first.why
    assert first.arm in {record.arm for record in server.memory.drain().records if isinstance(record, ArmRecord)}


def test_explain_shows_what_is_in_use_and_teaches_nothing(store: ModelStore) -> None:
    server = Server(store)
    server.plans = dict.fromkeys(PORTFOLIO, "same_plan")
    explained = ask("EXPLAIN (COSTS OFF, VERBOSE) " + QUERY, template=b"e")
    before = server.answer(explained)
    assert (before.reason, before.scope, before.query) == ("nothing_in_use", "once", b"")
    in_use = server.run(ask(QUERY), {MODEL_ARM: 20.0})
    for text in ("EXPLAIN (COSTS OFF, VERBOSE) ", "explain analyze ", "EXPLAIN ", 'prepare "a ""b" as '):
        shown = server.answer(ask(text + QUERY, template=b"e"))
        assert (shown.prefix, shown.query, shown.share) == (in_use.prefix, b"", 1.0)
        # Nobody could tell a worker later that this does not hold any more.
        assert shown.scope == "once"
    # Of a cursor's rows perhaps few are fetched: what is known of the whole query is no evidence.
    assert server.answer(ask("DECLARE c CURSOR FOR " + QUERY, template=b"d")).reason == "nothing_in_use"
    assert len(server.memory) == 1


def test_a_model_that_fails_leaves_the_portfolio(store: ModelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    model = store.current("cardinality")
    assert model is not None

    def broken(*_: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(type(model), "predict", broken)
    server = Server(store)
    server.plans = dict.fromkeys(PORTFOLIO, "same_plan") | {"no_hashjoin": "honoured"}
    answer = server.run(ask(QUERY), {"no_hashjoin": 20.0})
    assert answer.arm == "no_hashjoin"
    assert server.counters.snapshot()["planner_failures{RuntimeError}"] >= 1


@pytest.mark.parametrize(
    ("rules", "reason", "share"),
    [
        (("user=u:off",), "off", None),
        (("database=shop user=u:observe",), "observe", None),
        (("*:shadow",), "shadow", None),
        (("user=other:off", "*:canary"), "", 0.095),
        (("application=psql:on", "*:off"), "", 0.95),
        ((f"fingerprint={fingerprint(QUERY).upper()}:off",), "off", None),
    ],
)
def test_modes_by_rule(store: ModelStore, rules: tuple[str, ...], reason: str, share: float | None) -> None:
    server = Server(store)
    server.plans = dict.fromkeys(PORTFOLIO, "same_plan")
    asked = ask(QUERY, application="psql")
    server.run(asked, {MODEL_ARM: 20.0})
    server.engine.configure(Limits(evidence="measured", mode_rules=rules))
    answer = server.answer(asked)
    assert answer.reason == reason
    assert bool(answer.prefix) is (share is not None)
    if share is not None:
        assert answer.share == pytest.approx(share)


@pytest.mark.parametrize("rule", ["off", "user=a", "user:off", "user=a:maybe", "colour=red:off", "user= :off"])
def test_rules_that_are_none(rule: str) -> None:
    with pytest.raises(ModeError):
        modes([rule])


def test_what_cannot_be_steered_is_left_alone_for_all_values(store: ModelStore) -> None:
    answer = Server(store).answer(ask("SELECT 1 FROM customers"))
    assert (answer.reason, answer.scope, answer.query) == ("no_join", "template", b"")


def test_seconds_saved_and_lost_are_counted(store: ModelStore) -> None:
    server = Server(store)
    server.plans = dict.fromkeys(PORTFOLIO, "same_plan")
    server.run(ask(QUERY), {MODEL_ARM: 20.0})
    counts = server.counters.snapshot()
    assert counts["memory_saved_seconds"] > 0.5
    assert "memory_lost_seconds" not in counts
    assert server.memory.entries()[0].arms[MODEL_ARM].record.state is State.APPROVED
