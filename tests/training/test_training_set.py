"""A training set outlives what may happen to it: crashes, full disks, torn lines, other databases, other processes."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from training.errors import TrainingError
from training.training_set import EXACT, LOWER, STOPPED, ArmTime, Statement, TrainingSet, statement_key

ARM = ArmTime("key", "no_hashjoin", "timed", 5.0, 7.0, "", 12.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sets" / "shop.training"


def open_set(folder: Path, database: str = "shop", schema: str = "1") -> TrainingSet:
    kept = TrainingSet(folder)
    kept.belongs_to(database, schema)
    return kept


def test_what_is_put_in_comes_out_again(folder: Path) -> None:
    statement = Statement("SELECT 'ü'", "log", line=3, total_ms=2.5, rows=7)
    with open_set(folder) as kept:
        assert kept.add_statement(statement)
        assert not kept.add_statement(statement)
        kept.add_label("a", EXACT, 5, 2, "counted")
        kept.add_label("b", LOWER, 50, 2, "counted")
        kept.add_label("c", STOPPED, 0, 2, "counted")
        kept.add_arm(ARM)
    assert sorted(path.name for path in folder.glob("*.parquet")) == [
        "arms-000001.parquet", "labels-000001.parquet", "statements-000001.parquet",
    ]  # fmt: skip
    with open_set(folder) as kept:
        assert kept.statements == [statement]
        assert (kept.rows, kept.bounds, kept.arms) == ({"a": 5}, {"b": 50}, [ARM])
        assert kept.label("c") == (STOPPED, 0, 2)
        assert kept.label("d") is None


def test_a_weaker_label_does_not_replace_an_exact_one(folder: Path) -> None:
    with open_set(folder) as kept:
        kept.add_label("a", LOWER, 50, 2, "counted")
        kept.add_label("a", EXACT, 70, 2, "counted")
        kept.add_label("a", STOPPED, 0, 2, "counted")
    with open_set(folder) as kept:
        assert kept.label("a") == (EXACT, 70, 2)


def test_the_same_statement_has_one_key() -> None:
    assert statement_key("SELECT 1") == statement_key("  SELECT 1 ; ") != statement_key("SELECT 2")
    assert statement_key("\udcff")


def test_many_files_become_one(folder: Path) -> None:
    for number in range(20):
        with open_set(folder) as kept:
            kept.add_label(str(number), EXACT, number, 2, "counted")
    assert len(list(folder.glob("labels-*.parquet"))) <= 5
    with open_set(folder) as kept:
        assert kept.rows == {str(number): number for number in range(20)}


def test_killed_in_the_middle(folder: Path) -> None:
    program = f"""
from pathlib import Path
from training.training_set import EXACT, TrainingSet
kept = TrainingSet(Path({str(folder)!r}))
kept.belongs_to("shop", "1")
for number in range(10**9):
    kept.add_label(str(number), EXACT, number, 2, "counted")
    print(number, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= 50:
                break
        process.send_signal(signal.SIGKILL)
        last = [int(line) for line in process.stdout.read().split("\n")[:-1]]
    journal = folder / "labels.journal"
    journal.write_bytes(journal.read_bytes() + b'{"count": "torn", "ki')
    with open_set(folder) as kept:
        assert len(kept.rows) >= max(last, default=50) + 1
        assert kept.rows["50"] == 50
        kept.add_label("next", EXACT, 1, 2, "counted")
    with open_set(folder) as kept:
        assert kept.rows["next"] == 1
        assert "torn" not in kept.rows


def test_odd_lines_in_a_journal_are_passed_over(folder: Path) -> None:
    with open_set(folder):
        pass
    (folder / "labels.journal").write_text('[]\n{"count": 5}\nnonsense\n{"count": "e", "kind": "exact", "rows": 4}\n')
    with open_set(folder) as kept:
        assert kept.rows == {"e": 4}


def test_another_schema_sets_the_labels_aside(folder: Path) -> None:
    with open_set(folder) as kept:
        kept.add_statement(Statement("SELECT 1", "file"))
        kept.add_label("a", EXACT, 5, 2, "counted")
    with open_set(folder, schema="2") as kept:
        assert (kept.rows, len(kept.statements)) == ({}, 1)
        assert kept.notes == ["the schema has changed: 1 labels were set aside"]
        kept.add_label("b", EXACT, 6, 2, "counted")
    assert (folder / "old" / "labels-000001.parquet").exists()
    with open_set(folder, schema="2") as kept:
        assert kept.rows == {"b": 6}
    assert json.loads((folder / "set.json").read_text()) == {"format": 1, "database": "shop", "schema_hash": "2"}


def test_old_labels_are_forgotten_when_asked(folder: Path) -> None:
    with open_set(folder) as kept:
        kept.add_label("a", EXACT, 5, 2, "counted")
        kept.belongs_to("shop", "1", max_age=3600)
        assert kept.rows == {"a": 5}
        kept.belongs_to("shop", "1", max_age=-1)
        assert kept.rows == {}


def test_another_database_is_refused(folder: Path) -> None:
    with open_set(folder):
        pass
    with TrainingSet(folder) as kept, pytest.raises(TrainingError, match="belongs to the database shop: name another"):
        kept.belongs_to("other", "1")


def test_one_process_at_a_time(folder: Path) -> None:
    with open_set(folder), pytest.raises(TrainingError, match="is in use by another process"):
        TrainingSet(folder)


def test_a_broken_file_is_named(folder: Path) -> None:
    with open_set(folder) as kept:
        kept.add_label("a", EXACT, 5, 2, "counted")
    (folder / "labels-000001.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(TrainingError, match=r"labels-000001.parquet cannot be read .*: remove it to go on without it"):
        TrainingSet(folder)
    (folder / "labels-000001.parquet").unlink()
    with TrainingSet(folder) as kept:
        assert kept.rows == {}
    (folder / "set.json").write_text("{}")
    with pytest.raises(TrainingError, match="is not that of a training set"):
        TrainingSet(folder)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"cannot be written: (Not a directory|File exists)"):
        TrainingSet(tmp_path / "file" / "set")


def test_a_full_disk_keeps_what_was_there(folder: Path) -> None:
    """The limit on the size of files stands in for the disk's: writing ends in the same way, in the middle of a row."""
    with open_set(folder) as kept:
        kept.add_label("before", EXACT, 5, 2, "counted")
    program = f"""
import resource, signal
from pathlib import Path
from training.errors import TrainingError
from training.training_set import EXACT, TrainingSet
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    with TrainingSet(Path({str(folder)!r})) as kept:
        for number in range(1000):
            kept.add_label(f"label {{number}}", EXACT, number, 2, "counted")
except TrainingError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=os.environ)
    assert "cannot be written: the disk is full: make room and run the same command again" in done.stdout
    assert done.stderr == ""
    with open_set(folder) as kept:
        assert kept.rows["before"] == 5
        assert 10 <= len(kept.rows) < 1000
        assert kept.rows["label 9"] == 9
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
