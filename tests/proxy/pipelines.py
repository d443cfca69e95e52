"""Random pipelines of raw messages, the same for the same seed, and everything a server answers to them.

A pipeline may be sensible or nonsense: names that do not exist, Sync within COPY, errors in the middle. What counts is
that a proxy answers as the server does. What the answers legitimately differ in (a notifier's process id, the OIDs of
tables, the lines of the server's source where an error was found, which message it did not want during COPY) is left
out.
"""

from __future__ import annotations

import asyncio
import random
import re
import struct
from collections.abc import Sequence
from typing import Any, Final

from proxy.wire.messages import message, query
from tests.proxy.wire.transcript import COPY_DONE, FLUSH, SYNC, bind, close, copy_data, copy_fail, describe, execute
from tests.support.wireclient import Lost, WireClient

Said = tuple[str, ...]
"""One message as a person reads it: its kind and what it names."""
Step = tuple[Said, bytes]
Batch = list[Step]
Answer = tuple[bytes, bytes]

TABLES: Final = "create table j (id int); create table jj (id int)"
CLEAN: Final = "truncate j, jj; insert into j select generate_series(1, 6)"
ANSWER_SECONDS: Final = 20.0
_UNWANTED: Final = re.compile(rb"unexpected message type 0x..")
_NAMES: Final = ("", "n1", "n2")
_PORTALS: Final = ("", "p1", "p2")
_JOIN: Final = "select a.id from j a join j b using (id)"
_TEXTS: Final = (
    # Statements that succeed and that fail, with rows and without.
    *("", "select 1", "select 1/0", "select $1::int", "select bogus", "syntax error here", "select 1; select 2"),
    *(f"{_JOIN} where a.id < 4 order by 1", f"{_JOIN} where a.id < $1 order by 1", f"/* c */ {_JOIN} order by 1"),
    *("select 'x'::int from j a join j b using (id)", "insert into j values (1)", "select count(*) from jj"),
    *("vacuum jj", "do $$begin raise notice 'n'; end$$", "copy j to stdout", "copy jj from stdin"),
    # Transactions.
    *("begin", "commit", "rollback", "savepoint s", "rollback to s", "begin isolation level serializable"),
    *("commit and chain", "select 1; begin; select 2", "select 1; select 1/0; select 3"),
    f"begin; {_JOIN} where a.id = 1; commit; select 3",
    # Settings.
    *("set work_mem = '3MB'", "set local work_mem = '2MB'", "show work_mem", "reset all", "set datestyle = german"),
    *("select date '2020-01-02'", "set search_path = public, pg_catalog", "set role pg_monitor", "reset role"),
    *("select current_user", "select set_config('my.x', '1', false)"),
    "select nullif(current_setting('my.x', true), '')",
    # What belongs to a connection.
    *("create temp table if not exists tt (a int)", "select * from tt", "listen x", "notify x, 'p'"),
    *("select pg_notify('x', 'y')", "prepare sp as select 7", "deallocate sp"),
    *(f"declare cc cursor for {_JOIN} order by 1", "fetch 1 from cc", "close cc"),
    *(f"declare hc cursor with hold for {_JOIN} order by 1", "fetch 1 from hc", "close hc"),
    *("select pg_advisory_lock(5)", "select pg_advisory_unlock_all()"),
)
# Sent as queries only, and what ends all statements with nothing behind it that was prepared before.
_BY_NAME: Final = ("execute n1", "deallocate n1", "execute n2", "explain (costs off) execute n1")
_LAST: Final = ("deallocate all", "discard all", "execute sp")
_COPY_IN: Final = "copy jj from stdin"

# A statement without a text can be prepared in any state of a transaction; nothing else here has two parameters.
_MARKER: Final = struct.pack("!hii", 2, 23, 25)
_MARKED: Final = 3  # ReadyForQuery from the batch's last Sync on
_TO_MARKER: Final = (
    copy_fail("marker") + SYNC + message(b"P", b"marker\0\0" + _MARKER) + describe("marker") + close("marker") + SYNC
)


def pipeline(seed: int) -> list[Batch]:
    """Two to seven batches, each of which ends with a Sync."""
    dice = random.Random(seed)
    return [_batch(dice) for _ in range(dice.randint(2, 7))]


def told(batches: Sequence[Batch]) -> str:
    """The batches, for the message of a test that fails."""
    return "\n".join(" ".join(":".join(said) for said, _ in batch) for batch in batches)


def _batch(dice: random.Random) -> Batch:
    kind = dice.random()
    if kind < 0.5:
        batch = _usual(dice)
    elif kind < 0.7:
        batch = [_query(dice.choice((*_TEXTS, *_BY_NAME, *_LAST)))]
    else:
        batch = [step for _ in range(dice.randint(1, 8)) for step in _any(dice)]
    if batch[-1][0] == ("Q", _COPY_IN):
        batch += [_copy_data(), (("c",), COPY_DONE)]
    if dice.random() < 0.15:
        batch.append((("f",), copy_fail("end")))
    return [*batch, _sync()]


def _usual(dice: random.Random) -> Batch:
    """One to three statements as a driver sends them, though not always from their Parse on."""
    batch: Batch = []
    for _ in range(dice.randint(1, 3)):
        name, portal, text = dice.choice(_NAMES), dice.choice(_PORTALS), dice.choice(_TEXTS)
        if dice.random() < 0.7:
            batch.append(_parse(name, text))
        if dice.random() < 0.3:
            batch.append(_describe(b"S", name))
        batch.append(_bind(name, portal, *((b"3",) if "$1" in text else ())))
        if dice.random() < 0.3:
            batch.append(_describe(b"P", portal))
        batch.append(_execute(portal, dice.choice((0, 0, 0, 1))))
        if text == _COPY_IN:
            if dice.random() < 0.5:
                batch.append(_sync())
            batch += [_copy_data(), dice.choice(((("c",), COPY_DONE), (("f",), copy_fail("no"))))]
        if dice.random() < 0.2:
            batch.append(_sync())
    return batch


