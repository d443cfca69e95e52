"""Addresses: what libpq accepts, what is refused and with which words, and that no password gets into them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.dsn import Dsn, Host, is_loopback, parse_dsn, parse_listen


@pytest.mark.parametrize(
    ("text", "hosts", "user", "database", "password"),
    [
        ("postgresql://bob@db:6000/shop", (Host("db", 6000),), "bob", "shop", None),
        ("postgres://bob:s%40c%2Fret@db/shop", (Host("db"),), "bob", "shop", "s@c/ret"),
        ("postgresql://", (Host("localhost"),), "", "", None),
        ("postgresql://bob@db", (Host("db"),), "bob", "bob", None),
        ("postgresql://a:1,b,[::1]:3/x", (Host("a", 1), Host("b"), Host("::1", 3)), "", "x", None),
        ("postgresql://bob@[fe80::2]/x", (Host("fe80::2"),), "bob", "x", None),
        ("postgresql://%2Frun%2Fpostgresql:77/x", (Host("/run/postgresql", 77),), "", "x", None),
        ("postgresql:///x?host=/tmp&port=9&user=u&password=p+q", (Host("/tmp", 9),), "u", "x", "p+q"),
        ("postgresql:///x?host=a,b&port=9", (Host("a", 9), Host("b", 9)), "", "x", None),
        ("host=a,b port=1,2 user=u dbname=d", (Host("a", 1), Host("b", 2)), "u", "d", None),
        (r"host='/my dir' user = 'o\'hara' password=a\ b", (Host("/my dir"),), "o'hara", "o'hara", "a b"),
        ("hostaddr=10.0.0.1 host=name password=''", (Host("10.0.0.1"),), "", "", None),
    ],
)
def test_reads_what_libpq_reads(
    text: str, hosts: tuple[Host, ...], user: str, database: str, password: str | None
) -> None:
    dsn = parse_dsn(text)
    assert dsn == Dsn(hosts, user, database, password, {})


def test_keeps_options_apart_from_addressing() -> None:
    dsn = parse_dsn("postgresql://u@h/d?sslmode=verify-full&sslrootcert=/etc/my%20ca.pem&options=-c%20a%3Db&port=7")
    assert dsn.options == {"sslmode": "verify-full", "sslrootcert": "/etc/my ca.pem", "options": "-c a=b"}
    assert dsn.hosts == (Host("h", 7),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("mysql://h/d", "must begin with postgresql://"),
        ("db.example.com", "must begin with postgresql://"),
        ("postgresql://u:geheim@h:0/d", "port"),
        ("postgresql://u:geheim@h:65536/d", "port"),
        ("postgresql://u:ge@heim@h/d", "%40"),
        ("postgresql://u:1/geheim@h/d", "%2F"),
        ("postgresql://u:1?geheim=1@h/d", "%3F"),
        ("postgresql://u:geheim@::1/d", "brackets"),
        ("postgresql://u:geheim@[::1/d", "brackets"),
        ("postgresql://u:geheim@h/d?sslmod=require", 'did you mean "sslmode"'),
        ("postgresql://u:geheim@h/d?sslmode", "name=value"),
        ("postgresql://u:geheim@h/d?host=a,b&port=1,2,3", "2 hosts and 3 ports"),
        ("postgresql://u:geheim%00@h/d", "zero byte"),
        ("host=h password='geheim", "not closed"),
        ("host=h user", "name=value"),
    ],
)
def test_says_what_is_wrong_without_the_password(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_dsn(text)
    assert words in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_text_and_repr_hold_no_password() -> None:
    dsn = parse_dsn("postgresql://o%20b:geheim@h,[::1]:3,%2Ftmp/d%2Fe?application_name=x%26y")
    assert "geheim" not in dsn.text() + repr(dsn)
    assert parse_dsn(dsn.text()) == Dsn(dsn.hosts, dsn.user, dsn.database, None, dsn.options)


_TEXT = st.text(st.characters(blacklist_characters="\0", blacklist_categories=["Cs"]), min_size=1, max_size=12)


@given(
    hosts=st.lists(
        st.builds(Host, st.sampled_from(["db", "10.0.0.1", "::1", "/run/my pg"]), st.integers(1, 65535)),
        min_size=1,
        max_size=4,
    ),
    user=_TEXT,
    database=_TEXT,
    name=_TEXT,
)
def test_what_it_writes_it_reads(hosts: list[Host], user: str, database: str, name: str) -> None:
    dsn = Dsn(tuple(hosts), user, database, None, {"application_name": name})
    assert parse_dsn(dsn.text()) == dsn


@given(st.text(max_size=60), st.sampled_from(["", "postgresql://", "host="]))
def test_any_text_is_read_or_refused_in_one_line(text: str, start: str) -> None:
    with contextlib.suppress(ValueError):
        parse_dsn(start + text)


def test_unix_hosts_know_their_socket() -> None:
    assert Host("/tmp", 5433).socket_path == "/tmp/.s.PGSQL.5433"
    assert str(Host("/tmp", 5433)) == "/tmp/.s.PGSQL.5433"
    assert Host("h").socket_path == ""
    assert str(Host("::1", 3)) == "[::1]:3"


@pytest.mark.parametrize(
    ("text", "shown", "local"),
    [
        ("127.0.0.1:6432", "127.0.0.1:6432", True),
        ("127.9.9.9:6432", "127.9.9.9:6432", True),
        ("localhost:0", "localhost:0", True),
        ("[::1]:6432", "[::1]:6432", True),
        ("*:6432", "*:6432", False),
        (":6432", "*:6432", False),
        ("0.0.0.0:6432", "0.0.0.0:6432", False),
        ("[::]:6432", "[::]:6432", False),
        ("db.example.com:1", "db.example.com:1", False),
        ("/tmp/.s.PGSQL.6432", "/tmp/.s.PGSQL.6432", True),
    ],
)
def test_listen_addresses(text: str, shown: str, local: bool) -> None:
    address = parse_listen(text)
    assert (str(address), address.is_local) == (shown, local)


@pytest.mark.parametrize("text", ["", "6432", "host", "host:", "::1:6432", "h:70000", "h:-1", "/tmp/", "/" + "x" * 107])
def test_listen_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        parse_listen(text)


def test_loopback_is_decided_by_the_address() -> None:
    assert is_loopback("::1%lo")
    assert not is_loopback("")
    assert not is_loopback("127.0.0.1.example.com")
