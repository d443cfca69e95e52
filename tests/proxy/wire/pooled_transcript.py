"""Transcripts of a pooled conversation: besides what both sides say, it takes backends and gives them up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from proxy.steering import Steering
from proxy.wire.messages import query
from proxy.wire.pooled import PooledConversation
from proxy.wire.prepared import StatementRegistry
from proxy.wire.session_state import BackendState
from tests.proxy.wire import transcript as say
from tests.proxy.wire.transcript import Cut, Transcript, assert_same

REPORTED = {b"client_encoding": b"UTF8", b"application_name": b"", b"TimeZone": b"UTC", b"is_superuser": b"on"}
PREFIX = "pw_test_"


def registry() -> StatementRegistry:
    """A registry whose names are ``pw_test_1``, ``pw_test_2`` and so on, in the order of their making."""
    made = StatementRegistry()
    setattr(made, "prefix", PREFIX.encode())  # noqa: B010  it is final for everybody else
    return made


def our(number: int) -> str:
    return f"{PREFIX}{number}"


def set_config(**settings: str) -> bytes:
    """The query that puts settings in place."""
    parts = [f"SELECT pg_catalog.set_config( E'{name}', E'{value}', false)" for name, value in settings.items()]
    return query(";".join(parts))


def asks(*names: str) -> bytes:
    """The query that reads settings."""
    columns = [f"pg_catalog.left(pg_catalog.current_setting( E'{name}', true),8193)" for name in names]
    return query("SELECT " + ",".join(columns))


class PooledTranscript(Transcript):
    """Several clients by number (`of`) and several backends by name; client 0 speaks first, linked to backend ``a``."""

    def __init__(
        self,
        settings: dict[bytes, bytes] | None = None,
        *,
        client_bytes: int = 1 << 20,
        backend_bytes: int = 1 << 20,
        linked: bool = True,
    ) -> None:
        self.registry = registry()
        self.settings = settings or {}
        self.client_bytes = client_bytes
        self.backend_bytes = backend_bytes
        self.backends: dict[str, BackendState] = {}
        self.clients: list[PooledConversation] = []
        super().__init__(self._make)
        self.clients.append(self.pooled)
        if linked:
            self.link("a")

    def _make(self) -> PooledConversation:
        return PooledConversation(Steering(), self.registry, REPORTED, self.settings, self.client_bytes)

    @property
    def pooled(self) -> PooledConversation:
        assert isinstance(self.talk, PooledConversation)
        return self.talk

    def of(self, number: int) -> PooledTranscript:
        """Another client goes on."""
        while len(self.clients) <= number:
            self.clients.append(self._make())
        self.talk = self.clients[number]
        return self

    def link(self, name: str, sends: bytes = b"", tells: bytes = b"") -> PooledTranscript:
        backend = self.backends.setdefault(name, BackendState(REPORTED, self.backend_bytes))
        first, tell = self.pooled.link(backend)
        assert_same(first, sends)
        assert_same(tell, tells)
        return self

    def unlink(self) -> PooledTranscript:
        """The transaction is over, nothing more is to be asked, and the backend goes."""
        assert self.pooled.idle
        assert_same(self.pooled.settle(), b"")
        assert self.pooled.releasable, (self.talk, self.pooled.pins)
        assert self.pooled.unlink() == b""
        return self

    def settle(self, asks: bytes, *values: bytes | None) -> PooledTranscript:
        """Our query at the end of a transaction, and what the server answers to it."""
        assert_same(self.pooled.settle(), asks)
        if asks:
            self.busy()
            self.server(say.COLUMNS, say.row(*values), say.done(), say.ready(), becomes=[])
            self.idle()
        return self

    def pinned(self, pins: int) -> PooledTranscript:
        assert self.pooled.pins == pins, self.pooled.pins
        assert self.pooled.releasable == (not pins and self.pooled.idle)
        return self

    # The same as in a plain transcript, for types.

    def client(self, *messages: bytes, becomes: Sequence[bytes] | None = None) -> PooledTranscript:
        super().client(*messages, becomes=becomes)
        return self

    def server(self, *messages: bytes, becomes: Sequence[bytes] | None = None) -> PooledTranscript:
        super().server(*messages, becomes=becomes)
        return self

    def idle(self) -> PooledTranscript:
        super().idle()
        return self

    def busy(self) -> PooledTranscript:
        super().busy()
        return self


def run_cut(script: Callable[[], PooledTranscript], cut: Cut) -> None:
    """Plays a script with everything that either side says cut up."""

    class Cutting(PooledTranscript):
        def client(self, *messages: bytes, becomes: Sequence[bytes] | None = None) -> PooledTranscript:
            sent = b"".join(messages)
            expected = sent if becomes is None else b"".join(becomes)
            assert_same(b"".join(self.talk.from_client(piece) for piece in cut(sent)), expected)
            return self

        def server(self, *messages: bytes, becomes: Sequence[bytes] | None = None) -> PooledTranscript:
            sent = b"".join(messages)
            expected = sent if becomes is None else b"".join(becomes)
            assert_same(b"".join(self.talk.from_server(piece) for piece in cut(sent)), expected)
            return self

    globals_of = script.__globals__
    saved = globals_of["PooledTranscript"]
    globals_of["PooledTranscript"] = Cutting
    try:
        script()
    finally:
        globals_of["PooledTranscript"] = saved
