"""The plan memory's choices: trials, replay without a model and only after the commit, expiry, people, bounds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.memory import index as index_module
from planner.memory.entries import Candidate, Changes, Choice, Facts, Seen
from planner.memory.guard import Policy
from planner.memory.keys import Conditions
from planner.memory.memory import Memory
from planner.memory.records import MODEL_ARM, ArmRecord, QueryRecord, State, StoredAdvice
from planner.memory.states import TransitionError, changed

KEY, TEMPLATE = "0" * 32, "f" * 32
CONDITIONS = Conditions("schema", 180000, "t:1000:5")
FACTS = Facts(KEY, TEMPLATE, "shop", "public", "fp", CONDITIONS, 10, 100.0, text="SELECT 1")
MODEL = Candidate(MODEL_ARM, StoredAdvice(rows=((("a", "b"), 10.0),)), "m-1", per_values=True)
ARM = Candidate("no_nestloop", StoredAdvice(settings=(("enable_nestloop", "off"),)))
OTHER = Candidate("no_hashjoin", StoredAdvice(settings=(("enable_hashjoin", "off"),)))


class Clock:
    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        self.now += 0.01
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def memory(clock: Clock) -> Memory:
    return Memory(clock=clock)


def not_asked() -> Sequence[Candidate]:
    raise AssertionError("a model was asked")


def ask(memory: Memory, *candidates: Candidate, facts: Facts = FACTS) -> Choice:
    return memory.decide(facts, (lambda: candidates) if candidates else not_asked)


def seen(memory: Memory, arm: str, took: float, key: str = KEY, **more: object) -> None:
    steered = bool(arm) and not more.get("control") and not more.get("stopped_ms")
    memory.observed(Seen(key, took, arm, **{"steered": steered, **more}))  # type: ignore[arg-type]


def plain(memory: Memory, runs: int = 3, took: float = 100.0, key: str = KEY) -> None:
    for _ in range(runs):
        seen(memory, "", took, key)


def pairs(memory: Memory, arm: str, took: float, runs: int = 8, unsteered: float = 100.0, key: str = KEY) -> None:
    for _ in range(runs):
        seen(memory, arm, unsteered, key, control=True)
        seen(memory, arm, took, key)


def approve(memory: Memory, candidate: Candidate = ARM, took: float = 30.0) -> Changes:
    ask(memory, candidate)
    plain(memory)
    ask(memory, candidate)
    pairs(memory, candidate.arm, took)
    return memory.drain()


def states(memory: Memory) -> dict[str, State]:
    return {name: arm.record.state for entry in memory.entries() for name, arm in entry.arms.items()}


# ---------------------------------------------------------------------- trial


def test_what_is_not_worth_it_is_left_alone(memory: Memory) -> None:
    few = ask(memory, facts=replace(FACTS, calls=2))
    assert (few.reason, few.once) == ("few_calls", True)
    fast = ask(memory, facts=replace(FACTS, typical_ms=2.0))
    assert (fast.reason, fast.once) == ("too_fast", False)
    assert ask(memory, ARM).arm == "no_nestloop"


def test_a_trial_is_half_of_the_runs_with_a_short_budget(memory: Memory) -> None:
    ask(memory, ARM)
    plain(memory)
    choice = ask(memory, MODEL, ARM)
    # In the given order; the approved ones alone may be used where nothing can be stopped.
    assert (choice.arm, choice.share, choice.approved) == (MODEL_ARM, 0.5, False)
    assert choice.budget_ms == pytest.approx(120.0)
    assert choice.advice == MODEL.advice


def test_a_winner_is_approved_and_replayed_without_a_model(memory: Memory) -> None:
    changes = approve(memory)
    assert KEY in changes.keys
    assert [line.after for line in changes.ledger if line.key == KEY and line.kind == "state"] == ["trial", "approved"]
    choice = ask(memory)
    assert (choice.arm, choice.approved, choice.share) == ("no_nestloop", True, 0.95)
    assert choice.budget_ms == pytest.approx(200.0)
    (record,) = [one for one in changes.records if isinstance(one, ArmRecord) and one.state is State.APPROVED]
    assert record.measured_gain == pytest.approx(100 / 30, rel=0.01)
    assert (record.schema_hash, record.drift) == ("schema", "t:1000:5")


def test_a_loser_is_not_tried_again(memory: Memory) -> None:
    ask(memory, ARM, OTHER)
    plain(memory)
    assert ask(memory, ARM, OTHER).arm == "no_nestloop"
    seen(memory, "no_nestloop", 100.0, stopped_ms=120.0)
    assert states(memory)["no_nestloop"] is State.REJECTED
    assert ask(memory, ARM, OTHER).arm == "no_hashjoin"
    pairs(memory, "no_hashjoin", 100.0)
    assert states(memory)["no_hashjoin"] is State.REJECTED
    assert ask(memory, ARM, OTHER).reason == "nothing_left_to_try"


def test_a_stop_on_a_slow_server_is_no_loss(memory: Memory) -> None:
    ask(memory, ARM)
    plain(memory)
    ask(memory, ARM)
    for _ in range(3):
        seen(memory, "no_nestloop", 400.0, stopped_ms=120.0)
    assert states(memory)["no_nestloop"] is State.TRIAL


def test_a_stop_where_other_values_set_the_limit_is_no_loss(memory: Memory) -> None:
    """The template takes 100 ms; these values take a second, steered or not."""
    choice = ask(memory, ARM)
    assert choice.budget_ms == pytest.approx(120.0)
    for _ in range(3):
        seen(memory, "no_nestloop", 1000.0, stopped_ms=120.0)
    assert states(memory)["no_nestloop"] is State.TRIAL


def test_failures_lose_a_trial_unless_the_others_fail_too(memory: Memory) -> None:
    ask(memory, ARM)
    plain(memory)
    ask(memory, ARM)
    seen(memory, "no_nestloop", 1.0, failed=True)
    seen(memory, "no_nestloop", 1.0, control=True, failed=True)
    seen(memory, "no_nestloop", 1.0, failed=True)
    assert states(memory)["no_nestloop"] is State.TRIAL
    seen(memory, "no_nestloop", 1.0, failed=True)
    assert states(memory)["no_nestloop"] is State.REJECTED


def test_an_arm_is_tried_only_when_its_plan_has_been_looked_at(clock: Clock) -> None:
    memory = Memory(verify=True, clock=clock)
    ask(memory, ARM, OTHER)
    plain(memory)
    choice = ask(memory, ARM, OTHER)
    assert (choice.arm, choice.verify, choice.once) == ("", "no_nestloop", True)
    memory.verified(KEY, "no_nestloop", "same_plan")
    assert states(memory)["no_nestloop"] is State.REJECTED
    assert ask(memory, ARM, OTHER).verify == "no_hashjoin"
    memory.verified(KEY, "no_hashjoin", "honoured")
    assert ask(memory, ARM, OTHER).arm == "no_hashjoin"
    memory.verified("1" * 32, "no_hashjoin", "honoured")


def test_trials_stop_when_they_have_cost_enough(memory: Memory) -> None:
    ask(memory, ARM)
    plain(memory)
    ask(memory, ARM)
    seen(memory, "no_nestloop", 100_000.0)
    choice = ask(memory, OTHER)
    assert (choice.reason, choice.once) == ("trials_limited", True)
    plain(memory, runs=20, took=200_000.0)
    assert ask(memory, ARM, OTHER).arm


def test_in_shadow_it_is_logged_what_would_be_done(memory: Memory) -> None:
    ask(memory, ARM)
    plain(memory)
    ask(memory, ARM)
    for _ in range(200):
        seen(memory, "", 100.0, shadow=True)
    changes = memory.drain()
    assert states(memory)["no_nestloop"] is State.CANDIDATE
    lines = [line for line in changes.ledger if line.kind == "execution"]
    assert [(line.arm, line.why.split(":")[0]) for line in lines] == [("no_nestloop", "shadow")] * 2


# ---------------------------------------------------------------------- in use


def test_what_is_approved_counts_only_when_it_is_written(clock: Clock) -> None:
    memory = Memory(durable=True, clock=clock)
    changes = approve(memory)
    assert not ask(memory, ARM).approved
    memory.committed(changes.records)
    assert KEY in memory.drain().keys
    assert ask(memory).approved


def test_an_approval_that_was_not_written_is_handed_out_again(clock: Clock) -> None:
    memory = Memory(durable=True, clock=clock)
    approve(memory)
    clock.now += 10
    again = [one for one in memory.drain().records if isinstance(one, ArmRecord) and one.state is State.APPROVED]
    assert [one.arm for one in again] == ["no_nestloop"]
    memory.committed(again)
    clock.now += 10
    assert memory.drain().records == []


def test_what_became_slower_is_withdrawn(memory: Memory) -> None:
    approve(memory)
    pairs(memory, "no_nestloop", 300.0, runs=7)
    changes = memory.drain()
    assert states(memory)["no_nestloop"] is State.REJECTED
    assert changes.withdrawn == 1
    assert any(line.why.startswith("withdrawn: slower") for line in changes.ledger)
    assert ask(memory, ARM).reason == "nothing_left_to_try"


def test_steered_runs_that_look_slow_raise_the_control_group(memory: Memory) -> None:
    approve(memory)
    for _ in range(6):
        seen(memory, "no_nestloop", 150.0)
    assert KEY in memory.drain().keys
    assert ask(memory).share == 0.5
    # It was the server: both sides are slow.
    pairs(memory, "no_nestloop", 150.0, runs=12, unsteered=500.0)
    assert states(memory)["no_nestloop"] is State.APPROVED
    assert ask(memory).share == 0.95


def test_what_goes_on_winning_stays_young(memory: Memory, clock: Clock) -> None:
    approve(memory)
    for _ in range(4):
        clock.now += 3 * 86400
        pairs(memory, "no_nestloop", 30.0, runs=13)
        assert ask(memory).approved


def test_stops_and_failures_in_use_withdraw(memory: Memory) -> None:
    approve(memory)
    seen(memory, "no_nestloop", 100.0, stopped_ms=200.0)
    seen(memory, "no_nestloop", 1.0, failed=True)
    assert states(memory)["no_nestloop"] is State.APPROVED
    seen(memory, "no_nestloop", 100.0, stopped_ms=200.0)
    assert states(memory)["no_nestloop"] is State.REJECTED


def test_an_arm_without_advantage_is_verified_again(memory: Memory) -> None:
    approve(memory)
    for number in range(14):
        seen(memory, "no_nestloop", 100.0, control=True)
        seen(memory, "no_nestloop", 99.0 + number % 3)
    assert states(memory)["no_nestloop"] is not State.APPROVED


def test_a_better_arm_takes_over(memory: Memory) -> None:
    approve(memory, ARM, took=50.0)
    ask(memory)
    assert memory.loaded([], [record("no_hashjoin", State.APPROVED, gain=5.0, advice=OTHER.advice)])
    assert ask(memory).arm == "no_hashjoin"


# ---------------------------------------------------------------------- templates


def sibling(number: int) -> Facts:
    return replace(FACTS, key=f"{number + 1:032x}")


def run_siblings(memory: Memory, gain: Callable[[int], float], numbers: range, arm: Candidate = ARM) -> None:
    for number in numbers:
        facts = sibling(number)
        choice = ask(memory, arm, facts=facts)
        if choice.arm:
            seen(memory, choice.arm, 100.0, facts.key, control=True)
            seen(memory, choice.arm, 100.0 / gain(number), facts.key)


def test_values_never_seen_use_what_won_for_their_template_by_a_margin(memory: Memory) -> None:
    run_siblings(memory, lambda number: 3.0, range(12))
    choice = ask(memory, ARM, facts=sibling(99))
    assert (choice.arm, choice.approved) == ("no_nestloop", True)


def test_a_small_gain_is_not_carried_over_but_a_models_own_advice_is(clock: Clock) -> None:
    memory = Memory(clock=clock)
    run_siblings(memory, lambda number: 1.5, range(40))
    assert not ask(memory, ARM, facts=sibling(99)).approved
    memory = Memory(clock=clock)
    run_siblings(memory, lambda number: 1.5, range(40), MODEL)
    choice = ask(memory, MODEL, facts=sibling(99))
    assert (choice.arm, choice.approved, choice.advice) == (MODEL_ARM, True, MODEL.advice)


def test_one_query_that_lost_keeps_an_arm_from_its_siblings(memory: Memory) -> None:
    ask(memory, ARM)
    plain(memory)
    ask(memory, ARM)
    seen(memory, "no_nestloop", 100.0, stopped_ms=120.0)
    run_siblings(memory, lambda number: 3.0, range(40))
    assert not ask(memory, ARM, facts=sibling(99)).approved


def test_a_later_loss_takes_it_from_all(memory: Memory) -> None:
    run_siblings(memory, lambda number: 3.0, range(12))
    memory.drain()
    facts = sibling(5)
    assert ask(memory, ARM, facts=facts).approved
    for _ in range(3):
        seen(memory, "no_nestloop", 100.0, facts.key, stopped_ms=200.0)
    assert {sibling(number).key for number in range(12)} <= memory.drain().keys
    assert not ask(memory, ARM, facts=sibling(99)).approved


# ---------------------------------------------------------------------- what changes


@pytest.mark.parametrize(
    "now", [Conditions("other", 180000, "t:1000:5"), Conditions("schema", 190000, "t:1000:5"),
            Conditions("schema", 180000, "t:9000:5")],
)  # fmt: skip
@pytest.mark.parametrize("took", [30.0, 300.0])
def test_evidence_expires(memory: Memory, now: Conditions, took: float) -> None:
    approve(memory, took=took)
    settled = states(memory)["no_nestloop"]
    assert settled in (State.APPROVED, State.REJECTED)
    choice = ask(memory, ARM, facts=replace(FACTS, conditions=now))
    assert (choice.arm, choice.approved) == ("no_nestloop", False)
    assert states(memory)["no_nestloop"] is State.EXPIRED
    assert [line.after for line in memory.drain().ledger if line.key == KEY][-1:] == ["expired"]


def test_evidence_grows_old(memory: Memory, clock: Clock) -> None:
    approve(memory)
    clock.now += 8 * 86400
    assert KEY in memory.drain().keys
    assert not ask(memory, ARM).approved


def test_another_models_advice_is_tried_anew(memory: Memory) -> None:
    ask(memory, MODEL)
    plain(memory)
    ask(memory, MODEL)
    seen(memory, MODEL_ARM, 100.0, stopped_ms=120.0)
    assert ask(memory, MODEL).reason == "nothing_left_to_try"
    better = replace(MODEL, model="m-2", advice=StoredAdvice(rows=((("a", "b"), 99.0),)))
    choice = ask(memory, better)
    assert (choice.arm, choice.advice, choice.model) == (MODEL_ARM, better.advice, "m-2")


def test_a_model_that_loses_is_switched_off(memory: Memory) -> None:
    lost = 0
    for number in range(40):
        facts = replace(sibling(number), template=f"{number + 100:032x}")
        ask(memory, MODEL, facts=facts)
        plain(memory, key=facts.key)
        if ask(memory, MODEL, facts=facts).arm:
            seen(memory, MODEL_ARM, 100.0, facts.key, stopped_ms=120.0)
            lost += 1
    assert lost == 8
    assert memory.breakers_open == ("m-1",)
    changes = memory.drain()
    assert changes.everything
    assert [line.model for line in changes.ledger if line.kind == "breaker"] == ["m-1"]


# ---------------------------------------------------------------------- one better than the one in use


@pytest.fixture
def improving(clock: Clock) -> Memory:
    """One arm is in use, 1.7 times as fast, and another one is known."""
    turns = itertools.cycle((0.9, 0.1))
    memory = Memory(clock=clock, dice=lambda: next(turns))
    ask(memory, ARM, OTHER)
    plain(memory)
    ask(memory, ARM, OTHER)
    pairs(memory, ARM.arm, 60.0, runs=7)
    assert states(memory)["no_nestloop"] is State.APPROVED
    return memory


def test_a_further_arm_is_tried_against_the_one_in_use(improving: Memory) -> None:
    offered = {(one.arm, one.approved, one.share, one.once) for one in (ask(improving), ask(improving))}
    assert offered == {("no_nestloop", True, 0.95, True), ("no_hashjoin", False, 1.0, True)}
    for _ in range(8):
        seen(improving, "no_nestloop", 60.0)
        seen(improving, "no_hashjoin", 40.0)
    choice = ask(improving)
    assert (choice.arm, choice.approved, choice.once) == ("no_hashjoin", True, False)
    (entry,) = improving.entries()
    # Against unsteered, by what the one before gained; and that one is there, should this one be withdrawn.
    assert entry.arms["no_hashjoin"].record.measured_gain == pytest.approx(2.5, rel=0.01)
    assert states(improving) == {"no_nestloop": State.APPROVED, "no_hashjoin": State.APPROVED}


@pytest.mark.parametrize("took", [58.0, 75.0])
def test_what_is_not_better_than_the_one_in_use_does_not_replace_it(improving: Memory, took: float) -> None:
    [ask(improving) for _ in range(2)]
    for _ in range(16):
        seen(improving, "no_nestloop", 60.0)
        seen(improving, "no_hashjoin", took)
    assert states(improving) == {"no_nestloop": State.APPROVED, "no_hashjoin": State.REJECTED}
    assert ask(improving).arm == "no_nestloop"


def test_what_cannot_be_tried_is_not_offered_for_ever(improving: Memory) -> None:
    """A statement whose runs cannot be stopped runs under nothing that is not approved."""
    offered = [ask(improving).arm for _ in range(60)]
    assert 0 < offered.count("no_hashjoin") < 20
    assert offered[-20:] == ["no_nestloop"] * 20


# ---------------------------------------------------------------------- people, other instances


def record(arm: str, state: State, *, actor: str = "system", gain: float = 2.0, **more: object) -> ArmRecord:
    fields = {"schema_hash": "schema", "server_version": 180000, "drift": "t:1000:5", "updated": 2e9, **more}
    return ArmRecord(key=KEY, arm=arm, state=state, actor=actor, measured_gain=gain, **fields)  # type: ignore[arg-type]


def query(**more: object) -> QueryRecord:
    fields = {
        "key": KEY,
        "template": TEMPLATE,
        "database": "shop",
        "search_path": "public",
        "fingerprint": "fp",
        **more,
    }
    return QueryRecord(**fields)  # type: ignore[arg-type]


def test_what_is_in_the_store_counts_at_once(memory: Memory) -> None:
    # In a large store an arm may come before its query.
    assert memory.loaded([], [record("no_nestloop", State.APPROVED, advice=ARM.advice)]) == 0
    assert memory.loaded([query()], []) == 1
    choice = ask(memory)
    assert (choice.arm, choice.approved, choice.advice) == ("no_nestloop", True, ARM.advice)


def test_a_persons_decisions_hold(memory: Memory, clock: Clock) -> None:
    approve(memory)
    memory.loaded([query(opted_out=True, actor="ann")], [])
    assert KEY in memory.drain().keys
    assert ask(memory).reason == "frozen"
    memory.loaded([query(opted_out=False, actor="ann")], [])
    assert ask(memory).arm == "no_nestloop"
    memory.loaded([], [record("no_nestloop", State.REJECTED, actor="ann", updated=1.0)])
    assert ask(memory, ARM).reason == "nothing_left_to_try"
    # Not even other data brings back what a person rejected.
    assert ask(memory, ARM, facts=replace(FACTS, conditions=Conditions("new"))).reason == "nothing_left_to_try"
    memory.loaded([], [record("no_hashjoin", State.PREFERRED, actor="ann", advice=OTHER.advice)])
    assert ask(memory).arm == "no_hashjoin"
    pairs(memory, "no_hashjoin", 900.0, runs=20)
    clock.now += 30 * 86400
    assert ask(memory, facts=replace(FACTS, conditions=Conditions("new"))).arm == "no_hashjoin"


def test_our_own_records_come_back_without_effect(memory: Memory, clock: Clock) -> None:
    changes = approve(memory)
    arms = [msgspec.structs.replace(one, revision=7) for one in changes.records if isinstance(one, ArmRecord)]
    assert memory.loaded([one for one in changes.records if isinstance(one, QueryRecord)], arms) == 0
    memory.drain()
    pairs(memory, "no_nestloop", 30.0, runs=1)
    clock.now += 1
    written = [one for one in memory.drain().records if isinstance(one, ArmRecord) and one.key == KEY]
    assert [one.revision for one in written] == [7]


def test_a_decision_made_while_ours_was_written_is_taken_over(clock: Clock) -> None:
    memory = Memory(durable=True, clock=clock)
    approve(memory)
    memory.committed([record("no_nestloop", State.REJECTED, actor="ann")])
    assert ask(memory, ARM).reason == "nothing_left_to_try"


def test_what_is_forgotten_is_gone(memory: Memory) -> None:
    approve(memory)
    memory.loaded([query(forgotten=True)], [])
    assert len(memory) == 0
    assert KEY in memory.drain().keys
    seen(memory, "no_nestloop", 30.0)
    assert KEY in memory.drain().keys  # a worker has not heard of it yet


def test_the_system_may_not_undo_a_person() -> None:
    with pytest.raises(TransitionError):
        changed(record("a", State.PREFERRED, actor="ann"), State.REJECTED, "slower", 1.0)
    arm, line = changed(record("a", State.PREFERRED), State.FROZEN, "enough", 1.0, actor="ann")
    assert (arm.state, arm.actor, line.kind, line.before) == (State.FROZEN, "ann", "person", "preferred")


# ---------------------------------------------------------------------- bounds


def test_memory_is_bounded_and_keeps_what_is_in_use(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_QUERIES", 20)
    monkeypatch.setattr(index_module, "MAX_TEXT_BYTES", 10_000)
    approve(memory)
    for number in range(100):
        ask(memory, ARM, facts=replace(sibling(number), text="x" * 400))
    assert len(memory) <= 20
    assert ask(memory).approved
    assert len(memory.drain().keys) <= 1000


def test_a_query_that_made_room_is_known_when_it_comes_again(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    approve(memory, took=300.0)
    assert states(memory)["no_nestloop"] is State.REJECTED
    monkeypatch.setattr(index_module, "MAX_QUERIES", 5)
    for number in range(20):
        ask(memory, ARM, facts=sibling(number))
    assert KEY not in [entry.record.key for entry in memory.entries()]
    assert ask(memory, ARM).reason == "nothing_left_to_try"


SEEN = st.builds(
    Seen, st.sampled_from([KEY, "1" * 32, "2" * 32]), st.floats(0, 1e8), st.sampled_from(["", "no_nestloop", "x"]),
    steered=st.booleans(), control=st.booleans(), failed=st.booleans(), stopped_ms=st.floats(0, 1e8),
)  # fmt: skip


@given(st.lists(st.one_of(SEEN, st.integers(0, 2), st.sampled_from(list(State))), max_size=60))
@settings(max_examples=150, deadline=None)
def test_whatever_is_seen_nothing_raises_and_records_can_be_written(events: list[Seen | int | State]) -> None:
    clock = Clock()
    memory = Memory(Policy(min_calls=1), clock=clock)
    for event in events:
        match event:
            case Seen():
                memory.observed(event)
            case State():
                memory.loaded([query()], [record("no_nestloop", event, updated=clock.now, advice=ARM.advice)])
            case _:
                choice = ask(memory, ARM, OTHER, facts=replace(FACTS, key=[KEY, "1" * 32, "2" * 32][event]))
                assert choice.arm or choice.reason
                assert 0 <= choice.share <= 1
                assert choice.budget_ms >= 0
    changes = memory.drain()
    msgspec.json.encode([changes.records, changes.ledger])
