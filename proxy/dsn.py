"""Addresses: the upstream DSN as libpq reads it, and the addresses pilotwire listens on.

Sans-I/O: nothing is resolved here; a host name stays a name, so that it can be looked up anew for every connection.
No message of a ``ValueError`` raised here repeats the text it was given, because that text may hold a password.
"""

from __future__ import annotations

import difflib
import ipaddress
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

DEFAULT_PORT = 5432
_SCHEMES = ("postgresql://", "postgres://")
_ADDRESSING = frozenset({"host", "hostaddr", "port", "user", "password", "dbname"})
# Options that are settings of pilotwire under another name; the setting wins when both are given.
FOLDED_OPTIONS = {
    "sslmode": "server_tls_mode",
    "sslrootcert": "server_tls_ca",
    "sslcert": "server_tls_cert",
    "sslkey": "server_tls_key",
    "target_session_attrs": "target_session_attrs",
    "connect_timeout": "connect_timeout",
    "passfile": "upstream_passfile",
}
# Start-up settings of the connections pilotwire opens for itself.
STARTUP_OPTIONS = frozenset({"application_name", "client_encoding", "options"})
IGNORED_OPTIONS = frozenset(
    {
        "channel_binding",
        "fallback_application_name",
        "gssencmode",
        "gsslib",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "krbsrvname",
        "sslcompression",
        "tcp_user_timeout",
    }
)
_KNOWN_OPTIONS = _ADDRESSING | FOLDED_OPTIONS.keys() | STARTUP_OPTIONS | IGNORED_OPTIONS


@dataclass(frozen=True, slots=True)
class Host:
    """One server: a name or address with its port, or the absolute directory of its Unix socket."""

    host: str
    port: int = DEFAULT_PORT

    @property
    def is_unix(self) -> bool:
        return self.host.startswith(("/", "@"))

    @property
    def socket_path(self) -> str:
        """The socket's file for a Unix host (``<directory>/.s.PGSQL.<port>``); '' for TCP."""
        return f"{self.host}/.s.PGSQL.{self.port}" if self.is_unix else ""

    def __str__(self) -> str:
        if self.is_unix:
            return self.socket_path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Dsn:
    """A parsed upstream. ``user`` and ``database`` are '' when the DSN names none; ``options`` are its query options
    without those that say where to connect and as whom."""

    hosts: tuple[Host, ...]
    user: str
    database: str
    password: str | None = field(repr=False)
    options: dict[str, str]

    def text(self) -> str:
        """The DSN as a URI without its password."""
        user = f"{quote(self.user, safe='')}@" if self.user else ""
        hosts = ",".join(_host_text(host) for host in self.hosts)
        query = "&".join(f"{quote(k, safe='')}={quote(v, safe='/:')}" for k, v in self.options.items())
        return f"postgresql://{user}{hosts}/{quote(self.database, safe='')}{'?' + query if query else ''}"


def _host_text(host: Host) -> str:
    if host.is_unix:
        return f"{quote(host.host, safe='')}:{host.port}"
    return str(host)


def parse_dsn(text: str) -> Dsn:
    """Read ``postgresql://user:password@host1:port1,host2/database?option=value`` or ``host=... dbname=...``.

    Several hosts, IPv6 in brackets, Unix-socket directories (percent-encoded or as ``?host=/path``). ValueError says
    in one sentence what is wrong, never with the password in it.
    """
    text = text.strip()
    if not text:
        raise ValueError("the DSN is empty: write postgresql://user@host:5432/database")
    if text.startswith(_SCHEMES):
        values = _parse_uri(text.split("://", 1)[1])
    elif "://" not in text and "=" in text:
        values = _parse_key_values(text)
    else:
        raise ValueError("the DSN must begin with postgresql://, as in postgresql://user@host:5432/database")
    for name in values:
        if name not in _KNOWN_OPTIONS:
            near = difflib.get_close_matches(name, _KNOWN_OPTIONS, n=1)
            raise ValueError(
                f'unknown option "{name[:64]}" in the DSN' + (f'; did you mean "{near[0]}"?' if near else "")
            )
    hosts = _join_hosts(values.get("hostaddr") or values.get("host", ""), values.get("port", ""))
    user = values.get("user", "")
    return Dsn(
        hosts=hosts,
        user=user,
        database=values.get("dbname", "") or user,
        password=values.get("password") or None,
        options={name: value for name, value in values.items() if name not in _ADDRESSING},
    )


