"""Random pipelines with advice that has a budget, against a model of a server that gets stuck over it: whenever the
budget ends and wherever the cancel request hits, the client is told, byte for byte, what it is told without advice, and
its transaction and session are as they would be."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.steering import LEAVE_ALONE, UNDECIDED, Decision
from proxy.wire import advice
from proxy.wire.conversation import Conversation
from proxy.wire.delivery import SteeredConversation
from proxy.wire.messages import query
from proxy.wire.pooled import PooledConversation
from proxy.wire.prepared import StatementRegistry
from proxy.wire.session_state import BackendState
from tests.proxy.wire import transcript as say
from tests.proxy.wire.scripted import ScriptedSteering
from tests.proxy.wire.test_fuzz_steered import MARK, AdvisedServer, steering_of

CANCELED = say.error("canceling statement due to user request", "57014")
BUDGETED = [
    LEAVE_ALONE,
    UNDECIDED,
    Decision("hint", MARK, budget_ms=5.0),
    Decision("both", MARK, ((b"a", b"1"),), budget_ms=5.0),
    Decision("approved", MARK, budget_ms=5.0, approved=True),
]
LONG_ROW = say.row(b"x" * (1 << 20))


class StuckServer(AdvisedServer):
    """``stuck`` runs for ever when it is advised, ``begun`` after a row, ``big`` after much of its answer, ``long``
    after a row too long to be kept. A cancel request ends what runs; else it hits the message that is being read, or
    nothing. ``saved`` counts our savepoints."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = ""
        self.simple = False
        self.saved = 0
        self.helper = ""
        self.hit = False

    def cancel(self, *, reading: bool) -> bytes:
        """A cancel request arrives; ``reading``: the next message has just been read, if there is one."""
        if self.stuck:
            return self._unstuck(CANCELED)
        self.hit = reading and bool(self.inbox)
        return b""

    def release(self) -> bytes:
        """It comes to its end after all."""
        text, self.stuck = self.stuck, ""
        answer = self._rest_of(text, simple=self.simple)
        return answer + self._ready() if self.simple else answer

    def _unstuck(self, error: bytes) -> bytes:
        self.stuck = ""
        self._fail(simple=self.simple)
        return error + self._ready() if self.simple else error

    def step(self) -> bytes:
        if self.stuck:
            return b""
        raw = self.inbox[0]
        hit, self.hit = self.hit, False
        if raw[:1] == b"P" and raw[5:].startswith(advice.HELPER):
            self.helper = raw[5 + len(advice.HELPER) + 1 : -3].decode()
        # The signal is looked at where a statement runs.
        if hit and not self._skipping and not self._copying and raw[:1] in b"QEB":
            self.inbox.popleft()
            self.synced = False
            simple = raw[:1] == b"Q"
            self._fail(simple=simple)
            return CANCELED + self._ready() if simple else CANCELED
        answer = super().step()
        return answer.removesuffix(say.ready(self.state)) if self.stuck and self.simple else answer

    def _extended(self, kind: str, body: bytes) -> bytes:
        ours = advice.HELPER in body and self.helper.startswith("ROLLBACK TO")
        if self.state == "E" and kind in "PB" and ours:
            return {"P": say.PARSED, "B": say.BOUND}[kind]
        return super()._extended(kind, body)

    def _run(self, text: str, *, simple: bool) -> bytes:
        if text == advice.HELPER.decode():
            text = self.helper
        parts = text.split(";")
        if "pilotwire_budget" in text:
            answer = b""
            for part in parts:
                answer += self._savepoint(part, simple=simple)
                if answer.endswith(say.error()):
                    break
            return answer
        plain = text.removeprefix(MARK.decode()).rpartition(";")[2]
        if plain in ("stuck", "begun", "big", "long") and self.state != "E":
            before = say.done("SET") * text.count("SET LOCAL")
            if not self.advised:
                return self._begin_of(plain, simple=simple) + self._rest_of(plain, simple=simple)
            self.stuck, self.simple = plain, simple
            return before + self._begin_of(plain, simple=simple)
        answer = super()._run(text, simple=simple).replace(say.NOTIFY, b"")
        if self.state == "I":
            self.saved = 0
        return answer

    def _begin_of(self, text: str, *, simple: bool) -> bytes:
        columns = say.COLUMNS if simple else b""
        return {"stuck": b"", "begun": columns, "big": columns, "long": columns}[text] + {
            "stuck": b"", "begun": say.row(b"1"), "big": say.row(b"b" * 50_000) * 2, "long": LONG_ROW,
        }[text]  # fmt: skip

    def _rest_of(self, text: str, *, simple: bool) -> bytes:
        return (say.COLUMNS if simple and text == "stuck" else b"") + say.row(b"1") + say.done()

    def _savepoint(self, text: str, *, simple: bool) -> bytes:
        if text.startswith("SELECT CASE"):
            return super()._run(text, simple=simple)
        if text.startswith("ROLLBACK TO") and self.saved and self.state in "TE":
            self.state = "T"
            return say.done("ROLLBACK")
        if self.state != "T" or (not self.saved and not text.startswith("SAVEPOINT")):
            return self._fail(simple=simple)
        self.saved += 1 if text.startswith("SAVEPOINT") else -1
        return say.done(text.partition(" ")[0])


