"""What the log says of a statement that took long: where it came from, what it was, and what steering made of it.

The statement is told without its literals, in the form under which statements of one kind are judged together (see
`proxy.steering.template`), unless ``log_literals`` is set. A prepared statement that is executed long after it was
prepared is told only where steering has kept its text. Called for slow statements only: some 20 us.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from proxy.logs import Value
from proxy.steering.template import BROKEN, template

if TYPE_CHECKING:
    from proxy.session_base import Session

_QUOTE: Final = re.compile(rb"['\"$/]|--")
MAX_TEXT: Final = 16 * 1024
"""Bytes of a text that are looked at; of the result the log keeps the beginning."""


def slow_statement(session: Session, seconds: float) -> dict[str, Value]:
    """The fields of the event."""
    login, steering = session.login, session._steering
    fields: dict[str, Value] = {
        "id": login.id,
        "user": login.user,
        "database": login.database,
        "peer": login.peer,
        "ms": round(seconds * 1000, 1),
    }
    if steering is not None:
        fields["application"] = steering.application or None
        fields |= {name: value or None for name, value in steering.outcome().items()}
        fields["waited_ms"] = round(steering.waited * 1000, 1) if steering.waited else None
    text = session.talk.steering.text[:MAX_TEXT]
    if text:
        conforming = None if steering is None else steering.conforming
        fields["statement"] = shown(text, conforming, literals=session.context.settings.log_literals)
    return fields


def shown(text: bytes, conforming: bool | None, *, literals: bool) -> str:
    """A statement as it may be shown. ``conforming``: standard_conforming_strings; None where it is not known."""
    if not literals:
        key, flags = template(text, conforming=conforming is not False)
        if flags & BROKEN or (conforming is None and b"\\" in text):
            # Where its strings end is not known: what stands before the first is all that can be shown.
            key = template(_QUOTE.split(text, 1)[0])[0]
        text = key
    return text.decode("utf-8", "replace")
