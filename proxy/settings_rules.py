"""What holds between settings: defaults that follow from others, combinations refused, and risks worth a warning.

Functions over a ``ProxySettings``; every ``ValueError`` is one sentence that says what to do.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from proxy.dsn import FOLDED_OPTIONS, IGNORED_OPTIONS, Dsn, ListenAddress, is_loopback, parse_dsn, parse_listen
from proxy.settings_store import fold_store

if TYPE_CHECKING:
    from proxy.settings import AuthMethod, ProxySettings

_VERIFYING = ("verify-ca", "verify-full")


def fold_dsn(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with the password and the libpq options of their ``upstream`` moved into the settings they mean.

    A setting that is given next to the DSN wins over the DSN's option. ValueError when the DSN cannot be read.
    """
    upstream = values.get("upstream")
    if not isinstance(upstream, str):
        return dict(values)
    dsn = parse_dsn(upstream)
    folded = dict(values)
    if dsn.password is not None and not folded.get("upstream_password"):
        folded["upstream_password"] = dsn.password
    kept = {}
    for name, value in dsn.options.items():
        if name in FOLDED_OPTIONS:
            folded.setdefault(FOLDED_OPTIONS[name], _folded(name, value))
        else:
            kept[name] = value
    folded["upstream"] = Dsn(dsn.hosts, dsn.user, dsn.database, None, kept).text()
    return folded


def complete(values: dict[str, Any]) -> dict[str, Any]:
    """Raw input with the DSN taken apart and the defaults that depend on the presence of other settings."""
    values = fold_store(fold_dsn(values))
    if values.get("upstream_password") in ("", None):
        values.pop("upstream_password", None)
    if isinstance(values.get("listeners"), str):
        values["listeners"] = _json_list(values["listeners"])
    if values.get("listeners") and "listen" not in values:
        values["listen"] = []
    if values.get("client_tls_cert"):
        values.setdefault("client_tls_mode", "prefer")
    if values.get("admin") in ("off", "none"):
        values["admin"] = ""
    return values


def _json_list(text: str) -> list[Any]:
    try:
        parsed = json.loads(text)
    except ValueError:
        parsed = None
    if not isinstance(parsed, list):
        raise ValueError('listeners outside the TOML file is a JSON list: [{"address": "*:6433", "read_only": true}]')
    return parsed


def addresses(settings: ProxySettings) -> tuple[ListenAddress, ...]:
    """The addresses of ``listen`` and ``listeners``; ValueError names the one that cannot be read."""
    plain = [_address("listen", text, read_only=settings.read_only) for text in settings.listen]
    own = [
        _address("listeners", item.address, read_only=settings.read_only or item.read_only)
        for item in settings.listeners
    ]
    return (*plain, *own)


def admin_address(settings: ProxySettings) -> ListenAddress | None:
    """The address of ``admin``; ValueError when it cannot be read."""
    return _address("admin", settings.admin, read_only=False) if settings.admin else None


def _address(name: str, text: str, *, read_only: bool) -> ListenAddress:
    try:
        return parse_listen(text, read_only=read_only)
    except ValueError as error:
        raise ValueError(f'{name} "{text}": {error}') from None


def _folded(name: str, value: str) -> str | float:
    # libpq reads connect_timeout as whole seconds, 0 meaning no limit; ours has a limit always.
    if name == "connect_timeout":
        if not value.strip().isdigit():
            raise ValueError("connect_timeout in the DSN must be a whole number of seconds")
        return float(value) or 600.0
    return value


def default_auth(settings: ProxySettings) -> AuthMethod:
    """``scram-sha-256`` when there is any secret to check against, else ``trust`` if only this machine can connect."""
    if _has_secrets(settings):
        return "scram-sha-256"
    for address in settings.addresses:
        if not address.is_local:
            raise ValueError(
                f"no password is known and auth is not set, so everybody who reaches {address} could log in: set "
                "PILOTWIRE_UPSTREAM_PASSWORD, upstream_passfile, users_file or auth, or listen on 127.0.0.1 only"
            )
    return "trust"


def _has_secrets(settings: ProxySettings) -> bool:
    return bool(settings.upstream_password or settings.upstream_passfile or settings.users_file or settings.auth_query)


def check(settings: ProxySettings) -> None:
    """ValueError for the first combination that cannot work."""
    _check_listeners(settings)
    _check_auth(settings)
    _check_tls(settings)
    if settings.pool_min > settings.pool_size:
        raise ValueError(
            f"pool_min ({settings.pool_min}) is more than pool_size ({settings.pool_size}): lower pool_min"
        )
    if settings.max_prepared_bytes > settings.max_prepared_bytes_backend:
        raise ValueError(
            "max_prepared_bytes is more than max_prepared_bytes_backend: a server connection must hold one client's "
            "statements"
        )
    if settings.latency_warning_ms < settings.latency_good_ms:
        raise ValueError("latency_warning_ms is less than latency_good_ms: set it to twice as much, for instance")
    if settings.log_debug_wire and settings.log_level != "debug":
        raise ValueError('log_debug_wire needs log_level = "debug"')


def _check_listeners(settings: ProxySettings) -> None:
    addresses = [str(address) for address in settings.addresses]
    if not addresses:
        raise ValueError("there is no listener: give listen an address, for example 127.0.0.1:6432")
    if settings.admin_address is not None:
        addresses.append(str(settings.admin_address))
    if settings.control_socket:
        if not settings.control_socket.startswith("/"):
            raise ValueError("control_socket must be an absolute path, for example /run/pilotwire/control.sock")
        if len(settings.control_socket.encode()) > 107:
            raise ValueError("control_socket: a Unix socket's path may have at most 107 bytes")
        addresses.append(settings.control_socket)
    for address in addresses:
        if addresses.count(address) > 1 and not address.endswith(":0"):
            raise ValueError(f"{address} is given twice among listen, listeners, admin and control_socket")


