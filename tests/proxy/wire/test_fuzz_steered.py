"""Random pipelines with random advice against a model of the server: what the client is told is, byte for byte, what it
is told without advice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.steering import LEAVE_ALONE, UNDECIDED, Decision
from proxy.wire.conversation import Conversation
from proxy.wire.delivery import SteeredConversation
from proxy.wire.messages import query
from proxy.wire.pooled import PooledConversation
from proxy.wire.prepared import StatementRegistry
from proxy.wire.session_state import BackendState
from tests.proxy.wire import transcript as say
from tests.proxy.wire.scripted import ScriptedSteering
from tests.proxy.wire.server_model import ServerModel

MARK = b"/* advised */ "
ADVICE = [
    LEAVE_ALONE,
    UNDECIDED,
    Decision("hint", MARK),
    Decision("settings", b"", ((b"a", b"1"), (b"b", b"2"))),
    Decision("both", MARK, ((b"a", b"1"),)),
]


class AdvisedServer(ServerModel):
    """Understands what advice adds to a text."""

    def _run(self, text: str, *, simple: bool) -> bytes:
        text = text.removeprefix(MARK.decode())
        answer = b""
        while text.startswith("SET LOCAL ") and self.state != "E":
            text = text.partition(";")[2]
            answer += say.done("SET")
        if text.startswith("SELECT CASE") or text == "pilotwire_settings":
            if self.state == "E":
                return self._fail(simple=simple)
            return (say.COLUMNS if simple else b"") + say.row(b"2") + say.done()
        return answer + super()._run(text.removeprefix(MARK.decode()), simple=simple)


TEXTS = st.sampled_from(["x", "x", "error", "empty", "begin", "end", "copyin", "copyout", "suspend", "late"])
NAMES = st.sampled_from(["", "s", "error", "end"])
BATCHED = st.tuples(NAMES, TEXTS).map(
    lambda drawn: say.parse(drawn[0], f"select {drawn[0]}") + say.bind(drawn[0], drawn[1]) + say.execute(drawn[1])
)
MESSAGES = st.one_of(
    TEXTS.map(query),
    NAMES.map(lambda name: say.parse(name, f"select {name}")),
    NAMES.map(say.bind),
    st.tuples(NAMES, TEXTS).map(lambda drawn: say.bind(*drawn)),
    TEXTS.map(say.execute),
    st.sampled_from([say.describe("s"), say.describe("x", b"P"), say.close("s"), say.close("x", b"P"), say.FLUSH]),
    st.just(say.SYNC),
    st.just(say.SYNC),
    BATCHED,
    BATCHED.map(lambda sent: sent + say.SYNC),
    st.just(query("begin")),
    st.just(say.parse() + say.bind() + say.execute("copyin") + say.SYNC + say.copy_data() + say.COPY_DONE + say.SYNC),
)
# What happens next: the client sends a message (None: nothing), the server reads so many, so many bytes of its
# answers arrive, and so many open questions are answered.
STEPS = st.lists(
    st.tuples(st.none() | MESSAGES, st.integers(0, 4), st.integers(0, 120), st.integers(0, 2)), max_size=30
)


def converse(
    talk: Conversation,
    server: ServerModel,
    steps: list[tuple[bytes | None, int, int, int]],
    late: list[Decision],
) -> bytes:
    """Everything the client is told."""
    answers = told = b""

    def sent(data: bytes) -> None:
        server.feed(data)

    def arrived(count: int) -> None:
        nonlocal answers, told
        data, answers = answers[:count], answers[count:]
        told += talk.from_server(data)
        again, talk.again = talk.again, b""
        sent(again)

    def decide(count: int) -> None:
        while talk.suspended and count:
            count -= 1
            sent(talk.decided(late.pop() if late else LEAVE_ALONE))

    for message, reads, arrives, decided in steps:
        if message is not None:
            sent(talk.from_client(message))
        decide(decided)
        for _ in range(reads):
            if server.inbox:
                answers += server.step()
        arrived(arrives)
    while talk.suspended or server.inbox or answers:
        decide(100)
        while server.inbox:
            answers += server.step()
        arrived(10**6)
    return told


def steering_of(advice: list[Decision]) -> ScriptedSteering:
    remaining = list(advice)

    def script(text: bytes) -> Decision:
        # Statements that change the transaction, and COPY from the client, are never steered.
        if text in (b"begin", b"end", b"copyin") or b"end" in text or not remaining:
            return LEAVE_ALONE
        return remaining.pop()

    return ScriptedSteering(script)


def check(make: type[Conversation], steps: list[tuple[bytes | None, int, int, int]], advice: list[Decision]) -> None:
    def conversation(steering: ScriptedSteering) -> Conversation:
        if make is not PooledConversation:
            return SteeredConversation(steering)
        talk = PooledConversation(steering, StatementRegistry(), {}, {}, 100_000)
        talk.link(BackendState({}, 100_000))
        return talk

    late = [decision for decision in advice if decision is not UNDECIDED]
    plain = converse(conversation(ScriptedSteering()), AdvisedServer(), steps, [])
    talk = conversation(steering_of(advice))
    assert_same_apart_from_names(converse(talk, AdvisedServer(), steps, late), plain)
    assert not talk.again


def assert_same_apart_from_names(got: bytes, expected: bytes) -> None:
    say.assert_same(got, expected)


@given(STEPS, st.lists(st.sampled_from(ADVICE), max_size=12))
@settings(max_examples=500, deadline=None)
def test_plain(steps: list[tuple[bytes | None, int, int, int]], advice: list[Decision]) -> None:
    check(SteeredConversation, steps, advice)


@given(STEPS, st.lists(st.sampled_from(ADVICE), max_size=12))
@settings(max_examples=500, deadline=None)
def test_pooled(steps: list[tuple[bytes | None, int, int, int]], advice: list[Decision]) -> None:
    check(PooledConversation, steps, advice)
