"""Advice in a conversation, message by message: what the server gets, and what the client is told."""

from __future__ import annotations

import pytest

from proxy.steering import LEAVE_ALONE, UNDECIDED, Decision
from proxy.wire import advice
from proxy.wire.delivery import SteeredConversation
from proxy.wire.messages import message, query
from tests.proxy.wire import transcript as say
from tests.proxy.wire.scripted import ScriptedSteering
from tests.proxy.wire.transcript import SYNC, Transcript, bind, close, describe, done, execute, parse, ready, row

HINT = Decision("hint", b"/* x */ ")
SETTINGS = Decision("settings", b"", ((b"enable_sort", b"off"), (b"jit", b"off")))
OURS = advice.STATEMENT.decode()
HELPER = advice.HELPER.decode()


def transcript(decision: Decision) -> tuple[Transcript, ScriptedSteering]:
    steering = ScriptedSteering(lambda text: decision if b"join" in text else LEAVE_ALONE)
    return Transcript(lambda: SteeredConversation(steering)), steering


def error(code: str, position: int | None = None, text: str = "no") -> bytes:
    where = f"P{position}\0" if position is not None else ""
    return message(b"E", f"SERROR\0VERROR\0C{code}\0M{text}\0{where}R x\0\0".encode())


def test_texts_and_parameters_are_shown() -> None:
    steering = ScriptedSteering()
    talk = SteeredConversation(steering)
    talk.from_client(query("select 1") + parse("s", "select $1") + bind("s", "p", b"abc") + SYNC)
    assert steering.seen == [(b"select 1", None), (b"select $1", b"abc")]
    assert talk.left_alone == 2


@pytest.mark.parametrize("piece", [100, 30_000, 200_000])
def test_a_part_of_a_text_is_never_shown_as_a_whole(piece: int) -> None:
    steering = ScriptedSteering()
    talk = SteeredConversation(steering)
    long = parse("s", "select " + "1" * 100_000) + bind("s") + SYNC + query("select " + "1" * 100_000)
    assert b"".join(talk.from_client(long[at : at + piece]) for at in range(0, len(long), piece)) == long
    assert steering.seen == []
    assert steering.reasons == ["too_large"]


def test_statements_remembered_are_bounded() -> None:
    talk = SteeredConversation(ScriptedSteering())
    for number in range(1000):
        talk.from_client(parse(f"s{number}", "x" * 1000) + SYNC)
        if number % 3:
            talk.from_server((say.PARSED + ready()) * (2 if number % 3 == 2 else 1))
    assert talk._texts_size <= 256 * 1024
    known = [*talk._texts.values(), *(prepared.known for prepared in talk._pending)]
    assert sum(len(one.text) for one in known if one is not None) == talk._texts_size


def test_what_is_kept_to_be_sent_once_more_is_bounded() -> None:
    """A client that pipelines without end behind a steered statement was kept and copied whole, again and again."""
    talk = SteeredConversation(ScriptedSteering(lambda text: HINT if b"join" in text else LEAVE_ALONE))
    talk.from_client(query("select 1 from a join b"))
    kept = []
    for _ in range(100):
        talk.from_client(bind("s", "", b"x" * 10_000) + execute() + SYNC)
        kept.append(len(talk._recorded or b""))
    assert kept[0] > 10_000
    assert max(kept) <= 64 * 1024
    assert talk._recorded is None


def test_a_hint_in_a_query() -> None:
    talk, steering = transcript(HINT)
    talk.client(query("a join b"), becomes=[query("/* x */ a join b")])
    talk.server(say.COLUMNS, row(b"1"), row(b"2"), done(), ready()).idle()
    talk.client(query("select 1")).server(done(), ready()).idle()
    assert steering.steered == [HINT]
    for size in (1, 3, 7, 50):
        talk.replay(lambda data, size=size: [data[at : at + size] for at in range(0, len(data), size)])  # type: ignore[misc]


def test_positions_are_moved_back() -> None:
    talk, _ = transcript(HINT)
    talk.client(query("a join b"), becomes=[query("/* x */ a join b")])
    talk.server(error("42703", 12), ready(), becomes=[error("42703", 4), ready()]).idle()
    notice = message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mhm\0P9\0\0")
    moved = message(b"N", b"SNOTICE\0VNOTICE\0C00000\0Mhm\0P1\0\0")
    of_hints = message(b"N", b'SINFO\0VINFO\0C00000\0Mpg_hint_plan: hint syntax error at or near "x"\0\0')
    talk.client(query("a join b"), becomes=[query("/* x */ a join b")])
    talk.server(notice, of_hints, done(), ready(), becomes=[moved, done(), ready()]).idle()


def test_ours_in_place_of_the_clients() -> None:
    talk, _ = transcript(HINT)
    types = b"\0\1\0\0\0\x17"
    talk.client(
        parse("s", "a join b", types), bind("s", "p"), describe("p", b"P"), execute("p"), SYNC,
        becomes=[
            parse("s", "a join b", types), parse(OURS, "/* x */ a join b", types), bind(OURS, "p"), close(OURS),
            describe("p", b"P"), execute("p"), SYNC,
        ],
    )  # fmt: skip
    talk.server(
        say.PARSED, say.PARSED, say.BOUND, say.CLOSED, say.COLUMNS, row(b"1"), row(b"2"), done(), ready(),
        becomes=[say.PARSED, say.BOUND, say.COLUMNS, row(b"1"), row(b"2"), done(), ready()],
    ).idle()  # fmt: skip
    # Later on the server is asked first whether the client's own is still good.
    talk.client(
        bind("s"), execute(), SYNC,
        becomes=[describe("s"), parse(OURS, "/* x */ a join b", types), bind(OURS), close(OURS), execute(), SYNC],
    )  # fmt: skip
    talk.server(
        say.PARAMETERS, say.COLUMNS, say.PARSED, say.BOUND, say.CLOSED, done(), ready(),
        becomes=[say.BOUND, done(), ready()],
    ).idle()  # fmt: skip


