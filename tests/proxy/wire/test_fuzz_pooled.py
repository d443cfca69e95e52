"""Several clients on a few backends with small caches: each client gets the very bytes that a server of its own would
have sent it."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.steering import Steering
from proxy.wire.messages import query
from proxy.wire.pooled import PooledConversation
from proxy.wire.prepared import UNKNOWN
from proxy.wire.session_state import BackendState
from tests.proxy.wire import transcript as say
from tests.proxy.wire.pooled_transcript import registry
from tests.proxy.wire.prepared_model import PreparedServer
from tests.proxy.wire.transcript import assert_same

NAMES = st.sampled_from(["", "s", "t", "__asyncpg_stmt_1__"])
NAMED = st.sampled_from(["s", "t"])
TEXTS = st.sampled_from(["one", "two", "three" * 50, "fails", "error", "begin", "end", ""])
MESSAGES = st.one_of(
    st.builds(say.parse, NAMES, TEXTS),
    st.builds(lambda name: say.bind(name) + say.execute(), NAMES),
    st.builds(lambda name, text: say.parse(name, text) + say.bind(name) + say.execute(), NAMES, TEXTS),
    st.builds(say.bind, NAMES),
    st.just(say.execute()),
    st.builds(say.describe, NAMES),
    st.builds(say.close, NAMES),
    st.just(say.FLUSH),
)
QUERIES = st.one_of(
    st.sampled_from(["one", "begin", "end", "error", "", "discard all", "deallocate all"]).map(query),
    NAMED.map(lambda name: query(f"deallocate {name}")),
    NAMED.map(lambda name: query(f"execute {name}")),
)
BATCHES = st.lists(MESSAGES, max_size=6).map(lambda messages: b"".join(messages) + say.SYNC) | QUERIES
STEPS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 1), BATCHES), max_size=25)
# Several batches at once, the later ones sent before it is known how the first went.
PIPELINES = st.lists(BATCHES, min_size=2, max_size=4).map(b"".join)
LOOSE_STEPS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1), PIPELINES), max_size=15)
LIMITS = st.sampled_from([300, 900, 100_000])


class Client:
    def __init__(self, talk: PooledConversation) -> None:
        self.talk = talk
        self.own = PreparedServer()  # the server that it believes to talk to
        self.linked: int | None = None


class Setting:
    """Three clients on three backends."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.registry = registry()
        self.reported: dict[bytes, bytes] = {}
        self.clients = [self.client() for _ in range(3)]
        self.servers = [PreparedServer() for _ in range(3)]
        self.states = [BackendState(self.reported, limit) for _ in range(3)]

    def client(self) -> Client:
        return Client(PooledConversation(Steering(), self.registry, self.reported, {}, 100_000))

    def say(self, client: Client, wanted: int, batch: bytes) -> tuple[bytes, bytes]:
        """What the client is told, and what a server of its own would have told it."""
        talk = client.talk
        if client.linked is None:
            taken = {other.linked for other in self.clients}
            free = [at for at in range(len(self.servers)) if at not in taken]
            client.linked = free[wanted % len(free)]
            assert talk.link(self.states[client.linked]) == (b"", b"")
        told = talk.from_server(self.servers[client.linked].answer(talk.from_client(batch)))
        if talk.idle:
            assert talk.settle() == b""
            if not talk.releasable:  # as a session does: the backend ends with its client
                self.servers[client.linked] = PreparedServer()
                self.states[client.linked] = BackendState(self.reported, self.limit)
                self.clients[self.clients.index(client)] = self.client()
            else:
                assert talk.unlink() == b""
            client.linked = None
        self.check()
        return told, client.own.answer(batch)

    def check(self) -> None:
        """What is believed to be prepared is."""
        bound = {client.linked for client in self.clients if client.talk.pins}
        for at, (server, state) in enumerate(zip(self.servers, self.states, strict=True)):
            if at in bound:
                continue  # nobody else will ever get it
            doubtful = state.prepared._doubtful
            there = {name.encode(): text.encode() for name, text in server.statements.items()}
            believed = {name: statement.text for name, statement in state.prepared._statements.items()}
            assert doubtful <= believed.keys()
            assert there.keys() - doubtful == believed.keys() - doubtful
            assert all(there[name] == text for name, text in believed.items() if name not in doubtful)
            unnamed = state.prepared.unnamed
            assert unnamed is UNKNOWN or server.unnamed == (None if unnamed is None else unnamed.text.decode())


@given(STEPS, LIMITS)
@settings(max_examples=400, deadline=None)
def test_pooled_clients_get_what_their_own_server_would_say(steps: list[tuple[int, int, bytes]], limit: int) -> None:
    setting = Setting(limit)
    for number, wanted, batch in steps:
        client = setting.clients[number]
        told, expected = setting.say(client, wanted, batch)
        assert_same(told, expected)
        assert client.talk.idle == (client.own.state == "I")
        assert not client.talk.pins


@given(LOOSE_STEPS, st.integers(0, 1), LIMITS)
@settings(max_examples=400, deadline=None)
def test_pipelines_do_no_harm_to_others(steps: list[tuple[int, int, bytes]], wanted: int, limit: int) -> None:
    """Whatever two clients send at once, the caches stay true, and the third is served as if it were alone."""
    setting = Setting(limit)
    for number, wish, pipeline in steps:
        setting.say(setting.clients[number], wish, pipeline)
        third = setting.clients[2]
        for text in ("one", "two"):
            batch = say.close("s") + say.parse("s", text) + say.bind("s") + say.execute() + say.SYNC
            told, expected = setting.say(third, wanted, batch)
            assert_same(told, expected)
