"""PostgreSQL's log, as a real server writes it in each of its formats."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import StartPostgres
from tests.support.waiting import eventually
from tests.training import shop
from training.counting import Count
from training.errors import TrainingError
from training.labels import Labeller
from training.sources.log import read_log
from training.training_set import TrainingSet

JOINED = "SELECT count(*) FROM customers c JOIN orders o ON c.id = o.customer_id"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "postgresql.log"


async def test_a_real_servers_logs(start_postgres: StartPostgres, tmp_path: Path) -> None:
    config = {
        "logging_collector": "on", "log_destination": "stderr,csvlog,jsonlog", "log_directory": "log",
        "log_filename": "postgresql.log", "log_min_duration_statement": "0", "log_line_prefix": "%m [%p] %q%u@%d ",
    }  # fmt: skip
    server = start_postgres(config=config)
    dsn = shop.create(server)
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(f"{JOINED}\n\tWHERE c.age < 30 -- two lines")
        await connection.fetch(f"{JOINED} WHERE o.status = $1 AND c.age > $2", "it's", 20)
        await connection.fetch(f"{JOINED} WHERE o.status = $1", None)
        await connection.execute("SELECT * FROM orders; SELECT 1")
        await connection.execute(f"/* a look */ Explain {JOINED} WHERE o.id < 5")
        # Counting does not become the workload of the next training, in whichever format it is logged.
        with TrainingSet(tmp_path / "set") as kept:
            counts = [
                Count(f"{JOINED} WHERE o.id < 7", None, 2),
                Count(f"{JOINED} WHERE o.id < 9", f"{JOINED} WHERE o.id <= 8", 2),
            ]
            labels = await Labeller(dsn, kept, budget=10, timeout=5).run(counts)
            assert labels.counted == 2
        database = await connection.fetchval("SELECT current_database()")
        folder = Path(await connection.fetchval("SHOW data_directory")) / "log"
    finally:
        await connection.close()
    names = ("postgresql.log", "postgresql.csv", "postgresql.json")
    # The collector writes when it comes to it; "SHOW data_directory" is the last statement of all.
    await eventually(
        lambda: all("SHOW data_directory" in (folder / name).read_text() for name in names), what="the log is written"
    )
    for name in names:
        told = read_log(folder / name, database)
        texts = [statement.text for statement in told.statements]
        assert f"{JOINED}\n\tWHERE c.age < 30 -- two lines" in texts, name
        assert f"{JOINED} WHERE o.status = 'it''s' AND c.age > '20'" in texts, name
        assert f"{JOINED} WHERE o.status = NULL" in texts, name
        assert [text for text in texts if "o.id <" in text] == [], name
        assert all(statement.total_ms > 0 and statement.line > 0 for statement in told.statements)
        assert told.left_out["no join of tables"] + told.left_out["several statements in one"] >= 1


def test_auto_explain_in_text_and_json(log: Path) -> None:
    plan = {"Query Text": f"{JOINED} WHERE c.age > $1", "Query Parameters": "$1 = '30'",
            "Plan": {"Node Type": "Hash Join", "Actual Rows": 5, "Actual Loops": 1}}  # fmt: skip
    body = json.dumps(plan, indent=2).replace("\n", "\n\t")
    log.write_text(
        f"2026-01-01 10:00:00 UTC [7] u@shop LOG:  duration: 12.5 ms  plan:\n\t{body}\n"
        f"2026-01-01 10:00:01 UTC [7] u@shop LOG:  duration: 2.5 ms  plan:\n\tQuery Text: {JOINED}\n\tWHERE c.loyal\n"
        "\tAggregate  (cost=1.00..2.00 rows=1 width=8)\n\t  ->  Hash Join  (cost=0.5..1.9 rows=7 width=0)\n"
        f"2026-01-01 10:00:02 UTC [7] u@shop LOG:  duration: 0.5 ms  statement: {JOINED} WHERE c.loyal\n"
        "2026-01-01 10:00:03 UTC [7] u@shop LOG:  checkpoint starting: time\n"
        "2026-01-01 10:00:04 UTC [7] u@shop ERROR:  syntax error\n"
        "2026-01-01 10:00:04 UTC [7] u@shop STATEMENT:  SELEC\n"
    )
    told = read_log(log)
    assert [(one.text, one.total_ms) for one in told.statements] == [
        (f"{JOINED} WHERE c.age > '30'", 12.5),
        (f"{JOINED}\nWHERE c.loyal", 2.5),
        (f"{JOINED} WHERE c.loyal", 0.5),
    ]
    assert [(plan.text, plan.root["Actual Rows"]) for plan in told.plans] == [(f"{JOINED} WHERE c.age > '30'", 5)]


def test_values_that_were_cut_off_are_not_used(log: Path) -> None:
    log.write_text(
        f"LOG:  duration: 1 ms  execute <unnamed>: {JOINED} WHERE o.status = $1\nDETAIL:  Parameters: $1 = 'abc...'\n"
    )
    told = read_log(log)
    assert told.statements == []
    assert told.left_out["it has parameters without values"] == 1


def test_the_same_statement_is_kept_once(log: Path) -> None:
    log.write_text(f"LOG:  duration: 3 ms  statement: {JOINED}\nLOG:  duration: 4 ms  statement: {JOINED};\n")
    (statement,) = read_log(log).statements
    assert (statement.calls, statement.total_ms, statement.line) == (2, 7, 1)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"none\.log cannot be read: No such file"):
        read_log(tmp_path / "none.log")


@given(st.text(st.sampled_from("{}\"\n\t,$1' LOG:DETAIL  duration: 5 ms  plan:statement: SELECT")))
def test_nothing_in_a_log_is_fatal(text: str) -> None:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        for start in ("", "{", "2026-01-01 10:00:00.1 UTC,", "LOG:  duration: 1 ms  statement: "):
            path.write_text(start + text)
            assert read_log(path).plans == []
