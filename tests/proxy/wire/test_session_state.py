"""Settings and pins of a pooled conversation, as transcripts: what a client set is on whichever backend it gets, and
what cannot be carried keeps it on its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from proxy.wire.messages import message, query
from proxy.wire.pins import (
    PIN_ADVISORY,
    PIN_HOLD,
    PIN_LISTEN,
    PIN_PREPARE,
    PIN_SETTINGS,
    PIN_TEMPORARY,
    STILL_NEEDED,
)
from tests.proxy.wire.pooled_transcript import PooledTranscript, asks, our, run_cut, set_config
from tests.proxy.wire.transcript import (
    BOUND,
    COLUMNS,
    COPY_DONE,
    COPY_IN,
    FLUSH,
    NOTIFY,
    PARSED,
    SYNC,
    assert_same,
    bind,
    copy_data,
    done,
    error,
    execute,
    parse,
    ready,
    row,
    status,
)

PSQL = status("application_name", "psql")


def counts(*pins: int) -> bytes:
    return query("SELECT " + ",".join(STILL_NEEDED[pin].decode() for pin in pins))


def a_setting_goes_along() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(query("set search_path = x"))
        .server(done("SET"), ready())
        .settle(asks("search_path"), b"x")
        .unlink()
        .of(1)
        .link("a", query('RESET "search_path"'))
        .server(done("RESET"), ready(), becomes=[])
        .idle()
        .client(query("select"))
        .server(done(), ready())
        .unlink()
        .of(0)
        .link("a", set_config(search_path="x"))
        .server(COLUMNS, row(b"x"), done(), ready(), becomes=[])
        .client(query("select"))
        .server(done(), ready())
        .unlink()
        .link("a")
    )


def set_local_is_no_setting_of_the_session() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(query("begin"), query("set local a.b = 1"), query("commit"))
        .server(done("BEGIN"), ready("T"), done("SET"), ready("T"), done("COMMIT"), ready())
        .unlink()
    )


def rolled_back() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(query("begin"), query("set a.b = 1"), query("rollback"))
        .server(done("BEGIN"), ready("T"), done("SET"), ready("T"), done("ROLLBACK"), ready())
        .settle(asks("a.b"), None)
        .unlink()
        .of(1)
        .link("a")
    )


def set_by_prepared_statement() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(
            parse("s", "select set_config('a.b', $1, false)"),
            SYNC,
            becomes=[parse(our(1), "select set_config('a.b', $1, false)"), SYNC],
        )
        .server(PARSED, ready())
        .unlink()
        .link("a")
        .client(bind("s"), execute(), SYNC, becomes=[bind(our(1)), execute(), SYNC])
        .server(BOUND, row(b"1"), done(), ready())
        .settle(asks("a.b"), b"1")
        .unlink()
    )


def a_reported_setting_changes_without_a_text() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(query("select f()"))
        .server(status("TimeZone", "Asia/Tokyo"), row(b""), done(), ready())
        .settle(asks("timezone"), b"Asia/Tokyo")
        .unlink()
        .of(1)
        .link("a", query('RESET "timezone"'))
        .server(done("RESET"), status("TimeZone", "UTC"), ready(), becomes=[])
        .idle()
    )


def the_client_is_told_of_what_its_new_backend_reports() -> PooledTranscript:
    transcript = PooledTranscript(linked=False)
    transcript.link("a")
    state = transcript.backends["a"]
    transcript.client(query("x")).server(done(), ready()).unlink()
    state.reported = {**state.reported, b"TimeZone": b"PST8PDT"}
    return transcript.link("a", tells=status("TimeZone", "PST8PDT"))


def the_role_goes_last_and_is_left_first() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(query("set log_statement = 'all'; set role joe"))
        .server(done("SET"), done("SET"), status("is_superuser", "off"), ready())
        .settle(asks("log_statement", "role"), b"all", b"joe")
        .unlink()
        .of(1)
        .link("a", query('RESET ROLE;RESET "log_statement"'))
        .server(done("RESET"), status("is_superuser", "on"), done("RESET"), ready(), becomes=[])
        .client(query("set role joe"))
        .server(done("SET"), status("is_superuser", "off"), ready())
        .settle(asks("role"), b"joe")
        .unlink()
        .of(0)
        .link(
            "a",
            query(
                "RESET ROLE;SELECT pg_catalog.set_config( E'log_statement', E'all', false)"
                ";SELECT pg_catalog.set_config( E'role', E'joe', false)"
            ),
        )
    )


def the_encoding_goes_first_and_alone() -> PooledTranscript:
    return (
        PooledTranscript({b"client_encoding": b"LATIN1", b"a.b": b"\xe9"}, linked=False)
        .link("a", set_config(client_encoding="LATIN1") + _raw_set(b"\xe9"))
        .server(COLUMNS, row(b"LATIN1"), done(), status("client_encoding", "LATIN1"), ready(), becomes=[])
        .busy()
        .server(COLUMNS, row(b"\xe9"), done(), ready(), becomes=[status("client_encoding", "LATIN1")])
        .idle()
    )


def _raw_set(value: bytes) -> bytes:
    text = b"SELECT pg_catalog.set_config( E'a.b', E'" + value + b"', false)\0"
    return b"Q" + (len(text) + 4).to_bytes(4, "big") + text


def psql() -> PooledTranscript:
    return (
        PooledTranscript({b"application_name": b"psql"}, linked=False)
        .link("a", set_config(application_name="psql"))
        .server(row(b"psql"), done(), PSQL, ready(), becomes=[PSQL])
    )


def _restored(transcript: PooledTranscript, *names: str, values: tuple[bytes, ...]) -> PooledTranscript:
    """Our queries when something went back to its default: the start-up's value first, then what there is now."""
    assert_same(transcript.pooled.settle(), set_config(application_name="psql") + asks(*names))
    return (
        transcript.server(row(b"psql"), done(), PSQL, ready(), becomes=[PSQL])
        .busy()
        .server(COLUMNS, row(*values), done(), ready(), becomes=[])
        .unlink()
        .link("a")
    )


