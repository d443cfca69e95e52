"""The read-only guard and long messages: what has arrived of one is neither passed on nor taken for all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.readonly import lifts_read_only
from proxy.steering import Steering
from proxy.wire.conversation import Conversation
from proxy.wire.delivery import SteeredConversation
from proxy.wire.frames import HOLD_LIMIT, ProtocolViolation
from proxy.wire.guarding import LIMIT, REFUSAL
from proxy.wire.messages import message, query
from proxy.wire.pooled import PooledConversation
from proxy.wire.prepared import StatementRegistry
from proxy.wire.session_state import BackendState
from tests.proxy.wire.transcript import SYNC, error, parse, ready

LIFTS = "begin read write; create table x(); commit; --"
SET_CONFIG = (2078).to_bytes(4, "big")


def dedicated() -> Conversation:
    talk = SteeredConversation(Steering())
    talk.guard = lifts_read_only
    return talk


def pooled() -> Conversation:
    talk = PooledConversation(Steering(), StatementRegistry(), {}, {}, 1 << 20)
    talk.link(BackendState({}, 1 << 20))
    talk.guard = lifts_read_only
    return talk


KINDS = pytest.mark.parametrize("make", [dedicated, pooled])
PIECES = pytest.mark.parametrize("piece", [6, 60, 9000, HOLD_LIMIT])


def send(talk: Conversation, data: bytes, piece: int, sent: list[bytes]) -> None:
    """What goes on to the server is noted in ``sent``."""
    for at in range(0, len(data), piece):
        sent.append(talk.from_client(data[at : at + piece]))


def padded(size: int) -> str:
    return LIFTS + "x" * size


@KINDS
@PIECES
@pytest.mark.parametrize(
    "data",
    [query(padded(LIMIT)), parse("", padded(LIMIT)), message(b"F", SET_CONFIG + b"\0" * LIMIT)],
    ids=["query", "parse", "function call"],
)
def test_one_too_long_to_be_looked_at_is_refused_at_its_beginning(
    make: Callable[[], Conversation], data: bytes, piece: int
) -> None:
    sent: list[bytes] = []
    with pytest.raises(ProtocolViolation, match="refused in a read-only session"):
        send(make(), data, piece, sent)
    assert not any(sent)


@KINDS
@PIECES
@pytest.mark.parametrize(
    "data", [query(padded(HOLD_LIMIT)), parse("", padded(HOLD_LIMIT)) + SYNC], ids=["query", "parse"]
)
def test_a_long_one_is_looked_at_whole(make: Callable[[], Conversation], data: bytes, piece: int) -> None:
    talk, sent = make(), list[bytes]()
    send(talk, data, piece, sent)
    assert b"refused by the read-only guard" in b"".join(sent)
    assert sum(map(len, sent)) < 100
    assert talk.refused == 1
    assert talk.from_server(error() + ready()) == REFUSAL + ready()


@KINDS
@PIECES
def test_a_long_one_that_lifts_nothing_arrives(make: Callable[[], Conversation], piece: int) -> None:
    data = parse("", "select '" + "x" * HOLD_LIMIT + "'") + SYNC
    sent: list[bytes] = []
    send(make(), data, piece, sent)
    assert b"".join(sent) == data


@KINDS
@pytest.mark.parametrize(("function", "refused"), [(2078, 1), (2924, 1), (3685, 1), (2026, 0)])
def test_functions_that_could_lift_it_are_not_called(
    make: Callable[[], Conversation], function: int, refused: int
) -> None:
    talk = make()
    sent = talk.from_client(message(b"F", function.to_bytes(4, "big") + b"\0" * 6))
    assert (sent[:1], talk.refused) == (b"Q" if refused else b"F", refused)
    assert talk.from_client(message(b"F", b"")) == message(b"F", b"")
