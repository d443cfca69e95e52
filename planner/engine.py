"""From a request to an answer: the planner process's own memory around the pure decision of `planner.advise`.

Kept here, each bounded: answers by statement and values, parsed texts, times of templates, statements that a server
refused or that ended an earlier process. Everything is called from the lanes' threads and from the event loop; a lock
guards the maps and is held for microseconds, never while something is computed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from typing import Final, Generic, TypeVar

from model_runtime.store import ModelStore
from planner import values
from planner.advise import Models, Options, Statement, decide, look
from planner.blackbox import Recorder, digest
from planner.control import Limits
from planner.counters import Counters
from planner.dialects import render
from planner.graph import NO_PARAMETERS, Command, Parameters, QueryGraph
from planner.messages import Answer, Ask, Observed, Refused
from planner.param_types import completed, infer
from planner.policy import OptOuts, TemplateTimes, cheap
from planner.search_path import parse
from planner.snapshot import Snapshot
from planner.sql import Reading, read

MAX_ANSWERS: Final = 10_000
MAX_ANSWER_BYTES: Final = 32 << 20
MAX_READINGS: Final = 1000
MAX_READING_BYTES: Final = 4096
"""Longer texts are parsed each time: what is kept of them would be large, and they are rarely the same."""
MAX_TEMPLATES: Final = 10_000
MAX_REFUSED: Final = 10_000
STEERED: Final = "steered"
OF_THE_KIND: Final = frozenset({"not_a_query", "utility"})
"""Reasons of `planner.sql.read` that hold for every statement of a template; the others may be due to a comment or a
literal, which a template does not see."""

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """At most ``most`` entries, the least recently used go first. Not locked."""

    __slots__ = ("_entries", "_most")

    def __init__(self, most: int) -> None:
        self._entries: OrderedDict[K, V] = OrderedDict()
        self._most = most

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> V | None:
        value = self._entries.get(key)
        if value is not None:
            self._entries.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> V | None:
        """Returns the value that had to go, if any."""
        self._entries[key] = value
        self._entries.move_to_end(key)
        return self._entries.popitem(last=False)[1] if len(self._entries) > self._most else None

    def pop_oldest(self) -> V:
        return self._entries.popitem(last=False)[1]

    def clear(self) -> None:
        self._entries.clear()


class Engine:
    """``store`` is None where there is no folder of models. ``recorder`` notes what is worked on (see
    `planner.blackbox`)."""

    def __init__(
        self,
        store: ModelStore | None,
        limits: Limits,
        counters: Counters,
        recorder: Recorder,
        quarantine: tuple[bytes, ...] = (),
    ) -> None:
        self._store = store
        self._counters = counters
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
        self.forget()

    def forget(self) -> None:
        """A model or a catalog changed: no answer holds any more, not even one that is being computed."""
        with self._lock:
            self._generation += 1
            self._answers.clear()
            self._answer_bytes = 0

    # --- what needs no computing ---------------------------------------------------------------------------------

    def at_once(self, ask: Ask, snapshot: Snapshot | None) -> Answer | None:
        """The answer where it is known already; None where it must be computed. Some microseconds."""
        if self._opt_outs.session(ask.user, ask.database, ask.application):
            return self._plain(ask, "opted_out", "template")
        if self._store is None or (self._store.current("cardinality") is None and self._store.current("hints") is None):
            return self._plain(ask, "no_model", "template")
        if snapshot is None:
            return self._plain(ask, "no_catalog", "once")
        with self._lock:
            known = self._answers.get(_key(ask))
        if known is None:
            return None
        self._counters.add("planner_cache_hits")
        return _numbered(known, ask.number)

    def observed(self, message: Observed) -> None:
        """Learns what a statement took; only those that nothing was added to tell what a template takes."""
        if message.steered or message.failed or not 0 <= message.took_ms < 1e9:
            return
        key = (message.database, message.template)
        with self._lock:
            times = self._times.get(key)
            if times is None:
                self._times.put(key, times := TemplateTimes())
            times.add(message.took_ms)

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
        if answer.scope != "once":
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
            # What an EXPLAIN takes says nothing about the query whose plan it shows.
            plain = reading.graph.command is not Command.EXPLAIN
            times = self._times.get((ask.database, ask.template)) if plain else None
        if self._opt_outs.fingerprints and self._opt_outs.statement(ask.text.decode(errors="replace")):
            return Answer(ask.number, reason="opted_out", scope="template")
        min_ms = self._limits.min_ms
        if times is not None and times.known and cheap(0.0, times, min_ms):
            return Answer(ask.number, reason="cheap", scope="template", estimated_ms=times.mean_ms)
        assert self._store is not None
        statement = self._look(reading.graph, snapshot, parse(ask.search_path, ask.user), mark)
        outcome = decide(
            statement,
            snapshot,
            Models(self._store.current("cardinality"), self._store.current("hints")),
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
        return Answer(
            ask.number,
            prefix=rendered.prefix.encode(),
            settings=tuple((name.encode(), value.encode()) for name, value in rendered.settings),
            scope="values",
            model=outcome.model,
            dialect=rendered.dialect,
            estimated_ms=estimated,
        )

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

    def _observe_model(self, seconds: float) -> None:
        self._counters.observe("planner_inference", seconds)

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
    types = ask.types
    if statement.resolved is not None and (not types or not all(types)):
        types = completed(types, infer(statement.resolved))
    return values.parameters(ask.bind, types)


def _key(ask: Ask) -> bytes:
    """What an answer depends on, as 16 bytes; about 1 us and 1 us per kB."""
    found = hashlib.blake2b(ask.text, digest_size=16)
    found.update(repr((ask.database, ask.user, ask.search_path, ask.types)).encode(errors="surrogateescape"))
    if ask.bind is not None:
        found.update(b"\0bind\0")
        found.update(ask.bind)
    return found.digest()


def _numbered(answer: Answer, number: int) -> Answer:
    return Answer(
        number, answer.prefix, answer.settings, answer.reason, answer.scope, answer.model, answer.dialect,
        answer.estimated_ms,
    )  # fmt: skip


def _size(answer: Answer) -> int:
    return 300 + len(answer.prefix) + sum(len(name) + len(value) for name, value in answer.settings)
