"""Package sources in both of apt's styles, and an apt that keeps to its own folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pilotwire.debian_archive import (
    Apt,
    ArchiveError,
    Entry,
    machine_codename,
    machine_entries,
    one_line_entries,
    stanza_entries,
)

ONE_LINE = """\
# deb http://commented.example/debian bookworm main
deb [ arch=amd64 signed-by=/k.gpg ] http://mirror.example/debian bookworm main contrib  # our own
deb-src\thttp://mirror.example/debian bookworm main
deb cdrom:[Debian 12 - DVD]/ bookworm main
deb http://flat.example/ ./
  deb http://mirror.example/security bookworm-security main
nonsense
"""
STANZAS = """\

Types: deb deb-src
# a comment within
URIs: http://mirror.example/debian
  http://second.example/debian
suites: bookworm bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/archive.gpg

Enabled: False
Types: deb
URIs: http://off.example/debian
Suites: bookworm
Components: main
\t
Types: deb
URIs: http://inline.example/debian
Suites: sid
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
 -----END PGP PUBLIC KEY BLOCK-----
"""


def test_one_line_style() -> None:
    assert one_line_entries(ONE_LINE) == [
        Entry(
            ("deb",), "http://mirror.example/debian", "arch=amd64 signed-by=/k.gpg", ("bookworm",), ("main", "contrib")
        ),
        Entry(("deb-src",), "http://mirror.example/debian", "", ("bookworm",), ("main",)),
        Entry(("deb",), "http://mirror.example/security", "", ("bookworm-security",), ("main",)),
    ]


def test_stanzas() -> None:
    suites, components = ("bookworm", "bookworm-updates"), ("main", "contrib")
    key = "signed-by=/usr/share/keyrings/archive.gpg"
    assert stanza_entries(STANZAS) == [
        Entry(("deb", "deb-src"), "http://mirror.example/debian", key, suites, components),
        Entry(("deb", "deb-src"), "http://second.example/debian", key, suites, components),
        # A key within the stanza has no place in a one-line entry.
        Entry(("deb",), "http://inline.example/debian", "", ("sid",), ("main",)),
    ]


@given(st.text(st.sampled_from("deb-src:[]#=/. \n\tURIsx"), max_size=80))
def test_any_text_can_be_read(text: str) -> None:
    for entry in (*one_line_entries(text), *stanza_entries(text)):
        assert entry.uri
        assert entry.uri == entry.uri.strip()


def test_an_entry_of_another_suite_reads_as_itself() -> None:
    for entry in one_line_entries(ONE_LINE):
        line = entry.line("deb-src", "later")
        [read] = one_line_entries(line)
        assert read == Entry(("deb-src",), entry.uri, entry.options, ("later",), ("main",))


def test_the_files_that_apt_would_read(tmp_path: Path) -> None:
    assert machine_entries(tmp_path) == []
    folder = tmp_path / "sources.list.d"
    folder.mkdir()
    (tmp_path / "sources.list").write_text("deb http://first.example/ a main\n")
    (folder / "b.sources").write_text("Types: deb\nURIs: http://third.example/\nSuites: c\nComponents: main\n")
    (folder / "a.list").write_text("deb http://second.example/ b main\n")
    (folder / "c.list.disabled").write_text("deb http://off.example/ d main\n")
    assert [entry.suites for entry in machine_entries(tmp_path)] == [("a",), ("b",), ("c",)]


def test_codename(tmp_path: Path) -> None:
    release = tmp_path / "os-release"
    release.write_text('ID=debian\nVERSION_CODENAME="bookworm"\n\n# no assignment\n')
    assert machine_codename(release) == "bookworm"
    release.write_text("ID=other\n")
    assert machine_codename(release) == ""


TOOL = """\
#!/bin/sh
echo "$(basename $0) $*" >> {place}/calls
case "$*" in
*" update"*) {update} ;;
*" download "*) touch first_1.0_all.deb second_2.0_all.deb ;;
*" source "*) touch pg_1.orig.tar.bz2 pg_1.orig.tar.bz2.asc pg_1.debian.tar.xz ;;
*" showsrc "*) printf 'Package: pg\\nVersion: 1:1-2\\n\\nPackage: pg\\nVersion: 1:1-1\\n' ;;
esac
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


def make_apt(tools: Path, *, update: str = ":", timeout: float = 10) -> Apt:
    place = tools.parent / "place"
    place.mkdir()
    for name in ("apt-get", "apt-cache", "dpkg"):
        (tools / name).write_text(TOOL.format(place=place, update=update))
        (tools / name).chmod(0o755)
    return Apt(place, timeout)


def test_everything_lies_below_its_place(tools: Path) -> None:
    apt = make_apt(tools)
    place = tools.parent / "place"
    apt.update(["deb http://mirror.example/debian later main"])
    assert (place / "sources.list").read_text() == "deb http://mirror.example/debian later main\n"
    assert apt.download(["second", "first"]) == [place / "second_2.0_all.deb", place / "first_1.0_all.deb"]
    apt.unpack(place / "first_1.0_all.deb", place / "root")
    assert apt.source_versions("pg") == {"1:1-1", "1:1-2"}
    assert apt.source("pg", "1:1-2") == [place / "pg_1.orig.tar.bz2"]
    calls = (place / "calls").read_text().splitlines()
    options = re.compile(r"-o (\S+)=(\S*)")
    assert [" ".join(options.sub("", call).split()) for call in calls] == [
        "apt-get -q update --error-on=any",
        "apt-get -q download second first",
        f"dpkg -x {place}/first_1.0_all.deb {place}/root",
        "apt-cache showsrc pg",
        "apt-get -q source --download-only --only-source pg=1:1-2",
    ]
    for call in calls:
        folders = {name: value for name, value in options.findall(call) if name.startswith("Dir::")}
        assert all(value.startswith(f"{place}/") or value in ("-", "/dev/null") for value in folders.values())
        assert call.startswith("dpkg") or {"Dir::State", "Dir::Cache", "Dir::Etc::sourcelist"} <= folders.keys()


def test_a_refusal_is_its_first_complaint(tools: Path) -> None:
    apt = make_apt(tools, update="echo 'W: hm' >&2; echo 'E: no network' >&2; echo 'E: more' >&2; exit 100")
    with pytest.raises(ArchiveError, match=r"^apt-get: no network$") as caught:
        apt.update([])
    assert caught.value.passing


def test_a_package_that_did_not_come(tools: Path) -> None:
    with pytest.raises(ArchiveError, match=r"^apt brought no third$") as caught:
        make_apt(tools).download(["first", "third"])
    assert caught.value.passing


def test_waiting_ends(tools: Path) -> None:
    apt = make_apt(tools, update="exec sleep 60", timeout=0.3)
    with pytest.raises(ArchiveError, match="did not answer in time") as caught:
        apt.update([])
    assert caught.value.passing


def test_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArchiveError, match="no apt") as caught:
        Apt(tmp_path, 1)
    assert not caught.value.passing
