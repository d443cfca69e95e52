"""The messages built one by one, against the layouts of the PostgreSQL documentation."""

import pytest

from proxy.wire import messages


def test_extended_messages() -> None:
    assert messages.parse(b"x", b"select 1") == b"P\0\0\0\x11x\0select 1\0\0\0"
    assert messages.bind(b"p", b"x", b"\0\0\0\0\0\0") == b"B\0\0\0\x0ep\0x\0\0\0\0\0\0\0"
    assert messages.describe(b"S", b"x") == b"D\0\0\0\x07Sx\0"
    assert messages.execute(b"p") == b"E\0\0\0\x0ap\0\0\0\0\0"
    assert messages.close(b"P", b"x") == b"C\0\0\0\x07Px\0"


@pytest.mark.parametrize(("severity", "fatal"), [("ERROR", False), ("FATAL", True), ("PANIC", True)])
def test_is_fatal(severity: str, *, fatal: bool) -> None:
    response = messages.error_response("57P01", "a text that says FATAL", severity=severity)
    assert messages.is_fatal(response) is fatal
    assert messages.is_fatal(response[5:]) is fatal
