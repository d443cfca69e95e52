"""Why a login is refused, with the SQLSTATE and the words that PostgreSQL itself uses."""

from __future__ import annotations

from proxy.wire.messages import error_response

PROTOCOL_VIOLATION = "08P01"
FEATURE_NOT_SUPPORTED = "0A000"
INVALID_AUTHORIZATION = "28000"
INVALID_PASSWORD = "28P01"  # noqa: S105 - an SQLSTATE
CANNOT_CONNECT_NOW = "57P03"


class AuthFailed(Exception):
    """The login is refused. ``log_detail`` is for the log only: it may tell what a client must not learn."""

    def __init__(self, sqlstate: str, message: str, detail: str | None = None, *, log_detail: str = "") -> None:
        super().__init__(message)
        self.sqlstate = sqlstate
        self.message = message
        self.detail = detail
        self.log_detail = log_detail or detail or ""

    def response(self) -> bytes:
        """The ErrorResponse (severity FATAL) to send before closing the connection."""
        return error_response(self.sqlstate, self.message, detail=self.detail)


def password_failed(user: str, log_detail: str) -> AuthFailed:
    """One answer for a wrong password, an unknown user and an expired one, so that they cannot be told apart."""
    return AuthFailed(INVALID_PASSWORD, f'password authentication failed for user "{user}"', log_detail=log_detail)


def certificate_failed(user: str, log_detail: str) -> AuthFailed:
    return AuthFailed(
        INVALID_AUTHORIZATION, f'certificate authentication failed for user "{user}"', log_detail=log_detail
    )


def no_entry(peer: str, user: str, database: str, *, tls: bool, log_detail: str) -> AuthFailed:
    """What a server says when no line of pg_hba.conf lets this client try."""
    host = "[local]" if peer == "unix" else peer
    encryption = "SSL encryption" if tls else "no encryption"
    return AuthFailed(
        INVALID_AUTHORIZATION,
        f'no pg_hba.conf entry for host "{host}", user "{user}", database "{database}", {encryption}',
        log_detail=log_detail,
    )


def malformed(detail: str) -> AuthFailed:
    return AuthFailed(PROTOCOL_VIOLATION, "malformed SCRAM message", detail)
