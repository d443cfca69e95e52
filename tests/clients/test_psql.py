"""psql of the server's own version: what people type, what scripts rely on, and what Ctrl-C does."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.clients.server import wait_until_running
from tests.clients.target import Target
from tests.clients.tools import TIMEOUT, need, output, run
from tests.support.postgres import Postgres

pytestmark = pytest.mark.client("psql")


@pytest.fixture(scope="session")
def client_version(postgres: Postgres) -> str:
    return output([postgres.bin("psql"), "--version"], Target.outside()).split()[2]


@pytest.fixture
def psql(postgres: Postgres) -> list[str | Path]:
    """psql printing bare values and stopping at the first error."""
    return [postgres.bin("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1"]


def test_several_statements_in_one_message(psql: list[str | Path], target: Target) -> None:
    text = (
        "create temp table t (a int); insert into t select generate_series(1, 3); select sum(a) from t; select 'ende'"
    )
    assert output([*psql, "-c", text], target.environment()) == "6\nende\n"


def test_an_error_undoes_the_whole_message(psql: list[str | Path], target: Target) -> None:
    output([*psql, "-c", "create table undone (a int)"], target.environment())
    done = run([*psql, "-c", "insert into undone values (1); select 1/0; select 2"], target.environment())
    assert done.returncode == 1
    assert done.stderr == "ERROR:  division by zero\n"
    assert output([*psql, "-c", "select count(*) from undone"], target.environment()) == "0\n"


def test_on_error_stop_ends_a_script(psql: list[str | Path], target: Target) -> None:
    script = "select 'first';\nselect nonsense;\nselect 'never';\n"
    done = run(psql, target.environment(), stdin=script)
    assert (done.returncode, done.stdout) == (3, "first\n")
    assert 'column "nonsense" does not exist' in done.stderr
    assert "LINE 1: select nonsense;\n               ^" in done.stderr
    without = run([*psql, "-v", "ON_ERROR_STOP=0"], target.environment(), stdin=script)
    assert (without.returncode, without.stdout) == (0, "first\nnever\n")


def test_copy_from_and_to_a_file(psql: list[str | Path], target: Target, tmp_path: Path) -> None:
    rows = "".join(f"{number}\tzeile {number} \u00e4\n" for number in range(20_000))
    source, back = tmp_path / "in.tsv", tmp_path / "out.tsv"
    source.write_text(rows, encoding="utf-8")
    script = f"""
        create table copied (a int, b text);
        \\copy copied from '{source}'
        \\copy (select * from copied order by a) to '{back}'
        select count(*), max(a) from copied;
    """
    assert output(psql, target.environment(), stdin=script) == "20000|19999\n"
    assert back.read_text(encoding="utf-8") == rows


def test_copy_with_a_bad_row_reports_its_line_and_leaves_nothing(psql: list[str | Path], target: Target) -> None:
    script = "create table broken (a int);\n\\copy broken from stdin\n1\n2\nx\n\\.\n"
    done = run(psql, target.environment(), stdin=script)
    assert done.returncode == 3
    assert 'invalid input syntax for type integer: "x"' in done.stderr
    assert "COPY broken, line 3, column a" in done.stderr
    assert output([*psql, "-c", "select count(*) from broken"], target.environment()) == "0\n"


def test_describe(psql: list[str | Path], target: Target) -> None:
    script = """
        create table described (id int primary key, name text not null default 'x');
        create index described_name on described (name);
        \\pset tuples_only off
        \\d described
        \\dt described
    """
    printed = output(psql, target.environment(), stdin=script)
    assert "id|integer||not null|" in printed
    assert "name|text||not null|'x'::text" in printed
    assert '"described_pkey" PRIMARY KEY, btree (id)' in printed
    assert '"described_name" btree (name)' in printed
    assert f"public|described|table|{target.user}" in printed


def test_describe_a_result_and_run_each_row(psql: list[str | Path], target: Target) -> None:
    script = """
        select 1 as a, 'x'::varchar(7) as b, now() as c \\gdesc
        select format('select %s * 2', n) from generate_series(1, 3) n \\gexec
        select 7 as seven, 8 as eight \\gset
        select :seven + :eight;
    """
    expected = "a|integer\nb|character varying(7)\nc|timestamp with time zone\n2\n4\n6\n15\n"
    assert output(psql, target.environment(), stdin=script) == expected


def test_bound_values_and_named_statements(psql: list[str | Path], target: Target) -> None:
    script = """
        select $1::int + $2::int \\bind 3 4 \\g
        select $1::text || '!' \\parse greet
        \\bind_named greet hello \\g
        \\bind_named greet again \\g
        \\close_prepared greet
        \\set ON_ERROR_STOP 0
        \\bind_named greet gone \\g
        select 'after';
    """
    done = run(psql, target.environment(), stdin=script)
    assert done.stdout == "7\nhello!\nagain!\nafter\n"
    assert 'prepared statement "greet" does not exist' in done.stderr


def test_pipelines(psql: list[str | Path], target: Target) -> None:
    script = """
        \\set ON_ERROR_STOP 0
        \\startpipeline
        select $1 \\bind one \\sendpipeline
        select $1 \\bind two \\sendpipeline
        \\flushrequest
        \\getresults
        select 1/0 \\bind \\sendpipeline
        select $1 \\bind skipped \\sendpipeline
        \\syncpipeline
        select $1 \\bind three \\sendpipeline
        \\endpipeline
        select 'after';
    """
    done = run(psql, target.environment(), stdin=script)
    assert done.stdout.splitlines()[:2] == ["one", "two"]
    assert done.stdout.splitlines()[-2:] == ["three", "after"]
    assert "skipped" not in done.stdout
    assert "division by zero" in done.stderr


def test_transactions_savepoints_and_single_transaction(psql: list[str | Path], target: Target) -> None:
    script = """
        create table saved (a int);
        begin;
        insert into saved values (1);
        savepoint s;
        insert into saved values (2);
        rollback to s;
        insert into saved values (3);
        commit;
        select string_agg(a::text, ',' order by a) from saved;
    """
    assert output(psql, target.environment(), stdin=script) == "1,3\n"
    failing = run([*psql, "-1"], target.environment(), stdin="insert into saved values (4);\nselect 1/0;\n")
    assert failing.returncode == 3
    assert output([*psql, "-c", "select count(*) from saved where a = 4"], target.environment()) == "0\n"


def test_settings_of_the_session_and_of_its_start(psql: list[str | Path], target: Target) -> None:
    environment = target.environment(
        PGOPTIONS="-c work_mem=7MB -c search_path=pg_temp,public", PGTZ="Asia/Tokyo", PGAPPNAME="matrix"
    )
    script = """
        show work_mem; show search_path; show timezone; show application_name;
        set work_mem = '9MB';
        begin; commit;
        show work_mem;
        reset work_mem;
        show work_mem;
    """
    printed = output(psql, environment, stdin=script).splitlines()
    assert printed == ["7MB", "pg_temp,public", "Asia/Tokyo", "matrix", "9MB", "7MB"]


def test_another_encoding(psql: list[str | Path], target: Target) -> None:
    show = "select chr(228);\n\\encoding\n"
    script = f"show client_encoding;\n{show}set client_encoding = 'UTF8';\n{show}"
    done = subprocess.run(
        [str(part) for part in psql],
        env=target.environment(PGCLIENTENCODING="LATIN1"),
        input=script.encode(),
        capture_output=True,
        timeout=TIMEOUT,
        check=True,
    )
    assert done.stdout == b"LATIN1\n\xe4\nLATIN1\n\xc3\xa4\nUTF8\n"


def test_notices_and_notifications(psql: list[str | Path], target: Target) -> None:
    script = """
        do $$ begin raise notice 'seen %', 42; end $$;
        listen news;
        notify news, 'extra';
        select 'done';
    """
    done = run(psql, target.environment(), stdin=script)
    assert done.stderr.strip() == "NOTICE:  seen 42"
    assert 'Asynchronous notification "news" with payload "extra" received from server process' in done.stdout
    assert "done" in done.stdout


def test_rows_by_a_cursor(psql: list[str | Path], target: Target) -> None:
    script = "\\set FETCH_COUNT 100\nselect sum(a) over (order by a) from generate_series(1, 1000) a;\n"
    printed = output(psql, target.environment(), stdin=script).splitlines()
    assert len(printed) == 1000
    assert printed[-1] == "500500"


def test_variables_of_the_server(psql: list[str | Path], target: Target, postgres: Postgres) -> None:
    script = "\\echo :SERVER_VERSION_NUM :DBNAME :USER :HOST :PORT\n"
    number = postgres.sql("show server_version_num")
    expected = f"{number} {target.database} {target.user} {target.host} {target.port}\n"
    assert output(psql, target.environment(), stdin=script) == expected


def test_ctrl_c_cancels_the_query(psql: list[str | Path], target: Target, postgres: Postgres) -> None:
    script = "select 'started';\nselect pg_sleep(60) /* to be cancelled */;\nselect 'never';\n"
    with subprocess.Popen(
        [*map(str, psql), "-v", "ON_ERROR_STOP=0"],
        env=target.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(script)
        process.stdin.flush()
        wait_until_running(postgres, target, "to be cancelled")
        process.send_signal(signal.SIGINT)
        printed, complaint = process.communicate(timeout=20)
    assert "ERROR:  canceling statement due to user request" in complaint
    assert printed == "started\n"
    remaining = postgres.sql(
        f"select count(*) from pg_stat_activity where datname = '{target.database}' and state = 'active'"
    )
    assert remaining == "0"


def test_tls_and_scram(secure_target: Target) -> None:
    """The server's own psql comes without TLS, so this is the machine's."""
    command: list[str | Path] = [need("psql", "postgresql-client"), "-XAtq", "-v", "ON_ERROR_STOP=1"]
    script = "select current_user;\n\\conninfo\n"
    environment = secure_target.environment(PGCHANNELBINDING="require")
    printed = output(command, environment, stdin=script)
    assert printed.startswith(f"{secure_target.user}\n")
    assert "SSL connection (protocol: TLSv1.3" in printed
    wrong = run(command, environment | {"PGPASSWORD": "wrong"}, stdin=script)
    assert wrong.returncode == 2
    assert f'password authentication failed for user "{secure_target.user}"' in wrong.stderr
