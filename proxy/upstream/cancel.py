"""Sending a CancelRequest and waiting until the server has acted on it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Final

from proxy.wire.messages import cancel_request

_SSL_REQUEST: Final = b"\0\0\0\x08\x04\xd2\x16\x2f"
_TIMEOUT: Final = 10.0

Address = str | tuple[str, int]


async def send_cancel(
    address: Address, pid: int, secret: bytes, tls: ssl.SSLContext | None, *, require_tls: bool
) -> None:
    """Returns once the server has closed the connection, which it does after the signal is sent.

    OSError and TimeoutError when the server could not be reached; ConnectionError when it declines TLS and TLS is
    required.
    """
    async with asyncio.timeout(_TIMEOUT):
        if isinstance(address, str):
            reader, writer = await asyncio.open_unix_connection(address)
        else:
            reader, writer = await asyncio.open_connection(*address)
        try:
            if tls is not None and not isinstance(address, str):
                writer.write(_SSL_REQUEST)
                answer = await reader.read(1)
                if not answer:
                    raise ConnectionError("the server hung up on a cancel request")
                if answer == b"S":
                    await writer.start_tls(tls, server_hostname=address[0])
                elif require_tls:
                    raise ConnectionError("the server declined TLS for a cancel request")
            writer.write(cancel_request(pid, secret))
            with contextlib.suppress(ConnectionError):
                while await reader.read(4096):
                    pass
        finally:
            writer.close()
