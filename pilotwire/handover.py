"""Handing the listening sockets over to a new process, so that an upgrade refuses no connection.

1. ``pilotwire serve --takeover`` connects to the control socket of the running instance. Both sides look at the other's
   user id: only the same user, or root, is talked to.
2. The old process answers at once with all its listening sockets (SCM_RIGHTS), the worker ids in use and what people
   have switched in it (the mode of steering, pauses), and serves on.
3. The new one starts its workers on those very sockets, under other ids, puts its own control socket in place of the
   old one's by a rename, and says ``ready``. Until here the old process has given nothing up: should the new one fail,
   it goes on alone.
4. The old one stops accepting, drains and ends. The link stays open meanwhile: its counters flow to the new process, so
   that none falls, and cancel requests that name one of its workers flow to it. While it waits for a process it took
   over from itself, it passes both on along the chain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from pilotwire.errors import StartError
from pilotwire.listening import Listening, from_systemd, open_all, remove_stale, socket_text
from proxy.control import ControlChannel, ControlLostError, Handler, Message, decode, encode
from proxy.dsn import ListenAddress, is_loopback
from proxy.logs import Log
from proxy.settings import ProxySettings

VERSION: Final = 1
"""Of what the two processes say to each other; another one is refused."""
MAX_SOCKETS: Final = 200
"""Sockets handed over; the kernel passes at most 253 at once."""
WAIT_SECONDS: Final = 10.0
"""How long one side waits for a word of the other."""
_PEER: Final = struct.Struct("3i")

Role = Literal["listen", "admin"]


@dataclass(slots=True)
class Inherited:
    """What the old process gave: its sockets by configured address, worker ids in use, the link to it, and ``state``,
    what people have switched in it (mode, pauses)."""

    listen: dict[str, Listening]
    admin: dict[str, Listening]
    worker_ids: set[int]
    pid: int
    link: socket.socket
    state: Message = field(default_factory=dict)


def ask_for_sockets(path: str) -> Inherited | None:
    """Connects to the instance at ``path`` and takes its sockets; None when nobody is there. Blocks shortly.

    StartError when the other side is not to be trusted or does not answer as it should.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StartError(f"control_socket: cannot look at {path}: {error.strerror}") from None
    if not stat.S_ISSOCK(found.st_mode) or found.st_uid not in (os.geteuid(), 0):
        raise StartError(f"control_socket: {path} is not a socket of this user: choose a path nobody else can write to")
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(WAIT_SECONDS)
    try:
        link.connect(path)
        if not _same_user(link):
            raise StartError(
                f"control_socket: {path} belongs to another user: start as the user that runs the instance"
            )
        return _receive(link)
    except (ConnectionRefusedError, FileNotFoundError):
        link.close()
        return None
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        link.close()
        raise StartError(
            f"control_socket: the instance at {path} did not hand its sockets over ({error}): see its log"
        ) from None
    except StartError:
        link.close()
        raise


def _same_user(connected: socket.socket) -> bool:
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    uid: int = _PEER.unpack(credentials)[1]
    return uid in (os.geteuid(), 0)


def _receive(link: socket.socket) -> Inherited:
    buffer = bytearray()
    fds: list[int] = []
    messages: list[Message] = []
    try:
        while not messages:
            data, more, _, _ = socket.recv_fds(link, 65536, MAX_SOCKETS)
            fds += more
            if not data:
                raise EOFError("it closed the connection")
            buffer += data
            messages = decode(buffer)
        first = messages[0]
        if first["kind"] != "sockets" or first["version"] != VERSION:
            raise ValueError("it speaks another version")
        if len(first["sockets"]) != len(fds):
            raise ValueError("it sent fewer sockets than it said")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise
    given: dict[str, dict[str, Listening]] = {"listen": {}, "admin": {}}
    for entry, fd in zip(first["sockets"], fds, strict=True):
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        given[entry["role"]][entry["name"]] = Listening(entry["name"], sock, inode=entry["inode"])
    # An older release says nothing of its state here.
    state = dict(first.get("state") or {})
    return Inherited(given["listen"], given["admin"], set(first["worker_ids"]), int(first["pid"]), link, state)


def open_sockets(
    settings: ProxySettings, inherited: Inherited | None, log: Log
) -> tuple[list[Listening], Listening | None]:
    """What to listen on for clients and for the admin pages: taken over, given by systemd, or bound here. Raises
    StartError."""
    given = from_systemd(os.environ)
    admin = dict(inherited.admin) if inherited is not None else {}
    for sock in given.pop("admin", []):
        admin[str(settings.admin_address)] = Listening(str(settings.admin_address), sock)
    passed = [sock for group in given.values() for sock in group]
    held = dict(inherited.listen) if inherited is not None else {}
    if passed:
        # The unit file says where to listen; the setting would only contradict it.
        listening = [Listening(socket_text(sock), sock, _read_only(settings, sock)) for sock in passed]
        for address in settings.addresses:
            if address.read_only and not settings.read_only and not any(_same(address, sock) for sock in passed):
                log.event(
                    "listener_not_passed", level="warning", listen=str(address), detail="systemd gave no socket for it"
                )
    else:
        listening = open_all(settings.addresses, settings.listen_backlog, held)
    for unused in held.values():
        log.event("listener_left", listen=unused.address, detail="no longer among the settings")
        unused.close(keep_file=True)
    found = None
    if settings.admin_address is not None:
        if not settings.admin_address.is_local and not admin_token(settings):
            raise StartError(
                f"admin: {settings.admin_address} can be reached from the network: set admin_token, or use loopback"
            )
        (found,) = open_all([settings.admin_address], 128, admin, "admin")
        if not _is_local(found.sock) and not admin_token(settings):
            # Not bound here, but given to us: it need not be where the setting says.
            where = found.address
            found.close(keep_file=True)
            raise StartError(
                f"admin: {where}, the socket that was passed on, can be reached from the network: set admin_token, or "
                "use loopback"
            )
    for unused in admin.values():
        unused.close(keep_file=True)
    return listening, found


