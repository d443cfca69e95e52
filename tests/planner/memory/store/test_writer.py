"""Whoever puts never waits, whatever the store does: real faults, one by one; and what kill -9 leaves."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import text

from planner.memory.records import ArmRecord, LedgerEntry, QueryRecord, State
from planner.memory.store import Changes, Retention, StoreError, locate, open_store
from planner.memory.store.connect import Connector
from planner.memory.store.rows import Record
from planner.memory.store.writer import Writer
from tests.conftest import StartPostgres
from tests.planner.memory.store.made import NOW, arm, execution, guard, key, line, point, query
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

replace = msgspec.structs.replace
QUICK = 0.05
PUT_SECONDS = 0.2
"""No put may take longer; on a busy machine a thread may not run for some tens of milliseconds."""


class Kept:
    """What a writer told."""

    def __init__(self) -> None:
        self.committed: list[Record] = []
        self.failures: list[StoreError] = []
        self.changes: list[Changes] = []


@contextmanager
def writing(url: str, kept: Kept | None = None, **options: object) -> Iterator[Writer]:
    known = kept or Kept()
    values: dict[str, object] = {"interval": QUICK, "longest_pause": 0.3, "busy_ms": 100}
    writer = Writer(url, known.committed.extend, known.failures.append, **{**values, **options})  # type: ignore[arg-type]
    try:
        yield writer
    finally:
        writer.close(0.5)


def put_quickly(writer: Writer, *records: Record) -> bool:
    started = time.monotonic()
    taken = writer.put(*records)
    assert time.monotonic() - started < PUT_SECONDS
    return taken


def fails(writer: Writer, kind: str) -> Callable[[], bool]:
    return lambda: writer.stats().failing and writer.stats().error == kind


def test_the_latest_record_is_written_with_its_line(url: str) -> None:
    kept = Kept()
    with writing(url, kept) as writer:
        for runs in range(20):
            assert writer.put(query(calls=runs), arm(runs=runs), line(runs))
        writer.put(execution(), point(), guard(content="older"), guard())
        assert writer.flush()
        stats = writer.stats()
    with open_store(url) as store:
        assert (store.queries()[0].calls, store.arms()[0].runs) == (19, 19)
        assert [entry.at - NOW for entry in store.ledger()] == list(range(19, -1, -1))
        assert store.counts() == {
            "queries": 1,
            "arms": 1,
            "ledger": 20,
            "query_metrics": 1,
            "metric_history": 1,
            "guards": 1,
        }
    told = [record for record in kept.committed if isinstance(record, ArmRecord)]
    assert told[-1].runs == 19
    assert told[-1].revision > 0
    assert stats.written["ledger"] == 20
    assert not any(stats.dropped.values())
    assert not stats.failing


def test_it_is_told_of_a_state_only_after_its_commit(url: str) -> None:
    seen: list[State] = []
    with open_store(url) as store:

        def committed(records: list[Record]) -> None:
            seen.extend(record.state for record in store.arms() if record.arm == "no_hashjoin")

        with writing(url) as writer:
            writer._on_committed = committed
            writer.put(arm(state=State.APPROVED), line())
            assert writer.flush()
    assert seen == [State.APPROVED]


def test_several_puts_of_one_writer_are_not_stale(url: str) -> None:
    with writing(url) as writer:
        for state in (State.CANDIDATE, State.TRIAL, State.APPROVED):
            writer.put(arm(state=state))
            assert writer.flush()
        with open_store(url) as store:
            assert store.arms()[0].state is State.APPROVED


def test_others_and_peoples_changes_are_seen_and_stand(url: str) -> None:
    kept = Kept()
    with open_store(url) as store:
        store.save([query()], [arm()])
        with writing(url, kept, on_changed=kept.changes.append) as writer:
            wait_until(lambda: bool(kept.changes), what="the writer has told what is there")
            known = kept.changes[0].arms[0]
            [decided] = store.save(arms=[replace(known, state=State.REJECTED, actor="ann")]).arms
            writer.put(replace(known, state=State.APPROVED, runs=9))
            assert writer.flush()
            told = [record for record in kept.committed if isinstance(record, ArmRecord)]
            assert [(record.state, record.actor, record.runs) for record in told] == [(State.REJECTED, "ann", 9)]
            # It was told, but what comes next need not have been made by somebody who listened.
            writer.put(replace(known, state=State.APPROVED, runs=10))
            assert writer.flush()
            assert store.arms()[0].state is State.REJECTED
            writer.put(replace(told[0], state=State.EXPIRED, actor="system", revision=store.arms()[0].revision))
            assert writer.flush()
            assert store.arms()[0].state is State.EXPIRED
            store.save([query(5)])
            wait_until(lambda: len(kept.changes) >= 2, what="the writer has told of another query")
        assert decided.actor == "ann"
        assert [record.key for record in kept.changes[-1].queries] == [key(5)]
        own = {record.revision for record in told}
        assert not own & {record.revision for changes in kept.changes for record in changes.arms}


def test_it_deletes_what_is_old(sqlite_url: str) -> None:
    with writing(sqlite_url, retention=Retention(ledger=1000)) as writer:
        writer.put(line(), line(2, at=time.time()))
        assert writer.flush()
        writer._expire_at = 0.0
        with open_store(sqlite_url) as store:
            wait_until(lambda: store.counts()["ledger"] == 1, what="the old line is deleted")


class TestFaults:
    """Each is made for real. Queries would go on: nothing here waits, and what is counted adds up."""

    def test_what_does_not_fit_is_counted(self, tmp_path: Path) -> None:
        nowhere = tmp_path / "file"
        nowhere.write_text("")
        with writing(f"{nowhere}/store.db", bound=10) as writer:
            for number in range(25):
                put_quickly(writer, execution(number), query(number), line(number))
            # The latest of a query has room always.
            assert writer.put(query(3, calls=99))
            stats = writer.stats()
            assert {name: stats.dropped[name] for name in ("execution", "query", "ledger")} == {
                "execution": 15, "query": 15, "ledger": 15,
            }  # fmt: skip
            assert stats.pending == {"query": 10, "arm": 0, "ledger": 10, "execution": 10, "history": 0, "guard": 0}
            wait_until(fails(writer, "gone"), what="it has failed")
            assert not writer.flush(1)
            assert writer.stats().pending == stats.pending
            nowhere.unlink()
            assert writer.flush(5)
            written = writer.stats().written
        assert (written["query"], written["ledger"], written["execution"]) == (10, 10, 10)
        with open_store(f"{nowhere}/store.db") as store:
            assert max(record.calls for record in store.queries()) == 99

    def test_long_texts_are_bounded_too(self, tmp_path: Path) -> None:
        nowhere = tmp_path / "file"
        nowhere.write_text("")
        with writing(f"{nowhere}/store.db", max_bytes=200_000) as writer:
            taken = sum(writer.put(execution(number, text="x" * 50_000)) for number in range(10))
        assert taken == 3

    def test_locked(self, sqlite_url: str, tmp_path: Path) -> None:
        kept = Kept()
        with writing(sqlite_url, kept) as writer:
            assert writer.put(arm())
            assert writer.flush()
            holder = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
            holder.execute("BEGIN EXCLUSIVE")
            put_quickly(writer, arm(state=State.APPROVED), line())
            wait_until(fails(writer, "locked"), what="it has failed")
            assert "locked by another process" in writer.stats().sentence
            assert [record.state for record in kept.committed if isinstance(record, ArmRecord)] == [State.TRIAL]
            holder.execute("ROLLBACK")
            holder.close()
            wait_until(lambda: not writer.stats().failing, what="it writes again")
            assert writer.flush()
        with open_store(sqlite_url) as store:
            assert (store.arms()[0].state, store.counts()["ledger"]) == (State.APPROVED, 1)

    def test_slow(self, sqlite_url: str, tmp_path: Path) -> None:
        """A store that answers late holds up its own thread only, and is no failure."""
        with writing(sqlite_url, busy_ms=20_000) as writer:
            writer.put(arm())
            assert writer.flush()
            holder = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            for number in range(100):
                put_quickly(writer, line(number))
            assert not writer.flush(0.3)
            assert writer.stats().pending["ledger"] == 100
            holder.execute("ROLLBACK")
            holder.close()
            assert writer.flush()
            assert writer.stats().failures == {}
            assert writer.stats().last_ms > 200

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a tmpfs")
    def test_full(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", disk], check=False).returncode:
            pytest.skip("this machine lets nobody mount a tmpfs")
        try:
            with writing(f"{disk}/store.db") as writer:
                writer.put(arm())
                assert writer.flush()
                ballast = disk / "ballast"
                with pytest.raises(OSError, match="No space"):
                    ballast.write_bytes(b"x" * 700_000)
                for number in range(300):
                    put_quickly(writer, line(number, why="x" * 900))
                wait_until(fails(writer, "full"), what="it has failed")
                assert "no space is left" in writer.stats().sentence
                subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
                assert writer.flush(5)
                assert writer.stats().written["ledger"] == 300
            with open_store(f"{disk}/store.db") as store:
                assert store.counts()["ledger"] == 300
        finally:
            subprocess.run(["umount", "-l", disk], check=True)

    def test_a_file_may_not_grow(self, sqlite_url: str, tmp_path: Path) -> None:
        program = """
