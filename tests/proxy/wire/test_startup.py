"""The start-up parser: what it understands, what it refuses, and that nothing makes it do anything else."""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.wire import startup
from proxy.wire.messages import error_fields, startup_message
from proxy.wire.startup import (
    CancelRequest,
    FirstPacket,
    FirstPackets,
    GssRequest,
    SslRequest,
    StartupMessage,
    StartupRefused,
    parse_startup,
)
from tests.proxy.wire.startup_packets import GSS_REQUEST, ODD_PACKETS, SSL_REQUEST, USER, V3_1, V3_2, packet, padded

NAMES = st.binary(min_size=1, max_size=80).filter(lambda name: b"\0" not in name)
VALUES = st.binary(max_size=80).filter(lambda value: b"\0" not in value)


def first(data: bytes) -> FirstPacket | None:
    packets = FirstPackets()
    packets.feed(data)
    return packets.next()


def refused(data: bytes) -> tuple[str, dict[str, str]]:
    """The log's text and the fields told to the client."""
    with pytest.raises(StartupRefused) as caught:
        first(data)
    response = caught.value.response
    return caught.value.text, error_fields(response[5:]) if response else {}


def test_reads_a_start_up_message() -> None:
    raw = packet([*USER, (b"database", b"shop"), (b"DateStyle", b"ISO"), (b"options", b"-c a=b")], V3_2)
    assert first(raw) == StartupMessage(
        user="postgres",
        database="shop",
        settings={"DateStyle": "ISO", "options": "-c a=b"},
        minor=2,
        replication=None,
        negotiate=b"",
        raw=raw,
    )


def test_reads_what_our_own_builder_makes() -> None:
    message = first(startup_message({"user": "a", "search_path": "x, y"}, minor=2))
    assert isinstance(message, StartupMessage)
    assert (message.user, message.database, message.settings) == ("a", "a", {"search_path": "x, y"})


def test_the_last_of_repeated_settings_counts_in_its_place() -> None:
    message = parse_startup(packet([(b"a", b"1"), *USER, (b"b", b"2"), (b"a", b"3")]))
    assert list(message.settings.items()) == [("b", "2"), ("a", "3")]


def test_names_have_at_most_63_bytes_and_any_encoding() -> None:
    message = parse_startup(packet([(b"user", b"\xff" * 70), (b"database", b"d" * 64)]))
    assert message.user.encode("utf-8", "surrogateescape") == b"\xff" * 63
    assert message.database == "d" * 63


@pytest.mark.parametrize("value", ["true", "TRUE", "t", "tr", "on", "On", "yes", "y", "1", "database"])
def test_replication_is_asked_for(value: str) -> None:
    message = parse_startup(packet([*USER, (b"replication", value.encode())]))
    assert message.replication == value
    assert "replication" not in message.settings


@pytest.mark.parametrize("value", ["false", "F", "of", "off", "no", "n", "0"])
def test_replication_is_declined(value: str) -> None:
    assert parse_startup(packet([*USER, (b"replication", value.encode())])).replication is None


@pytest.mark.parametrize("value", ["", "o", "maybe", "onn", "true ", "10", "Database"])
def test_replication_that_is_no_boolean(value: str) -> None:
    _, fields = refused(packet([*USER, (b"replication", value.encode())]))
    assert fields["C"] == "22023"
    assert fields["M"] == f'invalid value for parameter "replication": "{value}"'


@pytest.mark.parametrize(
    ("version", "options", "minor", "answer"),
    [
        (V3_1, [], 1, b""),
        (V3_2, [], 2, b""),
        (V3_2 + 1, [], 2, struct.pack("!cIII", b"v", 12, V3_2, 0)),
        (3 << 16 | 9999, [b"_pq_.x"], 2, struct.pack("!cIII", b"v", 19, V3_2, 1) + b"_pq_.x\0"),
        (3 << 16, [b"_pq_.x"], 0, struct.pack("!cIII", b"v", 19, 3 << 16, 1) + b"_pq_.x\0"),
        (V3_1, [b"_pq_.x"], 1, struct.pack("!cIII", b"v", 19, V3_1, 1) + b"_pq_.x\0"),
    ],
)
def test_newer_protocols_and_unknown_options_are_negotiated(
    version: int, options: list[bytes], minor: int, answer: bytes
) -> None:
    message = parse_startup(packet([*USER, *((option, b"1") for option in options)], version))
    assert (message.minor, message.negotiate) == (minor, answer)
    assert message.settings == {}


@pytest.mark.parametrize(
    ("name", "sqlstate", "text"),
    [
        ("protocol 4", "0A000", "unsupported frontend protocol 4.0: server supports 3.0 to 3.2"),
        ("HTTP", "", "invalid length of startup packet"),
        ("no user", "28000", "no PostgreSQL user name specified in startup packet"),
        (
            "bytes behind the terminator",
            "08P01",
            "invalid startup packet layout: expected terminator as last byte",
        ),
        ("length 3", "", "invalid length of startup packet"),
        ("length negative", "", "invalid length of startup packet"),
        ("cancel without a key", "", "invalid length of cancel request packet"),
    ],
)
def test_refusals(name: str, sqlstate: str, text: str) -> None:
    said, fields = refused(ODD_PACKETS[name])
    assert said == text
    assert fields.get("C", "") == sqlstate
    if fields:
        assert (fields["S"], fields["V"], fields["M"]) == ("FATAL", "FATAL", text)


