"""The messages by which advice is delivered, and what comes back: pure functions over bytes.

Functions of our own are named with their schema: the client's search_path must not reach them.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.steering import Decision
from proxy.wire.frames import CLOSE, DESCRIBE, EXECUTE, FLUSH, HEADER, HOLD_LIMIT, QUERY, SYNC
from proxy.wire.statements import literal

# The names under which our own statements and portals stand on a backend while a batch runs. They are closed right
# after their use, so that one of each is enough.
STATEMENT: Final = b"pilotwire_advised"
HELPER: Final = b"pilotwire_settings"
# Around a run inside the client's transaction that may be stopped.
SAVE: Final = b"SAVEPOINT pilotwire_budget"
RELEASE: Final = b"RELEASE SAVEPOINT pilotwire_budget"
ROLL_BACK: Final = b"ROLLBACK TO SAVEPOINT pilotwire_budget"
_CANCELED: Final = b"57014"
_TIMED_OUT: Final = b"canceling statement due to statement timeout"
# Errors that an addition to a statement can cause, besides those that point into it: syntax, wrong value or name of a
# setting, not supported, internal, too complex, and what another plan may run out of.
ADVICE_ERRORS: Final = frozenset(
    {b"42601", b"22023", b"42704", b"XX000", b"0A000", b"54001", b"54000", b"53000", b"53100", b"53200", b"53400"}
)
# Some of its messages do not begin with its name, but all say which source file they come from.
_HINT_NOTICES: Final = (b"\0Mpg_hint_plan:", b"\0Fpg_hint_plan.c\0", b"\0Madjusted rows ")
_POSITION: Final = re.compile(rb"\0P(\d+)\0")
_WORD: Final = re.compile(rb"(?:\s|--[^\n\r]*(?:[\n\r]|\Z)|/\*.*?\*/|\()*([a-zA-Z]*)", re.DOTALL)
# What stays the same when it runs in an implicit transaction block, as it does behind a SET LOCAL in its message.
_ANYWHERE: Final = frozenset({b"select", b"with", b"explain", b"copy", b"insert", b"create"})
# What is planned at Bind; the others are planned when they are executed.
_PLANNED_AT_BIND: Final = frozenset({b"select", b"with", b"insert"})


def first_word(text: bytes) -> bytes:
    """The word that a statement begins with, in lower case."""
    found = _WORD.match(text)
    return found[1].lower() if found is not None else b""


def may_stand_behind_others(text: bytes) -> bool:
    return first_word(text) in _ANYWHERE


def is_planned_at_bind(text: bytes) -> bool:
    return first_word(text) in _PLANNED_AT_BIND


def is_planned_when_run(text: bytes) -> bool:
    """Not so a PREPARE: what is set around it says nothing of the EXECUTE that plans."""
    return first_word(text) != b"prepare"


def set_local(decision: Decision) -> bytes:
    """Statements that go in front of a text in its own message, where it runs in a transaction of its own."""
    return b"".join(b"SET LOCAL " + name + b"=" + literal(value) + b";" for name, value in decision.settings)


def save_and_set(decision: Decision) -> bytes:
    """A query that puts settings in place until the transaction ends, and keeps the values they had.

    A setting that this server does not know is passed over: an error would end the client's own transaction.
    """
    columns = []
    for name, value in decision.settings:
        known = b"pg_catalog.current_setting(" + literal(name) + b",true)"
        columns.append(_set(known, _kept(name), known))
        columns.append(_set(known, literal(name), literal(value)))
    return b"SELECT " + b",".join(columns)


def put_back(decision: Decision) -> bytes:
    """A query that undoes `save_and_set`."""
    columns = []
    for name, _ in decision.settings:
        known = b"pg_catalog.current_setting(" + literal(name) + b",true)"
        columns.append(_set(known, literal(name), b"pg_catalog.current_setting(" + _kept(name) + b",true)"))
    return b"SELECT " + b",".join(columns)


def _kept(name: bytes) -> bytes:
    return literal(b"pilotwire.saved_" + name.replace(b".", b"_"))


def _set(known: bytes, name: bytes, value: bytes) -> bytes:
    return b"CASE WHEN " + known + b" IS NOT NULL THEN pg_catalog.set_config(" + name + b"," + value + b",true) END"


def field(body: bytes, code: bytes) -> bytes:
    """One field of the body of an ErrorResponse or NoticeResponse; b"" for none."""
    if body[:1] == code:
        start = 1
    else:
        start = body.find(b"\0" + code) + 2
        if start == 1:
            return b""
    stop = body.find(0, start)
    return body[start:stop] if stop >= start else b""


def position(body: bytes) -> int:
    """Where an error is in the text, in characters from 1; 0 when it does not say."""
    found = _POSITION.search(body)
    return int(found[1]) if found is not None and len(found[1]) < 10 else 0


def moved(body: bytes, shift: int) -> bytes:
    """The same error in terms of the text without what stood in front of it, ``shift`` characters long."""
    found = _POSITION.search(body)
    if found is None or shift == 0:
        return body
    at = position(body) - shift
    new = b"\0P%d\0" % at if at > 0 else b"\0"
    return body[: found.start()] + new + body[found.end() :]


def is_about_hints(body: bytes) -> bool:
    """Whether a notice comes from pg_hint_plan reading our comment."""
    return any(sign in body for sign in _HINT_NOTICES)


def is_cancelled(body: bytes) -> bool:
    """Whether an error says that somebody cancelled the statement. statement_timeout has the same SQLSTATE, and only
    the text tells. Where the server speaks another language than English, a timeout that comes in the very moment of a
    cancel of ours is taken for that: the statement then runs again, with all of its time."""
    return field(body, b"C") == _CANCELED and field(body, b"M") != _TIMED_OUT


def stands_alone(sent: bytes) -> bool:
    """Whether these messages are one Query, or one Bind up to its Sync with nothing but Describe and Execute of
    portals, Close of portals and Flush between: what can be sent once more as it is."""
    return 0 < alone_until(sent, 0) == len(sent)


def alone_until(sent: bytes, pos: int) -> int:
    """Where what begins at ``pos`` ends, if it stands alone, is there and is short enough to be kept; else 0."""
    start = pos
    if len(sent) - pos < HEADER.size:
        return 0
    kind, length = HEADER.unpack_from(sent, pos)
    pos += 1 + length
    executed = 0
    while kind not in (QUERY, SYNC):
        if len(sent) - pos < HEADER.size:
            return 0
        kind, length = HEADER.unpack_from(sent, pos)
        # A Close between Bind and Execute could be one of the portal, and one of a statement cannot be taken back.
        if kind == EXECUTE:
            executed += 1
        elif kind == DESCRIBE:
            if sent[pos + 5 : pos + 6] != b"P" or executed:
                return 0
        elif kind == CLOSE:
            if not executed or sent[pos + 5 : pos + 6] != b"P":
                return 0
        elif kind not in (FLUSH, SYNC):
            return 0
        pos += 1 + length
    if pos > len(sent) or pos - start > HOLD_LIMIT or (kind == SYNC and executed != 1):
        return 0
    return pos
