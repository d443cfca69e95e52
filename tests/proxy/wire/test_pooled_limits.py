"""The bounds of a pooled conversation, and what happens beyond them: the client keeps its backend."""

from __future__ import annotations

import pytest

from proxy.wire.messages import query
from proxy.wire.pins import PIN_ADVISORY, PIN_LARGE, PIN_MEMORY, PIN_SETTINGS, PIN_TEMPORARY
from proxy.wire.prepared import Statement
from proxy.wire.prepared_cache import PreparedCache
from tests.proxy.wire.pooled_transcript import PooledTranscript, asks, our
from tests.proxy.wire.transcript import (
    BOUND,
    CLOSED,
    COLUMNS,
    PARSED,
    SYNC,
    bind,
    close,
    done,
    error,
    execute,
    parse,
    ready,
    row,
)


@pytest.mark.parametrize("piece", [6, 9000, 50_000, 200_000])
def test_a_long_query_is_not_taken_for_its_beginning(piece: int) -> None:
    """What its beginning says (a prepared statement's name) must not be acted on."""
    transcript = PooledTranscript().client(parse("s"), SYNC, becomes=[parse(our(1)), SYNC]).server(PARSED, ready())
    long = query("execute s(" + "1" * 100_000 + ")")
    sent = b"".join(transcript.talk.from_client(long[at : at + piece]) for at in range(0, len(long), piece))
    assert sent == long
    transcript.server(COLUMNS, row(b"1"), done("SELECT 1"), ready()).unlink()


@pytest.mark.parametrize("piece", [6, 9000, 50_000, 200_000])
@pytest.mark.parametrize(
    ("words", "tag", "pin"),
    [
        ("'a settled offset, set'", "SELECT 1", 0),
        ("set_config('work_mem', '1MB', false)", "SELECT 1", PIN_SETTINGS),
        ("pg_try_advisory_lock(1)", "SELECT 1", PIN_ADVISORY),
        ("1; end; begin set work_mem = 1; end", "DO", PIN_SETTINGS),
        ("x into temporary t", "SELECT 1", PIN_TEMPORARY),
        ("set_config('work_mem', '1MB', false)", "INSERT 0 1", 0),
    ],
)
def test_a_long_query_pins_by_what_is_in_it(words: str, tag: str, pin: int, piece: int) -> None:
    transcript = PooledTranscript()
    long = query("select " + "1, " * 30_000 + words + ", 2" * 30_000)
    sent = b"".join(transcript.talk.from_client(long[at : at + piece]) for at in range(0, len(long), piece))
    assert sent == long
    transcript.server(done(tag), ready()).pinned(pin)
    transcript = PooledTranscript()
    long = parse("", long[5:-1].decode())
    sent = b"".join(transcript.talk.from_client(long[at : at + piece]) for at in range(0, len(long), piece))
    assert sent == long
    transcript.client(bind(), execute(), SYNC).server(PARSED, BOUND, done(tag), ready()).pinned(pin | PIN_LARGE)


def test_eviction_stays_within_bytes() -> None:
    transcript = PooledTranscript(backend_bytes=2000)
    transcript.client(parse("a", "1" * 600), SYNC, becomes=[parse(our(1), "1" * 600), SYNC]).server(PARSED, ready())
    transcript.client(parse("b", "2" * 600), SYNC, becomes=[parse(our(2), "2" * 600), SYNC]).server(PARSED, ready())
    transcript.client(bind("a"), SYNC, becomes=[bind(our(1)), SYNC]).server(BOUND, ready())
    transcript.client(parse("c", "3" * 600), SYNC, becomes=[close(our(2)), parse(our(3), "3" * 600), SYNC])
    transcript.server(CLOSED, PARSED, ready(), becomes=[PARSED, ready()])
    transcript.client(
        bind("b"), execute(), SYNC, becomes=[close(our(1)), parse(our(2), "2" * 600), bind(our(2)), execute(), SYNC]
    )
    transcript.server(CLOSED, PARSED, BOUND, done(), ready(), becomes=[BOUND, done(), ready()]).unlink()


def test_an_eviction_that_never_happens() -> None:
    transcript = PooledTranscript(backend_bytes=1000)
    transcript.client(parse("a", "1" * 600), SYNC, becomes=[parse(our(1), "1" * 600), SYNC]).server(PARSED, ready())
    transcript.client(
        bind("nobody"),
        parse("b", "2" * 600),
        SYNC,
        becomes=[bind("nobody"), close(our(1)), parse(our(2), "2" * 600), SYNC],
    )
    transcript.server(error(), ready())
    transcript.client(bind("a"), SYNC, becomes=[close(our(1)), parse(our(1), "1" * 600), bind(our(1)), SYNC])
    transcript.server(CLOSED, PARSED, BOUND, ready(), becomes=[BOUND, ready()]).unlink()


