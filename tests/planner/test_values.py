"""Bind values, as a server sends and understands them, and as nobody should send them."""

from __future__ import annotations

import struct
import time as clock
from datetime import UTC, date, datetime, time
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.graph import Const
from planner.values import MAX_ELEMENTS, MAX_VALUE, array_literal, parameters
from tests.support.postgres import Postgres


def bind(*values: bytes | None, formats: tuple[int, ...] = ()) -> bytes:
    """The end of a Bind message: format codes, values, no result formats."""
    parts = [struct.pack(f"!H{len(formats)}H", len(formats), *formats), struct.pack("!H", len(values))]
    for value in values:
        parts.append(struct.pack("!i", -1) if value is None else struct.pack("!i", len(value)) + value)
    return b"".join(parts) + struct.pack("!H", 0)


def one(value: bytes | None, oid: int, binary: bool = False) -> Const | None:
    return parameters(bind(value, formats=(int(binary),)), [oid]).get(1)


SAMPLES: list[tuple[str, str, object]] = [
    ("bool", "true", True),
    ("bool", "false", False),
    ("int2", "-12", -12),
    ("int4", "2147483647", 2147483647),
    ("int8", "-9223372036854775808", -(2**63)),
    ("float4", "1.5", 1.5),
    ("float8", "-0.1", -0.1),
    ("float8", "inf", float("inf")),
    ("numeric", "0", Decimal(0)),
    ("numeric", "123456.7891", Decimal("123456.7891")),
    ("numeric", "-0.000012345678901234567890123456789", Decimal("-0.000012345678901234567890123456789")),
    ("numeric", "1200000000", Decimal(1200000000)),
    ("numeric", "99999999999999999999999999999999999999.5", Decimal("99999999999999999999999999999999999999.5")),
    ("text", "it''s é", "it's é"),
    ("varchar", "x", "x"),
    ("bpchar", "y", "y"),
    ("name", "z", "z"),
    ("date", "2024-02-29", date(2024, 2, 29)),
    ("date", "1999-12-31", date(1999, 12, 31)),
    ("time", "23:59:59.5", time(23, 59, 59, 500000)),
    ("timestamp", "1999-01-02 03:04:05.000006", datetime(1999, 1, 2, 3, 4, 5, 6)),
    ("timestamptz", "2024-01-02 03:04:05+02", datetime(2024, 1, 2, 1, 4, 5, tzinfo=UTC)),
    ("uuid", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", UUID("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")),
    ("oid", "4294967295", 4294967295),
    ("int4[]", "{1,NULL,-3}", (1, None, -3)),
    ("int8[]", "{}", ()),
    ("text[]", '{a,"b c","d\\"e",NULL,"NULL","",é}', ("a", "b c", 'd"e', None, "NULL", "", "é")),
    ("varchar[]", "{x}", ("x",)),
    ("numeric[]", "{1.5,2}", (Decimal("1.5"), Decimal(2))),
    ("date[]", "{2024-01-01}", (date(2024, 1, 1),)),
]


@pytest.fixture(scope="module")
def sent(postgres: Postgres) -> list[tuple[int, bytes, bytes]]:
    """Each sample as the server writes it: type, text, binary."""
    send = {"name": "namesend", "timestamp": "timestamp_send", "timestamptz": "timestamptz_send", "text": "textsend"}
    send |= {"varchar": "varcharsend", "bpchar": "bpcharsend", "oid": "oidsend", "bool": "boolsend"}
    queries = []
    for type_name, text, _ in SAMPLES:
        own = f"{type_name}_send" if type_name in {"numeric", "date", "time", "uuid"} else f"{type_name}send"
        function = "array_send" if type_name.endswith("[]") else send.get(type_name, own)
        value = f"'{text}'::{type_name}"
        queries.append(
            f"SELECT '{type_name}'::regtype::oid, encode(convert_to({value}::text, 'UTF8'), 'hex'),"
            f" encode({function}({value}), 'hex');"
        )
    rows = postgres.sql("SET timezone = 'UTC';" + "\n".join(queries)).splitlines()
    split = [row.split("|") for row in rows]
    return [(int(oid), bytes.fromhex(text), bytes.fromhex(binary)) for oid, text, binary in split]


@pytest.mark.parametrize("place", range(len(SAMPLES)), ids=[f"{name} {text}" for name, text, _ in SAMPLES])
def test_values_as_the_server_writes_them(place: int, sent: list[tuple[int, bytes, bytes]]) -> None:
    type_name, _, value = SAMPLES[place]
    oid, text, binary = sent[place]
    assert one(text, oid) == Const(value, type_name)
    found = one(binary, oid, binary=True)
    assert found == Const(value, type_name)
    assert type(found.value) is type(value)


def test_formats_apply_to_all_or_each() -> None:
    four = struct.pack("!i", 4)
    assert parameters(bind(b"1", b"2"), [23, 23]) == {1: Const(1, "int4"), 2: Const(2, "int4")}
    assert parameters(bind(four, four, formats=(1,)), [23, 23]) == {1: Const(4, "int4"), 2: Const(4, "int4")}
    assert parameters(bind(four, b"5", formats=(1, 0)), [23, 23]) == {1: Const(4, "int4"), 2: Const(5, "int4")}
    assert parameters(bind(), []) == {}


def test_nulls_and_types_that_are_not_told() -> None:
    assert parameters(bind(None, None), [23]) == {1: Const(None, "int4"), 2: Const(None)}
    assert parameters(bind(b"x", b"y"), [0]) == {1: Const("x"), 2: Const("y")}
    assert parameters(bind(b"\0\0\0\1", formats=(1,)), [0]) == {}
    assert parameters(bind(b"{}", b"3"), [3802, 23]) == {2: Const(3, "int4")}, "jsonb is left out, the next is not"


@pytest.mark.parametrize(
    ("value", "oid"),
    [
        (b"abc", 23),
        (b"", 23),
        (b"9" * 5000, 23),
        (b"nan", 701),
        (b"NaN", 1700),
        (b"Infinity", 1700),
        (b"1e999999", 1700),
        (b"\xff", 25),
        (b"x" * (MAX_VALUE + 1), 25),
        (b"{{1},{2}}", 1007),
        (b"{1,x}", 1007),
        (b"{1", 1007),
        (b"[0:1]={1,2}", 1007),
        (b"{" + b"1," * MAX_ELEMENTS + b"1}", 1007),
        (b"maybe", 16),
        (b"not-a-uuid", 2950),
    ],
)
def test_text_that_is_left_out(value: bytes, oid: int) -> None:
    assert one(value, oid) is None


@pytest.mark.parametrize(
    ("value", "oid"),
    [
        (b"\0\0\1", 23),
        (struct.pack("!d", float("nan")), 701),
        (struct.pack("!i", 2147483647), 1082),  # infinity
        (struct.pack("!q", -(2**63)), 1114),
        (struct.pack("!q", 86_400_000_000), 1083),  # 24:00
        (struct.pack("!HhHH", 0, 0, 0xC000, 0), 1700),  # NaN
        (struct.pack("!HhHHH", 1, 30000, 0, 0, 1), 1700),
        (struct.pack("!HhHHH", 1, 0, 0, 0, 10000), 1700),
        (struct.pack("!HhHH", 3, 0, 0, 0), 1700),
        (b"\0" * 15, 2950),
        (b"\2\2", 16),
        (struct.pack("!iiI", 2, 0, 23) + b"\0" * 16, 1007),
        (struct.pack("!iiIii", 1, 0, 25, 1, 1) + struct.pack("!i", 1) + b"1", 1007),
        (struct.pack("!iiIii", 1, 0, 23, 2**31 - 1, 1), 1007),
        (struct.pack("!iiIii", 1, 0, 23, 2, 1) + struct.pack("!ii", 4, 1), 1007),
    ],
)
def test_binary_that_is_left_out(value: bytes, oid: int) -> None:
    assert one(value, oid, binary=True) is None


def test_times_in_other_styles_stay_text() -> None:
    assert one(b"31/12/2024", 1082) == Const("31/12/2024", "date")
    assert one(b"yesterday", 1114) == Const("yesterday", "timestamp")
    assert one(b"2024-01-01 00:00:00", 1184) == Const("2024-01-01 00:00:00", "timestamptz"), "depends on TimeZone"


def test_a_message_that_ends_short() -> None:
    whole = bind(b"1", b"22", b"333")
    for length in range(len(whole)):
        found = parameters(whole[:length], [23, 23, 23])
        assert found == {number: Const(int(str(number) * number), "int4") for number in sorted(found)}


OIDS = [
    0,
    16,
    18,
    19,
    20,
    21,
    23,
    25,
    26,
    700,
    701,
    1042,
    1043,
    1082,
    1083,
    1114,
    1184,
    1700,
    2950,
    1007,
    1009,
    1231,
    3802,
]


@given(st.binary(max_size=80), st.lists(st.sampled_from(OIDS), max_size=5))
def test_any_bytes_are_taken(data: bytes, types: list[int]) -> None:
    parameters(data, types)


@given(st.lists(st.tuples(st.binary(max_size=40), st.sampled_from(OIDS), st.integers(0, 1)), max_size=6))
def test_any_values_are_taken(values: list[tuple[bytes, int, int]]) -> None:
    message = bind(*(value for value, _, _ in values), formats=tuple(binary for _, _, binary in values))
    found = parameters(message, [oid for _, oid, _ in values])
    assert set(found) <= set(range(1, len(values) + 1))


@given(st.lists(st.none() | st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)))
def test_text_arrays_come_back(values: list[str | None]) -> None:
    quoted = ["NULL" if v is None else '"' + v.replace("\\", "\\\\").replace('"', '\\"') + '"' for v in values]
    assert array_literal("{" + ",".join(quoted) + "}", "text") == tuple(values)


@pytest.mark.parametrize("text", ["{" + " " * 100_000 + "{}", "{" + "a " * 100_000 + "{}", '{"' + "a" * 100_000 + "}"])
def test_no_array_takes_long(text: str) -> None:
    begun = clock.thread_time()
    assert array_literal(text, "text") is None
    assert clock.thread_time() - begun < 0.5
