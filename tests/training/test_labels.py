"""Labelling: true rows, budgets and timeouts, and nothing counted twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest

from tests.conftest import StartPostgres
from training.counting import Count
from training.errors import TrainingError
from training.labels import Labeller, Labels, digest
from training.training_set import TrainingSet

SLOW = Count("SELECT count(*) FROM pg_sleep(60)")


def small(rows: int) -> Count:
    return Count(f"SELECT count(*) FROM generate_series(1, {rows})")


def open_set(tmp_path: Path) -> TrainingSet:
    return TrainingSet(tmp_path / "shop.training")


async def label(
    dsn: str,
    path: Path,
    counts: list[Count],
    *,
    budget: float = 30,
    seconds: float = 5,
    most_rows: int = 0,
    progress: Callable[[Labels], None] | None = None,
) -> Labels:
    with open_set(path) as kept:
        labeller = Labeller(dsn, kept, budget=budget, timeout=seconds, most_rows=most_rows, progress=progress)
        return await labeller.run(counts)


async def test_counts_are_made_once_and_kept(shop_dsn: str, tmp_path: Path) -> None:
    counts = [small(3), small(0), small(3), Count("SELECT count(*) FROM orders", "SELECT 2000::float8")]
    first = await label(shop_dsn, tmp_path, counts)
    assert (first.wanted, first.counted, first.known, first.left) == (3, 3, 0, 0)
    assert [first.rows[digest(count)] for count in counts] == [3, 0, 3, 2000]
    second = await label(shop_dsn, tmp_path, [*counts, small(7)])
    assert (second.wanted, second.counted, second.known) == (4, 1, 3)
    assert second.rows == {**first.rows, digest(small(7)): 7}


async def test_two_runs_over_the_same_counts_are_told_as_one(shop_dsn: str, tmp_path: Path) -> None:
    await label(shop_dsn, tmp_path, [small(3)])
    counts = [small(3), small(4), small(5), SLOW]
    first = await label(shop_dsn, tmp_path, counts[:2], seconds=0.2)
    both = (await label(shop_dsn, tmp_path, counts, seconds=0.2)).after(first)
    assert (both.wanted, both.known, both.counted, both.timed_out, both.left) == (4, 1, 2, 1, 0)
    assert sorted(both.rows.values()) == [3, 4, 5]
    assert both.seconds > first.seconds


async def test_no_text_of_a_query_is_kept(shop_dsn: str, tmp_path: Path) -> None:
    await label(shop_dsn, tmp_path, [Count("SELECT count(*) FROM regions WHERE name = 'secret'")])
    files = [path for path in (tmp_path / "shop.training").iterdir() if path.name.startswith("labels")]
    assert len(files) == 2
    assert all(b"secret" not in path.read_bytes() for path in files)


async def test_a_count_stopped_at_a_number_of_rows_is_a_lower_bound(shop_dsn: str, tmp_path: Path) -> None:
    exact = Count("SELECT count(*) FROM generate_series(1, 80)", "SELECT 80")
    first = await label(shop_dsn, tmp_path, [small(70), small(30), exact], most_rows=50)
    assert first.rows == {digest(small(30)): 30, digest(exact): 80}
    assert first.bounds == {digest(small(70)): 50}
    assert (first.counted, first.bounded, first.left) == (2, 1, 0)
    with open_set(tmp_path) as kept:
        assert kept.bounds == {digest(small(70)): 50}
    again = await label(shop_dsn, tmp_path, [small(70)], most_rows=50)
    assert (again.bounded, again.counted) == (1, 0)
    higher = await label(shop_dsn, tmp_path, [small(70)], most_rows=100)
    assert higher.rows == {digest(small(70)): 70}


async def test_joins_of_every_size_get_their_share(shop_dsn: str, tmp_path: Path) -> None:
    """Where there is no time for all, those of two tables do not take all of it."""
    many = [Count(f"SELECT count(*) FROM orders, generate_series(1, {n}) g", relations=2) for n in range(600, 800)]
    large = [Count(f"SELECT count(*) FROM orders, generate_series(1, {n}) h", relations=5) for n in range(800, 810)]
    labels = await label(shop_dsn, tmp_path, [*many, *large], budget=2, seconds=5)
    assert labels.left > 0
    assert sum(digest(count) in labels.rows for count in large) >= 3


async def test_slow_counts_are_given_up_and_not_tried_again(shop_dsn: str, tmp_path: Path) -> None:
    first = await label(shop_dsn, tmp_path, [SLOW, small(4)], seconds=0.9)
    assert (first.counted, first.timed_out, first.left) == (1, 1, 0)
    started = time.monotonic()
    second = await label(shop_dsn, tmp_path, [SLOW, small(4)], seconds=0.9)
    assert (second.known, second.timed_out) == (1, 1)
    assert time.monotonic() - started < 0.9
    assert (await label(shop_dsn, tmp_path, [SLOW], seconds=1.0)).timed_out == 1


async def test_what_the_clock_stops_is_a_lower_bound(shop_dsn: str, tmp_path: Path) -> None:
    """As many rows as were passed until then, by whichever form; kept, and not tried again with as little time."""
    series = "generate_series(1, 9999)"
    large = Count(f"SELECT count(*) FROM {series} a, {series} b, {series} c", "SELECT pg_sleep(60)")
    first = await label(shop_dsn, tmp_path, [large, small(4)], seconds=0.5)
    assert (first.counted, first.timed_out, first.bounded, first.left) == (1, 1, 0, 0)
    assert 1 << 16 <= first.bounds[digest(large)] < 9999**3
    second = await label(shop_dsn, tmp_path, [large], seconds=0.5)
    assert (second.bounds, second.timed_out) == (first.bounds, 1)


async def test_the_other_form_is_tried_when_one_takes_too_long(shop_dsn: str, tmp_path: Path) -> None:
    cheap_looking = Count("SELECT count(*) FROM regions WHERE pg_sleep(20) IS NOT NULL", "SELECT 8 FROM orders LIMIT 1")
    labels = await label(shop_dsn, tmp_path, [cheap_looking], seconds=0.3)
    assert labels.rows == {digest(cheap_looking): 8}


async def test_the_budget_ends_everything(shop_dsn: str, tmp_path: Path) -> None:
    slow = [Count(f"SELECT count(*) FROM pg_sleep(60), generate_series(1, {9000 + number})") for number in range(6)]
    started = time.monotonic()
    labels = await label(shop_dsn, tmp_path, [*slow, small(5)], budget=0.8, seconds=30)
    assert time.monotonic() - started < 20
    assert labels.rows == {digest(small(5)): 5}
    assert (labels.left, labels.timed_out) == (6, 0)


async def test_refused_counts_are_named_and_the_rest_goes_on(shop_dsn: str, tmp_path: Path) -> None:
    bad = [
        Count("SELECT count(*) FROM no_such_table"),
        Count("SELECT count(*) FROM orders WHERE 1 / (id - id) > 0"),
        Count("SELECT count(*) FROM nextval('x')"),
    ]
    labels = await label(shop_dsn, tmp_path, [*bad, small(6)])
    assert (labels.counted, labels.failed, labels.left) == (1, 3, 0)
    assert "does not exist" in labels.first_failure or "division" in labels.first_failure


async def test_counting_cannot_write(shop_dsn: str, tmp_path: Path) -> None:
    deleting = "WITH gone AS (DELETE FROM regions RETURNING 1) SELECT 1 FROM gone"
    labels = await label(shop_dsn, tmp_path, [Count("SELECT count(*) FROM regions", deleting)])
    assert labels.failed == 1
    assert "read-only" in labels.first_failure


async def test_an_interrupted_run_goes_on_where_it_stopped(shop_dsn: str, tmp_path: Path) -> None:
    counts = [small(rows) for rows in range(20)]
    enough = asyncio.Event()

    def progress(labels: Labels) -> None:
        if labels.counted >= 5:
            enough.set()

    task = asyncio.create_task(label(shop_dsn, tmp_path, [*counts, SLOW], seconds=30, progress=progress))
    await asyncio.wait_for(enough.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with open_set(tmp_path) as kept:
        done = kept.rows
    assert len(done) >= 5
    labels = await label(shop_dsn, tmp_path, counts)
    assert labels.known == len(done)
    assert labels.known + labels.counted == 20
    assert sorted(labels.rows.values()) == list(range(20))


async def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="the database cannot be reached"):
        await label("postgresql://nobody@127.0.0.1:1/none", tmp_path, [small(1)])
    with pytest.raises(TrainingError, match="the database cannot be reached"):
        await label("not a dsn", tmp_path, [small(1)])


async def test_a_database_that_goes_away(start_postgres: StartPostgres, tmp_path: Path) -> None:
    server = start_postgres()
    enough = asyncio.Event()

    def progress(labels: Labels) -> None:
        if labels.counted >= 3:
            enough.set()

    counts = [small(1), small(2), small(3), SLOW]
    task = asyncio.create_task(label(server.dsn(), tmp_path, counts, seconds=30, progress=progress))
    await asyncio.wait_for(enough.wait(), 10)
    await asyncio.to_thread(server.kill)
    with pytest.raises(TrainingError, match=r"gone in the middle of counting .*; 3 counts are kept in .*to go on$"):
        await task


async def test_terminated_by_an_administrator(shop_dsn: str, tmp_path: Path) -> None:
    task = asyncio.create_task(label(shop_dsn, tmp_path, [SLOW], seconds=30))
    connection = await asyncpg.connect(shop_dsn)
    try:
        for _ in range(100):
            ended = await connection.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                "WHERE application_name = 'pilotwire train' AND wait_event = 'PgSleep' AND datname = current_database()"
            )
            if ended:
                break
            await asyncio.sleep(0.05)
        with pytest.raises(TrainingError, match="gone in the middle of counting"):
            await task
    finally:
        await connection.close()