def _check_auth(settings: ProxySettings) -> None:
    if settings.auth == "trust":
        for address in settings.addresses:
            if not address.is_local:
                raise ValueError(
                    f'auth = "trust" is for loopback addresses and Unix sockets only, and {address} is neither: use '
                    "scram-sha-256 with a password, or listen on 127.0.0.1"
                )
    if settings.auth in ("scram-sha-256", "md5") and not _has_secrets(settings):
        raise ValueError(
            f'auth = "{settings.auth}" has no secret to check against: set PILOTWIRE_UPSTREAM_PASSWORD, '
            "upstream_passfile, users_file or auth_query"
        )
    if settings.auth == "cert" and (settings.client_tls_mode not in _VERIFYING or not settings.client_tls_ca):
        raise ValueError('auth = "cert" needs client_tls_mode = "verify-ca" or "verify-full" and client_tls_ca')
    if settings.auth_query_user and not settings.auth_query:
        raise ValueError("auth_query_user is set but auth_query is not: set both or neither")
    if settings.auth_query and "$1" not in settings.auth_query:
        raise ValueError("auth_query must use $1, the name of the user who logs in")


def _check_tls(settings: ProxySettings) -> None:
    if bool(settings.client_tls_cert) != bool(settings.client_tls_key):
        raise ValueError("client_tls_cert and client_tls_key belong together: set both or neither")
    if settings.client_tls_mode != "disable" and not settings.client_tls_cert:
        raise ValueError(f'client_tls_mode = "{settings.client_tls_mode}" needs client_tls_cert and client_tls_key')
    if settings.client_tls_mode in _VERIFYING and not settings.client_tls_ca:
        raise ValueError(f'client_tls_mode = "{settings.client_tls_mode}" needs client_tls_ca')
    if bool(settings.server_tls_cert) != bool(settings.server_tls_key):
        raise ValueError("server_tls_cert and server_tls_key belong together: set both or neither")
    if settings.server_tls_mode in _VERIFYING and not settings.server_tls_ca:
        raise ValueError(f'server_tls_mode = "{settings.server_tls_mode}" needs server_tls_ca (a file, or "system")')
    if settings.server_tls_ca == "system" and settings.server_tls_mode != "verify-full":
        raise ValueError('server_tls_ca = "system" needs server_tls_mode = "verify-full"')


def warnings(settings: ProxySettings) -> list[str]:
    """One sentence for each risk that the combination takes, in the order of the documentation."""
    found: list[str] = []
    open_to_network = [str(address) for address in settings.addresses if not address.is_local]
    ignored = sorted(IGNORED_OPTIONS & settings.dsn.options.keys())
    if ignored:
        found.append(f"options of the DSN that have no effect here: {', '.join(ignored)}")
    if settings.auth == "trust":
        found.append("auth is trust: everybody on this machine gets in as any user, without a password")
    if settings.auth == "md5":
        found.append("auth is md5: a recorded login can be attacked off-line; scram-sha-256 is safer")
    if settings.auth == "relay":
        found.append(
            "auth is relay: the server sees the proxy's address, so a trust line for that host in pg_hba.conf lets "
            "everybody in"
        )
        if settings.client_tls_cert and settings.server_tls_mode in ("require", "verify-ca", "verify-full"):
            found.append(
                "auth is relay with TLS on both sides: no channel reaches from client to server, so clients have to "
                "connect with channel_binding=disable"
            )
        if settings.pool_mode == "transaction":
            found.append("auth is relay: each client has a server connection of its own, so pool_mode has no effect")
    if open_to_network and settings.client_tls_mode in ("disable", "allow", "prefer"):
        found.append(
            f"clients may talk to {', '.join(open_to_network)} in clear: set client_tls_mode to require"
            + ("" if settings.client_tls_cert else ", with client_tls_cert and client_tls_key")
        )
    if settings.admin_address is not None and not settings.admin_address.is_local:
        found.append(f"admin is open to the network on {settings.admin_address} and asks for no password")
    if settings.session_reuse and settings.pool_mode == "session":
        found.append(
            "session_reuse: loaded libraries, ALTER ROLE ... SET values, dblink connections and globals of procedural "
            "languages survive DISCARD ALL and are seen by the next client"
        )
    if settings.session_reuse and settings.pool_mode == "transaction":
        found.append("session_reuse has no effect with pool_mode transaction")
    remote = [str(host) for host in settings.dsn.hosts if not host.is_unix and not is_loopback(host.host)]
    if remote and settings.server_tls_mode in ("disable", "allow", "prefer"):
        found.append(
            f"server_tls_mode is {settings.server_tls_mode}: whoever sits between here and {', '.join(remote)} "
            "can read along; verify-full with server_tls_ca prevents it"
        )
    if len(settings.dsn.hosts) > 1 and settings.target_session_attrs == "any":
        found.append("several hosts with target_session_attrs any: writes may go to a standby; set read-write")
    if len(settings.dsn.hosts) > 1 and settings.target_session_attrs != "any" and settings.auth == "relay":
        found.append(
            "auth is relay: clients are sent to the first host that answers, whatever target_session_attrs says, "
            "since they log in there themselves"
        )
    if settings.read_only or settings.read_only_users or any(item.read_only for item in settings.listeners):
        found.append("read-only is a guard against accidents: a role that has SELECT only is the real protection")
    if settings.log_literals:
        found.append("log_literals: values of your data will be in the log")
    if settings.log_debug_wire:
        found.append("log_debug_wire: every query becomes slower and the log grows fast")
    return found
