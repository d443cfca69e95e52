"""Which statements are asked about, whether they wait, and what is made of the answers.

A `Steerer` belongs to a worker: the cache, the planner client, the settings. A `SessionSteering` belongs to a client
and knows what its decisions depend on: database, user, application, search_path, and what it said of
``pilotwire.mode``.

How long a statement waits is bounded by what there is to win: a tenth of what its kind takes, and the deadline. A kind
never seen waits only when it joins several tables. A kind that proves cheap is not asked about again.

Costs per statement: 1 us for one that joins nothing, 1 to 2 us for a text or a prepared statement seen before, some
microseconds for the template key of a new text.
"""

from __future__ import annotations

import asyncio
import re
import struct
import time
from collections.abc import Callable
from random import random
from typing import Final

from planner.messages import Answer, Ask, Changed, Observed, Refused
from proxy.logs import Log
from proxy.metrics import Counters
from proxy.settings import ProxySettings
from proxy.steering import LEAVE_ALONE, UNDECIDED, Decision, Known, Steering
from proxy.steering.answers import decision_of
from proxy.steering.cache import DecisionCache, Key, Template
from proxy.steering.client import PlannerClient, Question, Waiter
from proxy.steering.session import TemporaryNames, start_settings
from proxy.steering.template import JOINS, SETS, uncommented
from proxy.wire.looks import look
from proxy.wire.messages import rows_told
from proxy.wire.statements import TEMPORARY, changes_reading

LEVELS: Final = {"off": 0, "observe": 1, "shadow": 2, "canary": 3, "on": 4}
OFF: Final = 0
OBSERVE: Final = 1
CANARY: Final = 3
ON: Final = 4
MIN_CHEAP_MS: Final = 2.0
MAX_CHEAP_MS: Final = 10.0
"""Between these lies the time below which a kind of statement is not asked about: ten times what an answer takes."""
MIN_WAIT_MS: Final = 0.3
"""No answer comes faster, so that a shorter wait would be for nothing."""
SHARE: Final = 0.1
"""Of the time that a statement takes, how much may be spent on waiting for advice."""
SAME_SECONDS: Final = 1.0
"""A question that is open for longer is asked once more."""
OBSERVED_EVERY: Final = 64
"""Of statements that are cheap only so many-th is told to the planner."""
SAMPLES_PER_SECOND: Final = 10.0
"""Of the statements told to the planner so many come with their text and parameters, in each worker."""
MAX_SAMPLE: Final = 16 * 1024
"""Bytes of a text, or of its parameters, that are told."""
_NO_TYPES: Final = b"\0\0"
_now: Final = time.monotonic
_MODE: Final = re.compile(
    rb"(?is)\bset\s+(?:session\s+|(?P<local>local\s+))?\"?pilotwire\"?\s*\.\s*\"?mode\"?\s*(?:=|\bto\b)"
    rb"\s*(?P<quote>['\"]?)(?P<value>\w+)"
    rb"|\bset_config\s*\(\s*'pilotwire\.mode'\s*,\s*(?P<bound>[^'\s])"
    rb"|\bset_config\s*\(\s*'pilotwire\.mode'\s*,\s*'(?P<config>\w+)'(?P<rest>\s*,\s*(?P<passing>\w+))?"
    rb"|\breset\s+(?:pilotwire\s*\.\s*mode|all)\b|\bdiscard\s+all\b"
)
_PATH: Final = re.compile(
    rb"(?is)\bset\s+(?:session\s+)?(?:search_path\s*(?:=|\bto\b)|schema\b)\s*(?P<value>[^;]*)"
    rb"|\bset_config\s*\(\s*'search_path'\s*,\s*'(?P<config>(?:[^']|'')*)'\s*,\s*(?:false|'f)"
    rb"|\breset\s+(?:search_path|all)\b|\bdiscard\s+all\b"
)
# Constants that mean another moment each time they are read: what was prepared yesterday must not be parsed anew.
_MOMENT: Final = re.compile(rb"(?i)'\s*(?:now|today|tomorrow|yesterday)\s*'")


class Asking:
    """A statement that waits to be asked about, and for how long it may."""

    __slots__ = ("bind", "key", "known", "wait_ms")

    def __init__(self, known: Known, bind: bytes | None, key: Key, wait_ms: float) -> None:
        self.known = known
        self.bind = bind
        self.key = key
        self.wait_ms = wait_ms


