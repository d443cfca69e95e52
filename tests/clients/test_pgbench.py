"""pgbench in its query modes: every transaction it started is in the tables at the end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.clients.target import Target
from tests.clients.tools import output
from tests.support.postgres import Postgres

pytestmark = pytest.mark.client("pgbench")

PROTOCOLS = ["simple", "extended", "prepared"]


@pytest.fixture(scope="session")
def client_version(postgres: Postgres) -> str:
    return output([postgres.bin("pgbench"), "--version"], Target.outside()).split()[2]


@pytest.fixture(scope="module")
def filled(target: Target, postgres: Postgres) -> Target:
    output([postgres.bin("pgbench"), "-i", "-s", "2", "-q"], target.environment())
    return target


def bench(postgres: Postgres, target: Target, *options: str | Path) -> str:
    """Run pgbench and return its report, having checked that no transaction failed."""
    report = output([postgres.bin("pgbench"), "-n", *options], target.environment())
    assert "number of failed transactions: 0 (0.000%)" in report
    return report


def test_initialisation_by_every_step(target: Target, postgres: Postgres) -> None:
    """Tables, COPY of the rows, vacuum, primary and foreign keys; then the generation on the server's side."""
    for steps in ("dtgvpf", "dtGvp"):
        output([postgres.bin("pgbench"), "-i", "-I", steps, "-s", "1", "-q"], target.environment())
        assert postgres.sql("select count(*) from pgbench_accounts", target.database) == "100000"
    output([postgres.bin("pgbench"), "-i", "-s", "2", "-q"], target.environment())
    assert postgres.sql("select count(*) from pgbench_accounts", target.database) == "200000"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_reads(filled: Target, postgres: Postgres, protocol: str) -> None:
    report = bench(postgres, filled, "-S", "-M", protocol, "-c", "8", "-j", "2", "-t", "300")
    assert "number of transactions actually processed: 2400/2400" in report
    assert f"query mode: {protocol}" in report


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_writes_add_up(filled: Target, postgres: Postgres, protocol: str) -> None:
    balances = """
        select (select count(*) from pgbench_history),
               (select sum(abalance) from pgbench_accounts) = (select coalesce(sum(delta), 0) from pgbench_history),
               (select sum(tbalance) from pgbench_tellers) = (select coalesce(sum(delta), 0) from pgbench_history),
               (select sum(bbalance) from pgbench_branches) = (select coalesce(sum(delta), 0) from pgbench_history)
    """
    reset = """
        truncate pgbench_history; update pgbench_tellers set tbalance = 0; update pgbench_branches set bbalance = 0;
        update pgbench_accounts set abalance = 0 where abalance <> 0
    """
    postgres.sql(reset, filled.database)
    report = bench(postgres, filled, "-M", protocol, "-c", "6", "-j", "2", "-t", "60")
    assert "number of transactions actually processed: 360/360" in report
    assert postgres.sql(balances, filled.database) == "360|t|t|t"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_connection_for_each_transaction(filled: Target, postgres: Postgres, protocol: str) -> None:
    report = bench(postgres, filled, "-S", "-C", "-M", protocol, "-c", "4", "-j", "2", "-t", "25")
    assert "number of transactions actually processed: 100/100" in report
    assert "average connection time" in report


def test_a_rate(filled: Target, postgres: Postgres) -> None:
    """200 a second for two seconds, by chance between 300 and 500."""
    report = bench(postgres, filled, "-S", "-M", "prepared", "-c", "4", "-R", "200", "-T", "2")
    found = re.search(r"transactions actually processed: (\d+)", report)
    assert found is not None
    assert 300 <= int(found[1]) <= 500
    assert "rate limit schedule lag" in report


@pytest.mark.parametrize("protocol", ["extended", "prepared"])
def test_pipelines_of_a_script(filled: Target, postgres: Postgres, protocol: str, tmp_path: Path) -> None:
    """Each pipeline counts its own rows; values come back by \\gset."""
    table = f"piped_{protocol}"
    script = tmp_path / "pipeline.sql"
    script.write_text(
        f"""
        \\set a random(1, 1000)
        \\startpipeline
        begin;
        insert into {table} values (:client_id, :a);
        select count(*) from {table} where client = :client_id;
        update {table} set value = value + 1 where client = :client_id and value = :a;
        commit;
        \\endpipeline
        select count(*) as found from {table} where client = :client_id \\gset
        \\if :found = 0
            select 1/0;
        \\endif
        """,
        encoding="utf-8",
    )
    postgres.sql(f"create table {table} (client int, value int)", filled.database)
    bench(postgres, filled, "-M", protocol, "-f", script, "-c", "4", "-j", "2", "-t", "25")
    assert postgres.sql(f"select client, count(*) from {table} group by 1 order by 1", filled.database).split() == [
        "0|25",
        "1|25",
        "2|25",
        "3|25",
    ]


def test_several_statements_in_one_line(filled: Target, postgres: Postgres, tmp_path: Path) -> None:
    postgres.sql("create table combined (a int)", filled.database)
    script = tmp_path / "combined.sql"
    script.write_text(
        "insert into combined values (1)\\; insert into combined values (2)\\; select count(*) from combined;\n"
    )
    bench(postgres, filled, "-f", script, "-c", "3", "-t", "20")
    assert postgres.sql("select count(*), sum(a) from combined", filled.database) == "120|180"


def test_retries_of_serialisation_failures(filled: Target, postgres: Postgres, tmp_path: Path) -> None:
    postgres.sql("create table hot (id int primary key, n int); insert into hot values (1, 0)", filled.database)
    script = tmp_path / "hot.sql"
    script.write_text(
        "begin isolation level repeatable read;\nselect n from hot;\nupdate hot set n = n + 1 where id = 1;\ncommit;\n"
    )
    bench(postgres, filled, "-M", "prepared", "-f", script, "-c", "4", "-t", "15", "--max-tries=1000")
    assert postgres.sql("select n from hot", filled.database) == "60"
