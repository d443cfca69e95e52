"""The policy against thousands of synthetic queries: what it costs, and whom it hurts, with bounds that fail.

A query has a time as it is and a factor for each arm, drawn as in recorded matrices of real workloads: most arms make
no difference, a sixth are faster, a quarter slower, some very much. Runs have noise. The worker's part is played as the
wire plays it: answers are kept until they are called back, a share of the runs is left alone, a steered run that goes
over its budget is stopped and run again, and a fifth of the executions cannot be stopped.

*Regret* is the time above the best arm of each query in hindsight, in shares of the time that all queries would take
unsteered. *Hurt* are executions that took more than 1.2 times as long as the same one would have taken unsteered.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from planner.memory.arms import PORTFOLIO
from planner.memory.entries import Candidate, Choice, Facts, Seen
from planner.memory.guard import Policy
from planner.memory.keys import Conditions
from planner.memory.memory import Memory
from planner.memory.records import MODEL_ARM, StoredAdvice

QUERIES = 2000
TEMPLATES = 250
WARM_UP = 6_000
EXECUTIONS = 3_000
HURT = 1.2
STOPPABLE = 0.8
MODEL = "sim-1"
Factors = Callable[[random.Random], float]


def recorded(dice: random.Random) -> float:
    """How many times as long a query takes under an arm of the portfolio."""
    kind = dice.random()
    if kind < 0.6:
        return 1.0
    if kind < 0.76:
        return 1 / math.exp(abs(dice.gauss(0, 0.8)))
    return math.exp(abs(dice.gauss(0, 1.3)))


def honest(dice: random.Random) -> float:
    """The same under the advice of a model that is right more often than wrong."""
    kind = dice.random()
    if kind < 0.5:
        return 1.0
    return 1 / math.exp(abs(dice.gauss(0, 0.9))) if kind < 0.88 else math.exp(abs(dice.gauss(0, 0.5)))


def saboteur(dice: random.Random) -> float:
    """Of one that is wrong on purpose."""
    return math.exp(dice.uniform(0.7, 4.0))


@dataclass
class Query:
    key: str
    template: str
    ms: float
    factors: dict[str, float]
    answer: Choice | None = None
    runs: int = 0
    plain: list[float] = field(default_factory=list)

    def best(self) -> float:
        return min([1.0, *self.factors.values()])


@dataclass
class Outcome:
    """In milliseconds, and shares of the executions and of the time unsteered."""

    took: float = 0.0
    unsteered: float = 0.0
    best: float = 0.0
    hurt: int = 0
    executions: int = 0
    withdrawn: int = 0
    approved: int = 0
    tripped: list[str] = field(default_factory=list)

    @property
    def regret(self) -> float:
        return (self.took - self.best) / self.unsteered

    @property
    def possible(self) -> float:
        """The regret of never steering."""
        return (self.unsteered - self.best) / self.unsteered

    @property
    def lost(self) -> float:
        """Time above never steering; below 0 for a gain."""
        return self.took / self.unsteered - 1

    @property
    def hurt_share(self) -> float:
        return self.hurt / self.executions

    def __str__(self) -> str:
        return (
            f"regret {self.regret:.3f} (never steering {self.possible:.3f}), time {self.lost:+.1%}, "
            f"hurt {self.hurt_share:.2%}, {self.approved} approved, {self.withdrawn} withdrawn"
        )


class World:
    """``model`` draws the model's factors; None: there is only the portfolio."""

    def __init__(self, model: Factors | None, seed: int = 1, noise: float = 0.12, policy: Policy | None = None) -> None:
        self.dice = random.Random(seed)
        self.now = 1e9
        self.noise = noise
        self.slow = 1.0
        self.conditions = Conditions("schema", 180000, "")
        self.memory = Memory(policy, verify=True, clock=lambda: self.now, dice=random.Random(seed).random)
        names = ([MODEL_ARM] if model is not None else []) + list(PORTFOLIO)
        self.candidates = [
            Candidate(name, StoredAdvice(settings=(("arm", name),)), MODEL if name == MODEL_ARM else "",
                      per_values=name == MODEL_ARM)
            for name in names
        ]  # fmt: skip
        self.queries = []
        for number in range(QUERIES):
            factors = {name: recorded(self.dice) for name in PORTFOLIO}
            if model is not None:
                factors[MODEL_ARM] = model(self.dice)
            ms = min(math.exp(self.dice.gauss(4.0, 1.3)), 20_000.0)
            self.queries.append(Query(f"{number:032x}", f"t{number % TEMPLATES}", ms, factors))
        self.weights = [1 / (rank + 5) ** 1.2 for rank in range(QUERIES)]

    def run(self, executions: int) -> Outcome:
        outcome = Outcome()
        for query in self.dice.choices(self.queries, self.weights, k=executions):
            self._execute(query, outcome)
            self.now += 0.05
            if outcome.executions % 5 == 0:
                self._call_back(outcome)
        return outcome

    def _execute(self, query: Query, outcome: Outcome) -> None:
        choice = query.answer or self._ask(query)
        noise = math.exp(self.dice.gauss(0, self.noise)) * self.slow
        plain = query.ms * noise
        stoppable = self.dice.random() < STOPPABLE
        steered = bool(choice.arm) and self.dice.random() < choice.share
        if steered and not choice.approved and not stoppable:
            steered, choice = False, Choice("not_stoppable")
        stopped = 0.0
        took = plain * (query.factors[choice.arm] if steered else 1.0)
        if steered and stoppable and choice.budget_ms and took > choice.budget_ms:
            stopped, took, steered = choice.budget_ms, plain, False
        control = bool(choice.arm) and not steered and not stopped
        self.memory.observed(Seen(query.key, took, choice.arm, steered=steered, control=control, stopped_ms=stopped))
        query.runs += 1
        if not steered:
            query.plain = [*query.plain[-7:], took]
        outcome.took += took + stopped
        outcome.unsteered += plain
        outcome.best += plain * query.best()
        outcome.hurt += took + stopped > HURT * plain
        outcome.executions += 1

    def _ask(self, query: Query) -> Choice:
        typical = sorted(query.plain)[len(query.plain) // 2] if query.plain else 0.0
        facts = Facts(query.key, query.template, "d", "public", query.template, self.conditions, query.runs, typical)
        choice = self.memory.decide(facts, lambda: self.candidates)
        if choice.verify:
            # Arms that make no difference show in the plan.
            outcome = "same_plan" if query.factors[choice.verify] == 1.0 else "honoured"
            self.memory.verified(query.key, choice.verify, outcome)
        if not choice.once:
            query.answer = choice
        return choice

    def _call_back(self, outcome: Outcome) -> None:
        changes = self.memory.drain()
        outcome.withdrawn += changes.withdrawn
        outcome.approved += changes.approved
        outcome.tripped += [line.model for line in changes.ledger if line.kind == "breaker" and line.after == "open"]
        if changes.everything:
            for query in self.queries:
                query.answer = None
        for key in changes.keys:
            if len(key) == 32:
                self.queries[int(key, 16)].answer = None


def test_an_honest_model_gains() -> None:
    world = World(honest)
    first, later = world.run(WARM_UP), world.run(EXECUTIONS)
    print(f"honest: {first}\n  then: {later}")
    assert first.lost < 0.01
    assert first.hurt_share < 0.03
    assert later.lost < -0.06
    assert later.regret < 0.8 * later.possible
    assert later.hurt_share < 0.02


def test_a_workload_that_repeats_reaches_most_of_what_is_possible() -> None:
    """By serving alone, without exploring: a worse arm in use does not keep out a better one."""
    for model in (honest, saboteur):
        world = World(model)
        world.queries, world.weights = world.queries[:40], [1.0] * 40
        first, later = world.run(100 * 40), world.run(20 * 40)
        print(f"{model.__name__}: {first}\n  then: {later}")
        assert first.hurt_share < 0.03
        assert later.hurt_share < 0.01
        assert later.regret < 0.15 * later.possible


def test_a_saboteur_is_switched_off_and_costs_little() -> None:
    world = World(saboteur)
    first, later = world.run(WARM_UP), world.run(EXECUTIONS)
    print(f"saboteur: {first}\n    then: {later}")
    assert set(first.tripped) == {MODEL}
    assert first.lost < 0.01
    assert first.hurt_share < 0.03
    # What the portfolio gives is left.
    assert later.lost < -0.03
    assert later.hurt_share < 0.02


def test_the_portfolio_gains_with_no_training_at_all() -> None:
    world = World(None)
    first, later = world.run(WARM_UP), world.run(EXECUTIONS)
    print(f"portfolio: {first}\n     then: {later}")
    assert first.lost < 0.01
    assert later.lost < -0.03
    assert later.hurt_share < 0.02


def test_what_turns_bad_is_withdrawn() -> None:
    """All at once every arm that was faster is slower, with nothing else to show for it."""
    world = World(honest)
    world.run(WARM_UP)
    for query in world.queries:
        query.factors = {name: 1 / factor if factor < 1 else factor for name, factor in query.factors.items()}
    turned, later = world.run(EXECUTIONS // 2), world.run(EXECUTIONS)
    print(f"turned: {turned}\n  then: {later}")
    assert turned.withdrawn > 0
    assert turned.hurt_share < 0.10
    assert turned.lost < 0.12
    assert later.hurt_share < 0.015
    assert later.lost < 0.01


def test_a_server_that_slows_down_for_all_changes_nothing() -> None:
    world = World(honest)
    world.run(WARM_UP)
    gains = 0.0
    for slow in (3.0, 0.5, 2.0, 1.0):
        world.slow = slow
        found = world.run(EXECUTIONS // 4)
        print(f"{slow} times as slow: {found}")
        assert found.withdrawn <= 1
        assert found.hurt_share < 0.03
        gains -= found.lost
    assert gains / 4 > 0.03


def test_noise_alone_is_hardly_ever_taken_for_a_gain() -> None:
    """Arms that change the plan and nothing else, and runs that differ by half from one to the next."""
    world = World(None, noise=0.5)
    # Few queries, so that many verdicts are come to.
    world.queries, world.weights = world.queries[:50], [1.0] * 50
    for query in world.queries:
        query.factors = dict.fromkeys(PORTFOLIO, 1.0001)
    found = world.run(2 * EXECUTIONS)
    print(f"noise: {found}")
    settled = sum(arm.settled for entry in world.memory.entries() for arm in entry.arms.values())
    assert settled > 60
    assert found.approved <= 0.08 * settled
    assert found.lost < 0.05