def test_a_client_with_too_many_statements_is_pinned() -> None:
    transcript = PooledTranscript(client_bytes=1000)
    transcript.client(parse("a", "1" * 600), SYNC, becomes=[parse(our(1), "1" * 600), SYNC]).server(PARSED, ready())
    transcript.client(parse("b", "2" * 600), SYNC).server(PARSED, ready()).pinned(PIN_MEMORY)
    transcript.client(bind("a"), bind("b"), SYNC, becomes=[bind(our(1)), bind("b"), SYNC])
    transcript.server(BOUND, BOUND, ready())


def test_texts_with_set_are_bounded() -> None:
    transcript = PooledTranscript().client(query("begin")).server(done("BEGIN"), ready("T"))
    for number in range(2000):
        transcript.client(query(f"update t set a = '{'x' * 100}{number}'")).server(done("UPDATE 1"), ready("T"))
    talk = transcript.pooled
    assert sum(map(len, talk._set_texts)) < 70_000
    transcript.client(query("commit")).server(done("COMMIT"), ready()).unlink()


def test_a_set_behind_too_many_texts_pins() -> None:
    transcript = PooledTranscript().client(query("begin")).server(done("BEGIN"), ready("T"))
    for _ in range(100):
        transcript.client(query(f"update t set a = '{'x' * 1000}'")).server(done("UPDATE 1"), ready("T"))
    transcript.client(query("set a.b = 1"), query("commit"))
    transcript.server(done("SET"), ready("T"), done("COMMIT"), ready())
    transcript.pooled.settle()
    assert transcript.pooled.pins == PIN_SETTINGS


@pytest.mark.parametrize("value", [b"x" * 8193, b"x" * 70_000])
def test_settings_too_large_to_carry_pin(value: bytes) -> None:
    transcript = PooledTranscript().client(query("set a.b = '...'")).server(done("SET"), ready())
    transcript.settle(asks("a.b"), value).pinned(PIN_SETTINGS)


def test_many_settings_pin() -> None:
    transcript = PooledTranscript()
    for number in range(20):
        transcript.client(query(f"set a.b{number} = '...'")).server(done("SET"), ready())
        transcript.settle(asks(f"a.b{number}"), b"x" * 8000)
    transcript.pinned(PIN_SETTINGS)
    assert sum(map(len, transcript.pooled.settings.values())) <= 65536


@pytest.mark.parametrize(
    "text",
    [
        "set session authorization joe",
        "select set_config(name, 'x', false) from t",
        "select setseed(1); set seed = 0.5",
        "update pg_settings set setting = 'x' where name = 'search_path'",
        "set\u00a0weird = 1",
    ],
)
def test_settings_that_cannot_be_followed_pin(text: str) -> None:
    transcript = PooledTranscript().client(query(text)).server(done("SET"), ready())
    transcript.pooled.settle()
    assert transcript.pooled.pins & PIN_SETTINGS


@pytest.mark.parametrize(
    "text", ["do $$ begin set a.b = 1; end $$", "do $$ begin perform set_config('a.b', '', false); end $$"]
)
def test_settings_of_a_block_are_asked_for(text: str) -> None:
    PooledTranscript().client(query(text)).server(done("DO"), ready()).settle(asks("a.b"), b"1").unlink()


def test_load_pins() -> None:
    PooledTranscript().client(query("load 'x'")).server(done("LOAD"), ready()).pinned(PIN_SETTINGS)


def test_databases_are_collected() -> None:
    transcript = PooledTranscript().client(query("drop database a"), query("create database b template c"))
    assert transcript.pooled.databases_text == b"drop database a;create database b template c"


def test_cache_bookkeeping() -> None:
    cache = PreparedCache(1000)
    first, second = Statement(b"1", b"x" * 600, b"\0\0"), Statement(b"2", b"y" * 600, b"\0\0")
    assert cache.add(first) == []
    assert cache.add(second) == [first]
    assert first not in cache
    cache.restore(first)
    cache.restore(first)
    cache.discard(second)
    cache.discard(second)
    assert cache.use(first)
    assert len(cache) == 1
    cache.clear()
    assert cache.add(first) == []
    assert cache.evictions == 1
