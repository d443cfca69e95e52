"""Writing queries and arms: what happens when somebody else wrote the same row in the meantime.

A record carries the revision of the row that it was made from. If the row has not changed since, the record replaces
it. Otherwise it is *stale*: its writer has not seen a person's decision, or another instance's evidence. Then

- the row's state stands, with who decided it and why, as does ``opted_out``; only a withdrawal goes through, and that
  not against a person;
- the pairs of runs of both are put together (`planner.memory.evidence.together`); of the numbers of runs (arms) and
  calls (queries) the larger one stands, since both hold what they began from;
- a ledger line on a change of state that did not come about, or that another instance has written, is left out.

A forgotten query leaves a tombstone. A query first seen later takes its place; anything else about it, arms included,
comes from somebody who has not seen it and is left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec
from sqlalchemy import Connection, Table, tuple_
from sqlalchemy import select as select_
from sqlalchemy.dialects import postgresql, sqlite

from planner.memory.evidence import together
from planner.memory.records import ArmRecord, GuardRecord, LedgerEntry, QueryRecord, State
from planner.memory.store.rows import from_row, to_row
from planner.memory.store.tables import ARMS, GUARDS, LEDGER, QUERIES

_CHUNK: Final = 300
"""Keys in one IN list."""
_AT_ONCE_SECONDS: Final = 60.0
"""Instances that come to the same conclusion within this time came to it from the same evidence."""
SYSTEM: Final = "system"
_DECISION: Final = ("state", "why", "actor")
_WITHDRAWN: Final = frozenset({State.REJECTED, State.EXPIRED})


def save_queries(
    connection: Connection, records: Iterable[QueryRecord], revision: int, *, literals: bool
) -> list[QueryRecord]:
    """Writes them under ``revision``; what stands in the store now, a tombstone where one was left out. Without
    ``literals``, what an earlier setting let in goes too."""
    wanted = {record.key: record for record in records}
    known = _queries(connection, list(wanted))
    written: list[QueryRecord] = []
    refused: list[QueryRecord] = []
    for key, record in wanted.items():
        found = known.get(key)
        if found is not None and found.forgotten and not record.forgotten and record.first_seen <= found.updated:
            refused.append(found)
            continue
        made = record if found is None or found.forgotten else _merged_query(found, record)
        if not literals:
            made = msgspec.structs.replace(made, text="", params="")
        written.append(msgspec.structs.replace(made, revision=revision))
    upsert(connection, QUERIES, [to_row(record) for record in written])
    return written + refused


def save_arms(
    connection: Connection, records: Iterable[ArmRecord], revision: int, untrue: set[tuple[str, str, str]] | None = None
) -> list[ArmRecord]:
    """Writes them under ``revision``; what stands in the store now. ``untrue`` gets (key, arm, state) of the changes of
    state that did not come about."""
    wanted = {(record.key, record.arm): record for record in records}
    forgotten = {key for key, query in _queries(connection, [key for key, _ in wanted]).items() if query.forgotten}
    known = _arms(connection, list(wanted))
    written: list[ArmRecord] = []
    for pair, record in wanted.items():
        if record.key in forgotten:
            continue
        found = known.get(pair)
        made = _merged_arm(found, record) if found else record
        if found is not None and record.revision < found.revision and untrue is not None:
            moved = {made.state} - {found.state}
            untrue.update((*pair, str(state)) for state in State if state not in moved)
        written.append(msgspec.structs.replace(made, revision=revision))
    upsert(connection, ARMS, [to_row(record) for record in written])
    return written


def save_guards(connection: Connection, records: Iterable[GuardRecord], revision: int) -> list[GuardRecord]:
    """Writes those that are not older than what is there, under ``revision``; what was written."""
    wanted = {record.name: record for record in records}
    chosen = select_(GUARDS.c.name, GUARDS.c.updated).where(GUARDS.c.name.in_(list(wanted)))
    there = {row.name: row.updated for row in connection.execute(chosen)} if wanted else {}
    written = [
        msgspec.structs.replace(record, revision=revision)
        for name, record in wanted.items()
        if record.updated >= there.get(name, record.updated)
    ]
    upsert(connection, GUARDS, [to_row(record) for record in written])
    return written


def true_lines(lines: Iterable[LedgerEntry], untrue: set[tuple[str, str, str]]) -> list[LedgerEntry]:
    """Without the system's lines on changes of state that did not come about."""
    return [line for line in lines if line.kind != "state" or (line.key, line.arm, line.after) not in untrue]


