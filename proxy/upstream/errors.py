"""Why a server connection could not be had, in the form the client gets it."""

from __future__ import annotations

from collections.abc import Sequence

from proxy.dsn import Host
from proxy.wire.messages import error_response


class UpstreamError(Exception):
    """``response`` is the ErrorResponse for the client: the server's own where there was one."""

    def __init__(self, response: bytes, reason: str = "") -> None:
        super().__init__(reason or "the server refused the connection")
        self.response = response


def unreachable(hosts: Sequence[Host], error: BaseException) -> UpstreamError:
    """No server answered. 57P03 is what drivers understand as "try again later"."""
    names = ", ".join(str(host) for host in hosts)
    reason = "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    text = f"pilotwire cannot connect to the server at {names}: {reason}"
    return UpstreamError(
        error_response("57P03", text, hint="Check that the server runs and accepts connections."), text
    )
