"""Reading what processes cost from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.process_costs import (
    PeakMemory,
    cpu_between,
    cpu_seconds,
    cpu_seconds_of_stat,
    family,
    resident_bytes,
    resident_of_rollup,
    stolen_share,
)

STAT = "4242 ({}) S 1 4242 4242 0 -1 4194560 1 2 3 4 150 50 7 9 20 0 1 0 100 1000 10 18446744073709551615 0 0"


@pytest.mark.parametrize("name", ["pgbouncer", "a b", "odd) S (name", "((("])
def test_stat_adds_user_and_system_time_whatever_the_name(name: str) -> None:
    assert cpu_seconds_of_stat(STAT.format(name), ticks=100) == pytest.approx(2.0)


def test_what_other_guests_took_is_a_share_of_all_time() -> None:
    before = psutil.cpu_times()
    moved = before._replace(user=before.user + 7, idle=before.idle + 1, steal=before.steal + 2)
    assert stolen_share(before, moved) == pytest.approx(0.2)
    assert stolen_share(before, before) == 0


def test_rollup() -> None:
    text = "00400000-7fff ---p 00000000 00:00 0    [rollup]\nRss:   9000 kB\nPss:   1234 kB\nPss_Dirty: 1 kB\n"
    assert resident_of_rollup(text) == 9000 * 1024
    with pytest.raises(ValueError, match="no Rss line"):
        resident_of_rollup("Pss: 1 kB\n")


def test_a_process_that_started_in_between_counts_from_its_start() -> None:
    assert cpu_between({1: 2.0, 2: 5.0}, {1: 2.5, 3: 0.25}) == pytest.approx(0.75)


def test_our_own_work_is_seen() -> None:
    before = cpu_seconds([os.getpid()])
    started = time.process_time()
    while time.process_time() - started < 0.1:
        sum(range(1000))
    assert cpu_between(before, cpu_seconds([os.getpid()])) >= 0.05


def test_a_family_is_the_process_and_its_descendants() -> None:
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"1\n"
        assert len(family(parent.pid)) == 2
        parent.communicate(b"\n", timeout=30)
    assert family(parent.pid) == []
    assert cpu_seconds([parent.pid]) == {}


# A process of its own: the one that runs the tests may give back as much as this takes at the same moment. The bounds
# leave room for the interpreter's own pages, whose share falls when another process maps them too.
_TAKES_AND_GIVES_BACK = """
print(flush=True)
input()
block = bytearray(b"x") * (32 * 1024 * 1024)
print(flush=True)
input()
del block
print(flush=True)
input()
"""


def test_peak_memory_remembers_what_has_gone_again() -> None:
    command = [sys.executable, "-c", _TAKES_AND_GIVES_BACK]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def go_on() -> None:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()

        process.stdout.readline()
        with PeakMemory([process.pid], interval=0.01) as memory:
            go_on()
            process.stdout.readline()
            taken = resident_bytes([process.pid])
            while memory.peak < taken - 8 * 1024 * 1024:
                time.sleep(0.01)
            go_on()
            process.stdout.readline()
            left = resident_bytes([process.pid])
        go_on()
    assert memory.growth >= 20 * 1024 * 1024
    assert left - memory.start <= 12 * 1024 * 1024