class Steerer:
    """``level`` is what the settings and the planner allow, from off (0) to on (4). ``canary_share`` of the executions
    that there is advice for are steered at level canary."""

    def __init__(self, settings: ProxySettings, counters: Counters, log: Log) -> None:
        self.counters = counters
        self.log = log
        self.cache = DecisionCache(settings.steer_cache_entries, settings.steer_cache_bytes)
        self.client = PlannerClient(settings.planner_socket, counters, log, self._changed)
        self.level = OFF
        self._said = ON  # by the planner
        self._configured = OFF
        self.canary_share = 0.0
        self._samples = 0.0
        self._sampled = 0.0
        self.deadline_ms = 0.0
        self.min_joins = 0
        self._open: dict[Key, Question] = {}
        self.configure(settings)

    def configure(self, settings: ProxySettings) -> None:
        """Takes up settings that changed while running."""
        self._configured = LEVELS[settings.mode]
        self.level = min(self._configured, self._said)
        self.canary_share = settings.canary_share
        self.deadline_ms = settings.steer_deadline_ms
        self.min_joins = settings.steer_min_joins

    @property
    def cheap_ms(self) -> float:
        """What takes less is not worth a question."""
        return min(max(self.client.cost_ms / SHARE, MIN_CHEAP_MS), MAX_CHEAP_MS)

    def patience(self, template: Template) -> float:
        """How many milliseconds a statement of this kind may wait; 0: not at all."""
        expected = template.expected_ms
        if expected < 0:
            return self.deadline_ms if template.tables >= self.min_joins else 0.0
        wait = min(self.deadline_ms, expected * SHARE)
        return wait if wait >= MIN_WAIT_MS else 0.0

    # ------------------------------------------------------------------ asking

    def ask(self, session: SessionSteering, asking: Asking) -> Question | None:
        """The question about this statement, sent now or a moment ago; None when it cannot be asked."""
        key = asking.key
        question = self._open.get(key)
        if question is not None and asyncio.get_running_loop().time() - question.asked < SAME_SECONDS:
            return question
        known = asking.known
        template: Template = known.template
        generation = self.cache.generation
        ask = Ask(
            0,
            session.database,
            session.user,
            session.application,
            session.search_path,
            template.digest,
            known.plain,
            asking.bind,
            _types(known.types),
        )

        def keep(answer: Answer | None) -> Decision | None:
            self._open.pop(key, None)
            return None if answer is None else self._keep(answer, key, template, generation)

        question = self.client.ask(ask, keep)
        if question is not None:
            self._open[key] = question
        return question

    def _keep(self, answer: Answer, key: Key, template: Template, generation: int) -> Decision:
        decision = decision_of(answer, repeatable=template.repeatable)
        if answer.estimated_ms > 0:
            template.estimated_ms = answer.estimated_ms
            template.judge(self.cheap_ms)
        if generation == self.cache.generation:
            if answer.scope == "template":
                template.answered(decision)
            elif answer.scope == "values":
                self.cache.remember(key, decision)
        return decision

    def _changed(self, changed: Changed) -> None:
        if changed.queries:
            self.cache.forget_queries(changed.queries)
        else:
            self.cache.forget()
        if changed.mode in LEVELS:
            self._said = LEVELS[changed.mode]
            self.level = min(self._configured, self._said)
        self.log.event("planner_changed", level="debug", generation=changed.generation, mode=changed.mode)

    def may_sample(self, now: float) -> bool:
        """Whether the statement that is told of at this moment is to be told of with its text."""
        self._samples = min(SAMPLES_PER_SECOND, self._samples + (now - self._sampled) * SAMPLES_PER_SECOND)
        self._sampled = now
        if self._samples < 1.0:
            return False
        self._samples -= 1.0
        return True


