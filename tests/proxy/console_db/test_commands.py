"""What may be typed in the administration database, and how the rest is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.console_db.commands import MAX_COMMANDS, Command, CommandError, parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("show pools", Command("SHOW", "pools")),
        ("SHOW POOLS;", Command("SHOW", "pools")),
        ("  /* why */ Show -- now\n Version ;; ", Command("SHOW", "version")),
        ("SHOW ALL", Command("SHOW", "config")),
        ("RELOAD", Command("RELOAD")),
        ("PAUSE", Command("PAUSE")),
        ("PAUSE Shop", Command("PAUSE", "shop")),
        ('RESUME "Shop ""x"""', Command("RESUME", 'Shop "x"')),
        ("KILL 0.12", Command("KILL", "0.12")),
        ("KILL '3.4'", Command("KILL", "3.4")),
        ("SET mode = off", Command("SET", "mode", "off")),
        ("set session mode to 'off'", Command("SET", "mode", "off")),
        ("SET log_slow_ms=250ms", Command("SET", "log_slow_ms", "250ms")),
        ("SET steer_off_users = a, 'b''c'", Command("SET", "steer_off_users", "a,b'c")),
    ],
)
def test_commands(text: str, expected: Command) -> None:
    assert parse(text) == [expected]


def test_several_commands_in_one_message() -> None:
    assert parse("PAUSE a; RESUME a;") == [Command("PAUSE", "a"), Command("RESUME", "a")]
    assert parse(" ; ; ") == []
    assert len(parse("RELOAD;" * MAX_COMMANDS)) == MAX_COMMANDS
    with pytest.raises(CommandError) as caught:
        parse("RELOAD;" * (MAX_COMMANDS + 1))
    assert caught.value.sqlstate == "54001"


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ("SELECT 1", 'syntax error at or near "SELECT"', 1),
        ("SHOW", "syntax error at end of input", 0),
        ("SHOW POOLS CLIENTS", 'syntax error at or near "CLIENTS"', 12),
        ("RELOAD now", 'syntax error at or near "now"', 8),
        ("KILL", "syntax error at end of input", 0),
        ("KILL =", 'syntax error at or near "="', 6),
        ("SET mode", "syntax error at end of input", 0),
        ("SET mode off", 'syntax error at or near "off"', 10),
        ("SET mode =", "syntax error at end of input", 0),
        ("SET mode = a b", 'syntax error at or near "b"', 14),
        ("SET mode = a,", "syntax error at end of input", 0),
        ("PAUSE 'shop'", "syntax error at or near \"'shop'\"", 7),
        ('PAUSE "shop', 'unterminated quoted identifier at or near ""shop"', 7),
        ("KILL '1", 'unterminated quoted string at or near "\'1"', 6),
    ],
)
def test_what_is_not_understood_is_a_syntax_error_with_its_place(text: str, message: str, position: int) -> None:
    with pytest.raises(CommandError) as caught:
        parse(text)
    assert (caught.value.sqlstate, caught.value.text, caught.value.position) == ("42601", message, position)


@given(st.text(alphabet=st.sampled_from("SHOWPAUSEmode \"';=,.()/*-\n0é\0"), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    states = []
    try:
        parse(text)
    except CommandError as error:
        states.append(error.sqlstate)
    assert states in ([], ["42601"])
