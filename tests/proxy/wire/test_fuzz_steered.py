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

    advised = False

    def step(self) -> bytes:
        # A statement named picky fails when advice came with it: before its Bind, in the batch, or in its text.
        raw = self.inbox[0]
        self.advised = self.advised or MARK in raw
        answer = super().step()
        if raw[:1] in b"SQ":
            self.advised = False
        return answer

    def _run(self, text: str, *, simple: bool) -> bytes:
        text = text.removeprefix(MARK.decode())
        if text == "picky" and self.advised:
            text = "error"
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


def steps_with(*named: str) -> st.SearchStrategy[list[tuple[bytes | None, int, int, int]]]:
    """What happens, with statements of these names: the client sends a message (None: nothing), the server reads so
    many, so many bytes of its answers arrive, and so many open questions are answered."""
    names = st.sampled_from(named)
    # A portal that ends the transaction is that of a statement that does.
    bound = st.tuples(names, TEXTS).filter(lambda drawn: (drawn[0] == "end") == (drawn[1] == "end"))
    batched = bound.map(
        lambda drawn: say.parse(drawn[0], f"select {drawn[0]}") + say.bind(drawn[0], drawn[1]) + say.execute(drawn[1])
    )
    copying = say.bind() + say.execute("copyin") + say.SYNC + say.copy_data() + say.COPY_DONE + say.SYNC
    messages = st.one_of(
        TEXTS.map(query),
        names.map(lambda name: say.parse(name, f"select {name}")),
        names.map(say.bind),
        bound.map(lambda drawn: say.bind(*drawn)),
        TEXTS.map(say.execute),
        st.sampled_from([say.describe("s"), say.describe("x", b"P"), say.close("s"), say.close("x", b"P"), say.FLUSH]),
        st.just(say.SYNC),
        st.just(say.SYNC),
        batched,
        batched.map(lambda sent: sent + say.SYNC),
        st.just(query("begin")),
        st.just(say.parse() + copying),
    )
    step = st.tuples(st.none() | messages, st.integers(0, 4), st.integers(0, 120), st.integers(0, 2))
    return st.lists(step, max_size=30)


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
        if talk.again is not None:
            again, talk.again = talk.again, None
            sent(again)
            sent(talk.from_client(b""))

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
    say.assert_same(converse(talk, AdvisedServer(), steps, late), plain)
    assert talk.again is None


@given(steps_with("", "s", "error", "end"), st.lists(st.sampled_from(ADVICE), max_size=12))
@settings(max_examples=500, deadline=None)
def test_plain(steps: list[tuple[bytes | None, int, int, int]], advice: list[Decision]) -> None:
    check(SteeredConversation, steps, advice)


# The model does not know which statements are there, so that here none may fail to be prepared: whether the client is
# told of it before or after it binds them decides by which name they are bound.
@given(steps_with("", "s", "end"), st.lists(st.sampled_from(ADVICE), max_size=12))
@settings(max_examples=500, deadline=None)
def test_pooled(steps: list[tuple[bytes | None, int, int, int]], advice: list[Decision]) -> None:
    check(PooledConversation, steps, advice)


ALONE = st.sampled_from(["x", "picky", "picky", "empty", "error", "late"]).flatmap(
    lambda text: st.sampled_from(
        [
            query(text),
            say.parse("", "select 1") + say.bind("", text) + say.execute(text) + say.SYNC,
            say.parse("", "select 1") + say.bind("", text) + say.describe(text, b"P") + say.execute(text) + say.SYNC,
        ]
    )
)


@given(st.lists(ALONE, max_size=8), st.lists(st.sampled_from([ADVICE[0], ADVICE[1], ADVICE[2]]), max_size=12))
@settings(max_examples=300, deadline=None)
def test_what_is_refused_is_run_again(batches: list[bytes], advice: list[Decision]) -> None:
    """Statements that stand alone, some of which fail only with advice: nobody notices."""
    steps: list[tuple[bytes | None, int, int, int]] = [(sent, 100, 10**6, 2) for sent in batches]
    for kind in (SteeredConversation, PooledConversation):
        check(kind, [step for sent in steps for step in (sent, (None, 100, 10**6, 2), (None, 100, 10**6, 2))], advice)