def reset_all_brings_back_the_start_up() -> PooledTranscript:
    transcript = (
        psql()
        .client(query("set application_name = 'x'; set a.b = 1"))
        .server(done("SET"), status("application_name", "x"), done("SET"), ready())
        .settle(asks("a.b", "application_name"), b"1", b"x")
        .client(query("reset all"))
        .server(done("RESET"), status("application_name", ""), ready())
    )
    return _restored(transcript, "a.b", "application_name", values=(b"", b"psql"))


def reset_of_a_start_up_setting() -> PooledTranscript:
    transcript = (
        psql()
        .client(query("set application_name = x; set application_name to default"))
        .server(done("SET"), done("SET"), status("application_name", ""), ready())
    )
    return _restored(transcript, "application_name", values=(b"psql",))


def discard_all_brings_back_the_start_up() -> PooledTranscript:
    return (
        psql()
        .client(query("set application_name = 'x'"))
        .server(done("SET"), status("application_name", "x"), ready())
        .settle(asks("application_name"), b"x")
        .client(query("discard all"))
        .server(done("DISCARD ALL"), status("application_name", ""), ready())
        .unlink()
        .link("a", set_config(application_name="psql"))
        .server(row(b"psql"), done(), PSQL, ready(), becomes=[PSQL])
        .idle()
    )


def reset_and_set_again() -> PooledTranscript:
    return (
        psql()
        .client(query("reset application_name; set application_name = x"))
        .server(done("RESET"), done("SET"), status("application_name", "x"), ready())
        .settle(asks("application_name"), b"x")
        .unlink()
        .link("a")
    )


def notifications_during_our_query_reach_the_client() -> PooledTranscript:
    transcript = (
        PooledTranscript()
        .client(query("listen c; set a.b = 1"))
        .server(done("LISTEN"), done("SET"), ready())
        .pinned(PIN_LISTEN)
    )
    assert transcript.pooled.settle()
    return (
        transcript.server(COLUMNS, NOTIFY, row(b"1", b"1"), done(), NOTIFY, ready(), becomes=[NOTIFY, NOTIFY])
        .idle()
        .pinned(PIN_LISTEN)
    )


def the_server_shuts_down_during_our_query() -> PooledTranscript:
    transcript = PooledTranscript().client(query("set a.b = 1")).server(done("SET"), ready())
    assert transcript.pooled.settle()
    return transcript.server(error("terminating connection", "57P01", "FATAL"))


def a_late_cancel_hits_our_query() -> PooledTranscript:
    transcript = PooledTranscript().client(query("set a.b = 1")).server(done("SET"), ready())
    assert_asks = transcript.pooled.settle()
    transcript.server(error("canceling statement due to user request", "57014"), ready(), becomes=[])
    assert not transcript.pooled.failed
    assert transcript.pooled.settle() == assert_asks
    return transcript.server(row(b"1"), done(), ready(), becomes=[]).idle().unlink()


