"""Start-up packets for tests, valid and otherwise."""

from __future__ import annotations

import struct
from collections.abc import Iterable

V3_0, V3_1, V3_2 = 3 << 16, 3 << 16 | 1, 3 << 16 | 2
SSL_REQUEST = struct.pack("!II", 8, 80877103)
GSS_REQUEST = struct.pack("!II", 8, 80877104)
USER = [(b"user", b"postgres")]


def packet(
    parameters: Iterable[tuple[bytes, bytes]] = (), version: int = V3_0, terminator: bytes = b"\0", length: int = 0
) -> bytes:
    """A start-up packet; ``length`` other than 0 is written in place of the true one."""
    body = struct.pack("!I", version) + b"".join(name + b"\0" + value + b"\0" for name, value in parameters)
    body += terminator
    return struct.pack("!I", length or len(body) + 4) + body


def padded(total: int) -> bytes:
    """A valid packet of exactly ``total`` bytes behind its length word."""
    spare = total + 4 - len(packet([*USER, (b"options", b"")]))
    return packet([*USER, (b"options", b" " * spare)])


ODD_PACKETS: dict[str, bytes] = {
    "protocol 1": packet(USER, 1 << 16),
    "protocol 2": packet(USER, 2 << 16),
    "protocol 4": packet(USER, 4 << 16),
    "protocol 3.1": packet(USER, V3_1),
    "protocol 3.2": packet(USER, V3_2),
    "protocol 3.9999": packet([*USER, (b"_pq_.test_protocol_negotiation", b"")], 3 << 16 | 9999),
    "newer minor": packet(USER, V3_2 + 1),
    "unknown option in 3.0": packet([*USER, (b"_pq_.a", b"1"), (b"_pq_.b", b"")]),
    "unknown option in 3.1": packet([*USER, (b"_pq_.a", b"1")], V3_1),
    "unknown option twice": packet([*USER, (b"_pq_.a", b"1"), (b"_pq_.a", b"1")]),
    "no user": packet([(b"database", b"postgres")]),
    "empty user": packet([(b"user", b"")]),
    "no user, unknown option": packet([(b"_pq_.a", b"")]),
    "empty database": packet([*USER, (b"database", b"")]),
    "user twice": packet([(b"user", b"nobody"), *USER]),
    "no terminator": packet(USER, terminator=b""),
    "two terminators": packet(USER, terminator=b"\0\0"),
    "bytes behind the terminator": packet(USER, terminator=b"\0abc"),
    "name without value": packet(USER, terminator=b"foo\0"),
    "value without end": packet(USER, terminator=b"foo\0bar"),
    "name without end": packet(USER, terminator=b"foo"),
    "empty name": packet([(b"", b"x"), *USER]),
    "version only": packet(terminator=b""),
    "terminator only": packet(),
    "length 0": b"\0\0\0\0",
    "length 3": b"\0\0\0\3",
    "length 7": b"\0\0\0\7\0\3\0",
    "length negative": b"\xff\xff\xff\xff",
    "length minimum": b"\x80\0\0\0",
    "length one too many": struct.pack("!I", 10_005),
    "longest": padded(10_000),
    "HTTP": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "replication nonsense": packet([*USER, (b"replication", b"maybe")]),
    "replication ambiguous": packet([*USER, (b"replication", b"o")]),
    "replication empty": packet([*USER, (b"replication", b"")]),
    "replication nonsense before a bad layout": packet([(b"replication", b"x")], terminator=b"foo"),
    "SSLRequest twice at once": SSL_REQUEST * 2,
    "GSSENCRequest twice at once": GSS_REQUEST * 2,
    "start-up behind SSLRequest": SSL_REQUEST + packet(USER),
    "start-up behind GSSENCRequest": GSS_REQUEST + packet(USER),
    "one byte behind GSSENCRequest": GSS_REQUEST + b"\0",
    "cancel of nobody": struct.pack("!IIII", 16, 80877102, 1, 1),
    "cancel without a key": struct.pack("!III", 12, 80877102, 1),
    "cancel without a process": struct.pack("!II", 8, 80877102),
    "cancel with a key of 256": struct.pack("!III", 268, 80877102, 1) + b"k" * 256,
    "cancel with a key of 257": struct.pack("!III", 269, 80877102, 1) + b"k" * 257,
}
"""What clients, attackers and other programs may begin with. None asks for TLS and waits for the answer."""
