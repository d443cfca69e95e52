"""The control channel: framing, requests, bounds, and the end of the other side."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.control import (
    MAX_MESSAGE,
    MAX_REQUESTS,
    ControlChannel,
    ControlLostError,
    Message,
    decode,
    encode,
    worker_of_key,
)
from tests.support.waiting import eventually


class End:
    """One end of a channel that keeps what it is told and answers ``double``."""

    def __init__(self) -> None:
        self.seen: list[Message] = []
        self.lost = 0
        self.channel: ControlChannel
        self.hold = asyncio.Event()

    async def handle(self, kind: str, message: Message) -> Message | None:
        match kind:
            case "double":
                return {"value": message["value"] * 2}
            case "fail":
                raise KeyError("what")
            case "hang":
                await self.hold.wait()
            case _:
                self.seen.append(message)
        return None

    def end(self) -> None:
        self.lost += 1


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[End, End]]:
    one, other = End(), End()
    socks = socket.socketpair()
    for end, sock in zip((one, other), socks, strict=True):
        end.channel = await ControlChannel.over(sock, end.handle, end.end)
    try:
        yield one, other
    finally:
        for end in (one, other):
            end.hold.set()
            end.channel.close()
        await eventually(lambda: one.lost and other.lost)


async def test_messages_arrive_in_order_whatever_their_size() -> None:
    async with pair() as (one, other):
        for number in range(100):
            assert one.channel.send("note", number=number, text="x" * (number * 500))
        await eventually(lambda: len(other.seen) == 100)
        assert [message["number"] for message in other.seen] == list(range(100))


async def test_requests_are_answered_both_ways_and_at_once() -> None:
    async with pair() as (one, other):
        calls = [one.channel.request("double", 5, value=value) for value in range(50)]
        back = other.channel.request("double", 5, value=21)
        answers = await asyncio.gather(*calls, back)
        assert [answer["value"] for answer in answers] == [*range(0, 100, 2), 42]


async def test_a_handler_that_fails_is_told_to_the_asker_and_to_the_loop() -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context["exception"]))
    async with pair() as (one, _):
        with pytest.raises(ControlLostError, match="KeyError"):
            await one.channel.request("fail", 5)
        assert (await one.channel.request("double", 5, value=1))["value"] == 2
    assert isinstance(reported[0], KeyError)


async def test_a_late_answer_is_an_error_and_harms_nothing() -> None:
    async with pair() as (one, other):
        with pytest.raises(ControlLostError, match="no answer to hang"):
            await one.channel.request("hang", 0.05)
        other.hold.set()
        assert (await one.channel.request("double", 5, value=4))["value"] == 8


async def test_open_requests_fail_when_the_other_end_goes() -> None:
    async with pair() as (one, other):
        asked = asyncio.create_task(one.channel.request("hang", 30))
        await asyncio.sleep(0)
        other.channel.close()
        with pytest.raises(ControlLostError, match="gone"):
            await asked
        await eventually(lambda: one.channel.closed)
        assert not one.channel.send("note")
        with pytest.raises(ControlLostError):
            await one.channel.request("double", 1, value=1)


async def test_requests_are_bounded() -> None:
    async with pair() as (one, _):
        asked = [asyncio.create_task(one.channel.request("hang", 30)) for _ in range(MAX_REQUESTS)]
        await asyncio.sleep(0)
        with pytest.raises(ControlLostError, match="open already"):
            await one.channel.request("double", 1, value=1)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


async def test_a_peer_that_does_not_read_makes_sends_fail_instead_of_memory_grow() -> None:
    ours, theirs = socket.socketpair()
    end = End()
    channel = await ControlChannel.over(ours, end.handle, end.end)
    sent = 0
    while channel.send("note", text="x" * 100_000):
        sent += 1
        assert sent < 1000
    with pytest.raises(ControlLostError, match="does not read"):
        await channel.request("double", 1, value=1)
    theirs.close()
    channel.close()
    await eventually(lambda: end.lost == 1)


@pytest.mark.parametrize("garbage", [b"\xff\xff\xff\xff", b"\0\0\0\x02[]", b"\0\0\0\x02{}", b"\0\0\0\x01x"])
async def test_garbage_ends_the_channel(garbage: bytes) -> None:
    ours, theirs = socket.socketpair()
    end = End()
    channel = await ControlChannel.over(ours, end.handle, end.end)
    theirs.sendall(garbage)
    await eventually(lambda: end.lost == 1)
    assert channel.closed
    theirs.close()


def test_a_message_too_long_is_refused_by_the_sender() -> None:
    with pytest.raises(ValueError, match="longer than"):
        encode({"kind": "note", "text": "x" * MAX_MESSAGE})


@given(st.lists(st.dictionaries(st.text(), st.integers() | st.text())), st.integers(1, 64))
def test_any_cut_of_the_stream_gives_the_same_messages(contents: list[dict[str, int | str]], step: int) -> None:
    messages = [{**content, "kind": "note"} for content in contents]
    stream = b"".join(encode(message) for message in messages)
    buffer, got = bytearray(), []
    for start in range(0, len(stream), step):
        buffer += stream[start : start + step]
        got += decode(buffer)
    assert got == messages
    assert not buffer


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_waited_on(data: bytes) -> None:
    buffer = bytearray(data)
    try:
        messages = decode(buffer)
    except ValueError:
        return
    assert all(isinstance(message["kind"], str) for message in messages)


@given(st.integers(0, 255), st.integers(0, (1 << 22) - 1))
def test_a_key_names_its_worker(worker_id: int, serial: int) -> None:
    assert worker_of_key(0x4000_0000 | worker_id << 22 | serial) == worker_id
