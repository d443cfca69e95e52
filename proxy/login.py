"""What is known of a client once it has logged in: the hand-over from the greeting to the session."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class NoCredential:
    """The server is expected to ask for nothing (its pg_hba.conf says trust)."""


@dataclass(frozen=True, slots=True)
class PasswordCredential:
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class ScramKeysCredential:
    """Keys recovered from the client's own SCRAM proof; good for a server that holds the same verifier."""

    client_key: bytes = field(repr=False)
    server_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class RelayCredential:
    """The client authenticates with the server itself; the proxy only carries the messages."""


Credential = NoCredential | PasswordCredential | ScramKeysCredential | RelayCredential


@dataclass(frozen=True, slots=True)
class Login:
    """One authenticated client.

    ``settings`` are the start-up parameters in the order sent, without user, database, replication and ``_pq_.*``
    options. ``minor`` is the protocol minor version agreed on (0 or 2). ``replication`` is the start-up parameter's
    text when it asks for a replication connection, else None.
    """

    user: str
    database: str
    settings: dict[str, str]
    credential: Credential
    minor: int = 0
    replication: str | None = None
    peer: str = ""
    id: str = ""
    """Names this connection in the log."""
    tls: bool = False
    read_only: bool = False
