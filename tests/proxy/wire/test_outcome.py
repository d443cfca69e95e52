"""Runs with a budget, message by message."""

from __future__ import annotations

from proxy.steering import LEAVE_ALONE, Decision
from proxy.wire import advice
from proxy.wire.delivery import SteeredConversation
from proxy.wire.messages import FLUSH, query
from proxy.wire.pooled import PooledConversation
from proxy.wire.prepared import StatementRegistry
from proxy.wire.session_state import BackendState
from tests.proxy.wire import transcript as say
from tests.proxy.wire.scripted import ScriptedSteering
from tests.proxy.wire.transcript import SYNC, Transcript, bind, close, describe, done, execute, parse, ready, row

HINT = Decision("hint", b"/* x */ ", budget_ms=5.0)
CANCELED = say.error("canceling statement due to user request", "57014")
TIMED_OUT = say.error("canceling statement due to statement timeout", "57014")
OURS = advice.STATEMENT.decode()


def transcript(decision: Decision = HINT) -> tuple[Transcript, ScriptedSteering]:
    steering = ScriptedSteering(lambda text: decision if b"join" in text else LEAVE_ALONE)
    return Transcript(lambda: SteeredConversation(steering)), steering


def took_again(talk: Transcript) -> bytes | None:
    again, talk.talk.again = talk.talk.again, None
    return again


def test_what_follows_is_held_until_the_answer_begins() -> None:
    talk, _ = transcript()
    talk.client(query("a join b"), query("behind"), becomes=[query("/* x */ a join b")])
    talk.client(query("more")[:3], becomes=[])
    assert (talk.talk.suspended, talk.talk.budget_ms) == (True, 5.0)
    talk.server(say.COLUMNS, becomes=[])
    talk.server(row(b"1"), becomes=[say.COLUMNS, row(b"1")])
    assert (talk.talk.suspended, talk.talk.budget_ms, took_again(talk)) == (False, 0.0, b"")
    talk.client(query("more")[3:], becomes=[query("behind"), query("more")])
    assert talk.talk.stop() is False


def test_stopped_and_sent_once_more() -> None:
    talk, steering = transcript()
    talk.client(query("a join b"), query("behind"), becomes=[query("/* x */ a join b")])
    assert talk.talk.stop() is True
    assert talk.talk.stop() is False
    # The first rows were on their way.
    talk.server(say.COLUMNS, row(b"1"), CANCELED, ready(), becomes=[]).busy()
    assert took_again(talk) is None
    assert talk.talk.stopped(sent=True) == b""
    assert took_again(talk) == query("a join b")
    assert (steering.stops, steering.errors) == (1, [])
    talk.client(becomes=[query("behind")])
    talk.server(say.COLUMNS, row(b"1"), done(), ready()).server(done(), ready()).idle()


def test_an_answer_is_still_to_come_while_a_run_is_stopped() -> None:
    """A pooled client that has shut down its sending side stays connected for as long."""
    steering = ScriptedSteering(lambda text: HINT)
    pooled = PooledConversation(steering, StatementRegistry(), {}, {}, 1 << 20)
    pooled.link(BackendState({}, 1 << 20))
    assert pooled.from_client(query("a join b")) == query("/* x */ a join b")
    assert pooled.answers_coming
    assert pooled.stop() is True
    assert pooled.from_server(CANCELED + ready()) == b""
    assert pooled.answers_coming
    pooled.stopped(sent=True)
    assert pooled.answers_coming
    assert pooled.from_server(done() + ready()) == done() + ready()
    assert not pooled.answers_coming


def test_a_request_that_hit_nothing_is_sent_again() -> None:
    talk, _ = transcript()
    talk.client(query("a join b"), becomes=[query("/* x */ a join b")])
    assert talk.talk.stop() is True
    assert talk.talk.stopped(sent=True) == b""
    assert talk.talk.stop() is True
    talk.server(CANCELED, ready(), becomes=[])
    assert talk.talk.stopped(sent=True) == b""
    assert took_again(talk) == query("a join b")


def test_an_answer_that_comes_after_all() -> None:
    talk, steering = transcript()
    talk.client(query("a join b"), becomes=[query("/* x */ a join b")])
    assert talk.talk.stop() is True
    talk.server(say.COLUMNS, row(b"1"), becomes=[])
    talk.server(done(), ready(), becomes=[say.COLUMNS, row(b"1"), done(), ready()]).busy()
    assert talk.talk.stopped(sent=True) == b""
    assert took_again(talk) == b""
    talk.idle()
    assert steering.stops == 0