import resource, sys
from planner.memory.store.writer import Writer
from tests.planner.memory.store.made import line
writer = Writer(sys.argv[1], interval=0.05, longest_pause=0.2)
writer.put(line())
assert writer.flush()
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, hard))
for number in range(2, 1002):
    assert writer.put(line(number, why="x" * 500))
assert not writer.flush()
assert writer.stats().error in ("io", "full"), writer.stats()
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
assert writer.close()
assert writer.stats().written["ledger"] == 1001
"""
        subprocess.run([sys.executable, "-c", program, sqlite_url], check=True, timeout=60)
        with open_store(sqlite_url) as store:
            assert store.counts()["ledger"] == 1001

    def test_corrupt(self, sqlite_url: str, tmp_path: Path) -> None:
        file = tmp_path / "store.db"
        with writing(sqlite_url) as writer:
            writer.put(arm())
            assert writer.flush()
            with sqlite3.connect(file) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
            # Every page is overwritten, the file's head too.
            with file.open("r+b") as damaged:
                damaged.write(random.Random(7).randbytes(file.stat().st_size))
            put_quickly(writer, arm(state=State.APPROVED))
            wait_until(fails(writer, "corrupt"), what="it has failed")
            assert "move it away" in writer.stats().sentence
            with pytest.raises(StoreError, match="move it away"):
                open_store(sqlite_url)
            for left in tmp_path.glob("store.db*"):
                left.rename(tmp_path / f"damaged-{left.name}")
            wait_until(lambda: not writer.stats().failing, what="it writes into a new file")
            assert writer.flush()
        with open_store(sqlite_url) as store:
            assert store.arms()[0].state is State.APPROVED

    def test_damage_behind_an_open_connection_is_noticed(
        self, sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its cache knows better than the file: it would go on with what nobody else can read."""
        monkeypatch.setattr("planner.memory.store.connect.SQLITE_RECYCLE_SECONDS", 0.1)
        with open_store(sqlite_url) as store:
            store.save(arms=[arm()])
            with sqlite3.connect(tmp_path / "store.db") as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
            store.save(arms=[arm(2)])
            with (tmp_path / "store.db").open("r+b") as damaged:
                damaged.write(random.Random(7).randbytes((tmp_path / "store.db").stat().st_size))
            time.sleep(0.2)
            with pytest.raises(StoreError, match="move it away"):
                store.save(arms=[arm(3)])

    def test_a_damaged_page_is_told_from_a_whole_file(self, sqlite_url: str, tmp_path: Path) -> None:
        with open_store(sqlite_url) as store:
            store.save(ledger=[line(number, why="x" * 900) for number in range(200)])
        file = tmp_path / "store.db"
        size = file.stat().st_size
        with file.open("r+b") as damaged:
            damaged.seek(size // 2)
            damaged.write(b"\xff" * (size // 2))
        with open_store(sqlite_url) as store, pytest.raises(StoreError) as caught:
            list(store.stream_ledger())
        assert caught.value.kind == "corrupt"

    @pytest.mark.parametrize("replaced", [False, True])
    def test_gone(self, sqlite_url: str, tmp_path: Path, replaced: bool) -> None:
        """SQLite itself would go on writing into a file that has no name any more."""
        kept = Kept()
        with writing(sqlite_url, kept) as writer:
            writer.put(arm())
            assert writer.flush()
            for left in tmp_path.glob("store.db*"):
                left.unlink()
            if replaced:
                open_store(sqlite_url).close()
            put_quickly(writer, arm(2))
            wait_until(lambda: bool(kept.failures), what="it has noticed")
            assert kept.failures[0].kind == "gone"
            wait_until(lambda: not writer.stats().failing, what="it writes into another file")
            assert writer.flush()
        with open_store(sqlite_url) as store:
            assert [record.key for record in store.arms()] == [key(2)]

    def test_a_record_that_is_not_taken_goes_alone(self, postgres_url: str) -> None:
        kept = Kept()
        with writing(postgres_url, kept) as writer:
            writer.put(*(line(number) for number in range(20)), line(99, took_ms="long"), arm(), arm(2, runs="many"))
            assert writer.flush()
            stats = writer.stats()
        assert (stats.dropped["ledger"], stats.dropped["arm"], stats.written["ledger"]) == (1, 1, 20)
        assert stats.pending["ledger"] == stats.pending["arm"] == 0
        with open_store(postgres_url) as store:
            assert [entry.at - NOW for entry in store.stream_ledger()] == list(range(20))
            assert [record.key for record in store.arms()] == [key(1)]

    def test_a_callback_that_fails_ends_nothing(self, sqlite_url: str) -> None:
        def bad(_records: list[Record]) -> None:
            raise RuntimeError("not ours")

        with writing(sqlite_url) as writer:
            writer._on_committed = bad
            for number in range(2):
                writer.put(line(number))
                assert writer.flush()

    def test_a_server_that_stops_hangs_and_is_killed(
        self, start_postgres: StartPostgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = start_postgres()
        url = server.dsn()
        with writing(url) as writer:
            writer.put(arm(), line())
            assert writer.flush(10)
            server.kill()
            put_quickly(writer, arm(state=State.APPROVED), line(2))
            wait_until(fails(writer, "gone"), what="it has failed")
            assert "127.0.0.1" in writer.stats().sentence
            server.start()
            wait_until(lambda: writer.stats().written["ledger"] == 2, what="it writes again")
            with stopped(server):
                monkeypatch.setattr("planner.memory.store.writer.SLOW_SECONDS", 0.3)
                for number in range(3, 10):
                    put_quickly(writer, line(number))
                assert not writer.flush(0.3)
                wait_until(fails(writer, "slow"), what="it says that it hangs")
            wait_until(lambda: writer.stats().written["ledger"] == 9, what="it writes again")
        with open_store(url) as store:
            assert [entry.at - NOW for entry in store.ledger()] == [9, 8, 7, 6, 5, 4, 3, 2, 1]
            assert store.arms()[0].state is State.APPROVED

    def test_who_reads_from_a_server_that_hangs_is_cut_off(
        self, start_postgres: StartPostgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("planner.memory.store.connect.GRACE_MS", 200)
        server = start_postgres()
        connector = Connector(locate(server.dsn()), statement_ms=1000)
        with (
            pytest.raises(StoreError, match="does not answer"),
            connector.reading() as connection,
            stopped(server),
        ):
            connection.execute(text("SELECT 1"))
        with connector.reading() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
        connector.close()


@contextmanager
def stopped(server: Postgres) -> Iterator[None]:
    """A server that does nothing, and whose kernel goes on taking what is sent."""
    pid = server.server.pid
    assert pid is not None
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    for process in (pid, *children):
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in (*children, pid):
            os.kill(process, signal.SIGCONT)


KILLED = """
import os, sys, time
from planner.memory.records import *
from planner.memory.store.writer import Writer
from tests.planner.memory.store.made import arm, execution, guard, key, line
def committed(records):
    for record in records:
        if isinstance(record, ArmRecord):
            # One write each: two threads say something here.
            os.write(1, f"approved {record.arm}\\n".encode())
writer = Writer(sys.argv[1], committed)
number = 0
while True:
    number += 1
    writer.put(arm(1, f"arm{number}", state=State.APPROVED), line(number, arm=f"arm{number}", after="approved"))
    writer.put(execution(number, at=time.time()))
    os.write(1, f"put {number} {time.time()}\\n".encode())
    # With ten times as many a transaction takes a quarter of a second, and that is what is lost then.
    time.sleep(0.02)
"""


@pytest.mark.parametrize("seconds", [0.1, 0.7])
def test_kill_9(sqlite_url: str, seconds: float) -> None:
    """A state counts only after its commit and is there afterwards, with its line; at most a second is lost."""
    open_store(sqlite_url).close()
    with subprocess.Popen([sys.executable, "-c", KILLED, sqlite_url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline()]
        while not said[-1].startswith("approved"):
            said.append(process.stdout.readline())
        time.sleep(seconds)
        killed_at = time.time()
        process.kill()
        said += process.stdout.readlines()
    whole = [text.split() for text in said if text.endswith("\n")]
    promised = {words[1] for words in whole if words[0] == "approved"}
    put = {int(words[1]): float(words[2]) for words in whole if words[0] == "put"}
    with open_store(sqlite_url) as store:
        arms = {record.arm: record.state for record in store.arms()}
        lines = {entry.arm for entry in store.stream_ledger()}
        samples = {round(sample.at, 6) for sample in store.executions(limit=100_000)}
        with store.connector.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    assert promised <= set(arms)
    assert set(arms.values()) <= {State.APPROVED}
    assert lines == set(arms)
    early = [number for number, at in put.items() if at < killed_at - _slowed(list(put.values()))]
    assert {f"arm{number}" for number in early} <= set(arms)
    assert len(samples) >= len(early)
    assert seconds < 0.5 or early


def _slowed(times: list[float]) -> float:
    """What a second is worth to a process that does something at these times, every 20 ms when it has a processor for
    itself: the store promises its second to one that runs."""
    gaps = sorted(later - sooner for sooner, later in pairwise(times))
    usual = gaps[len(gaps) // 2] if gaps else 0.0
    return max(1.0, usual / 0.025) + sum(gap for gap in gaps if gap > 0.07)


def test_records_of_other_kinds_are_told_apart(sqlite_url: str) -> None:
    kept = Kept()
    with writing(sqlite_url, kept) as writer:
        writer.put(query(), line(), point())
        assert writer.flush()
    assert {type(record) for record in kept.committed} >= {QueryRecord, LedgerEntry}
