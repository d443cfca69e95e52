"""The relay that makes extended messages of simple ones: a client sees what it would have seen."""

from __future__ import annotations

import pytest

from proxy.wire.messages import query
from tests.conformance.extended import as_extended, extended
from tests.conformance.stage import Address
from tests.support.ports import free_port
from tests.support.postgres import Postgres
from tests.support.wireclient import ServerError, WireClient


@pytest.mark.parametrize(
    ("text", "converted"),
    [
        (b"select 1", True),
        (b" select ';';", True),
        (b"create table t (a int)", True),
        (b"", True),
        (b"select 1; select 2", False),
        (b"copy t from stdin", False),
        (b"-- why\ncopy t to stdout", False),
        (b"select 'without an end", False),
    ],
)
def test_single_statements_are_converted(text: bytes, converted: bool) -> None:
    found = as_extended(text)
    assert (found is not None) is converted
    assert found is None or (found.startswith(b"P") and text in found)


async def test_the_client_sees_the_same(postgres: Postgres) -> None:
    statements = (
        "select count(*) as n from pg_class a join pg_namespace b on true where false",
        "select 1; select 2",
        "select nothing_there",
        "set application_name = 'relayed'",
        "copy (select 7) to stdout",
        "",
        "show application_name",
    )
    direct = Address(postgres.host, postgres.port)
    with extended(direct, free_port()) as relayed:
        answers, states = [], []
        for address in (direct, relayed):
            client = await WireClient.connect(address)
            answers.append([await _answer(client, text) for text in statements])
            with pytest.raises(ServerError) as refused:
                await client.query("select $1::int")
            states.append(refused.value.sqlstate)
            client.reset()
    assert answers[0] == answers[1]
    # Parse takes a parameter where a Query knows of none, and then none is bound.
    assert states == ["42P02", "08P01"]


async def _answer(client: WireClient, text: str) -> list[tuple[bytes, bytes]]:
    client.send(query(text))
    return await client.until(b"Z")