def _is_local(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX or is_loopback(sock.getsockname()[0])


def _read_only(settings: ProxySettings, sock: socket.socket) -> bool:
    """Whether a socket that systemd gave is read-only: all are, or the listener of its address is."""
    return settings.read_only or any(address.read_only and _same(address, sock) for address in settings.addresses)


def _same(address: ListenAddress, sock: socket.socket) -> bool:
    """Whether this is where ``address`` says. One that stands for every interface fits each, on either side."""
    name = sock.getsockname()
    if sock.family == socket.AF_UNIX:
        return bool(address.path) and address.path == name
    if address.path or address.port != name[1]:
        return False
    if not address.host or name[0] in ("0.0.0.0", "::"):  # noqa: S104
        return True
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return any(target[0] == name[0] for *_, target in found)


def admin_token(settings: ProxySettings) -> str:
    """The token that the admin pages want, "" for none."""
    return "" if settings.admin_token is None else settings.admin_token.get_secret_value()


class ControlSocket:
    """The socket by which a successor finds this process.

    ``offer()`` gives what to hand over at that moment, ``state()`` what people have switched; ``connected`` gets the
    link to each successor, and returns whether it is wanted (one at a time).
    """

    def __init__(
        self,
        path: str,
        offer: Callable[[], tuple[Sequence[tuple[Role, Listening]], Sequence[int]]],
        connected: Callable[[socket.socket], None],
        refused: Callable[[str], None],
        state: Callable[[], Message] = dict,
    ) -> None:
        self._path = path
        self._offer = offer
        self._state = state
        self._connected = connected
        self._refused = refused
        self._sock: socket.socket | None = None
        self._inode = 0

    def open(self, *, replace: bool) -> None:
        """Binds and listens. With ``replace`` the socket of the process we take over from is displaced in one step.

        StartError when the path is in use (without ``replace``) or cannot be bound.
        """
        if not replace:
            try:
                remove_stale(self._path, "control_socket")
            except StartError as error:
                raise StartError(f"{error}; each instance needs a control_socket of its own") from None
        staged = os.path.join(os.path.dirname(self._path), f".{os.getpid()}.pw")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # The mode must be right from the first moment on: a chmod after the bind would leave a gap.
        umask = os.umask(0o177)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(staged)
            sock.bind(staged)
            sock.listen(8)
            self._inode = os.stat(staged).st_ino
            os.rename(staged, self._path)
        except OSError as error:
            sock.close()
            raise StartError(f"control_socket: cannot listen on {self._path}: {error.strerror or error}") from None
        finally:
            os.umask(umask)
        sock.setblocking(False)
        self._sock = sock
        asyncio.get_running_loop().add_reader(sock, self._accept)

    def close(self) -> None:
        """Stops listening, and removes the file unless a successor's is there by now."""
        if self._sock is None:
            return
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        self._sock = None
        with contextlib.suppress(OSError):
            if os.stat(self._path).st_ino == self._inode:
                os.unlink(self._path)

    def _accept(self) -> None:
        assert self._sock is not None
        try:
            link, _ = self._sock.accept()
        except OSError:
            return
        if not _same_user(link):
            self._refused("the peer is another user")
            link.close()
            return
        sockets, worker_ids = self._offer()
        message = {
            "kind": "sockets",
            "version": VERSION,
            "pid": os.getpid(),
            "worker_ids": list(worker_ids),
            "state": self._state(),
            "sockets": [{"role": role, "name": entry.name, "inode": entry.inode} for role, entry in sockets],
        }
        link.setblocking(False)
        try:
            data = encode(message)
            # A fresh socket's buffer takes this whole; if not, the peer sees a broken message and gives up.
            if socket.send_fds(link, [data], [entry.sock.fileno() for _, entry in sockets]) != len(data):
                raise OSError("the message did not fit")
        except OSError as error:
            link.close()
            # Somebody who only tried whether we are there has hung up already.
            if not isinstance(error, ConnectionError):
                self._refused(str(error))
            return
        self._connected(link)


class Neighbour:
    """The process before or after us in a chain of hand-overs, and the link to it.

    ``ids`` are the worker ids reached through it; ``gone`` is set when the link has ended.
    """

    def __init__(self, pid: int, ids: set[int]) -> None:
        self.pid = pid
        self.ids = set(ids)
        self.gone = asyncio.Event()
        self._channel: ControlChannel | None = None
        self._on_lost: Callable[[], None] | None = None

    @property
    def source(self) -> str:
        """Its name in the merged counters."""
        return f"process-{self.pid}"

    async def open(self, link: socket.socket, handler: Handler, lost: Callable[[], None]) -> None:
        """Starts talking over the connected socket ``link``; ``lost`` is called once when it has ended."""
        self._on_lost = lost
        self._channel = await ControlChannel.over(link, handler, self._ended)

    async def ask(self, kind: str, limit: float, **fields: object) -> Message:
        """A request to it; ControlLostError when it does not answer within ``limit`` seconds."""
        if self._channel is None:
            raise ControlLostError("the link is not open")
        return await self._channel.request(kind, limit, **fields)

    def send(self, kind: str, **fields: object) -> bool:
        """A message without an answer; False when the link has ended."""
        return self._channel is not None and self._channel.send(kind, **fields)

    def close(self) -> None:
        """Ends the link, after what was sent."""
        if self._channel is not None:
            self._channel.close()

    def _ended(self) -> None:
        self.ids = set()
        self.gone.set()
        if self._on_lost is not None:
            self._on_lost()
