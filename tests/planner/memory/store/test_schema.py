"""Upgrades keep what is there, whoever comes first does them once, and a newer store is left alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text

from planner.memory.records import State, StoredAdvice
from planner.memory.store import StoreError, open_store
from planner.memory.store.connect import Connector
from planner.memory.store.location import locate
from planner.memory.store.schema import HEAD, check, current, scripts, upgrade
from planner.memory.store.tables import METADATA, VERSION_TABLE
from tests.planner.memory.store.made import arm, execution, key, point, query

# What the first release of the schema held: a row of each table, as that release wrote it.
OLD_ROWS = (
    "INSERT INTO queries (key, template, database, search_path, fingerprint, text, params, baseline, actor, "
    "first_seen, last_seen, total_ms, updated, calls, revision, opted_out, forgotten) VALUES "
    f"('{key(1)}', '{key(1)}', 'shop', 'public', 'f1', 'SELECT 1', '', '[9.0,10.0]', 'ann', 1.5, 2.5, 30.0, 2.5, 3, 7, "
    "true, false)",
    "INSERT INTO arms (key, arm, state, advice, dialect, model, latencies, baseline, schema_hash, drift, why, actor, "
    "expected_gain, measured_gain, updated, runs, losses, server_version, revision) VALUES "
    f"('{key(1)}', 'no_hashjoin', 'approved', '[[],[[\"enable_hashjoin\",\"off\"]],0,0.0]', 'settings', '', '[4.0]', "
    "'[9.0]', 'ab', 'cd', 'it won', 'system', 2.5, 2.0, 2.5, 2, 0, 180001, 7)",
    "INSERT INTO ledger (uid, at, kind, key, database, fingerprint, arm, advice, model, before, after, actor, why, "
    "text, expected_gain, measured_gain, took_ms) VALUES "
    f"('u1', 2.5, 'state', '{key(1)}', 'shop', 'f1', 'no_hashjoin', '[]', '', 'trial', 'approved', 'system', 'it won', "
    "'SELECT 1', 2.5, 2.0, 4.0)",
)


@pytest.fixture
def empty(url: str) -> Connector:
    connector = Connector(locate(url))
    connector.create_file()
    return connector


def test_an_upgrade_keeps_what_is_there(url: str, empty: Connector) -> None:
    assert upgrade(empty, "0001") == ("", "0001")
    with empty.writing() as connection:
        for statement in OLD_ROWS:
            connection.execute(text(statement.replace(":", "\\:")))
    with pytest.raises(StoreError, match=r"has schema 0001, this program needs .*: run `pilotwire store migrate`"):
        open_store(url, migrate=False)
    with open_store(url) as store:
        found = store.query(key(1))
        [kept] = store.arms()
        [entry] = store.ledger()
        assert found is not None
        assert (found.opted_out, found.actor, found.baseline, found.calls) == (True, "ann", (9.0, 10.0), 3)
        assert (kept.state, kept.advice) == (State.APPROVED, StoredAdvice(settings=(("enable_hashjoin", "off"),)))
        assert (kept.latencies, kept.server_version, kept.revision) == ((4.0,), 180001, 7)
        assert (entry.after, entry.why, entry.text, entry.id) == ("approved", "it won", "SELECT 1", 1)
        store.save([query(2)], [arm(2)], (), [execution(2)], [point(2)])
    open_store(url, migrate=False).close()
    empty.close()


def test_the_migrations_make_what_the_program_reads(empty: Connector) -> None:
    upgrade(empty)
    with empty.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
        assert compare_metadata(context, METADATA) == []
        assert current(connection) == HEAD
    empty.close()


def test_the_scripts_are_found_and_shipped() -> None:
    assert scripts().get_current_head() == HEAD
    for script in scripts().walk_revisions():
        # Part of a package, so that an installation has it however it was made.
        assert (Path(script.path).parent / "__init__.py").exists()
        assert script.module.__doc__


def test_a_newer_store_is_refused(url: str) -> None:
    open_store(url).close()
    connector = Connector(locate(url))
    with connector.writing() as connection:
        connection.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '9999'"))
    for attempt in (lambda: open_store(url), lambda: open_store(url, migrate=False), lambda: check(connector)):
        with pytest.raises(
            StoreError, match=f"newer pilotwire .schema 9999, this program knows up to {HEAD}"
        ) as caught:
            attempt()
        assert caught.value.kind == "newer"
    with connector.reading() as connection:
        assert current(connection) == "9999"
    connector.close()


def test_an_upgrade_that_is_cut_off_leaves_the_old_schema(empty: Connector) -> None:
    upgrade(empty, "0001")
    with empty.writing() as connection:
        # The last thing that the next step makes is there already.
        connection.execute(text("CREATE TABLE metric_history (at double precision)"))
    with pytest.raises(StoreError):
        upgrade(empty)
    with empty.writing() as connection:
        assert current(connection) == "0001"
        connection.execute(text("DROP TABLE metric_history"))
    assert upgrade(empty) == ("0001", HEAD)
    empty.close()


def test_several_that_start_together_upgrade_once(url: str) -> None:
    barrier = threading.Barrier(4)

    def start(_: int) -> dict[str, int]:
        barrier.wait()
        with open_store(url) as store:
            return store.counts()

    with ThreadPoolExecutor(4) as pool:
        assert [set(counts.values()) for counts in pool.map(start, range(4))] == [{0}] * 4
    with open_store(url) as store, store.connector.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM store_revision")).scalar() == 1