def unrepeated(connection: Connection, lines: Iterable[LedgerEntry]) -> list[LedgerEntry]:
    """Without the system's lines on a change of state that another instance has just told of: it may be known here
    before our own line on it is written. The same change cannot happen twice in a row."""
    last: dict[tuple[str, str], tuple[str, str, float]] = {}
    kept: list[LedgerEntry] = []
    for line in lines:
        if line.kind == "state" and line.actor == SYSTEM and line.before != line.after:
            pair = (line.key, line.arm)
            if pair not in last:
                chosen = (
                    select_(LEDGER.c.before, LEDGER.c.after, LEDGER.c.at)
                    .where(LEDGER.c.key == line.key, LEDGER.c.arm == line.arm, LEDGER.c.kind == "state")
                    .order_by(LEDGER.c.id.desc())
                    .limit(1)
                )
                row = connection.execute(chosen).first()
                last[pair] = (row.before, row.after, row.at) if row is not None else ("", "", 0.0)
            before, after, at = last[pair]
            if (before, after) == (line.before, line.after) and abs(line.at - at) < _AT_ONCE_SECONDS:
                continue
            last[pair] = (line.before, line.after, line.at)
        kept.append(line)
    return kept


def upsert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]], *, keep: bool = False) -> int:
    """Inserts ``rows``, replacing those with the same primary key; with ``keep`` it is the old ones that stay, and rows
    with a ``uid`` that is there are left out. The number of rows written, as far as the driver tells it."""
    if not rows:
        return 0
    insert: Any = sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)
    if keep:
        statement = insert.on_conflict_do_nothing()
    else:
        keys = [column.name for column in table.primary_key]
        values = {name: insert.excluded[name] for name in rows[0] if name not in keys}
        statement = insert.on_conflict_do_update(index_elements=keys, set_=values)
    return max(0, connection.execute(statement, list(rows)).rowcount)


def _merged_query(found: QueryRecord, record: QueryRecord) -> QueryRecord:
    if record.revision >= found.revision:
        return record
    more, less = (found, record) if found.calls > record.calls else (record, found)
    return msgspec.structs.replace(
        more,
        opted_out=found.opted_out,
        actor=found.actor,
        first_seen=min(found.first_seen or record.first_seen, record.first_seen or found.first_seen),
        last_seen=max(found.last_seen, record.last_seen),
        text=more.text or less.text,
        params=more.params or less.params,
        shape=more.shape or less.shape,
    )


def _merged_arm(found: ArmRecord, record: ArmRecord) -> ArmRecord:
    if record.revision >= found.revision:
        return record
    more, decided = (found if found.runs > record.runs else record), found
    if found.actor == SYSTEM and record.state in _WITHDRAWN:
        decided = record
    pairs = together(found, record)
    return msgspec.structs.replace(more, **{name: getattr(decided, name) for name in _DECISION}, **pairs)


def _queries(connection: Connection, keys: Sequence[str]) -> dict[str, QueryRecord]:
    found: dict[str, QueryRecord] = {}
    for start in range(0, len(keys), _CHUNK):
        chosen = select_(QUERIES).where(QUERIES.c.key.in_(keys[start : start + _CHUNK]))
        for row in connection.execute(chosen).mappings():
            found[row["key"]] = from_row(QueryRecord, row)
    return found


def _arms(connection: Connection, pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], ArmRecord]:
    found: dict[tuple[str, str], ArmRecord] = {}
    for start in range(0, len(pairs), _CHUNK):
        chosen = select_(ARMS).where(tuple_(ARMS.c.key, ARMS.c.arm).in_(pairs[start : start + _CHUNK]))
        for row in connection.execute(chosen).mappings():
            found[row["key"], row["arm"]] = from_row(ArmRecord, row)
    return found
