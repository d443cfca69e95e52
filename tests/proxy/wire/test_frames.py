"""Walking over whole messages."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.frames import end_of_name, whole_messages
from proxy.wire.messages import message

MESSAGES = st.lists(st.builds(message, st.binary(min_size=1, max_size=1), st.binary(max_size=30)), max_size=6)


@given(MESSAGES, st.integers(0, 40))
def test_whole_ones_are_found_and_the_rest_is_left(messages: list[bytes], cut: int) -> None:
    data = b"".join(messages)
    data = data[: max(0, len(data) - cut)]
    found, rest = whole_messages(data)
    whole = [data[start:end] for _, start, end in found]
    assert whole == messages[: len(whole)]
    assert [kind for kind, _, _ in found] == [raw[0] for raw in whole]
    assert b"".join(whole) + data[rest:] == data
    assert rest == len(data) or len(data) - rest < len(messages[len(whole)])


@given(MESSAGES, st.integers(1, 40))
def test_in_pieces_they_are_the_same(messages: list[bytes], size: int) -> None:
    data = b"".join(messages)
    kept, seen = b"", []
    for at in range(0, len(data), size):
        kept += data[at : at + size]
        found, rest = whole_messages(kept)
        seen += [kept[start:end] for _, start, end in found]
        kept = kept[rest:]
    assert seen == messages
    assert kept == b""


@given(st.binary(max_size=200))
def test_any_bytes_are_walked_to_an_end(data: bytes) -> None:
    found, rest = whole_messages(data)
    ends = [0, *(end for _, _, end in found)]
    assert [start for _, start, _ in found] == ends[:-1]
    assert all(start < end <= len(data) for _, start, end in found)
    assert rest == ends[-1]


def test_impossible_lengths() -> None:
    assert whole_messages(b"Z\0\0\0\0" * 2) == ([(90, 0, 1)], 1)
    assert whole_messages(b"R\xff\xff\xff\xff" + b"x" * 20) == ([], 0)


@given(st.binary(max_size=150).map(lambda data: data.replace(b"\x01", b"\0")), st.integers(0, 160), st.integers(0, 160))
def test_the_end_of_a_name_is_its_first_zero(data: bytes, start: int, end: int) -> None:
    assert end_of_name(data, start, end) == data.find(0, start, end)


@given(st.integers(0, 130), st.integers(0, 5), st.booleans())
def test_the_end_of_a_long_name(length: int, start: int, ended: bool) -> None:
    data = b"x" * (start + length) + (b"\0" if ended else b"x")
    assert end_of_name(data, start, len(data)) == (start + length if ended else -1)
    assert end_of_name(data, start, start + length) == -1
