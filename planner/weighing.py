"""The decision on evidence: a statement's place in the plan memory, the arms it could run under, and the answer.

The engine hands over statements that it has read and resolved. What a statement is remembered under, and the candidates
for it (the models' advice, the portfolio, a custom plan), are computed once and kept; `planner.memory` is asked each
time. The cardinality model's advice comes first, then the arm that a model of settings predicts to be fastest, then the
portfolio in its fixed order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from planner.advice import Advice, Rendered
from planner.advise import Models, Options, Outcome, Statement, decide
from planner.counters import Counters
from planner.dialects import render, settings
from planner.graph import Parameters
from planner.lru import Lru
from planner.memory.arms import CUSTOM_PLAN, CUSTOM_PLAN_SETTINGS, PORTFOLIO
from planner.memory.convert import to_advice, to_stored
from planner.memory.entries import Candidate, Choice, Facts
from planner.memory.keys import canonical_params, canonical_path, conditions
from planner.memory.memory import Memory
from planner.memory.records import MODEL_ARM, query_key, template_key
from planner.messages import Answer, Ask
from planner.policy import TemplateTimes, carried, fingerprint
from planner.snapshot import Snapshot, TableInfo

MAX_CONSIDERED: Final = 10_000
MAX_CANDIDATE_ROWS: Final = 200_000
"""Rows of advice kept for all statements together; they are most of what a candidate takes."""
MAX_SAMPLED: Final = 200
STEERED: Final = "steered"


class NotComputedError(Exception):
    """The candidates are needed, and must be computed in a lane's thread."""


@dataclass(frozen=True, slots=True)
class Verification:
    """An arm whose plan is to be looked at: ``params`` as in `planner.memory.keys.canonical_params`."""

    key: str
    arm: str
    advice: Advice
    rendered: Rendered
    database: str
    search_path: str
    text: str
    params: str
    in_use: bool = False


@dataclass(slots=True)
class Considered:
    """What an answer is made from. ``facts`` lack the times of the template; ``candidates`` None: not computed yet.
    ``explains``: what is asked about does not run the statement that the facts are about: an EXPLAIN or PREPARE of it,
    or the DECLARE of a cursor, which is a statement of its own since few of its rows may be fetched."""

    facts: Facts
    explains: bool = False
    alike: bool = False
    candidates: tuple[Candidate, ...] | None = None
    estimated_ms: float = 0.0


