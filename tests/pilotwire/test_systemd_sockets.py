"""Sockets that systemd passes stand where its unit says: what the settings ask of an address holds for them too."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pilotwire import handover
from pilotwire.errors import StartError
from pilotwire.handover import open_sockets
from pilotwire.listening import Listening
from proxy.logs import Log
from proxy.settings import ProxySettings

NETWORK = "0.0.0.0"


class Lines(Log):
    def __init__(self) -> None:
        super().__init__("test", fd=-1)
        self.told: list[tuple[str, dict[str, Any]]] = []

    def event(self, name: str, /, *, level: Any = "info", **fields: Any) -> None:
        self.told.append((name, fields))


class Passed:
    """Has `open_sockets` find the sockets given to it here; closes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sockets: dict[str, list[socket.socket]] = {}
        self.made: list[socket.socket] = []
        self.log = Lines()
        monkeypatch.setattr(handover, "from_systemd", lambda _: self.sockets)

    def tcp(self, host: str, name: str = "") -> int:
        """A port that systemd listens on."""
        return int(self.give(socket.create_server((host, 0)), name).getsockname()[1])

    def give(self, sock: socket.socket, name: str = "") -> socket.socket:
        self.made.append(sock)
        self.sockets.setdefault(name, []).append(sock)
        return sock

    def open(self, **settings: Any) -> tuple[list[Listening], Listening | None]:
        values = {"upstream": "postgresql://app@127.0.0.1:1/shop", "upstream_password": "geheim", "store": "none"}
        return open_sockets(ProxySettings.model_validate({**values, **settings}), None, self.log)


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Passed]:
    made = Passed(monkeypatch)
    yield made
    for sock in made.made:
        sock.close()


def test_admin_pages_on_the_network_want_a_token(passed: Passed) -> None:
    passed.tcp("127.0.0.1")
    port = passed.tcp(NETWORK, "admin")
    with pytest.raises(StartError, match=rf"admin: 0\.0\.0\.0:{port}, .* set admin_token, or use loopback"):
        passed.open(admin="127.0.0.1:9432")
    port = passed.tcp(NETWORK, "admin")
    _, admin = passed.open(admin="127.0.0.1:9432", admin_token="x" * 32)
    assert admin is not None
    assert admin.address == f"0.0.0.0:{port}"


def test_admin_pages_on_loopback_do_not(passed: Passed) -> None:
    passed.tcp("127.0.0.1")
    port = passed.tcp("127.0.0.1", "admin")
    _, admin = passed.open(admin="127.0.0.1:9432")
    assert admin is not None
    assert admin.address == f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("bound", "written", "expected"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("127.0.0.1", "*", True),
        (NETWORK, "*", True),
        (NETWORK, "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
    ],
)
def test_a_listener_of_the_same_address_is_read_only(passed: Passed, bound: str, written: str, expected: bool) -> None:
    readers, writers = passed.tcp(bound), passed.tcp("127.0.0.1")
    listening, _ = passed.open(listeners=[{"address": f"{written}:{readers}", "read_only": True}], admin="")
    assert {entry.sock.getsockname()[1]: entry.read_only for entry in listening} == {readers: expected, writers: False}
    # One that nothing was passed for is not dropped without a word.
    assert [name for name, _ in passed.log.told] == ([] if expected else ["listener_not_passed"])


def test_so_is_a_unix_socket_of_the_same_path(passed: Passed, tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    sock = passed.give(socket.socket(socket.AF_UNIX))
    sock.bind(path)
    sock.listen()
    (entry,), _ = passed.open(listeners=[{"address": path, "read_only": True}], admin="")
    assert entry.read_only


def test_all_are_where_everything_is(passed: Passed) -> None:
    passed.tcp("127.0.0.1")
    (entry,), _ = passed.open(read_only=True, admin="")
    assert entry.read_only
    assert passed.log.told == []