def test_the_clients_cancel_wins() -> None:
    for before in (True, False):
        talk, steering = transcript()
        talk.client(query("a join b"), becomes=[query("/* x */ a join b")])
        assert talk.talk.stop() is True
        if before:
            talk.talk.cancelled()
        talk.server(CANCELED, ready(), becomes=[CANCELED, ready()] if before else [])
        talk.talk.cancelled()
        assert talk.talk.stopped(sent=True) == (b"" if before else CANCELED + ready())
        assert took_again(talk) == b""
        talk.idle()
        assert (steering.stops, len(steering.errors)) == (0, 1)


def test_other_errors_are_the_clients() -> None:
    for error in (TIMED_OUT, say.error("no", "22012")):
        talk, steering = transcript()
        talk.client(query("a join b"), becomes=[query("/* x */ a join b")])
        assert talk.talk.stop() is True
        talk.server(say.COLUMNS, error, ready(), becomes=[say.COLUMNS, error, ready()])
        assert talk.talk.stopped(sent=True) == b""
        assert took_again(talk) == b""
        talk.idle()
        assert len(steering.errors) == 1


def test_under_a_savepoint() -> None:
    talk, _ = transcript()
    talk.client(query("begin")).server(done("BEGIN"), ready("T"))
    save, release = query(advice.SAVE.decode()), query(advice.RELEASE.decode())
    talk.client(query("a join b"), becomes=[save, query("/* x */ a join b"), release])
    assert talk.talk.stop() is None  # it would be the end of the client's transaction
    talk.server(done("SAVEPOINT"), ready("T"), becomes=[])
    assert talk.talk.stop() is True
    talk.server(CANCELED, ready("E"), say.error("aborted", "25P02"), ready("E"), becomes=[])
    assert talk.talk.stopped(sent=True) == b""
    back = query((advice.ROLL_BACK + b";" + advice.RELEASE).decode())
    assert took_again(talk) == back + query("a join b")
    talk.server(done("ROLLBACK"), done("RELEASE"), ready("T"), becomes=[])
    talk.server(say.COLUMNS, row(b"1"), done(), ready("T")).busy()


def test_a_request_that_comes_too_late_is_repaired() -> None:
    talk, steering = transcript()
    talk.client(query("begin")).server(done("BEGIN"), ready("T"))
    save, release = query(advice.SAVE.decode()), query(advice.RELEASE.decode())
    talk.client(query("a join b"), becomes=[save, query("/* x */ a join b"), release])
    talk.server(done("SAVEPOINT"), ready("T"), becomes=[])
    assert talk.talk.stop() is True
    answer = [say.COLUMNS, row(b"1"), done(), ready("T")]
    talk.server(*answer)
    talk.server(CANCELED, ready("E"), becomes=[])
    assert talk.talk.stopped(sent=True) == b""
    assert took_again(talk) == query((advice.ROLL_BACK + b";" + advice.RELEASE).decode())
    talk.server(done("ROLLBACK"), done("RELEASE"), ready("T"), becomes=[]).busy()
    assert (steering.stops, steering.errors) == (0, [])


def test_what_the_client_was_told_already_is_not_told_again() -> None:
    talk, _ = transcript()
    types = b"\0\0"
    sent = [bind("", "p"), describe("p", b"P"), execute("p"), SYNC]
    talk.client(
        parse("", "a join b"), *sent,
        becomes=[
            parse("", "a join b"), FLUSH, parse(OURS, "/* x */ a join b", types), bind(OURS, "p"),
            close(OURS), describe("p", b"P"), execute("p"), SYNC,
        ],
    )  # fmt: skip
    assert talk.talk.stop() is None  # it could still be at the client's own Parse
    talk.server(say.PARSED)
    assert talk.talk.stop() is True
    talk.server(say.PARSED, say.BOUND, say.CLOSED, becomes=[say.BOUND])
    talk.server(CANCELED, ready(), becomes=[])
    talk.talk.stopped(sent=True)
    again = took_again(talk)
    assert again is not None
    assert again.endswith(b"".join(sent))
    tidied = [say.CLOSED, say.CLOSED, say.PARSED, say.CLOSED]
    talk.server(*tidied, say.BOUND, becomes=[])
    talk.server(say.COLUMNS, row(b"1"), done(), ready()).idle()


def test_without_a_sync_there_is_no_budget() -> None:
    talk, steering = transcript()
    talk.client(parse("", "a join b"), bind(), execute())
    assert steering.reasons == ["no_budget_possible_here"]
    approved = Decision("hint", b"/* x */ ", budget_ms=5.0, approved=True)
    talk, steering = transcript(approved)
    ours = [parse(OURS, "/* x */ a join b"), bind(OURS), close(OURS)]
    talk.client(parse("", "a join b"), bind(), execute(), becomes=[parse("", "a join b"), *ours, execute()])
    assert talk.talk.budget_ms == 0.0
    assert steering.steered == [approved]