def test_settings_around_a_bind() -> None:
    talk, _ = transcript(SETTINGS)

    def helper(text: bytes) -> list[bytes]:
        return [parse(HELPER, text.decode()), bind(HELPER, HELPER), execute(HELPER), close(HELPER, b"P"), close(HELPER)]

    talk.client(
        parse("", "select a join b"), bind(), execute(), SYNC,
        becomes=[
            parse("", "select a join b"), *helper(advice.save_and_set(SETTINGS)), parse(OURS, "select a join b"),
            bind(OURS), close(OURS), *helper(advice.put_back(SETTINGS)), execute(), SYNC,
        ],
    )  # fmt: skip
    helped = [say.PARSED, say.BOUND, row(b"x", b"y"), done(), say.CLOSED, say.CLOSED]
    talk.server(
        say.PARSED, *helped, say.PARSED, say.BOUND, say.CLOSED, *helped, row(b"1"), done(), ready(),
        becomes=[say.PARSED, say.BOUND, row(b"1"), done(), ready()],
    ).idle()  # fmt: skip


def test_settings_in_a_query() -> None:
    talk, steering = transcript(SETTINGS)
    front = "SET LOCAL enable_sort= E'off';SET LOCAL jit= E'off';"
    talk.client(query("select a join b"), becomes=[query(front + "select a join b")])
    talk.server(
        done("SET"), done("SET"), say.COLUMNS, row(b"1"), done(), ready(),
        becomes=[say.COLUMNS, row(b"1"), done(), ready()],
    ).idle()  # fmt: skip
    talk.client(query("begin")).server(done("BEGIN"), ready("T")).busy()
    own = [query(text.decode()) for text in (advice.save_and_set(SETTINGS), advice.put_back(SETTINGS))]
    talk.client(query("select a join b"), becomes=[own[0], query("select a join b"), own[1]])
    answered = [say.COLUMNS, row(b"1"), done(), ready("T")]
    talk.server(*answered, *answered, *answered, becomes=answered).busy()
    # What must not run in an implicit transaction block is left alone, and so is what may be in any state.
    talk.client(query("commit")).server(done("COMMIT"), ready())
    talk.client(query("declare c cursor for a join b")).server(error("25P01"), ready()).idle()
    talk.client(query("select 1"), query("select a join b")).server(done(), ready(), done(), ready()).idle()
    assert steering.reasons == ["settings_not_possible_here"] * 2


def test_suspended_until_it_is_decided() -> None:
    decisions = [UNDECIDED]
    steering = ScriptedSteering(lambda text: decisions[0] if b"join" in text else LEAVE_ALONE)
    talk = SteeredConversation(steering)
    before, waiting, behind = query("select 1"), query("a join b"), query("select 2")
    assert talk.from_client(before + waiting[:5]) == before
    assert talk.from_client(waiting[5:] + behind[:4]) == b""
    assert talk.suspended
    assert talk.from_client(behind[4:]) == b""
    assert talk.from_server(done() + ready()) == done() + ready()
    assert not talk.idle
    assert talk.decided(HINT) == query("/* x */ a join b") + behind
    assert not talk.suspended
    # One may follow another.
    assert talk.from_client(parse("", "a join b") + bind() + SYNC + waiting) == parse("", "a join b")
    ours = parse(OURS, "/* x */ a join b") + bind(OURS) + close(OURS)
    out = talk.decided(HINT)
    assert out.endswith(ours + SYNC)
    assert talk.suspended
    assert talk.decided(LEAVE_ALONE) == waiting
    assert not talk.suspended
    assert len(steering.seen) == 5


def test_refused_and_sent_once_more() -> None:
    talk, steering = transcript(HINT)
    talk.client(query("a join b"), becomes=[query("/* x */ a join b")])
    talk.server(error("42601", 3), ready(), becomes=[]).busy()
    assert talk.talk.again == query("a join b")
    talk.talk.again = None
    talk.server(say.COLUMNS, row(b"1"), done(), ready()).idle()
    assert steering.refusals == [(b"a join b", b"42601", True)]


@pytest.mark.parametrize(
    ("sent", "alone"),
    [
        ([query("x")], True),
        ([query("x"), query("y")], False),
        ([bind(), execute(), SYNC], True),
        ([bind(), describe("", b"P"), say.FLUSH, execute(), close("", b"P"), SYNC], True),
        ([bind(), describe("s"), execute(), SYNC], False),
        ([bind(), execute(), close("s"), SYNC], False),
        ([bind(), close("", b"P"), execute(), SYNC], False),
        ([bind(), execute()], False),
        ([bind(), SYNC], False),
        ([bind(), execute(), execute(), SYNC], False),
        ([bind(), execute(), SYNC, SYNC], False),
        ([bind(), execute(), SYNC, b"Q"], False),
        ([b""], False),
        ([b"B\0\0"], False),
    ],
)
def test_what_stands_alone(sent: list[bytes], alone: bool) -> None:
    assert advice.stands_alone(b"".join(sent)) is alone


def test_fields_and_positions() -> None:
    body = error("42601", 17, "P5 is no position")[5:]
    assert (advice.field(body, b"S"), advice.field(body, b"C"), advice.field(body, b"X")) == (b"ERROR", b"42601", b"")
    assert advice.position(body) == 17
    assert advice.position(advice.moved(body, 10)) == 7
    assert advice.position(advice.moved(body, 17)) == 0
    assert advice.moved(error("1")[5:], 5) == error("1")[5:]
