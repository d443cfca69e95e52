"""Getting pg_hint_plan: which package sources are used, what happens without, and that the real one is obeyed."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from pilotwire import hint_plan
from pilotwire.debian_archive import one_line_entries, stanza_entries
from pilotwire.hint_plan import LIBRARY, ensure_hint_plan
from pilotwire.postgres_files import Installation
from tests.support.postgres import Postgres

STANZAS = """\
# A comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
Components: main

Enabled: no
Types: deb
URIs: http://other.example/debian
Suites: bookworm
Components: main
"""
LINES = """\
# deb http://commented.example/debian bookworm main
deb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian bookworm main contrib
deb-src http://mirror.example/debian bookworm main
deb http://mirror.example/debian bookworm-updates main
deb http://elsewhere.example/apt bookworm tools
"""


@pytest.fixture
def installation(tmp_path: Path) -> Installation:
    for folder in ("bin", "lib", "share/extension"):
        (tmp_path / "pg" / folder).mkdir(parents=True)
    return Installation(tmp_path / "pg", "18.6")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "postgres" not in request.fixturenames:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_archive_is_taken_from_the_machines_own_sources() -> None:
    wanted = ["deb [signed-by=/usr/share/keyrings/archive.gpg] http://mirror.example/debian forky main"]
    assert hint_plan._later(stanza_entries(STANZAS), "bookworm") == wanted
    wanted = ["deb [signed-by=/k.gpg arch=amd64] http://mirror.example/debian forky main"]
    assert hint_plan._later(one_line_entries(LINES), "bookworm") == wanted
    assert hint_plan._later(stanza_entries(STANZAS), "noble") == []
    assert hint_plan._later(one_line_entries(LINES), "noble") == []


def test_without_apt_it_says_so_in_one_line(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    answer = ensure_hint_plan(installation)
    assert not answer.available
    assert "no apt" in answer.reason
    assert "\n" not in answer.reason


def test_a_failed_fetch_is_not_tried_on_every_start(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("apt-get", "dpkg"):
        (tools / name).write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\necho 'E: no network' >&2\nexit 100\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(hint_plan, "_sources_of_machine", lambda: ["deb http://mirror.example/debian forky main"])
    calls = tmp_path / "calls"
    for _ in range(3):
        answer = ensure_hint_plan(installation)
        assert not answer.available
        assert "no network" in answer.reason
    assert calls.read_text() == "called\n"
    [failed] = (tmp_path / "cache").rglob("*.failed")
    long_ago = time.time() - hint_plan.RETRY_AFTER - 1
    os.utime(failed, (long_ago, long_ago))
    ensure_hint_plan(installation)
    assert calls.read_text() == "called\ncalled\n"


def test_what_is_cached_needs_no_network(
    installation: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    root = hint_plan._cache_dir() / f"18-{os.uname().machine}" / "usr"
    library = root / "lib/postgresql/18/lib" / LIBRARY
    extension = root / "share/postgresql/18/extension/pg_hint_plan.control"
    for file in (library, extension):
        file.parent.mkdir(parents=True)
        file.write_text(file.name)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ensure_hint_plan(installation).available
    assert (installation.library_dir / LIBRARY).read_text() == LIBRARY
    assert (installation.share_dir / "extension/pg_hint_plan.control").exists()


def test_files_that_cannot_be_written_are_one_sentence(installation: Installation) -> None:
    installation.library_dir.rmdir()
    root = hint_plan._cache_dir() / f"18-{os.uname().machine}" / "usr/lib/postgresql/18/lib"
    root.mkdir(parents=True)
    (root / LIBRARY).touch()
    answer = ensure_hint_plan(installation)
    assert not answer.available
    assert "No such file" in answer.reason
    assert "\n" not in answer.reason


def test_the_real_one_is_obeyed(postgres: Postgres) -> None:
    """A hinted join method is what EXPLAIN shows, on the server that `make run` and the tests use."""
    if not postgres.hint_plan:
        assert postgres.server.hint_plan.reason
        return
    database = postgres.create_database()
    postgres.sql("CREATE TABLE a AS SELECT g AS id FROM generate_series(1, 1000) g; ANALYZE a", database)
    plain = postgres.sql("EXPLAIN SELECT * FROM a x JOIN a y USING (id)", database)
    hinted = postgres.sql("/*+ MergeJoin(x y) Rows(x y #77) */ EXPLAIN SELECT * FROM a x JOIN a y USING (id)", database)
    assert "Hash Join" in plain
    assert "Merge Join" in hinted
    assert "rows=77 " in hinted
    postgres.drop_database(database)
