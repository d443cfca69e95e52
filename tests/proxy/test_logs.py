"""Log lines: form, bounds, secrets, and a reader that does not read."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.logs import MAX_LINE, MAX_VALUE, Format, Log, redact
from tests.support.waiting import wait_until


def lines_of(use: Callable[[Log], None], log_format: Format = "human") -> list[str]:
    """What ``use`` makes a log write."""
    read, write = os.pipe()
    try:
        log = Log("worker-1", log_format, "info", fd=write)
        use(log)
        log.close()
    finally:
        os.close(write)
    with os.fdopen(read, "rb") as file:
        return file.read().decode().splitlines()


def test_a_human_line_has_the_event_and_its_fields_in_order() -> None:
    (line,) = lines_of(lambda log: log.event("login", user="ann", tls=True, seconds=0.25, nothing=None, text='a "b"'))
    assert line.endswith('INFO worker-1 login user=ann tls=yes seconds=0.25 text="a \\"b\\""')


def test_a_json_line_is_one_object() -> None:
    (line,) = lines_of(lambda log: log.event("login", level="warning", user="a\nb", count=3), "json")
    record = json.loads(line)
    assert record.pop("time").endswith("Z")
    assert record == {"level": "warning", "process": "worker-1", "event": "login", "user": "a\nb", "count": 3}


def test_events_below_the_level_are_not_written() -> None:
    def use(log: Log) -> None:
        log.event("quiet", level="debug")
        assert not log.enabled("debug")
        log.configure("human", "debug")
        log.event("loud", level="debug")

    (line,) = lines_of(use)
    assert "loud" in line


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.text(max_size=6000), max_size=8), st.sampled_from(["human", "json"])
)
def test_any_event_is_one_bounded_line(fields: dict[str, str], log_format: Format) -> None:
    log = Log("p", log_format, fd=-1)
    line = log._line("event", "info", dict(fields))
    assert len(line) <= MAX_LINE
    assert line.count(b"\n") == 1
    # Nothing a terminal would obey.
    assert all(byte >= 32 for byte in line[:-1])
    if log_format == "json":
        assert json.loads(line)["event"] == "event"


def test_long_values_are_cut() -> None:
    (line,) = lines_of(lambda log: log.event("slow", text="x" * 5000))
    assert "x" * MAX_VALUE + "..." in line
    assert len(line) < MAX_VALUE + 100


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://ann:s3cret@host/db",
        "cannot reach postgresql://ann:s3c@ret@host:1/db now",
        "host=h password=s3cret user=ann",
        "host=h PASSWORD = 's3 cr\\'et' user=ann",
    ],
)
def test_passwords_in_connection_strings_are_blanked(text: str) -> None:
    assert "s3" not in redact(text)
    assert "ann" in redact(text)


def test_fields_named_after_secrets_are_blanked() -> None:
    (line,) = lines_of(lambda log: log.event("x", password="one", client_secret="two", admin_token="three"))
    assert line.endswith("password=*** client_secret=*** admin_token=***")


def test_a_reader_that_does_not_read_costs_lines_and_no_time() -> None:
    read, write = os.pipe()
    fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, 4096)
    log = Log("worker-1", fd=write)
    began = time.monotonic()
    for number in range(12_000):
        log.event("event", number=number)
    took = time.monotonic() - began
    assert log.dropped > 0
    assert took < 5
    dropped = log.dropped
    # The reader comes back: it gets what was queued, and is told how much was not.
    seen = b""
    while b"log_lines_dropped" not in seen:
        seen += os.read(read, 65536)
    assert f"lines={dropped}".encode() in seen
    log.close()
    os.close(write)
    os.close(read)


def test_a_closed_standard_error_does_not_stop_the_program() -> None:
    script = (
        "import os; from proxy.logs import Log; r, w = os.pipe(); os.close(r); log = Log('p', fd=w);"
        "[log.event('x') for _ in range(10)]; log.close(); print(log.dropped)"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=True)
    assert ended.stdout == "10\n"


def test_a_non_blocking_standard_error_loses_nothing() -> None:
    read, write = os.pipe()
    os.set_blocking(write, False)
    log = Log("worker-1", fd=write)
    for number in range(3000):
        log.event("event", number=number)
    seen = b""
    while seen.count(b"\n") < 3000:
        seen += os.read(read, 65536)
    assert log.dropped == 0
    log.close()
    wait_until(lambda: b"number=2999" in seen)
    os.close(write)
    os.close(read)