class SessionSteering(Steering):
    """One client's. ``asking`` is the statement that `UNDECIDED` was the answer for; ``template`` is what the statement
    that runs belongs to, None when it is not measured."""

    __slots__ = (
        "_began",
        "_bind",
        "_cache",
        "_control",
        "_count",
        "_error",
        "_found",
        "_initial_level",
        "_initial_path",
        "_known",
        "_level",
        "_local",
        "_owner",
        "_path",
        "_read_anew",
        "_reason",
        "_reported_path",
        "_scope",
        "_steered",
        "_stopped",
        "_temporary",
        "_utf8",
        "application",
        "asking",
        "conforming",
        "connection",
        "database",
        "search_path",
        "template",
        "user",
        "waited",
    )

    def __init__(
        self, owner: Steerer, database: str, user: str, settings: dict[str, str], connection: str = ""
    ) -> None:
        super().__init__()
        self.connection = connection  # its name in the log
        self._owner = owner
        self._cache = owner.cache
        self.database = database
        self.user = user
        start = start_settings(settings)
        self.application = start.get("application_name", "")
        self.search_path = self._initial_path = start.get("search_path", "")
        encoding = start.get("client_encoding", "utf8")
        self._level = self._initial_level = LEVELS.get(start.get("pilotwire.mode", "on").lower(), OFF)
        self._local = -1  # the level of a SET LOCAL, until the transaction ends
        self._utf8 = _is_utf8(encoding.encode("utf-8", "surrogateescape"))
        self.conforming = True  # a backslash in a plain string is an ordinary character
        self._reported_path = False
        self._temporary = TemporaryNames()
        # By what constants are read has changed and may change back unseen: what was prepared must not be parsed anew.
        self._read_anew = False
        self._scope = 0
        self._count = 0
        # Of the statement that runs: what was decided and by which answer, why it is left alone, what became of it.
        self._known: Known | None = None
        self._bind: bytes | None = None
        self._found: Decision | None = None
        self._steered: Decision | None = None
        self._control = False
        self._reason = ""
        self._began = 0.0
        self._stopped = 0.0
        self._error = b""
        self.template: Template | None = None
        self.asking: Asking | None = None
        self.waited = 0.0

    # ------------------------------------------------------------------ what the conversation asks

    def query(self, text: bytes) -> Decision:
        self.text = text
        found = look(text)
        if not found:
            return LEAVE_ALONE
        if found & TEMPORARY:
            self._temporary.note(text)
        if not found & JOINS or self._owner.level == OFF:
            if found & SETS:
                self._look_for_settings(text)
            return LEAVE_ALONE
        return self._decide(self._known_text(text, _NO_TYPES, found), None)

    def known(self, text: bytes, types: bytes) -> Known | None:
        # Also while steering is off: the statement may outlive that.
        self.text = text
        found = look(text)
        if found & TEMPORARY:
            self._temporary.note(text)
        if not found & JOINS:
            if found & SETS:
                self._look_for_settings(text)
            return None
        known = self._known_text(text, types, found)
        reason = known.template.barred or ("settings_changed" if self._read_anew else "")
        if not reason and _MOMENT.search(text) is not None:
            reason = "moment"
        if not reason:
            return known
        if self._allowed != OFF:
            # Counted here, since nobody is asked at its Binds.
            self._owner.counters.steering_reasons[reason] += 1
        return None

    def _known_text(self, text: bytes, types: bytes, found: int) -> Known:
        known = self._cache.seen(text, types)
        if known is None:
            known = self._cache.learn(text, types)
        if found & SETS and (known.template.barred or not known.template.repeatable):
            self._look_for_settings(text)
        return known

    def bind(self, known: Known, message: bytes, start: int, end: int) -> Decision:
        if known.template.generation != self._cache.generation:
            known.template.renew(self._cache.generation)
        self.text = known.text
        if self._read_anew:
            return self._left("settings_changed")
        return self._decide(known, message[start:end])

    @property
    def _allowed(self) -> int:
        """The level that holds for this session now."""
        level = self._level if self._level < self._owner.level else self._owner.level
        return self._local if 0 <= self._local < level else level

    def _decide(self, known: Known, bind: bytes | None) -> Decision:
        owner = self._owner
        level = self._allowed
        if level == OFF:
            return LEAVE_ALONE
        template: Template = known.template
        self.template = template
        self._known = known
        self._bind = bind
        self._found = self._steered = None
        self._count += 1
        if template.settled:
            self._reason = template.reason
            owner.counters.steering_reasons[template.reason] += 1
            return LEAVE_ALONE
        self._error = b""
        self._stopped = 0.0
        if level == OBSERVE:
            return self._left("observe")
        if not (self._utf8 or known.text.isascii()) or not (self.conforming or b"\\" not in known.text):
            return self._left("encoding")
        if self._temporary.names and self._temporary.named_in(known.plain):
            return self._left("temporary_table")
        if not self._scope:
            self._scope = self._cache.scope(self.database, self.user, self.application, self.search_path)
        key = (self._scope, known.plain, known.types, bind)
        decision = self._cache.decision(key) or template.answer
        if decision is None:
            asking = Asking(known, bind, key, owner.patience(template))
            if not owner.client.may_ask():
                return self._left("planner_busy" if owner.client.connected else "planner_away")
            if asking.wait_ms > 0 and level >= CANARY:
                self.asking = asking
                return UNDECIDED
            owner.ask(self, asking)
            return self._left("not_waited")
        return self.judged(decision)

    def judged(self, decision: Decision) -> Decision:
        """What the conversation gets for the planner's decision."""
        level = self._allowed
        if level == OFF:
            return self._left("off")
        self._found = decision
        self._control = False
        if not decision.prefix and not decision.settings:
            return self._left(decision.reason)
        if level < CANARY:
            return self._left("shadow")
        share = decision.share if level == ON else decision.share * self._owner.canary_share
        if share < 1.0 and random() >= share:  # noqa: S311 (a coin, no secret)
            self._control = True
            self._owner.counters.steering_control += 1
            return self._left("control")
        return decision

    def _left(self, reason: str) -> Decision:
        self._reason = reason
        self._owner.counters.steering_reasons[reason] += 1
        return LEAVE_ALONE

    def delivered(self, decision: Decision) -> None:
        self._steered = decision
        counters = self._owner.counters
        counters.steering_steered += 1
        counters.steering_models[decision.model or "none"] += 1
        counters.steering_arms[decision.arm or "none"] += 1
        counters.steering_dialects[decision.dialect or "none"] += 1
        if decision.budget_ms:
            self._began = _now()

    def prevented(self, reason: str) -> None:
        self._reason = reason
        self._owner.counters.steering_reasons[reason] += 1

    def stopped(self) -> None:
        self._stopped = _now() - self._began
        self._steered = None
        self._reason = "over_budget"
        self._owner.counters.steering_stopped += 1

    def failed(self, error: bytes) -> None:
        self._error = error

    def refused(self, text: bytes, sqlstate: bytes, message: bytes, *, again: bool) -> None:
        counters = self._owner.counters
        counters.steering_refused += 1
        counters.steering_run_again += again
        template = self.template
        if template is None:
            return
        template.bar("refused")
        if again:
            self._steered = None
            self._reason = "refused"
        state, words = sqlstate.decode("ascii", "replace"), message.decode("utf-8", "replace")
        # Under the text that the planner was asked about.
        self._owner.client.refused(Refused(self.database, template.digest, uncommented(text), state, words))
        told = {"id": self.connection, "sqlstate": state, "error": words}
        self._owner.log.event("advice_refused", level="warning", **told, again=again)

    # ------------------------------------------------------------------ waiting and measuring

    def wait(self, told: Callable[[Decision | None], None]) -> Waiter | None:
        """Asks about the statement that was undecided; None when that cannot be: it is to be left alone."""
        asking, self.asking = self.asking, None
        assert asking is not None
        question = self._owner.ask(self, asking)
        if question is None:
            return None
        self._owner.counters.steering_waited += 1
        return self._owner.client.wait(question, asking.wait_ms / 1000, told)

    def unasked(self) -> Decision:
        """It could not be asked about after all."""
        return self._left("planner_busy")

    def waited_for(self, seconds: float, decision: Decision | None) -> Decision:
        """The wait is over: what to do now. ``None``: no answer came in time."""
        self.waited += seconds
        self._owner.counters.observe_wait(seconds)
        return self._left("late") if decision is None else self.judged(decision)

    def done(self, seconds: float, answer: bytes) -> None:
        """The batch that ran since the last call is over, and its answer ended with these bytes; about 2 us. Only one
        statement alone is measured."""
        template, steered = self.template, self._steered
        ran = seconds - self.waited - self._stopped
        took = ran * 1000
        if ran != seconds:
            self._owner.counters.observe_held_up(seconds, ran)
        count, self._count = self._count, 0
        self.template = self._steered = None
        self.waited = 0.0
        if template is None or count != 1 or template.barred == "no_join":
            return
        owner = self._owner
        found = self._found
        if steered is not None or (self._stopped and found is not None):
            used = steered or found
            assert used is not None
            owner.counters.observe_model(used.model or used.arm, seconds)
        else:
            owner.counters.observe_model("", seconds)
        if not self._error:
            template.observe(took, steered=steered is not None, cheap_ms=owner.cheap_ms)
        if template.cheap and template.runs % OBSERVED_EVERY != 1 and (found is None or not found.query):
            return
        owner.client.observe(self._observed(template, took, steered, answer))

    def _observed(self, template: Template, took: float, steered: Decision | None, answer: bytes) -> Observed:
        known, found = self._known, self._found
        observed = Observed(
            self.database,
            template.digest,
            took,
            steered is not None,
            user=self.user,
            application=self.application,
            search_path=self.search_path,
            reason="" if steered is not None else self._reason,
        )
        if self._error:
            observed.failed = True
            observed.sqlstate = _sqlstate(self._error)
        else:
            observed.rows = rows_told(answer)
        if found is not None:
            observed.query = found.query
            observed.control = self._control and steered is None
            observed.stopped_ms = self._stopped * 1000
            if steered is not None or observed.control or self._stopped:
                observed.arm = found.arm
                observed.model = found.model
        if known is not None and len(known.text) <= MAX_SAMPLE and self._owner.may_sample(_now()):
            observed.text = known.text
            if self._bind is not None and len(self._bind) <= MAX_SAMPLE:
                observed.bind = self._bind
        return observed

    @property
    def held_up(self) -> float:
        """Seconds that the statement which ran was held up here: waiting for advice, and in a run that was stopped."""
        return self.waited + self._stopped

    def outcome(self) -> dict[str, str]:
        """What was decided about the statement that runs, or ran until `done` is called: for a person to read."""
        if self.template is None:
            return {"decision": "left_alone", "reason": "no_join"}
        found, steered = self._found, self._steered
        control = self._control and found is not None
        used = steered or (found if control or self._stopped else None)
        decision = "steered" if steered is not None else "control" if control else "left_alone"
        told = {"decision": decision, "reason": "" if steered is not None else self._reason}
        if used is not None:
            told |= {"arm": used.arm, "model": used.model, "dialect": used.dialect}
        if self._error:
            told["sqlstate"] = _sqlstate(self._error)
        return told

    # ------------------------------------------------------------------ what decisions depend on

    @property
    def local(self) -> bool:
        """Whether something holds until the transaction ends."""
        return self._local >= 0

    def transaction_over(self) -> None:
        self._local = -1

    def reported(self, name: bytes, value: bytes) -> None:
        if name == b"search_path":
            self._reported_path = True
            self._set_path(value)
        elif name == b"application_name":
            self.application = value.decode("utf-8", "replace")
            self._scope = 0
        elif name == b"client_encoding":
            self._utf8 = _is_utf8(value)
        elif name == b"standard_conforming_strings":
            self.conforming = value != b"off"

    def _set_path(self, value: bytes) -> None:
        self.search_path = value.decode("utf-8", "replace")
        self._scope = 0

    def _look_for_settings(self, text: bytes) -> None:
        """SET of what concerns steering. One that is rolled back is believed all the same, where the server does not
        report the setting."""
        lower = text.lower()
        self._read_anew = self._read_anew or changes_reading(text)
        if len(text) > 1000:
            return
        if lower.strip(b"; \t\r\n") == b"discard all":
            self._temporary.clear()
        everything = b"all" in lower
        if b"pilotwire" in lower or everything:
            for match in _MODE.finditer(text):
                value = match["value"] or match["config"] or (b"off" if match["bound"] else None)
                if value is None or value.lower() == b"default":
                    self._level, self._local = self._initial_level, -1
                    continue
                # What is not understood, a bound value among it, is taken for off: nobody names the mode to be steered.
                level = LEVELS.get(value.decode("ascii", "replace").lower(), OFF)
                if match["local"] or (match["passing"] or b"").lower() in (b"true", b"t", b"on"):
                    self._local = level
                else:
                    self._level = level
        if not self._reported_path and (b"search_path" in lower or b"schema" in lower or everything):
            for match in _PATH.finditer(text):
                value = match["value"] if match["value"] is not None else match["config"]
                if value is None or value.strip().lower() == b"default":
                    self._set_path(self._initial_path.encode())
                else:
                    self._set_path(value.strip())


def _is_utf8(encoding: bytes) -> bool:
    return encoding.strip(b"'\"").upper() in (b"UTF8", b"UTF-8", b"UNICODE")


def _types(tail: bytes) -> tuple[int, ...]:
    """The OIDs in the tail of a Parse message; () for one that is not well formed."""
    if len(tail) < 2 or len(tail) != 2 + 4 * (count := int.from_bytes(tail[:2], "big")):
        return ()
    return struct.unpack_from(f"!{count}I", tail, 2)


def _sqlstate(error: bytes) -> str:
    """Of the beginning of an ErrorResponse."""
    start = error.find(b"\0C", 5) + 2
    return error[start : start + 5].decode("ascii", "replace") if start > 1 else ""
