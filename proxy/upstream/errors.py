"""Why a server connection could not be had, in the form the client gets it."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.dsn import Host
from proxy.wire.messages import error_fields, error_response

_REASON_LIMIT = 300


class UpstreamError(Exception):
    """``response`` is the ErrorResponse for the client: the server's own where there was one. As text it is the reason,
    for the log."""

    def __init__(self, response: bytes, reason: str = "") -> None:
        super().__init__(reason or _reason(response))
        self.response = response


def _reason(response: bytes) -> str:
    """What the server said. A refused login has no statement, so that no literals are in it."""
    fields = error_fields(response[5:])
    return f"the server refused the connection: {fields.get('C', '')} {fields.get('M', '')[:_REASON_LIMIT]}"


def unreachable(hosts: Sequence[Host], error: BaseException) -> UpstreamError:
    """No server answered. 57P03 is what drivers understand as "try again later"."""
    names = ", ".join(str(host) for host in hosts)
    reason = "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    text = f"pilotwire cannot connect to the server at {names}: {reason}"
    return UpstreamError(
        error_response("57P03", text, hint="Check that the server runs and accepts connections."), text
    )
