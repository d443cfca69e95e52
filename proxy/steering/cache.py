"""What a worker remembers for steering: kinds of statement with what they take, texts seen, and decisions.

Three bounded tables, least recently used first out: `Template` by key, `Known` by text and parameter types, and
decisions by everything they may depend on (scope, text without comments, types, Bind). A quarter of the bytes goes to
each of the first two, the rest to decisions. When the planner says that its answers have changed, `forget` drops the
decisions; what was measured stays.

Costs: a decision for a text or a prepared statement that was seen before takes about 1 us.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from hashlib import blake2b
from typing import Final

from proxy.steering import Decision, Known
from proxy.steering.template import BROKEN, HINTED, OPTED_OUT, SEVERAL, joined, repeatable, template, uncommented

_OVERHEAD: Final = 400  # bytes of the objects around an entry
_WEIGHT: Final = 0.2  # of the newest measurement in the moving average
_MAX_SCOPES: Final = 10_000
_REASONS: Final = ((OPTED_OUT, "opted_out"), (HINTED, "hinted"), (SEVERAL, "several_statements"), (BROKEN, "syntax"))
MIN_TABLES: Final = 2

Key = tuple[int, bytes, bytes, bytes | None]
"""What a decision is for: scope, text without comments, parameter types, and the Bind message from the format codes
on. An advice in front of one text is right in front of every other that differs in comments only."""


class Template:
    """One kind of statement. Times are milliseconds as moving averages, unsteered and steered.

    ``settled`` says that its statements are left alone without a question, for ``reason``; ``answer`` is the planner's
    decision for all of them, if it gave one. ``estimated_ms`` is what the planner thinks they take; 0: not known.
    ``repeatable``: one may be stopped and run again.
    """

    __slots__ = (
        "answer",
        "barred",
        "cheap",
        "digest",
        "estimated_ms",
        "explains",
        "generation",
        "plain_ms",
        "plain_runs",
        "reason",
        "repeatable",
        "runs",
        "settled",
        "steered_ms",
        "steered_runs",
        "tables",
    )

    def __init__(self, key: bytes, flags: int, generation: int) -> None:
        self.digest = blake2b(key, digest_size=16).digest()
        self.tables = joined(key)
        self.repeatable = repeatable(key)
        # Its own time says nothing of the query it is about.
        self.explains = key.startswith((b"explain", b"prepare", b"declare"))
        self.generation = generation
        self.answer: Decision | None = None
        self.barred = ""  # why it can never be steered
        self.cheap = False
        self.estimated_ms = 0.0
        self.plain_ms = self.steered_ms = 0.0
        self.plain_runs = self.steered_runs = self.runs = 0
        for bit, reason in _REASONS:
            if flags & bit:
                self.barred = reason
                break
        else:
            if self.tables < MIN_TABLES:
                self.barred = "no_join"
        self.reason = self.barred
        self.settled = bool(self.barred)

    def __repr__(self) -> str:
        return f"<Template {self.digest.hex()[:8]} tables={self.tables} plain={self.plain_ms:.1f} {self.reason}>"

    @property
    def expected_ms(self) -> float:
        """What a run takes, measured or estimated; below 0 when nothing is known."""
        unsteered = self.unsteered_ms
        return unsteered if unsteered >= 0 or self.explains or not self.steered_runs else self.steered_ms

    @property
    def unsteered_ms(self) -> float:
        """What a run without advice takes, measured or estimated; below 0 when that is not known."""
        if self.plain_runs and not self.explains:
            return self.plain_ms
        return self.estimated_ms or -1.0

    def observe(self, took_ms: float, *, steered: bool, cheap_ms: float) -> None:
        """Takes up one run; below ``cheap_ms`` a kind of statement is not worth a question."""
        self.runs += 1
        if steered:
            self.steered_ms += (took_ms - self.steered_ms) * (_WEIGHT if self.steered_runs else 1.0)
            self.steered_runs += 1
        else:
            self.plain_ms += (took_ms - self.plain_ms) * (_WEIGHT if self.plain_runs else 1.0)
            self.plain_runs += 1
        self.judge(cheap_ms)

    def judge(self, cheap_ms: float) -> None:
        """Steered runs do not count: what is cheap because it is steered must not be judged cheap."""
        self.cheap = 0 <= self.unsteered_ms < cheap_ms
        self._settle()

    def answered(self, decision: Decision) -> None:
        """The planner decided for all statements of this kind."""
        self.answer = decision
        self._settle()

    def bar(self, reason: str) -> None:
        """It is never to be steered again."""
        self.barred = reason
        self._settle()

    def renew(self, generation: int) -> None:
        self.generation = generation
        self.answer = None
        self._settle()

    def _settle(self) -> None:
        answer = self.answer
        left = answer.reason if answer is not None and not answer.prefix and not answer.settings else ""
        self.reason = self.barred or left or ("cheap" if self.cheap else "")
        self.settled = bool(self.reason)


class DecisionCache:
    """``generation`` counts the planner's changes of mind."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._templates: OrderedDict[bytes, Template] = OrderedDict()
        self._template_bytes = 0
        self._texts: OrderedDict[tuple[bytes, bytes], Known] = OrderedDict()
        self._text_bytes = 0
        self._decisions: OrderedDict[Key, Decision] = OrderedDict()
        self._decision_bytes = 0
        self._scopes: dict[tuple[str, str, str, str], int] = {}
        self._serial = 0
        self.generation = 0

    @property
    def size(self) -> int:
        """Bytes taken, as far as they are counted."""
        return self._template_bytes + self._text_bytes + self._decision_bytes

    def __len__(self) -> int:
        return len(self._decisions)

    def scope(self, database: str, user: str, application: str, search_path: str) -> int:
        """A number that stands for these four wherever decisions are kept."""
        key = (database, user, application, search_path)
        number = self._scopes.get(key)
        if number is None:
            if len(self._scopes) >= _MAX_SCOPES:
                self._scopes.clear()
            # Never the same twice, so that forgetting one cannot give its decisions to another.
            self._serial += 1
            number = self._scopes[key] = self._serial
        return number

    # ------------------------------------------------------------------ texts and templates

    def seen(self, text: bytes, types: bytes) -> Known | None:
        """The text, when it was met before."""
        key = (text, types)
        known = self._texts.get(key)
        if known is not None:
            self._texts.move_to_end(key)
            if known.template.generation != self.generation:
                known.template.renew(self.generation)
        return known

    def learn(self, text: bytes, types: bytes) -> Known:
        """Makes the template key of a new text; some microseconds."""
        key, flags = template(text)
        known = Known(text, types, self._template(key, flags), uncommented(text))
        self._texts[text, types] = known
        self._text_bytes += _text_size(known)
        while self._text_bytes > self._max_bytes // 4 or len(self._texts) > self._max_entries:
            self._text_bytes -= _text_size(self._texts.popitem(last=False)[1])
        return known

    def _template(self, key: bytes, flags: int) -> Template:
        name = key + bytes((0xFF, flags))  # 0xFF ends no text of a client that is steered
        found = self._templates.get(name)
        if found is None:
            found = self._templates[name] = Template(key, flags, self.generation)
            self._template_bytes += len(name) + _OVERHEAD
            while self._template_bytes > self._max_bytes // 4 or len(self._templates) > self._max_entries:
                old, _ = self._templates.popitem(last=False)
                self._template_bytes -= len(old) + _OVERHEAD
        else:
            self._templates.move_to_end(name)
            if found.generation != self.generation:
                found.renew(self.generation)
        return found

    # ------------------------------------------------------------------ decisions

    def decision(self, key: Key) -> Decision | None:
        found = self._decisions.get(key)
        if found is not None:
            self._decisions.move_to_end(key)
        return found

    def remember(self, key: Key, decision: Decision) -> None:
        if key in self._decisions:
            self._decision_bytes -= _size(key, self._decisions.pop(key))
        self._decisions[key] = decision
        self._decision_bytes += _size(key, decision)
        while self._decision_bytes > self._max_bytes // 2 or len(self._decisions) > self._max_entries:
            old, dropped = self._decisions.popitem(last=False)
            self._decision_bytes -= _size(old, dropped)

    def forget_queries(self, queries: Collection[bytes]) -> None:
        """The planner's answers for these queries may be others now; a millisecond for a full cache."""
        wanted = frozenset(queries)
        for key in [key for key, decision in self._decisions.items() if decision.query in wanted]:
            self._decision_bytes -= _size(key, self._decisions.pop(key))

    def forget(self) -> None:
        """The planner's answers may be others now."""
        self.generation += 1
        self._decisions.clear()
        self._decision_bytes = 0


def _text_size(known: Known) -> int:
    own = 0 if known.plain is known.text else len(known.plain)
    return _OVERHEAD + len(known.text) + own + len(known.types)


def _size(key: Key, decision: Decision) -> int:
    _, text, types, bind = key
    advice = len(decision.prefix) + 100 * len(decision.settings)
    if bind is None:
        return _OVERHEAD + len(text) + len(types) + advice
    # Its Parse message, with the text once more, is kept with it.
    return _OVERHEAD + 2 * (len(text) + len(types)) + 2 * advice + len(bind)
