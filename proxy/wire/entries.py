"""What stands in the queue of replies that the server still owes: the kind of the message that gets one, with bits.

Kinds below 0x100 are those of `proxy.wire.frames`. The tables by kind are bytes objects: a look-up in one costs less
than one in a set.
"""

from __future__ import annotations

from typing import Final

from proxy.wire.frames import (
    BIND,
    BIND_COMPLETE,
    CLOSE,
    CLOSE_COMPLETE,
    COMMAND_COMPLETE,
    COPY_BOTH,
    COPY_DATA,
    COPY_DONE,
    COPY_IN,
    DESCRIBE,
    EMPTY_QUERY,
    ERROR,
    EXECUTE,
    FUNCTION_CALL,
    NO_DATA,
    PARAMETER_STATUS,
    PARSE,
    PARSE_COMPLETE,
    PORTAL_SUSPENDED,
    QUERY,
    READY,
    ROW_DESCRIPTION,
    SYNC,
)

KIND: Final = 0xFF
# The proxy sent this message, its reply must not reach the client.
OWN: Final = 0x100
# The message was replaced by one the server cannot accept: its error becomes the refusal.
REFUSED: Final = 0x200
# The message was steered, or added by steering: `proxy.wire.delivery` knows more of it.
STEERED: Final = 0x1000
# A steered one while nothing of its answer has reached the client.
FRESH: Final = 0x2000
# In place of a message's bytes: it must be decided on first.
SUSPENDED: Final = b"suspended"
HIDDEN: Final = OWN | FRESH
NEVER_CERTAIN: Final = 1_000_000_000
"""So many answers may still come: how many do will not be known."""

_ENDED_BY: Final = {
    PARSE_COMPLETE: PARSE,
    BIND_COMPLETE: BIND,
    CLOSE_COMPLETE: CLOSE,
    ROW_DESCRIPTION: DESCRIBE,
    NO_DATA: DESCRIBE,
    COMMAND_COMPLETE: EXECUTE,
    EMPTY_QUERY: EXECUTE,
    PORTAL_SUSPENDED: EXECUTE,
}
ENDS: Final = bytes(_ENDED_BY.get(kind, 0) for kind in range(256))
"""By kind of a reply, the kind of the message that it ends; 0 for replies that end none."""
ALWAYS_WATCHED: Final = frozenset({READY, ERROR, PARAMETER_STATUS, COPY_IN, COPY_BOTH})
"""Replies that always mean more than the end of a message."""
CLOSING_REPLY: Final = frozenset({COMMAND_COMPLETE, EMPTY_QUERY, PORTAL_SUSPENDED})


def table_of(kinds: frozenset[int]) -> bytes:
    """A table by kind: 1 for those in the set."""
    return bytes(kind in kinds for kind in range(256))


CLOSING: Final = table_of(CLOSING_REPLY)
READY_REPLY: Final = table_of(frozenset({QUERY, SYNC, FUNCTION_CALL}))
"""By kind of a message, whether a ReadyForQuery answers it."""


def is_mark(entry: int) -> bool:
    """Whether nothing answers it: data of a COPY, or its end, sent before the server said that it wants any. It is
    remembered, so that the Syncs before and behind it can be told apart when the server does."""
    return entry == COPY_DATA or entry == COPY_DONE
