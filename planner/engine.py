"""From a request to an answer: the planner process's own memory around the pure decision of `planner.advise`.

Kept here, each bounded: answers by statement and values, parsed texts, times of templates, statements that a server
refused or that ended an earlier process. With evidence asked for, what is used is the plan memory's choice
(`planner.weighing`), made anew for each question; without, a model's advice is used at once and kept as the answer.

Everything is called from the lanes' threads and from the event loop; a lock guards the maps and is held for
microseconds, never while something is computed.
"""

from __future__ import annotations

import copy
import hashlib
import threading
import time
from collections.abc import Callable
from typing import Final

from model_runtime.runner import Model
from model_runtime.store import ModelStore
from planner import values
from planner.accuracy import Accuracy
from planner.advise import Models, Options, Statement, decide, look
from planner.blackbox import Recorder, digest
from planner.control import Limits
from planner.counters import Counters
from planner.dialects import render
from planner.graph import NO_PARAMETERS, Command, Parameters, QueryGraph
from planner.lru import Lru
from planner.memory.entries import Candidate, Seen
from planner.memory.memory import Memory
from planner.messages import Answer, Ask, Observed, Refused
from planner.param_types import completed, infer
from planner.policy import Modes, OptOuts, TemplateTimes, carried, cheap, fingerprint, modes
from planner.search_path import parse
from planner.snapshot import Snapshot
from planner.sql import Reading, read
from planner.weighing import NotComputedError, Verification, Weighing, candidates

MAX_ANSWERS: Final = 10_000
MAX_ANSWER_BYTES: Final = 32 << 20
MAX_READINGS: Final = 1000
MAX_READING_BYTES: Final = 4096
"""Longer texts are parsed each time: what is kept of them would be large, and they are rarely the same."""
MAX_TEMPLATES: Final = 10_000
MAX_REFUSED: Final = 10_000
LEFT_ALONE: Final = frozenset({"off", "observe"})
"""Modes in which nothing is decided."""
STEERED: Final = "steered"
CANNOT_BE_STOPPED: Final = frozenset({"not_repeatable", "no_budget_possible_here"})
"""Why workers do not run a statement under what is on trial."""
UNTIMED: Final = frozenset({Command.EXPLAIN, Command.PREPARE, Command.DECLARE})
"""What such a statement takes says nothing about the query in it."""
OF_THE_KIND: Final = frozenset({"not_a_query", "utility"})
"""Reasons of `planner.sql.read` that hold for every statement of a template; the others may be due to a comment or a
literal, which a template does not see."""