class Line:
    """A conversation with its server, and our cancel request between them."""

    def __init__(self, talk: Conversation, late: list[Decision]) -> None:
        self.talk = talk
        self.server = StuckServer()
        self.late = late
        self.answers = self.told = b""
        self.sending = ""  # our cancel request: "", "sent" or "hit"
        self.stops = 0

    def sent(self, data: bytes) -> None:
        self.server.feed(data)

    def client(self, data: bytes) -> None:
        self.sent(self.talk.from_client(data))

    def arrived(self, count: int) -> None:
        data, self.answers = self.answers[:count], self.answers[count:]
        self.told += self.talk.from_server(data)
        while self.talk.again is not None:
            again, self.talk.again = self.talk.again, None
            self.sent(again)
            self.client(b"")

    def decide(self, count: int) -> None:
        while self.talk.suspended and not self.talk.budget_ms and count:
            count -= 1
            self.sent(self.talk.decided(self.late.pop() if self.late else LEAVE_ALONE))

    def read(self, count: int) -> None:
        for _ in range(count):
            if self.server.inbox and not self.server.stuck:
                self.answers += self.server.step()

    def act(self, action: str) -> None:
        if action == "over" and not self.sending and self.talk.stop():
            self.sending = "sent"
            self.stops += 1
        elif action in ("hit", "hit reading") and self.sending == "sent":
            self.sending = "hit"
            self.answers += self.server.cancel(reading=action == "hit reading")
        elif action == "closed" and self.sending == "hit":
            self.sending = ""
            self.told += self.talk.stopped(sent=True)
            self.arrived(0)
        elif action == "failed" and self.sending == "sent":
            self.sending = ""
            self.told += self.talk.stopped(sent=False)
            self.arrived(0)
        elif action == "release" and self.server.stuck:
            self.answers += self.server.release()

    def finish(self) -> None:
        for _ in range(1000):
            self.decide(100)
            self.read(100)
            self.arrived(1 << 30)
            if self.sending:
                self.act("hit")
                self.act("closed")
            elif self.server.stuck:
                self.act("over")
                if not self.sending:
                    assert not self.talk.budget_ms, "it can be stopped at any time"
                    self.act("release")
            elif not (self.talk.suspended or self.server.inbox or self.answers):
                return
        raise AssertionError(f"it never ends: {self.talk} {self.server.inbox}")


ACTIONS = st.sampled_from(["", "", "over", "over", "hit", "hit reading", "closed", "failed", "release"])
TEXTS = st.sampled_from(["x", "stuck", "stuck", "begun", "big", "error", "empty", "begin", "end", "late"])