def test_a_negotiation_comes_before_the_refusal() -> None:
    with pytest.raises(StartupRefused) as caught:
        first(ODD_PACKETS["no user, unknown option"])
    assert caught.value.response.startswith(b"v\0\0\0\x13\0\3\0\0\0\0\0\1_pq_.a\0E")


def test_clients_of_protocol_2_get_an_error_they_can_read() -> None:
    with pytest.raises(StartupRefused) as caught:
        first(packet(USER, 2 << 16))
    assert caught.value.response == b"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.2\n\0"


def test_length_is_bounded() -> None:
    assert isinstance(first(padded(startup.MAX_STARTUP_PACKET)), StartupMessage)
    assert refused(padded(startup.MAX_STARTUP_PACKET + 1)) == ("invalid length of startup packet", {})
    assert refused(padded(startup.MAX_STARTUP_PACKET + 1)[:4]) == ("invalid length of startup packet", {})


def test_each_encryption_is_asked_for_once() -> None:
    packets = FirstPackets()
    packets.feed(SSL_REQUEST + GSS_REQUEST + SSL_REQUEST)
    assert packets.next() == SslRequest()
    assert packets.next() == GssRequest()
    with pytest.raises(StartupRefused, match=r"unsupported frontend protocol 1234\.5679"):
        packets.next()


@pytest.mark.parametrize("request_packet", [SSL_REQUEST, GSS_REQUEST])
def test_no_encryption_is_asked_for_within_tls(request_packet: bytes) -> None:
    packets = FirstPackets(encrypted=True)
    packets.feed(request_packet)
    with pytest.raises(StartupRefused, match=r"unsupported frontend protocol 1234\."):
        packets.next()


@given(pid=st.integers(-(2**31), 2**31 - 1), secret=st.binary(min_size=1, max_size=256))
def test_cancel_requests(pid: int, secret: bytes) -> None:
    raw = struct.pack("!iii", 12 + len(secret), startup.CANCEL_CODE, pid) + secret
    assert first(raw) == CancelRequest(pid, secret)


@given(
    parameters=st.lists(st.tuples(NAMES, VALUES), max_size=20),
    version=st.sampled_from([3 << 16, V3_1, V3_2, 3 << 16 | 500]),
)
def test_every_parameter_ends_in_its_place(parameters: list[tuple[bytes, bytes]], version: int) -> None:
    special = (b"user", b"database", b"replication")
    kept = [(name, value) for name, value in parameters if name not in special]
    message = parse_startup(packet([*kept, (b"user", b"u")], version))
    plain = {name: value for name, value in kept if not name.startswith(b"_pq_.")}
    read = {
        name.encode("utf-8", "surrogateescape"): value.encode("utf-8", "surrogateescape")
        for name, value in message.settings.items()
    }
    assert read == plain
    assert bool(message.negotiate) == (version > V3_2 or len(plain) < len(dict(kept)))


@given(
    data=st.one_of(
        st.binary(max_size=200),
        st.builds(lambda body: struct.pack("!I", len(body) + 4) + body, st.binary(max_size=200)),
        st.builds(lambda body: packet(terminator=body), st.binary(max_size=200)),
        st.builds(
            lambda raw, at, byte: raw[: at % len(raw)] + bytes([byte]) + raw[at % len(raw) + 1 :],
            st.sampled_from([raw for raw in ODD_PACKETS.values() if raw]),
            st.integers(0, 300),
            st.integers(0, 255),
        ),
    ),
    cuts=st.lists(st.integers(0, 200), max_size=8),
)
def test_any_bytes_in_any_pieces_give_packets_or_a_refusal(data: bytes, cuts: list[int]) -> None:
    def read(pieces: list[bytes]) -> list[object]:
        packets, outcome = FirstPackets(), list[object]()
        try:
            for piece in pieces:
                packets.feed(piece)
                while (found := packets.next()) is not None:
                    outcome.append(found)
                    if isinstance(found, CancelRequest | StartupMessage):
                        return outcome
                assert 1 <= packets.wanted <= startup.MAX_STARTUP_PACKET + 4
                assert len(packets.buffered) < startup.MAX_STARTUP_PACKET + 4
        except StartupRefused as refusal:
            outcome.append((refusal.text, refusal.response))
        return outcome

    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[start:end] for start, end in itertools.pairwise(edges)]
    assert read(pieces) == read([data])


@given(raw=st.sampled_from(list(ODD_PACKETS.values())))
def test_reading_no_more_than_wanted_never_takes_a_byte_behind_the_packet(raw: bytes) -> None:
    packets, rest = FirstPackets(), raw + b"behind"
    try:
        while packets.next() is None:
            size = packets.wanted
            if size > len(rest):
                return
            packets.feed(rest[:size])
            rest = rest[size:]
    except StartupRefused:
        return
    assert packets.buffered == b""
    assert rest.endswith(b"behind")
