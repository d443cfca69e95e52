"""Random pipelines against a model of the server: the conversation never believes to be between transactions when it
is not, always finds back with the next Sync, and changes nothing."""

from __future__ import annotations

import contextlib

from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxy.steering import Steering
from proxy.wire.conversation import Conversation
from proxy.wire.delivery import SteeredConversation
from proxy.wire.frames import HOLD_LIMIT, ProtocolViolation
from proxy.wire.messages import query
from proxy.wire.pooled import PooledConversation
from proxy.wire.prepared import StatementRegistry
from proxy.wire.session_state import BackendState
from tests.proxy.wire import transcript as say
from tests.proxy.wire.server_model import ServerModel

TEXTS = st.sampled_from(["x", "x", "error", "empty", "begin", "end", "copyin", "copyout", "suspend", "late"])
MESSAGES = st.one_of(
    TEXTS.map(query),
    st.sampled_from(["", "s", "error"]).map(say.parse),
    st.sampled_from(["", "s", "error", "end"]).map(say.bind),
    TEXTS.map(say.execute),
    st.sampled_from([say.describe("s"), say.describe("", b"P"), say.close("s"), say.FLUSH, say.FUNCTION_CALL]),
    st.just(say.SYNC),
    st.just(say.SYNC),
    st.sampled_from([say.copy_data(), say.copy_data(b"bad"), say.COPY_DONE, say.copy_fail(), say.COPY_DONE]),
    # Whole exchanges, so that the rarer ones are met often.
    TEXTS.map(lambda text: say.parse() + say.bind() + say.execute(text) + say.SYNC),
    st.just(say.parse() + say.bind() + say.execute("copyin") + say.SYNC + say.copy_data() + say.COPY_DONE + say.SYNC),
    st.just(query("copyin") + say.copy_data() + say.COPY_DONE),
)
# What happens next: the client sends a message (None: nothing), the server reads so many, so many bytes of its
# answers arrive.
STEPS = st.lists(st.tuples(st.none() | MESSAGES, st.integers(0, 4), st.integers(0, 120)), max_size=40)


COPY = (query("copyin"), 0, 0)
BAD = (say.copy_data(b"bad"), 0, 0)


# A Sync behind data that fails is answered, as is what follows it.
@example([COPY, BAD, (say.SYNC, 3, 47)], 1)
@example([COPY, BAD, (say.SYNC, 2, 47)], 1)
@example([COPY, (None, 1, 100), BAD, (say.SYNC, 2, 47)], 1)
@example([(say.execute("copyin"), 0, 0), BAD, (say.SYNC, 0, 0), (query("copyin") + say.copy_data(), 4, 57)], 1)
@given(STEPS, st.integers(1, 60))
@settings(max_examples=800, deadline=None)
def test_conversation_follows_the_server(steps: list[tuple[bytes | None, int, int]], piece: int) -> None:
    server, talk = ServerModel(), SteeredConversation(Steering())
    answers = said = told = b""

    def check() -> None:
        if talk.idle and not server.dead:
            assert not answers, (talk, answers)
            assert not [raw for raw in server.inbox if raw[:1] not in b"dcfH"], (talk, server.inbox)
            assert server.synced, talk
            assert server.state == "I", talk

    for sent, reads, arrives in [*steps, (None, 1000, 10**6)]:
        if sent is not None:
            passed = b"".join(talk.from_client(sent[at : at + piece]) for at in range(0, len(sent), piece))
            assert passed == sent
            server.feed(passed)
        for _ in range(reads):
            if server.inbox:
                answers += server.step()
        arrived, answers = answers[:arrives], answers[arrives:]
        said += arrived
        told += talk.from_server(arrived)
        assert told + talk._tail == said
        if talk._tail:
            continue  # an answer that has arrived in part
        check()
    if server.dead or talk.uncertain:
        return
    # Out of a COPY, past whatever is being skipped, out of a transaction.
    for sent in (say.COPY_DONE, say.SYNC, query("end")):
        server.feed(talk.from_client(sent))
        while server.inbox:
            talk.from_server(server.step())
        assert not talk.idle or server.synced
    assert talk.idle, talk
    assert not talk.owed.first, talk


@given(st.lists(st.binary(max_size=200), max_size=20), st.lists(st.binary(max_size=200), max_size=20))
@settings(max_examples=500, deadline=None)
def test_random_bytes(from_client: list[bytes], from_server: list[bytes]) -> None:
    """Whatever comes, the answer is bytes or a protocol violation, and what is kept is bounded."""
    talk = SteeredConversation(Steering())
    with contextlib.suppress(ProtocolViolation):
        for data in from_client:
            assert isinstance(talk.from_client(data), bytes)
            assert talk.held <= HOLD_LIMIT + 5


BODIES = st.binary(max_size=50) | st.sampled_from([b"", b"S", b"S\0", b"Ss", b"\0", b"s\0", b"\0\0", b"deallocate s\0"])


@given(st.lists(st.tuples(st.sampled_from(b"QPBDECFHSXdcf"), BODIES, st.integers(-8, 8) | st.integers(0, 200_000))))
@settings(max_examples=500, deadline=None)
def test_lengths_that_lie(frames: list[tuple[int, bytes, int]]) -> None:
    lies = [(kind, max(0, 4 + len(body) + more), body) for kind, body, more in frames]
    truths = [(kind, 4 + len(body), body) for kind, body, _ in frames]
    for sent in (lies, truths):
        pooled = PooledConversation(Steering(), StatementRegistry(), {}, {}, 10_000)
        pooled.link(BackendState({}, 10_000))
        guarded = SteeredConversation(Steering())
        guarded.guard = lambda text: b"s" in text
        for talk in (SteeredConversation(Steering()), pooled, guarded):
            _send(talk, sent)


def _send(talk: Conversation, frames: list[tuple[int, int, bytes]]) -> None:
    with contextlib.suppress(ProtocolViolation):
        for kind, length, body in frames:
            talk.from_client(bytes((kind,)) + length.to_bytes(4, "big") + body)
            assert talk.held <= (HOLD_LIMIT if talk.guard is None else 1 << 20) + 5