class Weighing:
    """``verify`` is called with what is to be verified, from any thread. Thread-safe."""

    def __init__(self, memory: Memory, counters: Counters, verify: Callable[[Verification], None]) -> None:
        self.memory = memory
        self._counters = counters
        self._verify = verify
        self._lock = threading.Lock()
        self._known: Lru[bytes, tuple[Considered, int]] = Lru(MAX_CONSIDERED)
        self._rows = 0
        #: Arms in use, of which one now and then is verified again.
        self._sampled: Lru[str, Verification] = Lru(MAX_SAMPLED)

    def forget(self) -> None:
        """Models or catalogs changed."""
        with self._lock:
            self._known.clear()
            self._rows = 0

    def known(self, key: bytes) -> Considered | None:
        with self._lock:
            found = self._known.get(key)
        return found[0] if found is not None else None

    def keep(self, key: bytes, considered: Considered) -> None:
        rows = sum(len(one.advice.rows) for one in considered.candidates or ())
        with self._lock:
            before = self._known.get(key)
            gone = self._known.put(key, (considered, rows))
            self._rows += rows - sum(old[1] for old in (before, gone) if old is not None)
            while self._rows > MAX_CANDIDATE_ROWS and len(self._known) > 1:
                self._rows -= self._known.pop_oldest()[1]

    def sample(self) -> Verification | None:
        """One arm in use, to be verified again; each in its turn."""
        with self._lock:
            if not len(self._sampled):
                return None
            found = self._sampled.pop_oldest()
            self._sampled.put(found.key, found)
            return found

    # --- making an answer ------------------------------------------------------------------------------------------

    def consider(
        self, ask: Ask, statement: Statement, snapshot: Snapshot, path: tuple[str, ...], types: tuple[int, ...], *,
        explains: bool,
    ) -> Considered:  # fmt: skip
        """What is remembered of a statement over one snapshot; 20 to 100 us."""
        text = ask.text.decode(errors="surrogateescape")
        if explains:
            text = carried(text)
        place = canonical_path(snapshot, path)
        print_of = fingerprint(text)
        params = canonical_params(ask.bind, types)
        resolved = statement.resolved
        facts = Facts(
            key=query_key(ask.database, place, text, params),
            template=template_key(ask.database, place, print_of or text),
            database=ask.database,
            search_path=place,
            fingerprint=print_of,
            conditions=conditions(snapshot, tables_of(statement)),
            text=text,
            params=params,
        )
        alike = resolved is not None and any(block.block.set_operation == "union all" for block in resolved.blocks)
        return Considered(facts, explains, alike)

    def answer(
        self,
        ask: Ask,
        considered: Considered,
        snapshot: Snapshot,
        times: TemplateTimes | None,
        mode: tuple[str, float],
        candidates: Callable[[], tuple[Candidate, ...]] | None = None,
    ) -> Answer:
        """The memory's choice as an answer. ``mode`` is ``on``, ``canary`` or ``shadow`` with the share of executions
        to which it applies. Raises NotComputedError when ``candidates`` is None and they are needed."""
        facts = considered.facts
        if considered.explains:
            choice = self.memory.peek(facts.key, facts.template) or Choice("nothing_in_use", once=True)
        else:
            if times is not None:
                facts = replace(facts, calls=times.count, typical_ms=times.mean_ms)
            choice = self.memory.decide(facts, lambda: self._candidates(considered, candidates))
        if choice.verify:
            self._verify(self._verification(considered, choice.verify, snapshot))
        estimated = facts.typical_ms or considered.estimated_ms
        query = b"" if considered.explains else bytes.fromhex(facts.key)
        # It names no query, so that it could not be told later that its answer does not hold any more.
        scope = "once" if choice.once or considered.explains else "values"
        if not choice.arm:
            return Answer(ask.number, reason=choice.reason, scope=scope, estimated_ms=estimated, query=query)
        rendered = self._rendered(to_advice(choice.advice), considered, snapshot)
        if rendered.empty:
            return Answer(ask.number, reason="not_expressible", scope=scope, estimated_ms=estimated, query=query)
        name, share = mode
        if name == "shadow":
            self._counters.add("memory_shadow", choice.arm)
            return Answer(ask.number, reason="shadow", scope=scope, estimated_ms=estimated, query=query)
        if choice.approved and not considered.explains:
            self._remember(considered, choice, rendered)
        return Answer(
            ask.number,
            prefix=rendered.prefix.encode(errors="surrogateescape"),
            settings=tuple((name.encode(), value.encode()) for name, value in rendered.settings),
            scope=scope,
            model=choice.model,
            dialect=rendered.dialect,
            estimated_ms=estimated,
            query=query,
            arm=choice.arm,
            share=choice.share * share,
            budget_ms=choice.budget_ms,
            approved=choice.approved,
        )

    def _candidates(
        self, considered: Considered, compute: Callable[[], tuple[Candidate, ...]] | None
    ) -> tuple[Candidate, ...]:
        if considered.candidates is None:
            if compute is None:
                raise NotComputedError
            considered.candidates = compute()
        return considered.candidates

    def _rendered(self, advice: Advice, considered: Considered, snapshot: Snapshot) -> Rendered:
        # pg_hint_plan plans a UNION ALL in parallel as soon as there is a comment of its own, whatever that says.
        return settings.render(advice) if considered.alike else render(advice, snapshot.capabilities)

    def _verification(self, considered: Considered, arm: str, snapshot: Snapshot) -> Verification:
        advice = next((to_advice(one.advice) for one in considered.candidates or () if one.arm == arm), None)
        if advice is None:
            advice = to_advice(self.memory.advice(considered.facts.key, arm))
        return self._of(considered, arm, advice, self._rendered(advice, considered, snapshot))

    def _of(
        self, considered: Considered, arm: str, advice: Advice, rendered: Rendered, *, in_use: bool = False
    ) -> Verification:
        facts = considered.facts
        return Verification(
            facts.key, arm, advice, rendered, facts.database, facts.search_path, facts.text, facts.params, in_use
        )

    def _remember(self, considered: Considered, choice: Choice, rendered: Rendered) -> None:
        found = self._of(considered, choice.arm, to_advice(choice.advice), rendered, in_use=True)
        with self._lock:
            self._sampled.put(found.key, found)


def tables_of(statement: Statement) -> list[TableInfo]:
    """All tables of a statement."""
    blocks = statement.resolved.blocks if statement.resolved is not None else ()
    return [table for block in blocks for table in block.tables if table is not None]


def candidates(
    statement: Statement,
    snapshot: Snapshot,
    models: Models,
    params: Parameters,
    *,
    prepared: bool,
    options: Options,
    failed: Callable[[Exception], None],
    decided: Callable[[Outcome], None] = lambda outcome: None,
) -> tuple[tuple[Candidate, ...], float]:
    """All arms of a statement in the order in which they are to be tried, and its rough time without advice. A model
    that fails is reported by ``failed`` and left out: the portfolio needs none. What each of them says is told to
    ``decided``."""
    found: dict[str, Candidate] = {}
    estimated = 0.0
    for one in (Models(cardinality=models.cardinality), Models(hints=models.hints)):
        if one.cardinality is None and one.hints is None:
            continue
        try:
            outcome = decide(statement, snapshot, one, params, options)
        except Exception as error:
            failed(error)
            continue
        decided(outcome)
        estimated = max(estimated, outcome.estimated_ms)
        if not outcome.reason and not render(outcome.advice, snapshot.capabilities).empty:
            found.setdefault(outcome.arm, _of_model(outcome))
    if prepared:
        found[CUSTOM_PLAN] = Candidate(CUSTOM_PLAN, to_stored(Advice(settings=CUSTOM_PLAN_SETTINGS)))
    for name, chosen in PORTFOLIO.items():
        found.setdefault(name, Candidate(name, to_stored(Advice(settings=chosen))))
    return tuple(found.values()), estimated


def _of_model(outcome: Outcome) -> Candidate:
    return Candidate(
        outcome.arm,
        to_stored(outcome.advice),
        outcome.model,
        outcome.expected_gain,
        per_values=outcome.arm == MODEL_ARM,
    )