def steps_with(*named: str) -> st.SearchStrategy[list[Any]]:
    names = st.sampled_from(named)
    bound = st.tuples(names, TEXTS).filter(lambda drawn: (drawn[0] == "end") == (drawn[1] == "end"))

    def batch(drawn: tuple[str, str]) -> bytes:
        return say.parse(drawn[0], f"select {drawn[0]}") + say.bind(drawn[0], drawn[1]) + say.execute(drawn[1])

    alone = bound.map(lambda drawn: batch(drawn) + say.SYNC)
    described = bound.map(
        lambda drawn: say.parse(drawn[0], f"select {drawn[0]}") + say.bind(drawn[0], drawn[1])
        + say.describe(drawn[1], b"P") + say.FLUSH + say.execute(drawn[1]) + say.close(drawn[1], b"P") + say.SYNC
    )  # fmt: skip
    again = bound.map(lambda drawn: say.bind(*drawn) + say.execute(drawn[1]) + say.SYNC)
    messages = st.one_of(
        TEXTS.map(query), TEXTS.map(query), alone, alone, described, again, bound.map(batch), st.just(say.SYNC),
        st.just(query("begin")), st.just(query("long")), st.just(say.FLUSH),
    )  # fmt: skip
    step = st.tuples(st.none() | messages, st.integers(0, 4), st.integers(0, 200), st.integers(0, 2), ACTIONS)
    return st.lists(step, max_size=25)


def conversation(make: type[Conversation], steering: ScriptedSteering) -> Conversation:
    if make is not PooledConversation:
        return SteeredConversation(steering)
    talk = PooledConversation(steering, StatementRegistry(), {}, {}, 100_000)
    talk.link(BackendState({}, 100_000))
    return talk


def converse(line: Line, steps: list[Any]) -> None:
    for message, reads, arrives, decided, action in steps:
        if message is not None:
            line.client(message)
        line.decide(decided)
        line.read(reads)
        line.arrived(arrives)
        line.act(action)
    line.finish()
    line.client(say.SYNC)
    line.finish()


def check(make: type[Conversation], steps: list[Any], given_advice: list[Decision]) -> None:
    late = [decision for decision in given_advice if decision is not UNDECIDED]
    plain = Line(conversation(make, ScriptedSteering()), [])
    converse(plain, steps)
    steering = steering_of(given_advice)
    line = Line(conversation(make, steering), late)
    converse(line, steps)
    say.assert_same(line.told, plain.told)
    talk = line.talk
    assert (talk.again, talk.budget_ms, talk.suspended, talk.held) == (None, 0.0, False, plain.talk.held)
    assert (talk.status, talk.idle, talk.ready_count) == (plain.talk.status, plain.talk.idle, plain.talk.ready_count)
    assert line.server.state == plain.server.state
    assert line.server.saved == 0 or line.server.state == "E"
    assert steering.stops <= line.stops


FIRST = [Decision("hint", MARK, budget_ms=5.0)] * 12


@given(steps_with("", "s", "error", "end"), st.lists(st.sampled_from(BUDGETED), max_size=12))
@example([(query("begin"), 9, 999, 9, ""), (query("stuck"), 9, 999, 9, "over"), (None, 0, 0, 0, "release"),
          (None, 0, 999, 9, "hit reading"), (None, 9, 999, 9, "closed")], FIRST)  # fmt: skip
@settings(max_examples=250, deadline=None)
def test_plain(steps: list[Any], given_advice: list[Decision]) -> None:
    check(SteeredConversation, steps, given_advice)


@given(steps_with("", "s", "end"), st.lists(st.sampled_from(BUDGETED), max_size=12))
@settings(max_examples=250, deadline=None)
def test_pooled(steps: list[Any], given_advice: list[Decision]) -> None:
    check(PooledConversation, steps, given_advice)
