"""What the admin pages read of a real store, and a person's decisions written into it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from pilotwire.admin_memory import StoreMemory
from pilotwire.latency_history import TIME_SAVED, LatencyHistory
from planner.memory.records import HistoryPoint, State
from planner.memory.store import open_store
from proxy.admin.source import NotFoundError, RefusedError, UnavailableError
from proxy.settings import ProxySettings
from tests.support.memories import remember, switch_off

WINS, LOSES, WAITS = "SELECT 1 FROM wins", "SELECT 1 FROM loses", "SELECT 1 FROM waits"
STATEMENTS = {
    WINS: (State.APPROVED, 100.0, 20.0),
    LOSES: (State.TRIAL, 50.0, 75.0),
    WAITS: (State.CANDIDATE, 900.0, 90.0),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def keys(path: Path) -> dict[str, str]:
    return remember(path, STATEMENTS, "shop")


@pytest.fixture
async def memory(path: Path, keys: dict[str, str]) -> AsyncIterator[StoreMemory]:
    made = reader(str(path))
    yield made
    await made.close()


def reader(url: str | None) -> StoreMemory:
    settings = ProxySettings.model_validate({"upstream": "postgresql://app@127.0.0.1/shop", "store": "none"})
    made = StoreMemory(url, lambda: settings)
    made.latency_history = LatencyHistory(dict, lambda: 60.0, made.save_history)
    return made


async def test_queries_are_ordered_by_what_was_won_or_lost(memory: StoreMemory) -> None:
    saved, total = await memory.queries("saved", 0, 10, None, None, "")
    lost, _ = await memory.queries("lost", 0, 1, None, None, "")
    by_time, _ = await memory.queries("total", 0, 10, None, None, "")
    assert total == 3
    assert [row.text for row in saved] == [WINS, WAITS, LOSES]
    assert [row.text for row in lost] == [LOSES]
    assert by_time[0].text == WAITS
    won = saved[0]
    assert won.saved_ms == pytest.approx(10 * 80, rel=0.1)
    assert (won.state, won.arm, won.arms) == ("approved", "no_hashjoin", 1)
    # What only the explorer has run has saved nobody anything.
    assert saved[1].saved_ms == 0


async def test_queries_are_found_and_paged(memory: StoreMemory) -> None:
    rows, total = await memory.queries("total", 1, 1, None, None, "")
    assert (len(rows), total) == (1, 3)
    rows, total = await memory.queries("total", 0, 10, "trial", None, "")
    assert [row.text for row in rows] == [LOSES]
    rows, total = await memory.queries("total", 0, 10, None, "elsewhere", "")
    assert total == 0
    rows, total = await memory.queries("total", 0, 10, None, "shop", "FROM WAITS")
    assert [row.text for row in rows] == [WAITS]


async def test_one_query_with_its_evidence(memory: StoreMemory, keys: dict[str, str]) -> None:
    found = await memory.query(keys[WINS])
    (arm,) = found.arms
    assert (arm.settings, arm.runs, arm.measured_gain) == ((("enable_hashjoin", "off"),), 10, 5.0)
    assert [run.decision for run in found.runs] == ["control", "steered"] * 3
    assert found.runs[0].at > found.runs[-1].at
    assert [line.after for line in found.ledger] == ["approved"]
    with pytest.raises(NotFoundError):
        await memory.query("00" * 16)


async def test_a_persons_decisions_are_written_with_a_line_in_the_ledger(
    memory: StoreMemory, keys: dict[str, str], path: Path
) -> None:
    await memory.decide(keys[LOSES], "reject", "", "anna", "slower every time")
    found = await memory.decide(keys[WINS], "freeze", "", "anna", "an audit")
    assert found.query.opted_out
    assert found.query.state == "frozen"
    rows, _ = await memory.queries("lost", 0, 1, None, None, "")
    assert rows[0].state == "rejected"
    lines = await memory.ledger("person", None, None, 10)
    assert [(line.actor, line.why, line.after) for line in lines] == [
        ("anna", "an audit", "frozen"), ("anna", "slower every time", "rejected"),
    ]  # fmt: skip
    await memory.decide(keys[WINS], "unfreeze", "", "anna", "")
    out = await memory.decide(keys[WINS], "opt_out", "", "anna", "")
    with open_store(str(path)) as store:
        template = store.query(out.query.template)
    assert template is not None
    assert template.opted_out
    await memory.decide(keys[WAITS], "forget", "", "anna", "")
    with pytest.raises(NotFoundError):
        await memory.query(keys[WAITS])
    with pytest.raises(RefusedError, match="person"):
        await memory.decide(keys[WINS], "approve", "", "system", "")
    with pytest.raises(NotFoundError):
        await memory.decide(keys[WINS], "approve", "no_such_arm", "anna", "")


async def test_a_switch_of_the_mode_is_in_the_ledger_once_the_store_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "later"
    memory = reader(str(folder / "store.db"))
    folder.write_text("no folder yet")
    await memory.mode_switched("on", "off", "anna", "an incident")
    await memory.mode_switched("off", "off", "anna", "")
    folder.unlink()
    folder.mkdir()
    memory._trouble = (0.0, "")
    for _ in range(2):
        assert await memory.save_history([])
    (line,) = await memory.ledger("mode", None, None, 10)
    assert (line.before, line.after, line.actor, line.why) == ("on", "off", "anna", "an incident")
    await memory.close()


async def test_a_breaker_is_closed_by_a_person(memory: StoreMemory, path: Path) -> None:
    with open_store(str(path)) as store:
        switch_off(store, "m-1")
    (_, off) = await memory.breakers()
    assert (off.source, off.covers, off.position) == ("m-1", "trials", "open")
    (_, closed) = await memory.close_breaker("m-1", "", "anna", "mended")
    assert (closed.position, closed.until) == ("closed", None)
    (line,) = await memory.ledger("breaker", None, None, 10)
    assert (line.actor, line.model, line.after) == ("anna", "m-1", "closed")
    with pytest.raises(NotFoundError):
        await memory.close_breaker("m-1", "", "anna", "")
    with pytest.raises(RefusedError, match="person"):
        await memory.close_breaker("m-1", "", "system", "")


async def test_the_ledger_turns_its_pages(memory: StoreMemory) -> None:
    first = await memory.ledger(None, None, None, 2)
    rest = await memory.ledger(None, None, first[-1].id, 2)
    assert [len(first), len(rest)] == [2, 1]
    assert min(line.id for line in first) > rest[0].id


async def test_history_and_gain_come_from_the_store(memory: StoreMemory, path: Path) -> None:
    end = datetime.now().astimezone()
    rows = await memory.history("statement_latency", None, end - timedelta(hours=1), end)
    assert [row.p95 for row in rows] == sorted((row.p95 for row in rows), reverse=True)
    assert len(rows) == 11
    assert not (await memory.gain()).known
    midnight = end.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    points = [HistoryPoint(at=at, model="none", metric=TIME_SAVED, seconds=300, count=1, p50=30, p95=2, p99=0)
              for at in (midnight - 10, midnight, midnight + 1)]  # fmt: skip
    with open_store(str(path)) as store:
        store.save(history=points)
    other = reader(str(path))
    gain = await other.gain()
    await other.close()
    assert (gain.saved_s, gain.lost_s, gain.regressions, gain.known) == (60.0, 4.0, 2, True)


async def test_without_a_store_it_says_so_and_keeps_history_in_memory() -> None:
    off = reader(None)
    with pytest.raises(UnavailableError, match="switched off"):
        await off.queries("saved", 0, 10, None, None, "")
    end = datetime.now().astimezone()
    assert await off.history("statement_latency", None, end - timedelta(hours=1), end) == []
    assert not (await off.gain()).known
    assert await off.save_history([]) is True
    await off.close()


async def test_a_broken_store_is_one_sentence_and_is_not_asked_at_once_again(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is no database" * 100)
    broken = reader(str(tmp_path / "store.db"))
    for _ in range(2):
        with pytest.raises(UnavailableError) as caught:
            await broken.ledger(None, None, None, 10)
        assert "\n" not in str(caught.value)
    point = HistoryPoint(at=1, model="m", metric="statement_latency", seconds=1, count=1, p50=1, p95=1, p99=1)
    assert await broken.save_history([point]) is False
    await broken.close()


async def test_plans_want_the_very_statement_where_none_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bare.db"
    keys = remember(path, STATEMENTS, "shop", literals=False)
    memory = reader(str(path))
    with pytest.raises(RefusedError, match="store_literals"):
        await memory.plans(keys[WINS], "", "", analyze=False)
    with pytest.raises(RefusedError, match="to the letter"):
        await memory.plans(keys[WINS], "DROP TABLE wins", "", analyze=False)
    shown = (await memory.query(keys[WINS])).query.text
    assert "wins" in shown
    await memory.close()
    await asyncio.sleep(0)
