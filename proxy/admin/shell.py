"""What holds for every answer of the admin port, whichever part of it answers: its headers, and the rule for names."""

from __future__ import annotations

import hmac
import ipaddress
from typing import Final
from urllib.parse import urlsplit

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_token(offered: str, token: str) -> bool:
    """Compared in constant time: an answer's delay must not tell how much of a guess was right."""
    return hmac.compare_digest(offered.encode("utf-8", "surrogateescape"), token.encode())


def is_local_name(host: str) -> bool:
    """Whether a Host header names this machine in a way that nobody else's name server can: an address, a name without
    a dot, or one below ``localhost``."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return "." not in name.rstrip(".") or name.rstrip(".").endswith(".localhost")
    return True
