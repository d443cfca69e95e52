"""The plain conversation, as transcripts: every answer belongs to its message, and nothing is changed on the way."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.wire.frames import HOLD_LIMIT, IDLE, IN_TRANSACTION, ProtocolViolation
from proxy.wire.messages import message, query
from tests.proxy.wire.transcript import (
    BOUND,
    CLOSED,
    COLUMNS,
    COPY_DONE,
    COPY_IN,
    COPY_OUT,
    EMPTY,
    FLUSH,
    FUNCTION_CALL,
    NO_DATA,
    NOTICE,
    NOTIFY,
    PARAMETERS,
    PARSED,
    RESULT,
    SUSPENDED,
    SYNC,
    TERMINATE,
    Transcript,
    bind,
    close,
    copy_data,
    copy_fail,
    describe,
    done,
    error,
    execute,
    parse,
    ready,
    row,
    status,
)

BATCH = (parse(), bind(), describe("", b"P"), execute())
ANSWER = (PARSED, BOUND, COLUMNS, row(b"1"), done())

TRANSCRIPTS: dict[str, Callable[[], Transcript]] = {
    "simple query": lambda: (
        Transcript().client(query("select 1")).busy().server(COLUMNS, row(b"1"), done()).busy().server(ready()).idle()
    ),
    "empty query": lambda: Transcript().client(query("")).server(EMPTY, ready()).idle(),
    "several statements": lambda: (
        Transcript().client(query("a;b")).server(done(), COLUMNS, row(b"1"), done(), EMPTY, ready()).idle()
    ),
    "several statements, the second fails": lambda: (
        Transcript().client(query("a;b")).server(done(), error(), ready()).idle()
    ),
    "extended": lambda: Transcript().client(*BATCH, SYNC).server(*ANSWER).busy().server(ready()).idle(),
    "pipelined batches": lambda: (
        Transcript()
        .client(*BATCH, SYNC, *BATCH, SYNC)
        .server(*ANSWER, ready())
        .busy()
        .server(*ANSWER)
        .busy()
        .server(ready())
        .idle()
    ),
    "pipeline within one sync": lambda: (
        Transcript().client(*BATCH, *BATCH, SYNC).server(*ANSWER, *ANSWER, ready()).idle()
    ),
    "flush without sync": lambda: (
        Transcript()
        .client(parse("s"), describe("s"), FLUSH)
        .server(PARSED, PARAMETERS, NO_DATA)
        .busy()
        .client(bind("s"), execute(), FLUSH)
        .server(BOUND, done())
        .busy()
        .client(SYNC)
        .server(ready())
        .idle()
    ),
    "an error skips to sync": lambda: (
        Transcript().client(*BATCH, SYNC, *BATCH, SYNC).server(error(), ready(), *ANSWER).busy().server(ready()).idle()
    ),
    "an error at execute": lambda: (
        Transcript().client(*BATCH, execute(), SYNC).server(*ANSWER[:4], error(), ready()).idle()
    ),
    "an error before anything more was sent": lambda: (
        Transcript()
        .client(parse("s"), FLUSH)
        .server(error())
        .client(bind("s"), execute())
        .busy()
        .client(SYNC, query("b"))
        .server(ready())
        .busy()
        .server(done(), ready())
        .idle()
    ),
    "a query behind a failed batch is skipped": lambda: (
        Transcript().client(*BATCH, query("q"), SYNC).server(error(), ready()).idle()
    ),
    "a query behind a batch whose failure is known": lambda: (
        Transcript().client(*BATCH, FLUSH).server(error()).client(query("q"), SYNC).server(ready()).idle()
    ),
    "a query in the middle of a batch": lambda: (
        Transcript().client(*BATCH, query("q"), SYNC).server(*ANSWER, done(), ready()).busy().server(ready()).idle()
    ),
    "sync behind queries": lambda: (
        Transcript()
        .client(query("a"), query("b"), SYNC)
        .server(done(), ready(), error(), ready())
        .busy()
        .server(ready())
        .idle()
    ),
    "portal suspended": lambda: (
        Transcript()
        .client(parse(), bind(), execute("", 1), SYNC)
        .server(PARSED, BOUND, row(b"1"), SUSPENDED, ready("T"))
        .busy()
        .client(execute("", 1), execute("", 1), SYNC)
        .server(row(b"2"), SUSPENDED, done(), ready())
        .idle()
    ),
    "an empty statement is executed": lambda: (
        Transcript().client(parse("", ""), bind(), execute(), SYNC).server(PARSED, BOUND, EMPTY, ready()).idle()
    ),
    "close": lambda: Transcript().client(close("s"), close("p", b"P"), SYNC).server(CLOSED, CLOSED, ready()).idle(),
    "function call": lambda: (
        Transcript().client(FUNCTION_CALL, FUNCTION_CALL).server(RESULT, ready(), error(), ready()).idle()
    ),
    "a transaction": lambda: (
        Transcript()
        .client(query("begin"))
        .server(done("BEGIN"), ready("T"))
        .busy()
        .client(query("x"))
        .server(error(), ready("E"))
        .busy()
        .client(query("rollback"))
        .server(done("ROLLBACK"), ready())
        .idle()
    ),
    "things said at any moment": lambda: (
        Transcript()
        .server(NOTIFY, status("TimeZone", "UTC"), NOTICE)
        .idle()
        .client(*BATCH, SYNC)
        .server(NOTICE, PARSED, NOTIFY, BOUND, status("a", "b"), COLUMNS, row(b"1"), NOTICE, done(), NOTIFY)
        .busy()
        .server(ready(), NOTIFY)
        .idle()
    ),
    "fatal while idle": lambda: Transcript().server(error("bye", "57P01", "FATAL")).idle(),
    "fatal in mid-stream": lambda: (
        Transcript().client(query("q")).server(COLUMNS, row(b"1"), error("bye", "57P01", "FATAL")).busy()
    ),
    "copy out": lambda: (
        Transcript().client(query("copy")).server(COPY_OUT, copy_data(), COPY_DONE, done("COPY 1"), ready()).idle()
    ),
    "copy out, extended": lambda: (
        Transcript()
        .client(parse(), bind(), execute(), SYNC)
        .server(PARSED, BOUND, COPY_OUT, copy_data(), COPY_DONE, done("COPY 1"), ready())
        .idle()
    ),
    "copy in": lambda: (
        Transcript()
        .client(query("copy"))
        .server(COPY_IN)
        .client(copy_data(), FLUSH, SYNC, copy_data(), COPY_DONE)
        .server(done("COPY 2"))
        .busy()
        .server(ready())
        .idle()
    ),
    "copy in, data sent before it is asked for": lambda: (
        Transcript()
        .client(query("copy"), copy_data(), COPY_DONE)
        .server(COPY_IN, done("COPY 1"), ready())
        .idle()
        .client(query("x"))
        .server(done(), ready())
        .idle()
    ),
    "copy in, two of them sent before they are asked for": lambda: (
        Transcript()
        .client(query("copy"), copy_data(), COPY_DONE, query("copy"), copy_data(), COPY_DONE, query("x"))
        .server(COPY_IN, done(), ready(), COPY_IN, done(), ready())
        .busy()
        .server(done(), ready())
        .idle()
    ),
    "copy in that fails before it begins, its data on their way": lambda: (
        Transcript().client(query("copy"), copy_data(), COPY_DONE).server(error(), ready()).idle()
    ),
    "copy in given up by the client": lambda: (
        Transcript().client(query("c")).server(COPY_IN).client(copy_fail()).server(error(), ready()).idle()
    ),
    "copy in refused by the server, more data coming": lambda: (
        Transcript()
        .client(query("c"))
        .server(COPY_IN)
        .client(copy_data())
        .server(error(), ready())
        .idle()
        .client(copy_data(), copy_data(), COPY_DONE, query("x"))
        .busy()
        .server(done(), ready())
        .idle()
    ),
    "copy in, extended, its sync ignored": lambda: (
        Transcript()
        .client(parse(), bind(), execute(), SYNC)
        .server(PARSED, BOUND, COPY_IN)
        .busy()
        .client(copy_data(), COPY_DONE, SYNC)
        .server(done("COPY 1"))
        .busy()
        .server(ready())
        .idle()
    ),
    "copy in, extended, all sent at once": lambda: (
        Transcript()
        .client(parse(), bind(), execute(), SYNC, copy_data(), COPY_DONE, SYNC, query("x"))
        .server(PARSED, BOUND, COPY_IN, done("COPY 1"), ready())
        .busy()
        .server(done(), ready())
        .idle()
    ),
    "copy in, extended, fails before it begins": lambda: (
        Transcript()
        .client(parse(), bind(), execute(), SYNC, copy_data(), COPY_DONE, SYNC)
        .server(PARSED, BOUND, error(), ready())
        .busy()
        .server(ready())
        .idle()
    ),
    "copy in, extended, bad data": lambda: (
        Transcript()
        .client(parse(), bind(), execute(), FLUSH)
        .server(PARSED, BOUND, COPY_IN)
        .client(copy_data())
        .server(error())
        .client(copy_data(), COPY_DONE)
        .busy()
        .client(SYNC)
        .server(ready())
        .idle()
    ),
    "copy in, extended, bad data, the end already sent": lambda: (
        Transcript()
        .client(parse(), bind(), execute(), SYNC)
        .server(PARSED, BOUND, COPY_IN)
        .client(copy_data(), COPY_DONE, SYNC)
        .server(error(), ready())
        .idle()
    ),
    "copy in, extended, a sync thought to be ignored is answered": lambda: (
        Transcript()
        .client(parse(), bind(), execute(), FLUSH)
        .server(PARSED, BOUND, COPY_IN)
        .client(copy_data(), SYNC)
        .server(error(), ready())
        .client(*BATCH)
        .busy()
        .client(SYNC)
        .server(*ANSWER)
        .busy()
        .server(ready())
        .idle()
    ),
    "copy in a pipeline": lambda: (
        Transcript()
        .client(*BATCH, bind("c"), execute(), SYNC)
        .server(*ANSWER, BOUND, COPY_IN)
        .client(copy_data(), COPY_DONE, *BATCH, SYNC)
        .server(done("COPY 1"), *ANSWER)
        .busy()
        .server(ready())
        .idle()
    ),
    "copy in refused by the server, a client that sends it all the same and then nothing": lambda: (
        Transcript()
        .client(query("copy"))
        .server(COPY_IN)
        .client(copy_data())
        .server(error(), ready())
        .idle()
        .client(copy_data(), copy_data(), FLUSH, COPY_DONE)
        .idle()
    ),
    "flush behind what was answered before its sync": lambda: (
        Transcript().client(parse(), FLUSH).server(PARSED).client(FLUSH).busy().client(SYNC).server(ready()).idle()
    ),
    "stray copy messages": lambda: (
        Transcript().client(copy_data(), COPY_DONE, copy_fail(), query("x")).busy().server(done(), ready()).idle()
    ),
    "terminate": lambda: Transcript().client(query("x"), TERMINATE).server(done(), ready()).idle(),
}


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript(name: str) -> None:
    TRANSCRIPTS[name]()


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_transcript_cut_anywhere(name: str) -> None:
    transcript = TRANSCRIPTS[name]()
    transcript.replay(lambda data: [data[at : at + 1] for at in range(len(data))])
    longest = max(len(sent) for _, sent, _ in transcript.steps)
    for position in range(1, longest):
        transcript.replay(lambda data, at=position: [data[:at], data[at:]])  # type: ignore[misc]  # bound default


@given(st.sampled_from(sorted(TRANSCRIPTS)), st.lists(st.integers(1, 40), min_size=1, max_size=30))
@settings(max_examples=300, deadline=None)
def test_transcript_cut_in_any_way(name: str, sizes: list[int]) -> None:
    def cut(data: bytes) -> list[bytes]:
        pieces, at, turn = [], 0, 0
        while at < len(data):
            size = sizes[turn % len(sizes)]
            pieces.append(data[at : at + size])
            at, turn = at + size, turn + 1
        return pieces

    TRANSCRIPTS[name]().replay(cut)


@pytest.mark.parametrize("size", [HOLD_LIMIT - 4, HOLD_LIMIT - 3, HOLD_LIMIT + 1, 1_000_000])
@pytest.mark.parametrize("kind", [b"Q", b"P", b"B", b"d", b"F"])
def test_long_messages_pass_whole(kind: bytes, size: int) -> None:
    body = b"\0\0" + b"x" * (size - 3) + b"\0"
    for piece in (7, 4096, 65536, 262144):
        talk = Transcript().talk
        sent = message(kind, body) + SYNC
        passed = b""
        for at in range(0, len(sent), piece):
            passed += talk.from_client(sent[at : at + piece])
            assert talk.held <= HOLD_LIMIT + 4
            assert at + piece - len(passed) <= HOLD_LIMIT + piece
            if piece == 7 and at > HOLD_LIMIT * 1.2:
                passed += talk.from_client(sent[at + piece :])
                break
        assert passed == sent


@pytest.mark.parametrize("size", [10, 70_000, 2_000_000])
def test_long_rows_stream(size: int) -> None:
    talk = Transcript().client(query("x")).talk
    sent = COLUMNS + row(b"x" * size) + message(b"d", b"y" * size) + done()
    assert b"".join(talk.from_server(sent[at : at + 8192]) for at in range(0, len(sent), 8192)) == sent
    assert not talk.idle
    assert talk.from_server(ready()) == ready()
    assert talk.idle


def test_a_very_long_error_still_ends_its_batch() -> None:
    sent = PARSED + error("x" * 2_000_000)
    talk = Transcript().client(*BATCH, SYNC).talk
    assert b"".join(talk.from_server(sent[at : at + 65536]) for at in range(0, len(sent), 65536)) == sent
    assert talk.from_server(ready()) == ready()
    assert talk.idle


def test_what_no_server_would_accept() -> None:
    for data, text in (
        (b"p\0\0\0\x04", "invalid frontend message type 112"),
        (b"\xff\0\0\0\x04", "invalid frontend message type 255"),
        (b"Q\0\0\0\x03", "invalid message length"),
        (b"Q\x40\0\0\0", "invalid message length"),
        (b"S\0\1\0\0", "invalid message length"),
        (b"H\xff\xff\xff\xff", "invalid message length"),
    ):
        with pytest.raises(ProtocolViolation, match=text):
            Transcript().talk.from_client(data)


def test_state_of_the_transaction() -> None:
    talk = Transcript().client(query("begin")).server(done("BEGIN"), ready("T")).talk
    assert talk.status == IN_TRANSACTION
    talk.from_client(query("commit"))
    talk.from_server(done("COMMIT") + ready())
    assert talk.status == IDLE
    assert talk.ready_count == 2
