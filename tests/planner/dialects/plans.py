"""Plans as the server explains them, and a session that sees its notices."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

from proxy.wire.messages import cstring, error_fields, message, query
from tests.support.wireclient import ServerError, WireClient

Message = tuple[bytes, bytes]
SYNC = message(b"S", b"")


class Plan:
    """One plan: ``joins`` has the estimated rows of each join by the aliases under it, ``nodes`` all node types."""

    def __init__(self, explained: str) -> None:
        self.root: dict[str, Any] = json.loads(explained)[0]["Plan"]
        self.joins: dict[frozenset[str], int] = {}
        self.nodes: list[str] = []
        self.methods: dict[frozenset[str], str] = {}
        self._walk(self.root)

    def _walk(self, node: dict[str, Any]) -> frozenset[str]:
        below = frozenset[str]().union(*map(self._walk, node.get("Plans", ())))
        if "Alias" in node:
            below |= {node["Alias"]}
        self.nodes.append(node["Node Type"])
        if "Join Type" in node:
            self.joins[below] = node["Plan Rows"]
            self.methods[below] = node["Node Type"]
        return below

    def rows(self, *aliases: str) -> int:
        return self.joins[frozenset(aliases)]


class Session:
    """One connection past any proxy. ``notices`` are the texts of all notices so far, with their severity."""

    def __init__(self, client: WireClient) -> None:
        self.client = client
        self.notices: list[str] = []

    async def run(self, data: bytes) -> list[Message]:
        """Send and read to ReadyForQuery. `ServerError` for an error."""
        answers = await self.ask(data)
        for kind, body in answers:
            if kind == b"E":
                raise ServerError(body)
        return answers

    async def ask(self, data: bytes) -> list[Message]:
        """The same, errors among the messages."""
        self.client.send(data)
        answers = await self.client.until(b"Z")
        for kind, body in answers:
            if kind == b"N":
                fields = error_fields(body)
                self.notices.append(f"{fields['V']}: {fields['M']} {fields.get('D', '')}".strip())
        return answers

    async def sql(self, text: str) -> list[str | None]:
        """The first column of all rows of one simple query."""
        return first_column(await self.run(query(text)))

    async def show(self, setting: str) -> str:
        [value] = await self.sql(f"SHOW {setting}")
        assert value is not None
        return value

    async def explain(self, text: str, prefix: str = "", options: str = "") -> Plan:
        [explained] = await self.sql(f"{prefix}EXPLAIN (FORMAT JSON{options}) {text}")
        assert explained is not None
        return Plan(explained)


def first_column(answers: list[Message]) -> list[str | None]:
    return list(_first(answers))


def _first(answers: list[Message]) -> Iterator[str | None]:
    for kind, body in answers:
        if kind == b"D":
            (length,) = struct.unpack_from("!i", body, 2)
            yield None if length < 0 else body[6 : 6 + length].decode()


def parse(name: str, sql: str) -> bytes:
    return message(b"P", cstring(name) + cstring(sql) + b"\0\0")


def bind(name: str, *values: str) -> bytes:
    """Of the unnamed portal, values and results as text."""
    parts = b"".join(struct.pack("!i", len(value.encode())) + value.encode() for value in values)
    return message(b"B", b"\0" + cstring(name) + struct.pack("!HH", 0, len(values)) + parts + struct.pack("!H", 0))


def execute() -> bytes:
    return message(b"E", b"\0" + struct.pack("!i", 0))


def close(name: str) -> bytes:
    return message(b"C", b"S" + cstring(name))
