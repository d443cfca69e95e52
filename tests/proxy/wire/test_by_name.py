"""EXECUTE and DEALLOCATE, prepared through the protocol, of statements that were prepared there too: as transcripts."""

from __future__ import annotations

from collections.abc import Callable
from struct import pack

import pytest

from proxy.wire.messages import message
from proxy.wire.messages import query as ask
from tests.proxy.wire.pooled_transcript import PooledTranscript, our, run_cut
from tests.proxy.wire.transcript import (
    BOUND,
    CLOSED,
    COLUMNS,
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

EXECUTES = f'execute "{our(1)}"(1)'
DEALLOCATES = f'DEALLOCATE "{our(1)}"'


def _prepared() -> PooledTranscript:
    """Client 0 knows ``s``, which backend ``a`` holds."""
    return PooledTranscript().client(parse("s"), SYNC, becomes=[parse(our(1)), SYNC]).server(PARSED, ready())


def execute_unnamed() -> PooledTranscript:
    return (
        _prepared()
        .client(parse("", "execute s(1)"), describe(), SYNC, becomes=[parse("", EXECUTES), describe(), SYNC])
        .server(PARSED, PARAMETERS, COLUMNS, ready())
        .client(bind(), execute(), SYNC)
        .server(BOUND, row(b"1"), done(), ready())
        .unlink()
        .link("b")
        .client(bind(), execute(), SYNC, becomes=[parse(our(1)), parse("", EXECUTES), bind(), execute(), SYNC])
        .server(PARSED, PARSED, BOUND, row(b"1"), done(), ready(), becomes=[BOUND, row(b"1"), done(), ready()])
        .unlink()
    )


def execute_on_another_backend() -> PooledTranscript:
    return (
        _prepared()
        .unlink()
        .link("b")
        .client(parse("e", "execute s(1)"), SYNC, becomes=[parse(our(1)), parse(our(3), EXECUTES), SYNC])
        .server(PARSED, PARSED, ready(), becomes=[PARSED, ready()])
        .unlink()
        .link("c")
        .client(describe("e"), SYNC, becomes=[parse(our(1)), parse(our(3), EXECUTES), describe(our(3)), SYNC])
        .server(PARSED, PARSED, PARAMETERS, COLUMNS, ready(), becomes=[PARAMETERS, COLUMNS, ready()])
        .client(bind("e"), execute(), SYNC, becomes=[bind(our(3)), execute(), SYNC])
        .server(BOUND, row(b"1"), done(), ready())
        .unlink()
    )


def execute_what_is_gone() -> PooledTranscript:
    """The backend keeps its copy for other clients, but for this one the name stands for nothing."""
    ours = f'prepared statement "{our(1)}" does not exist'
    return (
        _prepared()
        .client(parse("e", "execute s(1)"), SYNC, becomes=[parse(our(3), EXECUTES), SYNC])
        .server(PARSED, ready())
        .client(close("s"), SYNC, becomes=[close(our(0)), SYNC])
        .server(CLOSED, ready())
        .client(bind("e"), SYNC, becomes=[parse(our(4), 'execute "s"(1)'), bind(our(4)), SYNC])
        .server(PARSED, BOUND, ready(), becomes=[BOUND, ready()])
        .client(execute(), SYNC)
        .server(error(ours, "26000"), ready(), becomes=[error(ours.replace(our(1), "s"), "26000"), ready()])
        .unlink()
    )


def execute_what_was_prepared_anew() -> PooledTranscript:
    return (
        _prepared()
        .client(parse("e", "execute s(1)"), SYNC, becomes=[parse(our(3), EXECUTES), SYNC])
        .server(PARSED, ready())
        .client(close("s"), parse("s", "select 2"), SYNC, becomes=[close(our(0)), parse(our(4), "select 2"), SYNC])
        .server(CLOSED, PARSED, ready())
        .client(
            bind("e"),
            execute(),
            SYNC,
            becomes=[parse(our(5), f'execute "{our(4)}"(1)'), bind(our(5)), execute(), SYNC],
        )
        .server(PARSED, BOUND, done(), ready(), becomes=[BOUND, done(), ready()])
        .unlink()
    )


def execute_of_nobody() -> PooledTranscript:
    """A statement of SQL's own PREPARE goes by its own name."""
    return (
        PooledTranscript()
        .client(parse("", "EXECUTE nobody"), bind(), execute(), SYNC)
        .server(PARSED, error('prepared statement "nobody" does not exist', "26000"), ready())
        .unlink()
    )


def deallocate() -> PooledTranscript:
    return (
        _prepared()
        .client(
            parse("", "DEALLOCATE s"),
            bind(),
            execute(),
            SYNC,
            becomes=[parse("", DEALLOCATES), bind(), execute(), SYNC],
        )
        .server(PARSED, BOUND, done("DEALLOCATE"), ready())
        .client(bind("s"), SYNC)
        .server(error('prepared statement "s" does not exist', "26000"), ready())
        .client(parse("s"), SYNC, becomes=[close(our(1)), parse(our(1)), SYNC])
        .server(CLOSED, PARSED, ready(), becomes=[PARSED, ready()])
        .unlink()
    )


def deallocate_where_it_is_not_prepared() -> PooledTranscript:
    return (
        _prepared()
        .unlink()
        .link("b")
        .client(
            parse("", "DEALLOCATE s"),
            bind(),
            execute(),
            SYNC,
            becomes=[parse("", DEALLOCATES), parse(our(1), ""), bind(), execute(), SYNC],
        )
        .server(
            PARSED, PARSED, BOUND, done("DEALLOCATE"), ready(), becomes=[PARSED, BOUND, done("DEALLOCATE"), ready()]
        )
        .client(bind("s"), SYNC)
        .server(error('prepared statement "s" does not exist', "26000"), ready())
        .unlink()
    )


def deallocate_that_fails() -> PooledTranscript:
    return (
        _prepared()
        .client(ask("begin"), ask("bad"))
        .server(done("BEGIN"), ready("T"), error(), ready("E"))
        .client(
            parse("", "DEALLOCATE s"),
            bind(),
            execute(),
            SYNC,
            becomes=[parse("", DEALLOCATES), bind(), execute(), SYNC],
        )
        .server(PARSED, error("current transaction is aborted", "25P02"), ready("E"))
        .client(ask("rollback"))
        .server(done("ROLLBACK"), ready())
        .client(bind("s"), SYNC, becomes=[close(our(1)), parse(our(1)), bind(our(1)), SYNC])
        .server(CLOSED, PARSED, BOUND, ready(), becomes=[BOUND, ready()])
        .unlink()
    )


SCRIPTS: dict[str, Callable[[], PooledTranscript]] = {
    name: script
    for name, script in list(globals().items())
    if not name.startswith("_")
    and callable(script)
    and getattr(script, "__annotations__", {}).get("return") == "PooledTranscript"
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(name: str) -> None:
    SCRIPTS[name]()


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("size", [1, 7, 23])
def test_script_cut_up(name: str, size: int) -> None:
    run_cut(SCRIPTS[name], lambda data: [data[at : at + size] for at in range(0, len(data), size)])


def _notification(pid: int) -> bytes:
    return message(b"A", pack("!i", pid) + b"channel\0payload\0")


@pytest.mark.parametrize(("sender", "told"), [(4711, 0x40000001), (4712, 4712)])
def test_own_notifications_come_from_the_process_that_the_client_knows(sender: int, told: int) -> None:
    script = PooledTranscript()
    script.pooled.pid = 0x40000001
    assert script.pooled.backend is not None
    script.pooled.backend.pid = 4711

    script.client(ask("notify channel")).server(
        done("NOTIFY"), _notification(sender), ready(), becomes=[done("NOTIFY"), _notification(told), ready()]
    ).server(_notification(sender), becomes=[_notification(told)])


def test_notifications_of_other_clients_of_this_worker() -> None:
    script = PooledTranscript()
    script.pooled.pid = 1001
    assert script.pooled.backend is not None
    script.pooled.backend.pid = 4711
    script.client(ask("notify channel")).server(done("NOTIFY"), ready()).unlink()
    script.of(1).link("b").pooled.pid = 1002
    script.client(ask("listen channel")).server(done("LISTEN"), ready())
    script.server(_notification(4711), becomes=[_notification(1001)])
    script.server(_notification(4712), becomes=[_notification(4712)])
    # Somebody's pg_notify on the backend that once ran this client's own: it must not pass for that.
    script.pooled.registry.notified(4711, 1002)
    script.server(_notification(4711), becomes=[_notification(4711)])