class Engine:
    """``store`` is None where there is no folder of models. ``recorder`` notes what is worked on (see
    `planner.blackbox`). ``memory`` None: a model's advice is used without evidence. ``verify`` is called with what is
    to be verified, from any thread."""

    def __init__(
        self,
        store: ModelStore | None,
        limits: Limits,
        counters: Counters,
        recorder: Recorder,
        quarantine: tuple[bytes, ...] = (),
        memory: Memory | None = None,
        verify: Callable[[Verification], None] = lambda what: None,
    ) -> None:
        self._store = store
        self.weighing = Weighing(memory, counters, verify) if memory is not None else None
        self._counters = counters
        self.accuracy = Accuracy(counters)
        self._recorder = recorder
        self._quarantine = frozenset(quarantine)
        self._lock = threading.Lock()
        self._generation = 0
        self._answers: Lru[bytes, Answer] = Lru(MAX_ANSWERS)
        self._answer_bytes = 0
        self._readings: Lru[bytes, Reading] = Lru(MAX_READINGS)
        self._statements: Lru[tuple[bytes, tuple[str, ...]], Statement] = Lru(MAX_READINGS)
        self._snapshots: dict[str, Snapshot] = {}
        self._times: Lru[tuple[str, bytes], TemplateTimes] = Lru(MAX_TEMPLATES)
        self._refused: Lru[bytes, bool] = Lru(MAX_REFUSED)
        self._limits = limits
        self._opt_outs = OptOuts()
        self._modes = Modes()
        self.configure(limits)

    def configure(self, limits: Limits) -> None:
        """Takes new limits and opt-outs and forgets all answers."""
        self._limits = limits
        self._opt_outs = OptOuts(
            frozenset(limits.users_off),
            frozenset(limits.databases_off),
            frozenset(limits.applications_off),
            frozenset(name.lower() for name in limits.fingerprints_off),
        )
        self._modes = modes(limits.mode_rules)
        self.forget()

    def forget(self) -> None:
        """A model or a catalog changed: no answer holds any more, not even one that is being computed."""
        with self._lock:
            self._generation += 1
            self._answers.clear()
            self._answer_bytes = 0
        if self.weighing is not None:
            self.weighing.forget()

    # --- what needs no computing ---------------------------------------------------------------------------------

    def at_once(self, ask: Ask, snapshot: Snapshot | None) -> Answer | None:
        """The answer where it is known already; None where it must be computed. Some microseconds."""
        if self._opt_outs.session(ask.user, ask.database, ask.application):
            return self._plain(ask, "opted_out", "values")
        if self.weighing is None and not any(self._models()):
            return self._plain(ask, "no_model", "template")
        if snapshot is None:
            return self._plain(ask, "no_catalog", "once")
        if self.weighing is not None:
            return self._weighed_before(ask, snapshot, self.weighing)
        with self._lock:
            known = self._answers.get(_key(ask))
        if known is None:
            return None
        self._counters.add("planner_cache_hits")
        return _numbered(known, ask.number)

    def _weighed_before(self, ask: Ask, snapshot: Snapshot, weighing: Weighing) -> Answer | None:
        """The memory's choice for a statement that was considered before; None when more must be computed."""
        considered = weighing.known(_key(ask))
        if considered is None:
            return None
        times = None if considered.explains else self._measured(ask)
        mode = self._mode(ask, considered.facts.fingerprint)
        if mode[0] in LEFT_ALONE:
            return self._plain(ask, mode[0], "values")
        try:
            answer = weighing.answer(ask, considered, snapshot, times, mode)
        except NotComputedError:
            return None
        self._counters.add("planner_cache_hits")
        self._counters.add("planner_decisions", answer.reason or STEERED)
        return answer

    def observed(self, message: Observed) -> None:
        """Learns what a statement took; only those that nothing was added to tell what a template takes."""
        if not (0 <= message.took_ms < 1e9 and 0 <= message.stopped_ms < 1e9):
            return
        if self.weighing is not None and message.query:
            self._weigh_run(message, self.weighing.memory)
            if not message.failed:
                self.accuracy.observed(message.query.hex(), message.rows)
        if message.steered or message.failed:
            return
        key = (message.database, message.template)
        with self._lock:
            times = self._times.get(key)
            if times is None:
                self._times.put(key, times := TemplateTimes())
            times.add(message.took_ms)

    def _weigh_run(self, message: Observed, memory: Memory) -> None:
        saved = memory.observed(
            Seen(
                message.query.hex(),
                message.took_ms,
                message.arm,
                steered=message.steered,
                control=message.control,
                failed=message.failed,
                stopped_ms=message.stopped_ms,
                shadow=message.reason == "shadow",
                unstoppable=message.reason in CANNOT_BE_STOPPED,
            )
        )
        if saved:
            self._counters.add("memory_saved_seconds" if saved > 0 else "memory_lost_seconds", amount=abs(saved) / 1000)

    def _measured(self, ask: Ask) -> TemplateTimes | None:
        with self._lock:
            return self._times.get((ask.database, ask.template))

    def _mode(self, ask: Ask, print_of: str = "") -> tuple[str, float]:
        """The mode that the rules give this statement, and the share of its executions that it applies to."""
        if not self._modes.rules:
            return "on", 1.0
        name = self._modes.mode(ask.database, ask.user, ask.application, print_of)
        return name, self._limits.canary_share if name == "canary" else 1.0

    def _models(self) -> tuple[Model | None, Model | None]:
        if self._store is None:
            return None, None
        return self._store.current("cardinality"), self._store.current("hints")

    def refused(self, message: Refused) -> None:
        """A statement that a server refused because of its advice is not advised again."""
        with self._lock:
            self._refused.put(digest(message.database, message.text), True)
        self.forget()

    # --- computing -----------------------------------------------------------------------------------------------

    def answer(self, ask: Ask, snapshot: Snapshot, lane: int) -> Answer:
        """Computes the decision, in a lane's thread. What goes wrong is an answer too."""
        generation = self._generation
        begun = time.perf_counter()
        mark = digest(ask.database, ask.text)
        if mark in self._quarantine:
            return self._plain(ask, "quarantined", "values")
        self._recorder.begin(lane, mark)
        try:
            answer = self._decide(ask, snapshot, mark)
        except Exception as error:
            # Hostile statements, odd statistics, a model that fails: nothing of it may reach a client.
            self._counters.add("planner_failures", type(error).__name__)
            answer = Answer(ask.number, reason="failed", scope="once")
        finally:
            self._recorder.end(lane)
        self._counters.add("planner_decisions", answer.reason or STEERED)
        self._counters.observe("planner_decision", time.perf_counter() - begun)
        if self.weighing is None and answer.scope != "once":
            self._keep(ask, answer, generation)
        return answer

    def _decide(self, ask: Ask, snapshot: Snapshot, mark: bytes) -> Answer:
        reading = self._read(ask, mark)
        if reading.graph is None:
            scope = "template" if reading.reason in OF_THE_KIND else "values"
            return Answer(ask.number, reason=reading.reason, scope=scope)
        with self._lock:
            if self._refused.get(mark):
                return Answer(ask.number, reason="refused")
            explains = reading.graph.command in UNTIMED
            times = None if explains else self._times.get((ask.database, ask.template))
        if self._opt_outs.fingerprints and self._opt_outs.statement(ask.text.decode(errors="replace")):
            return Answer(ask.number, reason="opted_out", scope="template")
        named = self._modes.fingerprints
        mode = self._mode(ask, fingerprint(carried(ask.text.decode(errors="replace"))) if named else "")
        if mode[0] in LEFT_ALONE:
            return Answer(ask.number, reason=mode[0], scope="values")
        min_ms = self._limits.min_ms
        if times is not None and times.known and cheap(0.0, times, min_ms):
            return Answer(ask.number, reason="cheap", scope="template", estimated_ms=times.mean_ms)
        path = parse(ask.search_path, ask.user)
        statement = self._look(reading.graph, snapshot, path, mark)
        if self.weighing is not None:
            return self._weigh(ask, statement, snapshot, path, times, mode, self.weighing, explains=explains)
        outcome = decide(
            statement,
            snapshot,
            Models(*self._models()),
            _parameters(ask, statement),
            # What was measured to be slow is advised whatever it was estimated.
            Options(min_ms=0.0 if times is not None and times.known else min_ms, observe=self._observe_model),
        )
        estimated = times.mean_ms if times is not None and times.known else outcome.estimated_ms
        scope = "template" if outcome.template_wide or outcome.reason == "cheap" else "values"
        rendered = render(outcome.advice, snapshot.capabilities)
        if outcome.reason or rendered.empty:
            reason = outcome.reason or "not_expressible"
            return Answer(ask.number, reason=reason, scope=scope, estimated_ms=estimated)
        if mode[0] == "shadow":
            return Answer(ask.number, reason="shadow", estimated_ms=estimated)
        return Answer(
            ask.number,
            prefix=rendered.prefix.encode(),
            settings=tuple((name.encode(), value.encode()) for name, value in rendered.settings),
            scope="values",
            model=outcome.model,
            dialect=rendered.dialect,
            estimated_ms=estimated,
            share=mode[1],
            approved=True,
        )

    def _weigh(
        self, ask: Ask, statement: Statement, snapshot: Snapshot, path: tuple[str, ...], times: TemplateTimes | None,
        mode: tuple[str, float], weighing: Weighing, *, explains: bool,
    ) -> Answer:  # fmt: skip
        """The memory's choice for a statement, with all that it may need."""
        if statement.reason:
            return Answer(ask.number, reason=statement.reason, scope="template")
        generation = self._generation
        key = _key(ask)
        considered = weighing.known(key)
        if considered is None:
            types = _types(ask, statement)
            considered = weighing.consider(ask, statement, snapshot, path, types, explains=explains)
        found = considered
        assert statement.resolved is not None
        graph = statement.resolved.graph

        def compute() -> tuple[Candidate, ...]:
            made, found.estimated_ms = candidates(
                statement,
                snapshot,
                Models(*self._models()),
                _parameters(ask, statement),
                # A plan for these values is another one only where there are any.
                prepared=bool(found.facts.params),
                # What is asked about here was measured to be slow, whatever it is estimated.
                options=Options(observe=self._observe_model),
                failed=lambda error: self._counters.add("planner_failures", type(error).__name__),
                decided=lambda outcome: self.accuracy.decided(found.facts, graph, outcome),
            )
            return made

        answer = weighing.answer(ask, considered, snapshot, times, mode, compute)
        if generation == self._generation:
            weighing.keep(key, considered)
        return answer

    def _read(self, ask: Ask, mark: bytes) -> Reading:
        keep = len(ask.text) <= MAX_READING_BYTES
        if keep:
            with self._lock:
                known = self._readings.get(mark)
            if known is not None:
                return known
        reading = read(ask.text.decode(errors="surrogateescape"))
        if keep:
            with self._lock:
                self._readings.put(mark, reading)
        return reading

    def _look(self, graph: QueryGraph, snapshot: Snapshot, path: tuple[str, ...], mark: bytes) -> Statement:
        key = (mark, path)
        with self._lock:
            if self._snapshots.get(snapshot.database) is not snapshot:
                # What was resolved over an earlier snapshot would keep all of it in memory.
                self._statements.clear()
                if len(self._snapshots) > self._limits.databases:
                    self._snapshots.clear()
                self._snapshots[snapshot.database] = snapshot
            known = self._statements.get(key)
        if known is None:
            known = look(graph, snapshot, path)
            with self._lock:
                if self._snapshots.get(snapshot.database) is snapshot:
                    self._statements.put(key, known)
        return known

    def _observe_model(self, model: str, seconds: float) -> None:
        self._counters.observe("planner_inference", seconds)
        self._counters.observe_model(model, seconds)

    def _plain(self, ask: Ask, reason: str, scope: str) -> Answer:
        self._counters.add("planner_decisions", reason)
        return Answer(ask.number, reason=reason, scope=scope)

    def _keep(self, ask: Ask, answer: Answer, generation: int) -> None:
        with self._lock:
            if generation != self._generation:
                return
            key = _key(ask)
            before = self._answers.get(key)
            gone = self._answers.put(key, answer)
            self._answer_bytes += _size(answer) - sum(_size(old) for old in (before, gone) if old is not None)
            while self._answer_bytes > MAX_ANSWER_BYTES and len(self._answers):
                self._answer_bytes -= _size(self._answers.pop_oldest())


def _parameters(ask: Ask, statement: Statement) -> Parameters:
    """The values of a Bind message, with types inferred where the client gave none."""
    if ask.bind is None:
        return NO_PARAMETERS
    return values.parameters(ask.bind, _types(ask, statement))


def _types(ask: Ask, statement: Statement) -> tuple[int, ...]:
    """The types of the parameters, inferred where the client gave none."""
    types = ask.types
    if ask.bind is not None and statement.resolved is not None and (not types or not all(types)):
        types = completed(types, infer(statement.resolved))
    return types


def _key(ask: Ask) -> bytes:
    """What an answer depends on, as 16 bytes; about 1 us and 1 us per kB."""
    found = hashlib.blake2b(ask.text, digest_size=16)
    asker = (ask.database, ask.user, ask.application, ask.search_path, ask.types)
    found.update(repr(asker).encode(errors="surrogateescape"))
    if ask.bind is not None:
        found.update(b"\0bind\0")
        found.update(ask.bind)
    return found.digest()


def _numbered(answer: Answer, number: int) -> Answer:
    copied = copy.copy(answer)
    copied.number = number
    return copied


def _size(answer: Answer) -> int:
    return 300 + len(answer.prefix) + sum(len(name) + len(value) for name, value in answer.settings)
