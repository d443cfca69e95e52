"""The settings of connections: the server behind, the listeners in front, logging in, and TLS on both sides.

Declarations only; proxy/settings.py completes them to ``ProxySettings``.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, SecretStr

from proxy.options import Names, Seconds, option

AuthMethod = Literal["scram-sha-256", "md5", "cert", "trust", "relay"]
TlsMode = Literal["disable", "allow", "prefer", "require", "verify-ca", "verify-full"]
TargetSessionAttrs = Literal["any", "read-write", "read-only", "primary", "standby", "prefer-standby"]

UPSTREAM, LISTEN, LOGIN = "Upstream", "Listening", "Logging in"
CLIENT_TLS, SERVER_TLS = "TLS towards clients", "TLS towards the server"
CONFIG = ConfigDict(
    frozen=True,
    extra="forbid",
    hide_input_in_errors=True,
    # Only the class that is used is built, at its first use, and none of those that it is put together from.
    defer_build=True,
)


class ListenerOptions(BaseModel):
    """One ``[[listeners]]`` table: an address with options of its own."""

    model_config = CONFIG

    address: str
    read_only: bool = False


class ConnectionSettings(BaseModel):
    """Durations are seconds, '' is "not set"."""

    model_config = CONFIG

    upstream: str = option(
        group=UPSTREAM,
        description="The PostgreSQL server behind the proxy: postgresql://user@host:5432/database, or host=... "
        "dbname=.... Several hosts (host1:5432,host2:5432), IPv6 in brackets, Unix-socket directories "
        "(?host=/run/postgresql) and libpq's query options (sslmode, sslrootcert, "
        "target_session_attrs, ...) are understood.",
        unit="DSN",
        reason="Its host is where queries go; its user, password and database are the defaults. Names are "
        "looked up anew for each connection, so a fail-over by DNS needs no restart.",
        warning="A password in it is refused on the command line, where every user of the machine can read "
        "it: put the DSN into PILOTWIRE_UPSTREAM or the TOML file (mode 0600), or the password into a "
        "passfile.",
        reload=True,
    )
    upstream_password: SecretStr | None = option(
        None,
        group=UPSTREAM,
        description="Password of the DSN's user, when it is not in the DSN.",
        unit="text",
        reason="Lets a secret store set the password alone, as PILOTWIRE_UPSTREAM_PASSWORD.",
        warning="Not accepted on the command line. Whoever knows it can log in to the proxy as the DSN's user.",
        reload=True,
    )
    upstream_passfile: str = option(
        "",
        group=UPSTREAM,
        description="A file in the format of ~/.pgpass (host:port:database:user:password) with the DSN user's "
        "password.",
        unit="path",
        reason="Keeps the password out of the environment and shares the file other PostgreSQL programs use.",
        warning="Refused, as by libpq, when other users of the machine may read it; chmod 0600 it.",
        reload=True,
    )
    target_session_attrs: TargetSessionAttrs = option(
        "any",
        group=UPSTREAM,
        description="Which of several hosts will do, as libpq names it.",
        unit="name",
        reason="With several hosts, read-write finds the primary after a fail-over.",
        warning="Anything but any costs one more query for each new server connection.",
        reload=True,
    )
    connect_timeout: Seconds = option(
        10.0,
        group=UPSTREAM,
        description="How long connecting and logging in to one host may take before the next is tried.",
        unit="seconds",
        reason="A dead host answers nothing; without a limit clients would wait for the kernel's two minutes.",
        warning="Too small, and a busy server looks like a dead one.",
        reload=True,
        gt=0,
        le=600,
    )
    listen: Names = option(
        ["127.0.0.1:6432"],
        group=LISTEN,
        description="Where clients connect: host:port, [IPv6]:port, *:port or the absolute path of a Unix socket "
        "(/run/pilotwire/.s.PGSQL.6432). Several are separated by commas.",
        unit="addresses",
        reason="Port 6432 is what poolers use, so that the server keeps 5432.",
        warning="An address that other machines reach needs auth and, on a network you do not trust, client_tls_cert.",
        reload=False,
    )
    listeners: list[ListenerOptions] = option(
        [],
        group=LISTEN,
        description='More listeners with options of their own, as TOML tables: [[listeners]] address = "...", '
        "read_only = true. When only these are given, the default of listen does not apply. Sockets that systemd "
        "passes on take the place of them all; one is read-only where a listener of its address is.",
        unit="tables",
        reason="One port for the application and a read-only one for analysts, in one process.",
        warning="In the environment and on the command line it is written as a JSON list.",
        reload=False,
    )
    listen_backlog: int = option(
        1024,
        group=LISTEN,
        description="How many connections the kernel keeps waiting for a worker, for each listener.",
        unit="connections",
        reason="Absorbs bursts, such as an application that reconnects all its clients.",
        warning="The kernel caps it at net.core.somaxconn; full, clients see connection timeouts.",
        reload=False,
        ge=1,
        le=65535,
    )
    workers: int = option(
        1,
        group=LISTEN,
        description="Worker processes that share the listeners.",
        unit="processes",
        reason="One worker uses one core; more are for more traffic than one core carries.",
        warning="Each worker has pools of its own: the server sees up to workers times pool_size connections "
        "for each user and database.",
        reload=False,
        ge=1,
        le=64,
    )
    admin: str = option(
        "127.0.0.1:9432",
        group=LISTEN,
        description="Where the console, the JSON API, /metrics, /healthz and /readyz are served; off switches it off.",
        unit="address",
        reason="A port of its own can be closed to clients and opened to the monitoring.",
        warning="An address that other machines reach is refused without admin_token.",
        reload=False,
    )
    admin_token: SecretStr | None = option(
        None,
        group=LISTEN,
        description="What a request to the admin address must carry as Authorization: Bearer TOKEN.",
        unit="text",
        reason="The metrics name users and databases; a token keeps them from whoever reaches the port.",
        warning="Not accepted on the command line. It travels in clear: put TLS in front where others can listen.",
        reload=False,
    )
    control_socket: str = option(
        "",
        group=LISTEN,
        description="Unix socket by which a new instance started with --takeover gets the listening sockets of "
        "this one.",
        unit="path",
        reason="An upgrade without a refused connection: the new process accepts while the old one drains.",
        warning="Whoever may write to it can take the listeners over; it is created with mode 0600.",
        reload=False,
    )
    max_clients: int = option(
        10000,
        group=LISTEN,
        description="Client connections at one time, over all workers, those still logging in included.",
        unit="connections",
        reason="Bounds memory and file descriptors; one more gets the server's own 53300 too_many_connections.",
        warning="Each client needs a descriptor, in session mode two: raise the limit of open files (ulimit "
        "-n) with it.",
        reload=True,
        ge=1,
        le=1_000_000,
    )
    auth: AuthMethod | None = option(
        None,
        group=LOGIN,
        description="How clients prove who they are: scram-sha-256 (with channel binding over TLS), md5, cert "
        "(TLS client certificate), trust (not at all) or relay (the server itself decides).",
        unit="name",
        reason="Where it is not set, known passwords are checked by scram-sha-256; without any, loopback is trusted.",
        warning="trust lets everybody on this machine in as the DSN's user and is refused on other listeners. "
        "Under relay the server sees the proxy's address: a trust line for it in pg_hba.conf would "
        "let everybody in, and a client that has TLS, where the server's side has it too, must connect with "
        "channel_binding=disable.",
        reload=True,
        shown_default="scram-sha-256 when a password, users_file or auth_query is set; else trust, on loopback and "
        "Unix sockets only",
    )
    users_file: str = option(
        "",
        group=LOGIN,
        description='Users and secrets in PgBouncer\'s format: one "user" "password or SCRAM verifier" a line.',
        unit="path",
        reason="For clients that log in as other users than the DSN's.",
        warning="It holds secrets: chmod 0600 it. A user known by a verifier only cannot be logged in to a "
        "server that asks for md5.",
        reload=True,
    )
    auth_query: str = option(
        "",
        group=LOGIN,
        description="Query that gives a user's name, secret and, in a third column, the time until which the secret is "
        "valid ($1 is the user), for example SELECT usename, passwd, valuntil FROM pg_shadow WHERE usename = $1.",
        unit="SQL",
        reason="Users are created in the database only, not in a file on every proxy too.",
        warning="It runs for every unknown user that tries to log in; give auth_query_user nothing but this "
        "one function. Without the third column a user whose password has expired gets in where the pool has a "
        "connection for him.",
        reload=True,
    )
    auth_query_user: str = option(
        "",
        group=LOGIN,
        description="User that runs auth_query; its password comes from the users_file.",
        unit="name",
        reason="A user that can read secrets and nothing else.",
        warning="Not set, the DSN's user runs it and must be allowed to read secrets.",
        reload=True,
        shown_default="the DSN's user",
    )
    login_timeout: Seconds = option(
        60.0,
        group=LOGIN,
        description="How long a client may take from connecting to being logged in.",
        unit="seconds",
        reason="The same limit as the server's authentication_timeout: connections that say nothing cannot pile up.",
        warning="Too small, and clients on slow networks or behind a password prompt are cut off.",
        reload=True,
        gt=0,
        le=600,
    )
    client_tls_mode: TlsMode = option(
        "disable",
        group=CLIENT_TLS,
        description="disable: no TLS; allow and prefer: clients may; require: clients must; verify-ca: and must "
        "show a certificate of client_tls_ca; verify-full: one whose name is the user's.",
        unit="name",
        reason="The names are libpq's; clients choose theirs by sslmode.",
        warning="prefer lets a client send its queries in clear; across networks use require.",
        reload=True,
        shown_default="prefer when client_tls_cert is set, else disable",
    )
    client_tls_cert: str = option(
        "",
        group=CLIENT_TLS,
        description="The proxy's certificate, with the intermediate ones, in PEM.",
        unit="path",
        reason="Clients see the proxy, not the server: with sslmode=verify-full it must name the proxy's host.",
        warning="Read again on SIGHUP; an expired one stops new connections of verifying clients.",
        reload=True,
    )
    client_tls_key: str = option(
        "",
        group=CLIENT_TLS,
        description="The private key of client_tls_cert, in PEM, without a passphrase.",
        unit="path",
        reason="Needed for TLS; read again on SIGHUP.",
        warning="Whoever reads it can pose as the proxy: chmod 0600 it.",
        reload=True,
    )
    client_tls_ca: str = option(
        "",
        group=CLIENT_TLS,
        description="Certificate authorities whose client certificates are accepted, in PEM.",
        unit="path",
        reason="Needed by auth = cert and the modes verify-ca and verify-full.",
        warning="Use an authority of your own: a public one would vouch for strangers.",
        reload=True,
    )
    server_tls_mode: TlsMode = option(
        "prefer",
        group=SERVER_TLS,
        description="TLS towards the server, as libpq's sslmode.",
        unit="name",
        reason="prefer is libpq's default: TLS where the server offers it.",
        warning="Only verify-full makes sure that it is your server; prefer can be talked out of TLS on the network.",
        reload=True,
    )
    server_tls_ca: str = option(
        "",
        group=SERVER_TLS,
        description="Certificate authorities the server's certificate must come from, in PEM; system means the "
        "machine's.",
        unit="path",
        reason="Needed by verify-ca and verify-full.",
        warning="system trusts every public authority: use it with verify-full only.",
        reload=True,
    )
    server_tls_cert: str = option(
        "",
        group=SERVER_TLS,
        description="The certificate the proxy shows to the server, in PEM.",
        unit="path",
        reason="For servers whose pg_hba.conf asks for a client certificate.",
        warning="It speaks for all clients: the server cannot tell them apart by it.",
        reload=True,
    )
    server_tls_key: str = option(
        "",
        group=SERVER_TLS,
        description="The private key of server_tls_cert, in PEM, without a passphrase.",
        unit="path",
        reason="Needed together with server_tls_cert.",
        warning="Whoever reads it can log in as the proxy: chmod 0600 it.",
        reload=True,
    )
