"""`pilotwire explore` as a person runs it, and the background explorer as a child of the supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pilotwire.cli import run_program
from pilotwire.explorer_process import start_message
from planner.memory.records import QueryRecord, State, query_key, template_key
from planner.memory.store import open_store
from proxy.settings import ProxySettings
from tests.conftest import StartProxy
from tests.planner.explore.shop import QUICK, SCHEMA, SLOW
from tests.support.postgres import Postgres
from tests.support.waiting import wait_until

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shop(hinted_postgres: Postgres) -> str:
    """A database's name."""
    database = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, database)
    return database


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pilotwire", "explore", "--most-active", "1000", *arguments]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: its exit code, output and errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run_program(command(*arguments)[3:])
        return code, *capsys.readouterr()

    return call


def test_a_file_of_statements(hinted_postgres: Postgres, shop: str, tmp_path: Path, run: Run) -> None:
    queries, store = tmp_path / "queries.sql", tmp_path / "store.db"
    queries.write_text(f"{QUICK};\n{SLOW};\n{SLOW};\nDELETE FROM noted;\n")
    base = ("--upstream", hinted_postgres.dsn(shop), "--queries", str(queries), "--store", str(store))
    code, out, err = run(*base, "--json")
    assert code == 0, err
    told = json.loads(out)
    assert (told["statements"], told["tried"], told["approved"]) == (3, 2, 1)
    assert told["repaid_after_repeats"] > 0
    assert told["spent_seconds"] > 0
    assert [query["reason"] for query in told["queries"] if not query["results"]] == ["not_a_query"]
    with open_store(str(store)) as opened:
        key = query_key(shop, "public", SLOW)
        assert State.APPROVED in {arm.state for arm in opened.arms(key)}
        query = opened.query(key)
        assert query is not None
        assert query.text == ""
    code, out, _ = run(*base)
    assert code == 0
    # Where its arms differed enough to be judged, the quick one is known as well.
    assert "1 known" in out or "2 known" in out
    assert "s of the server's time" in out


def test_what_cannot_be_done_is_one_line(tmp_path: Path, hinted_postgres: Postgres, run: Run) -> None:
    store = ("--store", str(tmp_path / "store.db"))
    for arguments in (
        ("--upstream", "postgresql://postgres@127.0.0.1:1/x", *store),
        ("--upstream", hinted_postgres.dsn(), "--queries", str(tmp_path / "none.sql"), *store),
        ("--upstream", hinted_postgres.dsn(), "--store", "mysql://x"),
    ):
        code, _, err = run(*arguments)
        assert code == 1
        assert err.startswith("pilotwire: ")
        assert err.count("\n") == 1


def test_no_password_on_the_command_line(run: Run) -> None:
    code, _, err = run("--upstream", "postgresql://u@h/d", "--store", "postgresql://u:hidden@h/d")
    assert code == 1
    assert "hidden" not in err


def test_an_empty_store_says_what_to_do(tmp_path: Path, hinted_postgres: Postgres, run: Run) -> None:
    code, out, _ = run("--upstream", hinted_postgres.dsn(), "--store", str(tmp_path / "store.db"))
    assert code == 0
    assert "--queries" in out


def test_interrupted_keeps_what_was_verified(hinted_postgres: Postgres, shop: str, tmp_path: Path) -> None:
    queries, store = tmp_path / "queries.sql", tmp_path / "store.db"
    # The cost decides the order: what never ends comes last.
    endless = "SELECT count(*) FROM noted n, part p WHERE n.sold_id < 0 AND p.id < 0 OR n.word = 'w0' || p.id"
    queries.write_text(f"{SLOW};\n{endless};\n")
    process = subprocess.Popen(
        command("--upstream", hinted_postgres.dsn(shop), "--queries", str(queries), "--store", str(store), "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(lambda: _running(hinted_postgres, "n.sold_id <"), 30, "the endless statement runs")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130, err
    assert "kept" in err
    assert "Traceback" not in err
    json.loads(out)
    wait_until(lambda: not _running(hinted_postgres, "n.sold_id <"), 10, "nothing is left running")


def _running(server: Postgres, text: str) -> bool:
    return (
        server.sql(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND application_name = 'pilotwire explorer' "
            f"AND query LIKE '%{text}%'"
        )
        != "0"
    )


# ---------------------------------------------------------------------- in the background


def remember(store: Path, database: str) -> str:
    """One statement that a proxy has seen; its key."""
    key = query_key(database, "public", SLOW)
    record = QueryRecord(
        key=key, template=template_key(database, "public", "f"), database=database, search_path="public",
        fingerprint="f", text=SLOW, first_seen=time.time(), calls=10, total_ms=500.0,
    )  # fmt: skip
    with open_store(str(store), literals=True) as opened:
        opened.save([record])
    return key


def explorer_of(supervisor: int) -> int:
    for child in psutil.Process(supervisor).children():
        with suppress(psutil.NoSuchProcess):  # it has just ended
            if "pilotwire.explorer_process" in child.cmdline():
                return child.pid
    return 0


def test_the_background_explorer(hinted_postgres: Postgres, shop: str, tmp_path: Path, proxy: StartProxy) -> None:
    store = tmp_path / "store.db"
    key = remember(store, shop)
    started = proxy(
        hinted_postgres, store=str(store), store_literals=True, explore=True, explore_share=1.0,
        explore_most_active=1000, explore_interval="1s", min_gain_ms=1.0, mode="observe",
    )  # fmt: skip

    def approved() -> bool:
        with open_store(str(store)) as opened:
            return State.APPROVED in {arm.state for arm in opened.arms(key)}

    wait_until(approved, 30, "the statement is verified")
    started.wait_log("explored")
    pid = explorer_of(started.process.pid)
    os.kill(pid, signal.SIGKILL)
    started.wait_log("explorer_died")
    wait_until(lambda: explorer_of(started.process.pid) not in (0, pid), 30, "it is started again")
    last = psutil.Process(explorer_of(started.process.pid))
    started.process.kill()
    started.process.wait()
    wait_until(lambda: not last.is_running() or last.status() == psutil.STATUS_ZOMBIE, 40, "it does not outlive it")


@pytest.mark.long
def test_switched_while_it_serves(hinted_postgres: Postgres, tmp_path: Path, proxy: StartProxy) -> None:
    store = str(tmp_path / "store.db")
    started = proxy(hinted_postgres, store=store, store_literals=True, explore=True, mode="observe")
    wait_until(lambda: explorer_of(started.process.pid) != 0, 10, "it runs")
    started.write_config(explore=False)
    started.signal(signal.SIGHUP)
    wait_until(lambda: explorer_of(started.process.pid) == 0, 10, "it has ended")
    started.write_config(explore=True)
    started.signal(signal.SIGHUP)
    wait_until(lambda: explorer_of(started.process.pid) != 0, 10, "it runs again")


def test_off_by_default() -> None:
    settings = ProxySettings.model_validate({"upstream": "postgresql://u@h/d"})
    assert start_message(settings) is None
    on = ProxySettings.model_validate(
        {"upstream": "postgresql://u@h/d", "explore": True, "explore_host": "replica:6543"}
    )
    start = start_message(on)
    assert start is not None
    assert (start.host, start.port) == ("replica", 6543)
    assert start_message(on.model_copy(update={"mode": "off"})) is None
    assert start_message(on.model_copy(update={"store": "none"})) is None
