"""What a conversation may do beyond relaying, by hooks that do nothing here."""

from __future__ import annotations


class Hooks:
    """Called by `proxy.wire.conversation.Conversation`; the classes that build on it fill them in."""

    __slots__ = ()

    # Of runs with a budget; see `proxy.wire.outcome`.

    def stop(self) -> bool | None:
        """The budget is spent: whether the run is to be cancelled now; None: ask again soon."""
        return False

    def stopped(self, *, sent: bool) -> bytes:
        """Our cancel request has been dealt with, or (not ``sent``) could not be delivered: bytes for the client."""
        return b""

    def cancelled(self) -> None:
        """The client has asked for its statement to be cancelled; the request is about to be sent on."""

    # Of what the client sends: what to send in its place, None for itself.

    def _describe(self, data: bytes, pos: int, end: int) -> bytes | None:
        return None

    def _described(self) -> None:
        """A Describe was noted while there are portals bound with advice."""

    def _close(self, data: bytes, pos: int, end: int) -> bytes | None:
        return None

    def _read_on(self, data: bytes) -> None:
        """More of a text that streams past."""

    # Of what the server sends.

    def _steered_reply(self, kind: int, data: bytes, pos: int, end: int, head: int) -> bytes | None:
        """A reply within the answer to a message marked `STEERED`: what to send in its place, None for the usual."""
        return None

    def _completed(self, data: bytes, pos: int, end: int) -> None:
        """A CommandComplete passed."""

    def _named_change(self) -> None:
        """A ParseComplete or CloseComplete passed."""

    def _notified(self, data: bytes, pos: int, end: int) -> bytes | None:
        """A NotificationResponse: what to send in its place, None for itself."""
        return None

    def _dropped(self, entries: list[int]) -> None:
        """The server will not answer these messages: the first failed, the others stand behind it."""

    def _own_reply(self, kind: int, data: bytes, pos: int, end: int) -> None:
        """A message of the answer to a simple query of the proxy's own."""

    def _own_ready(self) -> bytes:
        """The ReadyForQuery of a simple query of the proxy's own: what the client gets in its place."""
        return b""
