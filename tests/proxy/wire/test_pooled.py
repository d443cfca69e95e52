"""The pooled conversation, as transcripts: what a client prepared is on whichever backend it gets."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.steering import Steering
from proxy.wire.frames import HOLD_LIMIT
from proxy.wire.messages import error_response, query
from proxy.wire.pins import (
    PIN_LARGE,
    PIN_MEMORY,
)
from proxy.wire.pooled import PooledConversation
from proxy.wire.prepared import StatementRegistry
from proxy.wire.session_state import BackendState
from tests.proxy.wire.pooled_transcript import PooledTranscript, asks, our, run_cut
from tests.proxy.wire.transcript import (
    BOUND,
    CLOSED,
    COLUMNS,
    FLUSH,
    NO_DATA,
    PARAMETERS,
    PARSED,
    SYNC,
    bind,
    close,
    describe,
    done,
    error,
    execute,
    parse,
    ready,
    row,
)

ABSENT = our(0)
MISSING = error("unnamed prepared statement does not exist", "26000")


def names_are_rewritten() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(parse("s"), describe("s"), SYNC, becomes=[parse(our(1)), describe(our(1)), SYNC])
        .server(PARSED, PARAMETERS, NO_DATA, ready())
        .client(
            bind("s", "p", b"\0\1\0\0"),
            execute("p"),
            SYNC,
            becomes=[bind(our(1), "p", b"\0\1\0\0"), execute("p"), SYNC],
        )
        .server(BOUND, done(), ready())
        .unlink()
    )


def prepared_again_on_another_backend() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("b")
        .client(bind("s"), execute(), SYNC, becomes=[parse(our(1)), bind(our(1)), execute(), SYNC])
        .server(PARSED, BOUND, done(), ready(), becomes=[BOUND, done(), ready()])
        .unlink()
        .link("b")
        .client(describe("s"), SYNC, becomes=[describe(our(1)), SYNC])
        .server(PARAMETERS, NO_DATA, ready())
        .unlink()
    )


def describe_prepares_too() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("b")
        .client(describe("s"), SYNC, becomes=[parse(our(1)), describe(our(1)), SYNC])
        .server(PARSED, PARAMETERS, NO_DATA, ready(), becomes=[PARAMETERS, NO_DATA, ready()])
        .unlink()
    )


def one_name_two_texts() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(parse("s", "one"), SYNC, becomes=[parse(our(1), "one"), SYNC])
        .server(PARSED, ready())
        .unlink()
        .of(1)
        .link("a")
        .client(parse("s", "two"), SYNC, becomes=[parse(our(2), "two"), SYNC])
        .server(PARSED, ready())
        .client(bind("s"), SYNC, becomes=[bind(our(2)), SYNC])
        .server(BOUND, ready())
        .unlink()
        .of(0)
        .link("a")
        .client(bind("s"), SYNC, becomes=[bind(our(1)), SYNC])
        .server(BOUND, ready())
        .unlink()
    )


def a_fresh_parse_is_a_real_one() -> PooledTranscript:
    """Another client with the same text: its plan and its errors are of today."""
    return (
        one_name_two_texts()
        .of(2)
        .link("a")
        .client(parse("t", "one"), SYNC, becomes=[close(our(1)), parse(our(1), "one"), SYNC])
        .server(CLOSED, PARSED, ready(), becomes=[PARSED, ready()])
        .unlink()
    )


def a_parse_that_fails_is_forgotten() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(parse("s", "bad"), bind("s"), SYNC, becomes=[parse(our(1), "bad"), bind(our(1)), SYNC])
        .server(error("syntax"), ready())
        .client(parse("s", "good"), SYNC, becomes=[parse(our(2), "good"), SYNC])
        .server(PARSED, ready())
        .client(bind("s"), SYNC, becomes=[bind(our(2)), SYNC])
        .server(BOUND, ready())
        .unlink()
    )


def our_parse_fails_where_the_bind_would() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("b")
        .client(bind("s"), execute(), SYNC, becomes=[parse(our(1)), bind(our(1)), execute(), SYNC])
        .server(error("no such table"), ready())
        .client(bind("s"), execute(), SYNC, becomes=[parse(our(1)), bind(our(1)), execute(), SYNC])
        .server(PARSED, BOUND, done(), ready(), becomes=[BOUND, done(), ready()])
        .unlink()
    )


def a_name_that_is_taken() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("b")
        .client(parse("s", "other"), SYNC, becomes=[parse(our(1)), parse(our(1), "other"), SYNC])
        .server(
            PARSED,
            error(f'prepared statement "{our(1)}" already exists', "42P05"),
            ready(),
            becomes=[error('prepared statement "s" already exists', "42P05"), ready()],
        )
        .client(bind("s"), SYNC, becomes=[bind(our(1)), SYNC])
        .server(BOUND, ready())
        .unlink()
    )


def an_unknown_name() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(bind("nobody"), SYNC)
        .server(error('prepared statement "nobody" does not exist', "26000"), ready())
        .unlink()
    )


def the_unnamed_statement_is_carried() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(parse("", "u"), SYNC)
        .server(PARSED, ready())
        .unlink()
        .link("b")
        .client(bind(), execute(), SYNC, becomes=[parse("", "u"), bind(), execute(), SYNC])
        .server(PARSED, BOUND, done(), ready(), becomes=[BOUND, done(), ready()])
        .client(bind(), describe(), execute(), SYNC)
        .server(BOUND, PARAMETERS, NO_DATA, done(), ready())
        .client(query("x"))
        .server(done(), ready())
        .client(bind(), SYNC)
        .server(error("unnamed prepared statement does not exist", "26000"), ready())
        .unlink()
    )


def the_unnamed_statement_outlives_our_query() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(parse("", "set a.b = 1"), bind(), execute(), SYNC)
        .server(PARSED, BOUND, done("SET"), ready())
        .settle(asks("a.b"), b"1")
        .client(bind(), SYNC, becomes=[parse("", "set a.b = 1"), bind(), SYNC])
        .server(PARSED, BOUND, ready(), becomes=[BOUND, ready()])
        .unlink()
    )


def the_same_parse_each_time() -> PooledTranscript:
    """As drivers without named statements do it. What comes in between is not overlooked: another backend, a Parse that
    fails or is passed over, a simple query, another text."""
    batch = (parse("", "u"), bind(), execute(), SYNC)
    answer = (PARSED, BOUND, done(), ready())
    script = PooledTranscript().client(*batch).server(*answer).client(*batch).server(*answer).unlink().link("b")
    script.client(*batch).server(*answer).client(bind(), SYNC).server(BOUND, ready()).unlink()
    script.link("a").client(*batch, *batch).server(error(), ready(), *answer).client(*batch).server(error(), ready())
    script.client(bind(), SYNC, becomes=[close(), bind(), SYNC])
    script.server(CLOSED, MISSING, ready(), becomes=[MISSING, ready()]).client(*batch).server(*answer).unlink()
    script.link("b").client(parse("x", "no"), *batch, becomes=[parse(our(2), "no"), *batch]).server(error(), ready())
    script.unlink().link("a").client(bind(), SYNC).server(BOUND, ready()).client(query("x")).server(done(), ready())
    script.client(bind(), SYNC).server(MISSING, ready()).client(*batch).server(*answer)
    script.client(parse("", "v"), SYNC).server(PARSED, ready()).unlink()
    script.link("b").client(bind(), SYNC, becomes=[parse("", "v"), bind(), SYNC])
    return script.server(PARSED, BOUND, ready(), becomes=[BOUND, ready()]).client(*batch).server(*answer).unlink()


def nobody_else_s_unnamed_statement() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(parse("", "u"), SYNC)
        .server(PARSED, ready())
        .unlink()
        .of(1)
        .link("a")
        .client(bind(), execute(), SYNC, becomes=[close(), bind(), execute(), SYNC])
        .server(
            CLOSED, error("unnamed prepared statement does not exist", "26000"), ready(), becomes=[MISSING, ready()]
        )
        .unlink()
        .of(0)
        .link("a")
        .client(bind(), SYNC, becomes=[parse("", "u"), bind(), SYNC])
        .server(PARSED, BOUND, ready(), becomes=[BOUND, ready()])
        .unlink()
    )


def close_in_its_place() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("b")
        .client(
            bind("s"),
            close("s"),
            close("other"),
            close("p", b"P"),
            SYNC,
            becomes=[parse(our(1)), bind(our(1)), close(ABSENT), close("other"), close("p", b"P"), SYNC],
        )
        .server(PARSED, BOUND, CLOSED, CLOSED, CLOSED, ready(), becomes=[BOUND, CLOSED, CLOSED, CLOSED, ready()])
        .client(bind("s"), SYNC)
        .server(error('prepared statement "s" does not exist', "26000"), ready())
        .unlink()
    )


def a_close_that_never_happens() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("a")
        .client(bind("nobody"), close("s"), SYNC, becomes=[bind("nobody"), close(ABSENT), SYNC])
        .server(error(), ready())
        .client(bind("s"), SYNC, becomes=[bind(our(1)), SYNC])
        .server(BOUND, ready())
        .unlink()
    )


def nothing_is_rewritten_while_the_server_skips() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("a")
        .client(bind("nobody"), FLUSH)
        .server(error())
        .client(parse("t", "new"), bind("s"), describe("s"), close("s"), query("deallocate s"), query("execute s"))
        .client(SYNC, bind("s"), SYNC, becomes=[SYNC, bind(our(1)), SYNC])
        .server(ready(), BOUND, ready())
        .unlink()
    )


def deallocate_by_name() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("a")
        .client(query("DEALLOCATE s"), becomes=[query(f'DEALLOCATE "{our(1)}"')])
        .server(done("DEALLOCATE"), ready())
        .client(bind("s"), SYNC)
        .server(error(), ready())
        .client(query("deallocate prepare Nobody"))
        .server(error(), ready())
        .unlink()
    )


def deallocate_where_it_is_not_prepared() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("b")
        .client(query('deallocate "s";'), becomes=[parse(our(1), ""), query(f'deallocate "{our(1)}";')])
        .server(PARSED, done("DEALLOCATE"), ready(), becomes=[done("DEALLOCATE"), ready()])
        .unlink()
        .link("a")
        .client(parse("s"), SYNC, becomes=[close(our(1)), parse(our(1)), SYNC])
        .server(CLOSED, PARSED, ready(), becomes=[PARSED, ready()])
        .unlink()
    )


def deallocate_in_a_failed_transaction() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("a")
        .client(query("begin"), query("bad"))
        .server(done("BEGIN"), ready("T"), error(), ready("E"))
        .client(query("deallocate s"), becomes=[query(f'deallocate "{our(1)}"')])
        .server(error("current transaction is aborted", "25P02"), ready("E"))
        .client(
            query("rollback"),
            bind("s"),
            SYNC,
            becomes=[query("rollback"), close(our(1)), parse(our(1)), bind(our(1)), SYNC],
        )
        .server(
            done("ROLLBACK"),
            ready(),
            CLOSED,
            PARSED,
            BOUND,
            ready(),
            becomes=[done("ROLLBACK"), ready(), BOUND, ready()],
        )
        .unlink()
    )


def execute_by_name() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("b")
        .client(query("execute s(1)"), becomes=[parse(our(1)), SYNC, query(f'execute "{our(1)}"(1)')])
        .server(PARSED, ready(), COLUMNS, row(b"1"), done(), ready(), becomes=[COLUMNS, row(b"1"), done(), ready()])
        .client(query("EXECUTE S"), becomes=[query(f'EXECUTE "{our(1)}"')])
        .server(done(), ready())
        .unlink()
    )


def deallocate_all() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("a")
        .client(query("deallocate all"))
        .server(done("DEALLOCATE ALL"), ready())
        .client(bind("s"), SYNC)
        .server(error('prepared statement "s" does not exist', "26000"), ready())
        .client(parse("s"), SYNC, becomes=[parse(our(2)), SYNC])
        .server(PARSED, ready())
        .unlink()
    )


def discard_all_with_more_behind_it() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("a")
        .client(
            query("discard all"),
            parse("t", "two"),
            bind("s"),
            SYNC,
            becomes=[query("discard all"), parse(our(2), "two"), bind(our(1)), SYNC],
        )
        .server(
            *(done("DISCARD ALL"), ready(), PARSED, error(f'"{our(1)}" does not exist'), ready()),
            becomes=[done("DISCARD ALL"), ready(), PARSED, error('"s" does not exist'), ready()],
        )
        .client(bind("t"), SYNC, becomes=[close(our(2)), parse(our(2), "two"), bind(our(2)), SYNC])
        .server(CLOSED, PARSED, BOUND, ready(), becomes=[BOUND, ready()])
        .unlink()
        .of(1)
        .link("a")
        .client(parse("x", "two"), SYNC, becomes=[close(our(2)), parse(our(2), "two"), SYNC])
        .server(CLOSED, PARSED, ready(), becomes=[PARSED, ready()])
        .unlink()
    )


def outdated_plan() -> PooledTranscript:
    return (
        names_are_rewritten()
        .link("a")
        .client(bind("s"), SYNC, becomes=[bind(our(1)), SYNC])
        .server(error("cached plan must not change result type", "0A000"), ready())
        .client(close("s"), parse("s"), SYNC, becomes=[close(ABSENT), parse(our(2)), SYNC])
        .server(CLOSED, PARSED, ready())
        .unlink()
    )


def a_statement_too_long_to_keep() -> PooledTranscript:
    long = "x" * (HOLD_LIMIT + 1)
    return (
        PooledTranscript()
        .client(parse("", long), SYNC)
        .server(PARSED, ready())
        .pinned(PIN_LARGE)
        .client(bind(), execute(), SYNC)
        .server(BOUND, done("INSERT 0 1"), ready())
        .pinned(PIN_LARGE)
        .settle(b"")
        .client(parse("", "short"), SYNC)
        .server(PARSED, ready())
        .pinned(0)
        .unlink()
    )


def a_long_statement_with_a_name() -> PooledTranscript:
    long = "x" * (HOLD_LIMIT + 1)
    return (
        PooledTranscript()
        .client(parse("s", long), bind("s"), SYNC)
        .server(PARSED, BOUND, ready())
        .pinned(PIN_MEMORY)
        .client(query("deallocate all"))
        .server(done("DEALLOCATE ALL"), ready())
        .pinned(0)
    )


def long_values_go_with_the_new_name() -> PooledTranscript:
    rest = b"\0\0\0\1\0\2\0\0" + b"v" * 200_000 + b"\0\0"
    return (
        names_are_rewritten()
        .link("b")
        .client(bind("s", "", rest), execute(), SYNC, becomes=[parse(our(1)), bind(our(1), "", rest), execute(), SYNC])
        .server(PARSED, BOUND, done(), ready(), becomes=[BOUND, done(), ready()])
        .unlink()
    )


def prepared_again_behind_an_error_and_a_sync() -> PooledTranscript:
    """The first Parse of ours was passed over: what was sent behind the Sync must not count on it."""
    return (
        names_are_rewritten()
        .link("b")
        .client(
            describe("", b"P"),
            bind("s"),
            SYNC,
            bind("s"),
            SYNC,
            becomes=[
                *(describe("", b"P"), parse(our(1)), bind(our(1)), SYNC),
                *(close(our(1)), parse(our(1)), bind(our(1)), SYNC),
            ],
        )
        .server(
            *(error("no portal", "34000"), ready(), CLOSED, PARSED, BOUND, ready()),
            becomes=[error("no portal", "34000"), ready(), BOUND, ready()],
        )
        .idle()
    )


def prepared_and_closed_behind_deallocate_all() -> PooledTranscript:
    """All of it sent at once: the name is free again."""
    return (
        names_are_rewritten()
        .link("a")
        .client(
            query("deallocate all"),
            *(parse("m", "select 2"), close("m"), SYNC),
            becomes=[query("deallocate all"), parse(our(2), "select 2"), close(ABSENT), SYNC],
        )
        .server(done("DEALLOCATE ALL"), ready(), PARSED, CLOSED, ready())
        .client(parse("m", "select 3"), SYNC, becomes=[parse(our(3), "select 3"), SYNC])
        .server(PARSED, ready())
        .idle()
    )


SCRIPTS: dict[str, Callable[[], PooledTranscript]] = {
    name: script
    for name, script in list(globals().items())
    if not name.startswith("_")
    and callable(script)
    and getattr(script, "__annotations__", {}).get("return") == "PooledTranscript"
}
LONG = {"a_statement_too_long_to_keep", "a_long_statement_with_a_name", "long_values_go_with_the_new_name"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str) -> None:
    SCRIPTS[name]()


@pytest.mark.parametrize("name", sorted(SCRIPTS.keys() - LONG))
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 23])
def test_script_cut_up(name: str, size: int) -> None:
    run_cut(SCRIPTS[name], lambda data: [data[at : at + size] for at in range(0, len(data), size)])


@pytest.mark.parametrize("name", sorted(LONG))
@pytest.mark.parametrize("size", [5000, 9000, 65536, 100_000, 262_144])
def test_long_script_cut_up(name: str, size: int) -> None:
    run_cut(SCRIPTS[name], lambda data: [data[at : at + size] for at in range(0, len(data), size)])


def test_a_backend_that_ends_behind_a_transaction_ends_no_client() -> None:
    """pg_terminate_backend right after COMMIT: the client was told, and stayed connected behind a FATAL."""
    registry = StatementRegistry()
    talk = PooledConversation(Steering(), registry, {}, {}, 1 << 20)
    talk.link(BackendState(talk.reported, 1 << 20))
    talk.from_client(query("commit"))
    fatal = error_response("57P01", "terminating connection due to administrator command")
    answer = done("COMMIT") + ready()
    assert talk.from_server(answer + fatal) == answer
    assert talk.idle
    assert talk.backend_ends
    talk.unlink()
    talk.backend_ends = False
    talk.link(BackendState(talk.reported, 1 << 20))
    talk.from_client(query("select 1"))
    assert talk.from_server(fatal) == fatal  # in the middle of a statement it is the client's
    assert not talk.backend_ends