def a_cancel_hits_the_settings() -> PooledTranscript:
    transcript = PooledTranscript({b"a.b": b"1"}, linked=False).link("a", set_config(**{"a.b": "1"}))
    transcript.server(error("canceling statement", "57014"), ready(), becomes=[])
    assert transcript.pooled.failed
    assert transcript.pooled.retry() == set_config(**{"a.b": "1"})
    return transcript.server(row(b"1"), done(), ready(), becomes=[]).idle().unlink()


def settings_that_are_refused() -> PooledTranscript:
    transcript = PooledTranscript({b"role": b"gone"}, linked=False).link("a", set_config(role="gone"))
    transcript.server(error('role "gone" does not exist', "22023"), ready(), becomes=[])
    assert transcript.pooled.failed
    assert transcript.pooled.retry() == b""
    assert b'role "gone" does not exist' in transcript.pooled.failure
    return transcript


def a_question_that_is_refused_pins() -> PooledTranscript:
    transcript = PooledTranscript().client(query("set a.b = 1")).server(done("SET"), ready())
    assert transcript.pooled.settle()
    return transcript.server(error("permission denied", "42501"), ready(), becomes=[]).pinned(PIN_SETTINGS)


def discard_all_unpins() -> PooledTranscript:
    return (
        a_question_that_is_refused_pins()
        .client(query("discard all"))
        .server(done("DISCARD ALL"), ready())
        .pinned(0)
        .unlink()
    )


def pins_are_what_the_server_says() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(query("select pg_advisory_lock(1), temp from weather"))
        .server(row(b"", b"1"), done(), ready())
        .pinned(PIN_ADVISORY | PIN_TEMPORARY)
        .settle(counts(PIN_ADVISORY, PIN_TEMPORARY), b"1", b"0")
        .pinned(PIN_ADVISORY)
        .client(query("select pg_advisory_unlock(1)"))
        .server(row(b"t"), done(), ready())
        .settle(counts(PIN_ADVISORY), b"0")
        .pinned(0)
        .unlink()
        .link("a")
        .client(query("select pg_advisory_xact_lock(1)"))
        .server(row(b""), done(), ready())
        .unlink()
    )


def pins_by_tag_and_their_end() -> PooledTranscript:
    return (
        PooledTranscript()
        .client(query("listen a; prepare p as select 1; declare c cursor with hold for select 1"))
        .server(done("LISTEN"), done("PREPARE"), done("DECLARE CURSOR"), ready())
        .settle(counts(PIN_LISTEN, PIN_HOLD, PIN_PREPARE), b"1", b"1", b"1")
        .pinned(PIN_LISTEN | PIN_HOLD | PIN_PREPARE)
        .client(query("select"))
        .server(done(), ready())
        .settle(b"")
        .client(query("unlisten *"))
        .server(done("UNLISTEN"), ready())
        .settle(counts(PIN_LISTEN, PIN_HOLD, PIN_PREPARE), b"0", b"1", b"1")
        .client(query("close c"))
        .server(done("CLOSE CURSOR"), ready())
        .settle(counts(PIN_HOLD, PIN_PREPARE), b"0", b"1")
        .client(query("deallocate p"))
        .server(done("DEALLOCATE"), ready())
        .settle(counts(PIN_PREPARE), b"0")
        .unlink()
    )


def copy_and_its_strays() -> PooledTranscript:
    transcript = (
        PooledTranscript()
        .client(query("copy t from stdin"))
        .server(COPY_IN)
        .client(copy_data())
        .server(error(), ready())
        .unlink()
    )
    more = transcript.pooled.without_strays(copy_data() + copy_data() + COPY_DONE + FLUSH + query("x"))
    assert more == query("x")
    return transcript


def test_a_copy_refused_within_a_message() -> None:
    """The backend is nobody else's before the server has got the whole message, wanted or not."""
    begun = copy_data() + message(b"d", b"x" * 1000)[:-600]
    transcript = PooledTranscript().client(query("copy t from stdin")).server(COPY_IN)
    pooled = transcript.pooled
    assert pooled.from_client(begun) == begun
    answer = error() + ready()
    assert pooled.from_server(answer) == answer
    assert pooled.refused_streams
    assert not pooled.idle
    assert pooled.rest_of_refused(b"x" * 100) == 100
    assert not pooled.idle
    assert pooled.rest_of_refused(b"x" * 500 + query("y")) == 500
    assert pooled.idle
    assert not pooled.refused_streams


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


@pytest.mark.parametrize("name", sorted(SCRIPTS))
@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 11, 23])
def test_script_cut_up(name: str, size: int) -> None:
    run_cut(SCRIPTS[name], lambda data: [data[at : at + size] for at in range(0, len(data), size)])
