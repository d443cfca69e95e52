"""Every setting of the proxy, declared once: name, type, default, bounds and what the documentation says.

``ProxySettings`` is a frozen value, complete and consistent once built: a DSN's password and libpq options are moved
into fields of their own (``upstream`` itself can be logged), defaults that depend on other settings (``auth``,
``client_tls_mode``) are worked out, and combinations that cannot work are refused with a ``ValueError`` of one
sentence. Files are not touched here; pilotwire/config.py reads them. The value goes to the worker processes by
``to_wire``/``from_wire``, secrets included, over a private channel.
"""

from __future__ import annotations

import json
from functools import cached_property
from typing import Any, Literal, Self

from pydantic import SecretStr, model_validator

from proxy import settings_rules as rules
from proxy.dsn import Dsn, ListenAddress, parse_dsn
from proxy.options import Bytes, Names, OptionDoc, Seconds, option, option_doc
from proxy.settings_admin import AdminSettings
from proxy.settings_connections import (
    CONFIG,
    AuthMethod,
    ConnectionSettings,
    ListenerOptions,
    TargetSessionAttrs,
    TlsMode,
)
from proxy.settings_explorer import ExplorerSettings
from proxy.settings_operations import OperationsSettings
from proxy.settings_planner import PlannerSettings
from proxy.settings_steering import SteeringMode, SteeringSettings
from proxy.settings_store import StoreSettings

PoolMode = Literal["session", "transaction"]
LogFormat = Literal["human", "json"]
LogLevel = Literal["debug", "info", "warning", "error"]

__all__ = [
    "AuthMethod",
    "ListenerOptions",
    "ProxySettings",
    "SteeringMode",
    "TargetSessionAttrs",
    "TlsMode",
    "apply_reload",
    "changes_on_reload",
    "docs",
]

POOL, SAFETY, LOG = "Pooling", "Stopping and guarding", "Logging"