def _parse_uri(rest: str) -> dict[str, str]:
    rest, _, query = rest.partition("?")
    authority, _, database = rest.partition("/")
    userinfo, at, hostspec = authority.rpartition("@")
    if "@" in userinfo:
        raise ValueError('a "@" in the user name or password of the DSN must be written %40')
    if not at and ("@" in database or "@" in query):
        raise ValueError('a "/" or "?" in the user name or password of the DSN must be written %2F or %3F')
    values: dict[str, str] = {}
    if at:
        user, colon, password = userinfo.partition(":")
        values["user"] = _decode(user)
        if colon:
            values["password"] = _decode(password)
    if database:
        values["dbname"] = _decode(database)
    if hostspec:
        pairs = [_split_host_port(item) for item in hostspec.split(",")]
        values["host"] = ",".join(_decode(host) for host, _ in pairs)
        values["port"] = ",".join(port for _, port in pairs)
    for item in query.split("&") if query else ():
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise ValueError("each option of the DSN must be written name=value")
        values[_decode(name)] = _decode(value)
    return values


def _decode(text: str) -> str:
    """Percent-decode; ``+`` stays itself, as in libpq."""
    decoded = unquote(text, errors="strict")
    if "\0" in decoded:
        raise ValueError("the DSN holds a zero byte (%00)")
    return decoded


def _split_host_port(item: str) -> tuple[str, str]:
    if item.startswith("["):
        address, bracket, rest = item[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("an IPv6 address in the DSN is written in brackets: [::1]:5432")
        return address, rest[1:]
    if item.count(":") > 1:
        raise ValueError("an IPv6 address in the DSN is written in brackets: [::1]:5432")
    host, _, port = item.partition(":")
    return host, port


def _parse_key_values(text: str) -> dict[str, str]:
    """libpq's ``key = 'value with \\' escapes'`` form."""
    values: dict[str, str] = {}
    position, end = 0, len(text)
    while position < end:
        equals = text.find("=", position)
        if equals < 0:
            raise ValueError("each item of the DSN must be written name=value")
        name = text[position:equals].strip()
        if not name or any(character.isspace() for character in name):
            raise ValueError("each item of the DSN must be written name=value")
        position = equals + 1
        while position < end and text[position].isspace():
            position += 1
        quoted = position < end and text[position] == "'"
        position += quoted
        value: list[str] = []
        while position < end:
            character = text[position]
            if (character == "'") if quoted else character.isspace():
                break
            if character == "\\" and position + 1 < end:
                position += 1
                character = text[position]
            value.append(character)
            position += 1
        if quoted and position >= end:
            raise ValueError("a quoted value of the DSN is not closed")
        position += 1
        while position < end and text[position].isspace():
            position += 1
        values[name] = "".join(value)
    return values


def _join_hosts(hosts_text: str, ports_text: str) -> tuple[Host, ...]:
    hosts = hosts_text.split(",") if hosts_text else ["localhost"]
    ports = ports_text.split(",") if ports_text else [""]
    if len(ports) == 1:
        ports = ports * len(hosts)
    if len(ports) != len(hosts):
        raise ValueError(
            f"the DSN names {len(hosts)} hosts and {len(ports)} ports: give one port, or one for each host"
        )
    for host in hosts:
        if not host.startswith(("/", "@")):
            _check_name(host, "a host of the DSN")
    return tuple(
        Host(host or "localhost", parse_port(port) if port else DEFAULT_PORT)
        for host, port in zip(hosts, ports, strict=True)
    )


def _check_name(host: str, what: str) -> None:
    """ValueError for a name that could not even be looked up."""
    try:
        host.encode("idna")
    except UnicodeError:
        raise ValueError(f"{what} has a part between its dots that is empty, too long or no name") from None


def parse_port(text: str) -> int:
    """A TCP port, 1 to 65535; ValueError otherwise."""
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:6]) < 65536:
        raise ValueError("a port is a number from 1 to 65535")
    return int(text)


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where clients connect: ``host`` and ``port``, or the absolute ``path`` of a Unix socket (then host is '').

    Host '' with a port means every interface.
    """

    host: str
    port: int
    path: str = ""
    read_only: bool = False

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it (a Unix socket or a loopback address)."""
        return bool(self.path) or is_loopback(self.host)

    def __str__(self) -> str:
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host or '*'}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's loopback; '' (every interface) is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


def parse_listen(text: str, *, read_only: bool = False) -> ListenAddress:
    """``host:port``, ``[::1]:port``, ``*:port`` or an absolute Unix-socket path; port 0 lets the system choose.

    A directory is not enough: clients look for ``.s.PGSQL.<port>`` in it, so that is how the path should end.
    """
    text = text.strip()
    if text.startswith("/"):
        if len(text.encode()) > 107:
            raise ValueError("a Unix socket's path may have at most 107 bytes")
        if text.endswith("/"):
            raise ValueError("a Unix-socket listener needs a file name, as in /run/pilotwire/.s.PGSQL.6432")
        return ListenAddress("", 0, text, read_only)
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or (":" in host and not bracketed) or not port:
        raise ValueError("an address is host:port, [IPv6]:port, *:port or the absolute path of a Unix socket")
    host = host[1:-1] if bracketed else host
    _check_name(host, "its host")
    if port == "0":
        return ListenAddress("" if host == "*" else host, 0, "", read_only)
    return ListenAddress("" if host == "*" else host, parse_port(port), "", read_only)
