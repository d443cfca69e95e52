"""What systemd hears, over a socket that plays its part."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from pilotwire.systemd import keep_watchdog, notify_systemd, watchdog_seconds


@pytest.fixture
def heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    path = tmp_path / "notify"
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(str(path))
    receiver.settimeout(5)
    monkeypatch.setenv("NOTIFY_SOCKET", str(path))
    return receiver


def test_notify(heard: socket.socket) -> None:
    with heard:
        notify_systemd("READY=1")
        assert heard.recv(100) == b"READY=1"


def test_nobody_to_notify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify_systemd("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    notify_systemd("READY=1")


@pytest.mark.parametrize(("value", "seconds"), [("30000000", 15.0), ("", 0.0), ("x", 0.0), ("-1", 0.0)])
def test_watchdog_seconds(value: str, seconds: float) -> None:
    assert watchdog_seconds({"WATCHDOG_USEC": value}) == seconds
    assert watchdog_seconds({}) == 0.0


async def test_watchdog(heard: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    with heard:
        monkeypatch.setenv("WATCHDOG_USEC", "20000")
        task = asyncio.create_task(keep_watchdog())
        said = [await asyncio.to_thread(heard.recv, 100) for _ in range(3)]
        assert said == [b"WATCHDOG=1"] * 3
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        monkeypatch.delenv("WATCHDOG_USEC")
        await asyncio.wait_for(keep_watchdog(), 1)