def _any(dice: random.Random) -> Batch:
    """Any message, whatever came before it; only a query stands behind a Sync."""
    name, portal = dice.choice(_NAMES), dice.choice(_PORTALS)
    of_statement = dice.random() < 0.5
    target = (b"S", name) if of_statement else (b"P", portal)
    steps: list[tuple[int, Step]] = [
        (22, _parse(name, dice.choice(_TEXTS))),
        (20, _bind(name, portal, *dice.choice(((), (), (b"3",), (b"zz",))))),
        (20, _execute(portal, dice.choice((0, 0, 1, 2)))),
        (8, _describe(*target)),
        (5, (("C", target[0].decode(), target[1]), close(target[1], target[0]))),
        (12, _sync()),
        (3, (("H",), FLUSH)),
        (7, _query(dice.choice((*_TEXTS, *_BY_NAME)))),
        (1, _copy_data()),
        (1, (("c",), COPY_DONE)),
        (1, (("f",), copy_fail("no"))),
    ]
    step = dice.choices([step for _, step in steps], [weight for weight, _ in steps])[0]
    if step[0] == ("Q", _COPY_IN):
        return [_sync(), step, _copy_data(), (("c",), COPY_DONE)]
    return [_sync(), step] if step[0][0] == "Q" else [step]


def _query(text: str) -> Step:
    return ("Q", text), query(text)


def _parse(name: str, text: str) -> Step:
    return ("P", name, text), message(b"P", f"{name}\0{text}\0".encode() + b"\0\0")


def _bind(name: str, portal: str, *values: bytes) -> Step:
    rest = struct.pack("!hh", 0, len(values)) + b"".join(struct.pack("!i", len(value)) + value for value in values)
    return ("B", name, portal, *(value.decode() for value in values)), bind(name, portal, rest + b"\0\0")


def _execute(portal: str, rows: int) -> Step:
    return ("E", portal, str(rows)), execute(portal, rows)


def _describe(kind: bytes, name: str) -> Step:
    return ("D", kind.decode(), name), describe(name, kind)


def _copy_data() -> Step:
    return ("d",), copy_data(b"5\n")


def _sync() -> Step:
    return ("S",), SYNC


async def play(
    server: Any, database: str, batches: Sequence[Batch], neighbour: WireClient | None = None
) -> list[list[Answer]]:
    """What a client of ``server`` (anything with host and port) is answered, batch by batch. A lost connection and an
    answer that does not come are answers too, and the last. The ``neighbour`` takes and leaves a backend of a pool in
    between, so that the client's own changes."""
    client = await WireClient.connect(server, database)
    answers: list[list[Answer]] = []
    try:
        for number, batch in enumerate(batches):
            if neighbour is not None:
                await neighbour.query("commit" if number % 2 else "begin; set local work_mem = '9MB'; select 1")
            client.send(b"".join(sent for _, sent in batch) + _TO_MARKER)
            seen: list[Answer] = []
            answers.append(seen)
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    while _MARKER not in [body for kind, body in seen if kind == b"t"]:
                        seen.append(_comparable(*await client.message()))
                    seen.extend(await client.until(b"Z"))
            except (TimeoutError, Lost) as error:
                seen.append((b"", type(error).__name__.encode()))
                break
        return answers
    finally:
        client.reset()
        if neighbour is not None:
            await neighbour.query("rollback")


def _comparable(kind: bytes, body: bytes) -> Answer:
    if kind == b"A":
        body = body[4:]
    elif kind == b"T":
        body = _without_oids(body)
    elif kind in (b"E", b"N"):
        body = b"\0".join(field for field in body.split(b"\0") if field[:1] not in (b"F", b"L", b"R"))
        body = _UNWANTED.sub(b"unexpected message", body)
    return kind, body


def first_difference(direct: list[list[Answer]], proxied: list[list[Answer]], *, pooled: bool) -> int:
    """The first batch that is answered differently, -1 when there is none.

    A pooled client's statements cannot be prepared again in an aborted transaction, and behind a Sync that follows on
    an error, nobody knows what the client has prepared or closed until the server has said so: from such a batch on
    nothing more is compared.
    """
    for at, (expected, got) in enumerate(zip(direct, proxied, strict=False)):
        if expected != got:
            aborted = at > 0 and direct[at - 1][-1] == (b"Z", b"E")
            return -1 if pooled and (aborted or _goes_on_after_error(expected)) else at
    return -1 if len(direct) == len(proxied) else min(len(direct), len(proxied))


def _goes_on_after_error(answers: list[Answer]) -> bool:
    kinds = b"".join(kind for kind, _ in answers)
    failed = kinds.find(b"E")
    return failed >= 0 and kinds.count(b"Z", failed) > _MARKED


def _without_oids(body: bytes) -> bytes:
    """A RowDescription with no table's OID in it."""
    fields = []
    pos = 2
    while pos < len(body):
        end = body.index(0, pos) + 1
        fields.append(body[pos:end] + body[end + 4 : end + 18])
        pos = end + 18
    return b"|".join(fields)
