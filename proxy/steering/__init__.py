"""The wire side of steering: what is asked for each statement before it goes on.

A conversation shows each statement to its session's `Steering`: the text of a Query, or at Bind what `known` made of
the text when it was prepared, with the parameters. The answer is a `Decision` and must be there at once; `UNDECIDED`
says that the planner is to be asked and is worth waiting for: the conversation then stops before this message until it
is told. `Steering` itself is the answer for every statement while there is no planner.
"""

from __future__ import annotations

from typing import Any, Final

from mypy_extensions import mypyc_attr


class Decision:
    """What to do with one statement. ``prefix`` goes in front of its text, ``settings`` (name, value) are put in place
    around it; both empty: leave it alone. `LEAVE_ALONE` and `UNDECIDED` are compared by identity. ``parse`` is the
    Parse message that was made of it for the prepared statement ``parse_for``.

    ``budget_ms`` is what a run with this advice may take before it is stopped and run again as the client sent it;
    0.0: no limit. Unless ``approved``, it is only followed where that is possible. ``query``, ``arm``, ``dialect`` and
    ``share`` are those of `planner.messages.Answer`."""

    __slots__ = (
        "approved",
        "arm",
        "budget_ms",
        "dialect",
        "model",
        "parse",
        "parse_for",
        "prefix",
        "query",
        "reason",
        "settings",
        "share",
        "shift",
    )

    def __init__(
        self,
        reason: str,
        prefix: bytes = b"",
        settings: tuple[tuple[bytes, bytes], ...] = (),
        model: str = "",
        budget_ms: float = 0.0,
        approved: bool = False,
    ) -> None:
        self.reason = reason
        self.prefix = prefix
        self.settings = settings
        self.model = model
        self.budget_ms = budget_ms
        self.approved = approved
        self.query = b""
        self.arm = ""
        self.dialect = ""
        self.share = 1.0
        self.parse = b""
        self.parse_for: Known | None = None
        self.shift = len(prefix.decode("utf-8", "replace"))  # how far it moves positions, in characters

    def __repr__(self) -> str:
        return f"<Decision {self.reason} prefix={self.prefix!r} settings={self.settings!r}>"


LEAVE_ALONE: Final = Decision("leave alone")
UNDECIDED: Final = Decision("undecided")


class Known:
    """A text with its parameter types, and its kind, which is `Steering`'s own business. ``types`` is the tail of the
    Parse message, from the count of the types on. ``plain`` is the text without comments, under which it is decided
    about: what two texts share that differ in comments only."""

    __slots__ = ("plain", "template", "text", "types")

    def __init__(self, text: bytes, types: bytes, template: Any, plain: bytes = b"") -> None:
        self.text = text
        self.types = types
        self.template = template
        self.plain = plain or text


# A class and no protocol, whose methods the compiled build would look up by name each time.
@mypyc_attr(allow_interpreted_subclasses=True)
class Steering:
    """One session's steering; this one leaves everything alone. All of it is called on the hot path and does no I/O of
    its own that could block. ``text`` is that of the statement last shown, which whoever measures statements empties
    behind each batch."""

    __slots__ = ("text",)

    def __init__(self) -> None:
        self.text = b""

    def query(self, text: bytes) -> Decision:
        """A statement of the simple protocol, without its terminating zero."""
        self.text = text
        return LEAVE_ALONE

    def known(self, text: bytes, types: bytes) -> Known | None:
        """What `bind` is to be given for a text that was prepared; None for one that is never steered."""
        self.text = text
        return None

    def bind(self, known: Known, message: bytes, start: int, end: int) -> Decision:
        """A statement of the extended protocol at its Bind; ``message[start:end]`` is the Bind message from the count
        of parameter format codes on, values included."""
        return LEAVE_ALONE

    def reported(self, name: bytes, value: bytes) -> None:
        """The server reported a setting's value."""

    def delivered(self, decision: Decision) -> None:
        """The statement last asked about goes on as this decision says."""

    def prevented(self, reason: str) -> None:
        """A decision could not be followed here."""

    def stopped(self) -> None:
        """The statement last delivered went over its budget; it is run again now, as the client sent it."""

    def failed(self, error: bytes) -> None:
        """An ErrorResponse came, of which this is the beginning; b"": the client has not been told of it after all."""

    def refused(self, text: bytes, sqlstate: bytes, message: bytes, *, again: bool) -> None:
        """The server refused a steered text because of what was added; ``again``: it was run as the client sent it."""