class ProxySettings(
    OperationsSettings,
    AdminSettings,
    ExplorerSettings,
    StoreSettings,
    PlannerSettings,
    SteeringSettings,
    ConnectionSettings,
):
    """Durations are seconds, sizes are bytes, '' is "not set". See docs/configuration.md for each field."""

    model_config = CONFIG

    pool_mode: PoolMode = option(
        "session",
        group=POOL,
        description="session: a client has a server connection of its own until it leaves. transaction: it has "
        "one for the length of each transaction.",
        unit="name",
        reason="session is transparent to everything; transaction serves thousands of clients with few "
        "server connections.",
        warning="In transaction mode a client that uses LISTEN, temporary tables, session advisory locks or "
        "WITH HOLD cursors keeps its server connection until it leaves.",
        reload=False,
    )
    session_reuse: bool = option(
        False,
        group=POOL,
        description="In session mode, give a server connection to the next client after DISCARD ALL instead of "
        "closing it.",
        unit="true or false",
        reason="Saves the server a fork for clients that connect for one query.",
        warning="Some state survives DISCARD ALL and is seen by the next client: loaded libraries, ALTER ROLE "
        "... SET values taken at login, dblink connections, setseed, globals of procedural languages.",
        reload=False,
    )
    pool_size: int = option(
        20,
        group=POOL,
        description="Server connections for each user and database in each worker.",
        unit="connections",
        reason="A server does most work with a few connections for each core.",
        warning="Times workers, users and databases it must stay below the server's max_connections. In "
        "session mode it limits the spares kept ready; max_clients limits the connections.",
        reload=True,
        ge=1,
        le=10000,
    )
    pool_overflow: int = option(
        10,
        group=POOL,
        description="Server connections above pool_size that a worker opens under load, and closes when not needed.",
        unit="connections",
        reason="A burst gets through without many connections idling for the rest of the day.",
        warning="They count against max_connections too.",
        reload=True,
        ge=0,
        le=10000,
    )
    pool_min: int = option(
        0,
        group=POOL,
        description="Server connections that each worker keeps open for a user and database once used.",
        unit="connections",
        reason="The first clients after a quiet time need not wait for a connection.",
        warning="Idle connections of a database make DROP DATABASE fail where it does not come through the proxy.",
        reload=True,
        ge=0,
        le=10000,
    )
    queue_limit: int = option(
        1000,
        group=POOL,
        description="Clients of one worker that may wait for a server connection of a pool; 0 means none waits.",
        unit="clients",
        reason="A queue that grows without end only makes every answer late.",
        warning="One client more gets an error that names the pool at once.",
        reload=True,
        ge=0,
        le=1_000_000,
    )
    queue_timeout: Seconds = option(
        30.0,
        group=POOL,
        description="How long a client waits for a server connection before it gets an error.",
        unit="seconds",
        reason="Applications give up about then; the error names the pool, its size and the wait.",
        warning="Longer than the application's own time-out, it leaves work waiting that nobody wants any more.",
        reload=True,
        gt=0,
        le=86400,
    )
    server_idle_timeout: Seconds = option(
        600.0,
        group=POOL,
        description="How long an unused server connection above pool_min is kept; 0 keeps it for ever.",
        unit="seconds",
        reason="Gives memory back to the server after a burst.",
        warning="Longer than a firewall's idle limit, and the first query after a pause fails.",
        reload=True,
        ge=0,
        le=604800,
    )
    server_lifetime: Seconds = option(
        3600.0,
        group=POOL,
        description="A server connection older than this is closed when its transaction or client has ended; 0 "
        "means never.",
        unit="seconds",
        reason="Server processes grow with their caches, and connections return to a host that came back.",
        warning="Very small, it costs a reconnect for every few queries.",
        reload=True,
        ge=0,
        le=604800,
    )
    server_check_delay: Seconds = option(
        30.0,
        group=POOL,
        description="A server connection unused for longer than this is checked before a client gets it.",
        unit="seconds",
        reason="Finds connections that a restart or a firewall has cut, before a client does.",
        warning="0 checks before every use and costs one round trip each time.",
        reload=True,
        ge=0,
        le=86400,
    )
    max_prepared_bytes: Bytes = option(
        1 << 20,
        group=POOL,
        description="Prepared-statement texts remembered for one client in transaction mode.",
        unit="bytes",
        reason="A limit by count alone let poolers grow to gigabytes.",
        warning="Above it the client keeps its server connection until DISCARD ALL or DEALLOCATE ALL.",
        reload=True,
        shown_default="1MB",
        ge=65536,
        le=1 << 30,
    )
    max_prepared_bytes_backend: Bytes = option(
        16 << 20,
        group=POOL,
        description="Prepared-statement texts kept on one server connection in transaction mode.",
        unit="bytes",
        reason="The least recently used are closed on the server, whose memory they hold.",
        warning="Too small, statements are prepared again and again: watch statements_reprepared.",
        reload=True,
        shown_default="16MB",
        ge=65536,
        le=1 << 32,
    )
    drain_timeout: Seconds = option(
        60.0,
        group=SAFETY,
        description="After SIGTERM or a take-over, how long connected clients are served before they get 57P01 at "
        "the next transaction's end.",
        unit="seconds",
        reason="Short connections and running transactions end by themselves; a second SIGTERM ends at once.",
        warning="Give systemd (TimeoutStopSec) or Kubernetes (terminationGracePeriodSeconds) more than this.",
        reload=True,
        ge=0,
        le=86400,
    )
    read_only: bool = option(
        False,
        group=SAFETY,
        description="Refuse whatever would write (25006), on every listener.",
        unit="true or false",
        reason="A port for analysts, or production seen from a laptop, where an UPDATE can only be a mistake.",
        warning="It guards against accidents; the real protection is a role that has SELECT only.",
        reload=False,
    )
    read_only_users: Names = option(
        [],
        group=SAFETY,
        description="Users whose connections are read-only on every listener, separated by commas.",
        unit="names",
        reason="People get a guard while the application's user keeps writing on the same port.",
        warning="It guards against accidents; the real protection is a role that has SELECT only.",
        reload=True,
    )
    log_format: LogFormat = option(
        "human",
        group=LOG,
        description="human: one readable line for each event; json: one JSON object a line.",
        unit="name",
        reason="json for a log collector, human for a terminal.",
        warning="None.",
        reload=True,
    )
    log_level: LogLevel = option(
        "info",
        group=LOG,
        description="Events below this level are not logged.",
        unit="name",
        reason="info tells of connections and slow statements; warning only of what needs somebody's attention.",
        warning="debug writes several lines for each statement.",
        reload=True,
    )
    log_connections: bool = option(
        True,
        group=LOG,
        description="One line when a client has logged in and one when it has left.",
        unit="true or false",
        reason="Answers who was connected when something happened.",
        warning="With clients that connect for one query it is most of the log.",
        reload=True,
    )
    log_slow_ms: int = option(
        1000,
        group=LOG,
        description="Statements that take longer than this are logged; 0 logs all, -1 none.",
        unit="milliseconds",
        reason="Finds the statements worth looking at, as the server's log_min_duration_statement does.",
        warning="0 writes a line for each statement.",
        reload=True,
        ge=-1,
        le=86_400_000,
    )
    log_literals: bool = option(
        False,
        group=LOG,
        description="Keep the literals in logged statements instead of replacing them by ?.",
        unit="true or false",
        reason="A slow statement sometimes depends on its values.",
        warning="Names, addresses and whatever else is in your data will be in the log.",
        reload=True,
    )
    log_debug_wire: bool = option(
        False,
        group=LOG,
        description="Log kind and length of every protocol message, both ways; needs log_level = debug.",
        unit="true or false",
        reason="Shows what a client and the server really say to each other when they disagree.",
        warning="Slows every query down and fills disks; switch it on by SIGHUP and off again.",
        reload=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        return rules.complete(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.auth is None:
            # Worked out once all other fields are known; the value is frozen for everybody else.
            object.__setattr__(self, "auth", rules.default_auth(self))
        rules.check(self)
        return self

    @cached_property
    def dsn(self) -> Dsn:
        """The upstream's hosts, default user and database. Its password is in ``upstream_password``."""
        return parse_dsn(self.upstream)

    @property
    def password(self) -> str | None:
        """The DSN user's password in clear."""
        return self.upstream_password.get_secret_value() if self.upstream_password is not None else None

    @property
    def auth_method(self) -> AuthMethod:
        """``auth`` after its default has been worked out."""
        return self.auth or "scram-sha-256"

    @cached_property
    def addresses(self) -> tuple[ListenAddress, ...]:
        """All listeners, those of ``listen`` first; each says whether it is read-only."""
        return rules.addresses(self)

    @cached_property
    def admin_address(self) -> ListenAddress | None:
        """Where the admin HTTP server listens, None when it is off."""
        return rules.admin_address(self)

    def warnings(self) -> list[str]:
        """One sentence for each risk this combination of settings takes."""
        return rules.warnings(self)

    def to_wire(self) -> bytes:
        """JSON with the secrets in clear, for a worker process over a private channel only."""
        values = self.model_dump(mode="json")
        values.update({name: value.get_secret_value() for name, value in self if isinstance(value, SecretStr)})
        return json.dumps(values).encode()

    @classmethod
    def from_wire(cls, data: bytes) -> Self:
        """The inverse of ``to_wire``; ValidationError when it is not settings."""
        return cls.model_validate_json(data)


def docs() -> dict[str, OptionDoc]:
    """Name -> documentation of every setting, in the order of declaration."""
    return {name: option_doc(field) for name, field in ProxySettings.model_fields.items()}


def changes_on_reload(old: ProxySettings, new: ProxySettings) -> tuple[list[str], list[str]]:
    """Names of the settings that differ: those that apply while running, and those that need a restart."""
    applicable: list[str] = []
    restart: list[str] = []
    for name, doc in docs().items():
        if getattr(old, name) != getattr(new, name):
            (applicable if doc.reload else restart).append(name)
    return applicable, restart


def apply_reload(old: ProxySettings, new: ProxySettings) -> ProxySettings:
    """``new``, with the settings that need a restart still as in ``old``. ValueError when the mix cannot work."""
    _, restart = changes_on_reload(old, new)
    if not restart:
        return new
    values = json.loads(new.to_wire())
    kept = json.loads(old.to_wire())
    values.update({name: kept[name] for name in restart})
    return type(new).model_validate(values)
