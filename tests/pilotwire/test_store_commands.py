"""``pilotwire store``, ``memory`` and ``ledger``: what they print, change, refuse, and with which code they end."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from pilotwire.cli import run_program
from planner.memory.store import Store, open_store
from planner.memory.store.schema import HEAD
from tests.planner.memory.store.made import TEMPLATE, arm, execution, key, line, query
from tests.support.memories import switch_off
from tests.support.postgres import Postgres

Run = Callable[..., "Done"]


class Done:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        assert (self.code, self.err) == (0, "")
        return json.loads(self.out)

    @property
    def sentence(self) -> str:
        """The one line of a refusal."""
        assert (self.out, self.err.count("\n")) == ("", 1), self.err
        assert self.code in (1, 2)
        assert self.err.startswith("pilotwire: ")
        return self.err.strip()


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    for name in ("STORE", "STORE_PASSWORD", "STORE_LITERALS", "CONFIG"):
        monkeypatch.delenv(f"PILOTWIRE_{name}", raising=False)
    monkeypatch.setenv("PILOTWIRE_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("USER", "ann")

    def program(*arguments: str | Path) -> Done:
        code = run_program([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Done(code, out, err)

    return program


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(f"{tmp_path}/state/store.db") as opened:
        opened.save(
            [query(1), query(2, opted_out=True, actor="bob"), query(3, database="crm", fingerprint="f9")],
            [arm(1), arm(1, "cardinality", state="approved"), arm(2)],
            [line(number) for number in range(1, 6)],
            [execution()],
        )
        yield opened


class TestMemory:
    def test_list(self, run: Run, store: Store) -> None:
        shown = run("memory", "list").out.splitlines()
        assert [words[:12] for words in shown[1:]] == [key(3)[:12], key(2)[:12], key(1)[:12]]
        assert "frozen, trial 2.00x no_hashjoin" in shown[2]
        assert "SELECT * FROM orders WHERE id = '#" in shown[3]
        found = run("memory", "list", "--json").json["queries"]
        assert [entry["key"] for entry in found] == [key(3), key(2), key(1)]
        assert found[1]["frozen"]
        assert found[2]["unsteered_p50_ms"] == 10.0
        assert [(entry["arm"], entry["state"], entry["steered_p50_ms"]) for entry in found[2]["arms"]] == [
            ("cardinality", "approved", 4.5),
            ("no_hashjoin", "trial", 4.5),
        ]

    @pytest.mark.parametrize(
        ("filters", "numbers"),
        [
            (["--database", "crm"], [3]),
            (["--state", "approved"], [1]),
            (["--state", "frozen"], [2]),
            (["--fingerprint", "f1", "--order", "updated"], [1, 2]),
            (["--template", TEMPLATE, "--limit", "1", "--offset", "1"], [2]),
            (["--state", "preferred"], []),
        ],
    )
    def test_filters(self, run: Run, store: Store, filters: list[str], numbers: list[int]) -> None:
        found = run("memory", "list", "--json", *filters).json["queries"]
        assert sorted(entry["key"] for entry in found) == sorted(key(number) for number in numbers)
        assert run("memory", "list", *filters).code == 0

    def test_show(self, run: Run, store: Store) -> None:
        shown = run("memory", "show", key(1)[:8]).out
        for words in (
            key(1),
            "enable_hashjoin = off; c o: 12.5",
            "4.5 ms against 9.5 ms unsteered, gain 2.00x",
            "because",
        ):
            assert words in shown
        found = run("memory", "show", key(1), "--json").json
        assert found["query"]["key"] == key(1)
        assert found["arms"][1]["settings"] == {"enable_hashjoin": "off"}
        assert found["ledger"][0]["after"] == "trial"

    def test_decisions(self, run: Run, store: Store) -> None:
        short = key(1)[:8]
        assert run("memory", "approve", short, "no_hashjoin", "--why", "looked").out == (
            f"{key(1)}: no_hashjoin trial -> approved\n"
        )
        assert run("memory", "reject", short, "cardinality", "--actor", "bob", "--json").json == {
            "ok": True, "key": key(1), "action": "reject", "actor": "bob", "frozen": False, "known": True,
            "arms": [{"arm": "cardinality", "before": "approved", "after": "rejected"}],
        }  # fmt: skip
        assert "no_nestloop (new) -> preferred" in run("memory", "prefer", short, "no_nestloop").out
        assert "is frozen" in run("memory", "freeze", short).out
        assert "no longer frozen" in run("memory", "unfreeze", short).out
        assert "all of its template are left alone" in run("memory", "freeze", short, "--template").out
        assert "may be steered again" in run("memory", "unfreeze", short, "--template").out
        assert "no_nestloop preferred -> expired" in run("memory", "release", short).out
        assert "is forgotten" in run("memory", "forget", short).out
        actors = [(entry.actor, entry.why) for entry in store.ledger(kind="person", limit=20)]
        assert actors[-2:] == [("bob", ""), ("ann", "looked")]
        assert store.query(key(1)) is None

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["show", "beef"], "no query beef is remembered"),
            (["show", "x"], "'x' is no key"),
            (["approve", key(1)], "name the arm: cardinality, no_hashjoin"),
            (["approve", key(1), "magic"], "no arm 'magic'; there are cardinality"),
            (["release", key(1)], "nobody has decided anything"),
            (["list", "--state", "odd"], "--state is one of candidate"),
            (["list", "--order", "odd"], "--order is one of total_ms"),
        ],
    )
    def test_refusals(self, run: Run, store: Store, arguments: list[str], sentence: str) -> None:
        assert sentence in run("memory", *arguments).sentence


class TestBreaker:
    def test_one_is_listed_and_closed(self, run: Run, store: Store) -> None:
        assert run("breaker", "list").out.splitlines()[1].split() == [
            "everything",
            "everything",
            "closed",
            "-",
            "0",
            "of",
            "0",
        ]
        switch_off(store, "shop-1", in_use=True)
        found = run("breaker", "list", "--json").json["breakers"]
        assert [(one["source"], one["covers"], one["position"]) for one in found] == [
            ("everything", "everything", "open"), ("shop-1", "use", "open"),
        ]  # fmt: skip
        assert found[1]["until"].endswith("Z")
        assert run("breaker", "close", "shop-1", "--why", "the data is back").out == "shop-1, use: open -> closed\n"
        (line,) = run("ledger", "list", "--kind", "breaker").out.splitlines()
        assert line.endswith("breaker  shop-1  open -> closed  ann  use: the data is back")
        assert run("breaker", "close", "everything", "--json").json["closed"][0]["before"] == "open"
        assert {one["position"] for one in run("breaker", "list", "--json").json["breakers"]} == {"closed"}

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["close", "shop-1"], "no circuit breaker of shop-1 is open; all of them are closed"),
            (["close", "everything", "--actor", "system"], "names the person"),
            (["close", "shop-1", "--covers", "odd"], "--covers is trials or use"),
        ],
    )
    def test_refusals(self, run: Run, store: Store, arguments: list[str], sentence: str) -> None:
        assert sentence in run("breaker", *arguments).sentence


class TestLedger:
    def test_list(self, run: Run, store: Store) -> None:
        shown = run("ledger", "list", "--limit", "2").out.splitlines()
        assert len(shown) == 2
        assert f"shop  query  {key(5)[:12]}  no_hashjoin  shop-1.0.0  candidate -> trial" in shown[0]
        first = run("ledger", "list", "--limit", "2", "--json").json["lines"]
        assert {entry["scope"] for entry in first} == {"query"}
        then = run("ledger", "list", "--limit", "2", "--before", first[-1]["id"], "--json").json["lines"]
        assert [entry["id"] for entry in first + then] == [5, 4, 3, 2]

    def test_export(self, run: Run, store: Store, tmp_path: Path) -> None:
        lines = [json.loads(text) for text in run("ledger", "export").out.splitlines()]
        assert [entry["key"] for entry in lines] == [key(number) for number in range(1, 6)]
        for name in ("l.jsonl", "l.parquet"):
            assert run("ledger", "export", "--out", tmp_path / name).out == ""
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        assert [json.loads(text) for text in (tmp_path / "l.jsonl").read_text().splitlines()] == lines
        assert parquet.read_table(tmp_path / "l.parquet")["key"].to_pylist() == [entry["key"] for entry in lines]
        picked = run("ledger", "export", "--since", lines[1]["at"], "--until", lines[3]["at"], "--kind", "state").out
        assert [json.loads(text)["id"] for text in picked.splitlines()] == [2, 3]
        assert run("ledger", "export", "--key", key(4)).out.count("\n") == 1
        assert run("ledger", "export", "--since", "1d").out == ""
        assert run("ledger", "export", "--since", "2023-11-01").out.count("\n") == 5

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["--format", "xml"], "--format is jsonl or parquet"),
            (["--format", "parquet"], "parquet needs a file"),
            (["--kind", "odd"], "--kind is one of state"),
            (["--since", "yesterday"], "--since is a date"),
            (["--out", "/nowhere/l.jsonl"], "cannot write /nowhere/l.jsonl: no such file"),
        ],
    )
    def test_refusals(self, run: Run, store: Store, arguments: list[str], sentence: str) -> None:
        assert sentence in run("ledger", "export", *arguments).sentence

    def test_a_reader_that_leaves_ends_it_quietly(self, store: Store, tmp_path: Path) -> None:
        store.save(ledger=[line(number) for number in range(10, 3000)])
        done = subprocess.run(
            f"{sys.executable} -m pilotwire ledger export --store {tmp_path}/state/store.db | head -1",
            shell=True, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert (done.stdout.count("\n"), done.stderr) == (1, "")


class TestStore:
    def test_there_is_none_yet(self, run: Run, tmp_path: Path) -> None:
        for command in (["memory", "list"], ["ledger", "export"], ["store", "export"], ["store", "info"]):
            assert f"there is no store sqlite:///{tmp_path}/state/store.db" in run(*command).sentence
        assert not (tmp_path / "state").exists()
        made = run("store", "migrate", "--json").json
        assert (made["before"], made["schema"]) == (None, HEAD)
        assert run("store", "migrate").out == f"sqlite:///{tmp_path}/state/store.db: schema {HEAD}\n"
        assert run("memory", "list").out == "nothing is remembered that fits\n"
        assert run("store", "info", "--json").json["rows"]["queries"] == 0

    def test_to_a_server_and_back(
        self, run: Run, store: Store, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        url = postgres.dsn(postgres.create_database())
        copied = run("store", "migrate", "--to", url, "--json").json["copied"]
        assert copied == {"query": 3, "arm": 3, "ledger": 5, "execution": 1, "history": 0, "guard": 0}
        monkeypatch.setenv("PILOTWIRE_STORE", url)
        assert len(run("memory", "list", "--json").json["queries"]) == 3
        assert "is frozen" in run("memory", "freeze", key(1)).out
        assert run("store", "export", tmp_path / "backup.jsonl").code == 0
        assert stat.S_IMODE((tmp_path / "backup.jsonl").stat().st_mode) == 0o600
        done = run("store", "import", tmp_path / "backup.jsonl", "--store", tmp_path / "back.db")
        assert done.out == (
            f"imported into sqlite:///{tmp_path}/back.db: "
            "3 queries, 3 arms, 6 ledger lines, 1 samples, 0 points, 0 guards\n"
        )
        listed = run("memory", "list", "--state", "frozen", "--store", tmp_path / "back.db", "--json").json
        assert sorted(entry["key"] for entry in listed["queries"]) == sorted([key(1), key(2)])
        backup = (tmp_path / "backup.jsonl").read_text()
        assert run("store", "export").out.splitlines()[1:] == backup.splitlines()[1:]

    def test_where_it_is_comes_from_the_file_too(self, run: Run, tmp_path: Path) -> None:
        config = tmp_path / "pilotwire.toml"
        config.write_text(f'upstream = "postgresql://h/d"\nstore = "{tmp_path}/other.db"\n')
        assert run("store", "migrate", "--config", config, "--json").json["store"] == f"sqlite:///{tmp_path}/other.db"
        assert run("memory", "list", "-c", config).code == 0

    @pytest.mark.parametrize(
        ("arguments", "sentence"),
        [
            (["info", "--store", "postgresql://u:geheim@h/d"], "PILOTWIRE_STORE_PASSWORD"),
            (["info", "--store", "mysql://u:geheim@h/d"], "or none"),
            (["info", "--store", "user:geheim.db"], "or none"),
            (["info", "--store", "none"], "switched off"),
            (
                ["info", "--store", "postgresql://u@127.0.0.1:1/d"],
                "the server of the store postgresql://u@127.0.0.1:1/d",
            ),
            (["info", "--config", "/nowhere.toml"], "cannot read the configuration file"),
            (["import", "/nowhere.jsonl"], "cannot read /nowhere.jsonl: no such file"),
            (["migrate", "--store", "/proc/store.db"], "cannot be used"),
            (["export", "/nowhere/x.jsonl"], "cannot write /nowhere/x.jsonl"),
        ],
    )
    def test_refusals(self, run: Run, store: Store, arguments: list[str], sentence: str) -> None:
        said = run("store", *arguments).sentence
        assert sentence in said
        assert "geheim" not in said

    def test_a_servers_password_comes_from_the_environment(
        self, run: Run, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        role, database = postgres.create_role("geh:eim/1"), postgres.create_database()
        postgres.sql(f"ALTER DATABASE {database} OWNER TO {role}")
        url = f"postgresql://{role}@{postgres.host}:{postgres.port}/{database}"
        monkeypatch.setenv("PILOTWIRE_STORE", url)
        assert "does not let the store's user in" in run("store", "migrate").sentence
        monkeypatch.setenv("PILOTWIRE_STORE_PASSWORD", "geh:eim/1")
        assert run("store", "migrate", "--json").json["store"] == url
        assert run("store", "info").code == 0
        monkeypatch.setenv("PILOTWIRE_STORE_PASSWORD", "geh:eim/2")
        said = run("store", "info").sentence
        assert "does not let the store's user in" in said
        assert "geh" not in said
        # A password that is meant for the one server is not sent to another.
        monkeypatch.setenv("PILOTWIRE_STORE_PASSWORD", "geh:eim/1")
        monkeypatch.delenv("PILOTWIRE_STORE")
        run("store", "migrate")
        assert "does not let the store's user in" in run("store", "migrate", "--to", url).sentence

    def test_itself_is_no_target(self, run: Run, store: Store, tmp_path: Path) -> None:
        assert "is the store itself" in run("store", "migrate", "--to", tmp_path / "state" / "store.db").sentence

    def test_what_is_damaged_or_newer_is_said(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "state" / "store.db"
        run("store", "migrate")
        with open_store(str(file)) as opened, opened.connector.writing() as connection:
            connection.exec_driver_sql("UPDATE pilotwire_version SET version_num = '9999'")
        for command in (["memory", "list"], ["store", "migrate"]):
            assert "written by a newer pilotwire (schema 9999" in run(*command).sentence
        file.write_bytes(b"no database" * 1000)
        for command in (["memory", "list"], ["store", "migrate"], ["store", "export"]):
            assert "move it away" in run(*command).sentence

    def test_a_file_is_named_from_where_one_stands(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        for name in ("here.db", "./there", "new/deep.db"):
            assert run("store", "migrate", "--store", name).code == 0
            assert (tmp_path / name).is_file()

    def test_half_an_export_is_refused(self, run: Run, store: Store, tmp_path: Path) -> None:
        half = tmp_path / "half.jsonl"
        run("store", "export", half)
        half.write_text("".join(half.read_text().splitlines(keepends=True)[:-1]))
        assert "not whole" in run("store", "import", half, "--store", tmp_path / "new.db").sentence
        assert not any(run("store", "info", "--store", tmp_path / "new.db", "--json").json["rows"].values())
