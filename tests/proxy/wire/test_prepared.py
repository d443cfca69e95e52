"""The registry of statements, and what is believed of a backend, against a plain model."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from proxy.wire.prepared import Statement, StatementRegistry
from proxy.wire.prepared_cache import PreparedCache


def test_the_same_statement_has_one_name() -> None:
    registry = StatementRegistry()
    first = registry.intern(b"select $1", b"\0\0")
    assert registry.intern(b"select $1", b"\0\0") is first
    assert registry.intern(b"select $1", b"\0\1\0\0\0\x17") is not first
    assert registry.intern(b"select $2", b"\0\0").name != first.name
    registry.renew()
    assert registry.intern(b"select $1", b"\0\0").name != first.name


def test_names_cannot_be_guessed_from_outside() -> None:
    assert StatementRegistry().prefix != StatementRegistry().prefix
    assert StatementRegistry().absent != StatementRegistry().intern(b"", b"").name


def test_statements_that_nobody_holds_are_forgotten() -> None:
    registry = StatementRegistry()
    kept = registry.intern(b"kept", b"\0\0")
    for number in range(100):
        registry.intern(str(number).encode(), b"\0\0")
    gc.collect()
    assert list(registry._statements.values()) == [kept]


def test_messages() -> None:
    statement = Statement(b"n", b"select 1", b"\0\0")
    assert statement.parse_message(b"x") == b"P\0\0\0\x11x\0select 1\0\0\0"


STATEMENTS = [
    Statement(str(number).encode(), b"x" * size, b"\0\0") for number, size in enumerate([1, 50, 300, 900, 2000])
]
ACTIONS = st.lists(
    st.tuples(st.sampled_from(["use", "add", "discard", "restore", "doubt", "clear"]), st.sampled_from(STATEMENTS))
)


@given(ACTIONS, st.integers(0, 4000))
def test_the_cache_keeps_its_books(actions: list[tuple[str, Statement]], limit: int) -> None:
    cache = PreparedCache(limit)
    certain: set[bytes] = set()
    doubtful: set[bytes] = set()
    for action, statement in actions:
        if action == "use":
            assert cache.use(statement) == (statement.name in certain)
        elif action == "add" and statement not in cache:
            evicted = cache.add(statement)
            certain.add(statement.name)
            assert statement not in evicted
            certain -= {old.name for old in evicted}
            doubtful -= {old.name for old in evicted}
            assert cache._size <= limit or len(cache) == 1
        elif action == "discard":
            cache.discard(statement)
            certain.discard(statement.name)
            doubtful.discard(statement.name)
        elif action == "restore":
            cache.restore(statement)
            if statement.name not in doubtful:
                certain.add(statement.name)
        elif action == "doubt":
            cache.doubt(statement)
            certain.discard(statement.name)
            doubtful.add(statement.name)
        elif action == "clear":
            cache.clear()
            certain, doubtful = set(), set()
        assert len(cache) == len(certain | doubtful)
        assert cache._size == sum(statement.size for statement in STATEMENTS if statement in cache)
        assert all((statement in cache) == (statement.name in certain | doubtful) for statement in STATEMENTS)
