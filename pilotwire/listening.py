"""Listening sockets: bound here, given by systemd, or received from the process we take over from.

The supervisor owns them all and the workers inherit them, so that no connection waiting in a queue is lost when a
worker dies or a new process takes over: it is the same socket all the time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Final

from pilotwire.errors import StartError
from proxy.dsn import ListenAddress

_SYSTEMD_FIRST_FD: Final = 3
_CONNECT_SECONDS: Final = 2.0


@dataclass(slots=True)
class Listening:
    """One listening socket.

    ``name`` is the address as configured, by which a successor asks for it; ``inode`` that of a Unix socket's file when
    it is ours to remove.
    """

    name: str
    sock: socket.socket
    read_only: bool = False
    inode: int | None = None

    @property
    def address(self) -> str:
        """Where clients reach it, with the port that the system chose where none was given."""
        return socket_text(self.sock)

    def close(self, *, keep_file: bool) -> None:
        """Closes our descriptor. A Unix socket's file goes too, unless somebody else serves it now."""
        path = self.sock.getsockname() if self.sock.family == socket.AF_UNIX else ""
        self.sock.close()
        if keep_file or self.inode is None or not isinstance(path, str):
            return
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == self.inode:
                os.unlink(path)


def socket_text(sock: socket.socket) -> str:
    """The address a socket is bound to, in the form of the setting ``listen``."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return os.fsdecode(name) if isinstance(name, bytes) else str(name)
    host, port = name[0], name[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(address: ListenAddress, backlog: int, what: str = "listen") -> Listening:
    """A new listening socket. StartError when the address is taken or not ours; ``what`` is the setting's name."""
    sock, inode = _bind_unix(address.path, backlog, what) if address.path else _bind_tcp(address, backlog, what)
    sock.setblocking(False)
    return Listening(str(address), sock, address.read_only, inode)


def _bind_tcp(address: ListenAddress, backlog: int, what: str) -> tuple[socket.socket, None]:
    try:
        found = socket.getaddrinfo(
            address.host or None, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except OSError as error:
        raise StartError(
            f"{what}: the host of {address} is not known here ({error.strerror}): check its spelling"
        ) from None
    # Without a host, one IPv6 socket serves both families where the machine has IPv6.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET6 if not address.host else False)
    family, kind, protocol, _, target = found[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1 if address.host else 0)
        sock.bind(target)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        raise StartError(_tcp_sentence(address, error, what)) from None
    return sock, None


def _tcp_sentence(address: ListenAddress, error: OSError, what: str) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"{what}: {address} is taken: stop what listens there, choose another port, or use --takeover"
        case errno.EACCES:
            return f"{what}: {address} needs more rights: choose a port above 1023"
        case errno.EADDRNOTAVAIL:
            return f"{what}: {address} is not an address of this machine: choose one of its own, or *"
        case _:
            return f"{what}: cannot listen on {address}: {error.strerror}"


def _bind_unix(path: str, backlog: int, what: str) -> tuple[socket.socket, int]:
    remove_stale(path, what)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        # As the server's unix_socket_permissions: who may log in is decided by authentication.
        os.chmod(path, 0o777)  # noqa: S103
        sock.listen(backlog)
        return sock, os.stat(path).st_ino
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise StartError(f"{what}: {path} is taken: stop what listens there, or use --takeover") from None
        raise StartError(f"{what}: cannot listen on {path}: {error.strerror}") from None


def remove_stale(path: str, what: str) -> None:
    """Removes a socket file that nobody listens on any more. StartError when somebody does, or it is no socket."""
    try:
        found = os.lstat(path)
    except OSError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StartError(f"{what}: {path} exists and is not a socket: choose another path or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECT_SECONDS)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError:
            # A full queue (EAGAIN) or a listener of another user (EACCES): somebody is there.
            return
    raise StartError(f"{what}: {path} is taken: stop what listens there, or use --takeover")


def from_systemd(environment: MutableMapping[str, str]) -> dict[str, list[socket.socket]]:
    """The sockets that systemd passed to this very process, by FileDescriptorName (``admin`` or anything else).

    The variables are taken out of ``environment``, so that no child believes they were meant for it.
    """
    count = environment.pop("LISTEN_FDS", "")
    meant_for = environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if not count.isdigit() or meant_for != str(os.getpid()):
        return {}
    given: dict[str, list[socket.socket]] = {}
    for index in range(int(count)):
        try:
            sock = socket.socket(fileno=_SYSTEMD_FIRST_FD + index)
            listening = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError:
            raise StartError(f"systemd passed descriptor {_SYSTEMD_FIRST_FD + index}, which is not a socket") from None
        if not listening or sock.type != socket.SOCK_STREAM:
            raise StartError("systemd passed a socket that does not listen: use ListenStream= and Accept=no")
        sock.setblocking(False)
        sock.set_inheritable(False)
        given.setdefault(names[index] if index < len(names) else "", []).append(sock)
    return given


def open_all(
    addresses: Sequence[ListenAddress], backlog: int, inherited: MutableMapping[str, Listening], what: str = "listen"
) -> list[Listening]:
    """A socket for each address: the inherited one of that name, which is taken out of the mapping, else a new one.

    On StartError those bound here are closed again.
    """
    result: list[Listening] = []
    bound: list[Listening] = []
    try:
        for address in addresses:
            held = inherited.pop(str(address), None)
            if held is None:
                held = bind(address, backlog, what)
                bound.append(held)
            held.read_only = address.read_only
            result.append(held)
    except StartError:
        for listening in bound:
            listening.close(keep_file=False)
        raise
    return result
