"""Exploring against a real server and a real store: what is tried, what is left alone, what is remembered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from planner.advice import Advice, RowsAdvice
from planner.catalog_load import load
from planner.explore.server import APPLICATION, Connection, Link
from planner.explore.throttle import Throttle, active_backends
from planner.memory.evidence import Rules
from planner.memory.explorer import ExploreOptions, Explorer, Report, Wanted, wanted_of
from planner.memory.records import COUNTED_ARM, QueryRecord, State, query_key
from planner.memory.store import Store, open_store
from planner.snapshot import Snapshot
from tests.planner.explore.shop import QUICK, SCHEMA, SLOW
from tests.support.postgres import Postgres

OPTIONS = ExploreOptions(budget=30.0, most_active=1000, rules=Rules(min_ms=1.0), cheap_ms=2.0)


@pytest.fixture(scope="module")
def shop_dsn(hinted_postgres: Postgres) -> str:
    database = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, database)
    return hinted_postgres.dsn(database)


@pytest.fixture
async def link(shop_dsn: str) -> AsyncIterator[Link]:
    opened = Link(shop_dsn)
    yield opened
    await opened.close()


@pytest.fixture
async def snapshot(link: Link) -> Snapshot:
    return await load(await link.get())


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "store.db"), literals=True) as opened:
        yield opened


@pytest.fixture
def explore(store: Store, link: Link, snapshot: Snapshot) -> Callable[..., Any]:
    async def run(*wanted: Wanted | str, options: ExploreOptions = OPTIONS, **more: Any) -> Report:
        explorer = Explorer(store, snapshot, link, options, **more)
        return await explorer.explore([one if isinstance(one, Wanted) else Wanted(one) for one in wanted])

    return run


async def test_what_wins_is_approved_and_kept(explore: Any, store: Store, snapshot: Snapshot) -> None:
    report = await explore(SLOW)
    [one] = report.explored
    assert one.approved is not None
    assert one.saved_ms > 0
    assert report.repays_after == pytest.approx(report.spent * 1000 / one.saved_ms)
    key = query_key(snapshot.database, "public", SLOW)
    query = store.query(key)
    assert query is not None
    assert query.text == SLOW
    assert len(query.baseline) >= 3
    arms = {arm.arm: arm for arm in store.arms(key)}
    best = arms[one.approved.record.arm]
    assert best.state is State.APPROVED
    assert best.measured_gain >= 1.2
    assert len(best.latencies) == len(best.baseline) >= 3
    assert best.schema_hash
    assert best.server_version >= 140000
    assert {arm.state for arm in arms.values()} == {State.APPROVED, State.REJECTED}
    lines = store.ledger(key=key)
    assert {line.after for line in lines} == {"trial", "approved", "rejected"}
    assert all(line.actor == "system" and line.why.startswith("explored") for line in lines)


async def test_what_is_known_is_not_tried_again(explore: Any, store: Store) -> None:
    await explore(SLOW)
    before = store.ledger()
    report = await explore(SLOW)
    assert [one.reason for one in report.explored] == ["known"]
    assert store.ledger() == before
    again = await explore(SLOW, options=ExploreOptions(most_active=1000, again=True, rules=OPTIONS.rules))
    assert again.explored[0].results is not None


async def test_what_must_not_be_run_is_left_alone(explore: Any) -> None:
    join = "FROM part p JOIN sold s ON s.part_id = p.id"
    reasons = {
        f"SELECT noisy(p.id) {join}": "volatile",
        f"SELECT random() {join}": "volatile",
        f"SELECT count(*) {join} WHERE p.id === 1": "volatile",
        f"SELECT p.id {join} FOR UPDATE": "not_read_only",
        "WITH gone AS (DELETE FROM noted RETURNING 1) SELECT count(*) FROM gone, part": "not_read_only",
        "DELETE FROM noted": "not_a_query",
        "SELECT 1; DELETE FROM noted": "not_a_query",
        f"/*+ Set(enable_sort off) */ SELECT count(*) {join}": "hinted",
        f"/* pilotwire: off */ SELECT count(*) {join}": "opted_out",
        "SELECT count(*) FROM part": "no_join",
    }
    report = await explore(*reasons)
    assert {one.wanted.sql: one.reason for one in report.explored} == reasons
    assert report.tried == []


async def test_most_total_time_first(explore: Any) -> None:
    report = await explore(Wanted(QUICK, total_ms=10), Wanted(SLOW, total_ms=500), Wanted("SELECT 1", total_ms=90))
    assert [one.wanted.total_ms for one in report.explored] == [500, 90, 10]
    by_cost = await explore(QUICK, SLOW)
    assert [one.wanted.sql for one in by_cost.explored] == [SLOW, QUICK]


async def test_the_budget(explore: Any) -> None:
    report = await explore(SLOW, options=ExploreOptions(budget=0.02, most_active=1000))
    assert report.stopped == "the budget is spent"
    assert report.approved == []


async def test_one_that_never_ends_leaves_something_to_the_others(explore: Any) -> None:
    endless = "SELECT count(*) FROM noted n, part p WHERE n.sold_id < 0 AND p.id < 0 OR n.word = 'w0' || p.id"
    report = await explore(
        Wanted(endless, total_ms=9), Wanted(SLOW, total_ms=5), Wanted(QUICK, total_ms=1),
        options=ExploreOptions(budget=12.0, most_active=1000, rules=OPTIONS.rules),
    )  # fmt: skip
    assert [one.reason for one in report.explored] == ["share_spent", "", ""]
    assert report.explored[0].spent < 5.0
    assert report.explored[1].approved is not None


async def test_rows_from_counting_are_an_arm(explore: Any, store: Store) -> None:
    async def count(connection: Connection, sql: str, snapshot: Snapshot, path: Any, seconds: float) -> Advice:
        return Advice((RowsAdvice(("p", "q"), 200),), relations=2)

    report = await explore(SLOW, count=count)
    states = {one.record.arm: one.record for one in report.explored[0].decided}
    assert states[COUNTED_ARM].advice.rows == ((("p", "q"), 200.0),)


async def test_a_persons_decision_stands(explore: Any, store: Store, snapshot: Snapshot) -> None:
    await explore(SLOW)
    key = query_key(snapshot.database, "public", SLOW)
    [arm] = [arm for arm in store.arms(key) if arm.arm == "no_nestloop"]
    arm.state, arm.actor = State.REJECTED, "anna"
    store.save(arms=[arm])
    await explore(SLOW, options=ExploreOptions(most_active=1000, again=True, rules=OPTIONS.rules))
    [now] = [arm for arm in store.arms(key) if arm.arm == "no_nestloop"]
    assert (now.state, now.actor) == (State.REJECTED, "anna")
    query = store.query(key)
    assert query is not None
    query.opted_out, query.actor = True, "anna"
    store.save([query])
    report = await explore(SLOW)
    assert report.explored[0].reason == "frozen"


async def test_stopped_in_the_middle_keeps_what_was_done(store: Store, link: Link, snapshot: Snapshot) -> None:
    explorer = Explorer(store, snapshot, link, OPTIONS)
    sleepy = SLOW.replace("count(*)", "count(*), count(md5(p.id::text))")

    def progress(report: Report, wanted: Wanted | None) -> None:
        if wanted is not None and wanted.sql == sleepy:
            asyncio.get_running_loop().call_soon(task.cancel)

    explorer._progress = progress
    task = asyncio.ensure_future(explorer.explore([Wanted(SLOW, total_ms=2), Wanted(sleepy, total_ms=1)]))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [one.approved is not None for one in explorer.report.explored] == [True, False]
    assert store.arms(query_key(snapshot.database, "public", SLOW))


async def test_a_busy_server_stops_it(explore: Any, shop_dsn: str) -> None:
    async with asyncio.timeout(20):
        other = Link(shop_dsn)
        connection = await other.get()
        await connection.execute("SET application_name = 'somebody'")
        sleeping = asyncio.ensure_future(connection.execute("SELECT pg_sleep(3)"))
        await asyncio.sleep(0.2)
        report = await explore(SLOW, options=ExploreOptions(most_active=0, patience=0.0))
        assert report.stopped.startswith("the server is busy")
        assert report.tried == []
        sleeping.cancel()
        await asyncio.wait([sleeping])
        await other.close()


async def test_explorers_do_not_count_as_busy(hinted_postgres: Postgres, shop_dsn: str) -> None:
    # A role that sees its own sessions only: others use this server too.
    role = hinted_postgres.create_role("secret")
    dsn = hinted_postgres.dsn(shop_dsn.rpartition("/")[2], role).replace(role, f"{role}:secret")
    looking, other = Link(dsn), Link(dsn)
    look, connection = await looking.get(), await other.get()
    for name, counted in (("somebody", 1), (APPLICATION, 0)):
        await connection.execute(f"SET application_name = '{name}'")
        sleeping = asyncio.ensure_future(connection.execute("SELECT pg_sleep(0.5)"))
        seen = set()
        while not sleeping.done():
            seen.add(await active_backends(look))
            await asyncio.sleep(0.02)
        await sleeping
        assert max(seen) == counted
    await other.close()
    await looking.close()


async def test_the_share_of_time(link: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(seconds)

    throttle = Throttle(link, share=0.1, most_active=1000)
    await throttle(0.0)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await throttle(2.0)
    await throttle(0.0)
    assert rests == [pytest.approx(18.0)]
    assert throttle.rested == pytest.approx(18.0)


def test_what_the_store_gives_back() -> None:
    record = QueryRecord(
        key="k", template="t", database="d", search_path="public, other", fingerprint="f", text="SELECT $1",
        params='["1", null]', calls=3, baseline=(2.0, 4.0),
    )  # fmt: skip
    assert wanted_of(record) == Wanted("SELECT $1", ("1", None), ("public", "other"), 3, 9.0, "f")
    for wrong in ("{", "5", "[1]"):
        record.params = wrong
        assert wanted_of(record) is None
    record.text = ""
    assert wanted_of(record) is None
