"""The record of what a planner process was working on, read after its death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from planner.blackbox import LANES, MAX_SUSPECTS, STRIKES, BlackBox, Recorder, digest

DYING = (
    "import os, signal, sys; from planner.blackbox import Recorder, digest; "
    "Recorder(int(sys.argv[1])).begin(1, digest('shop', b'SELECT 1')); os.kill(os.getpid(), signal.SIGKILL)"
)


def test_a_statement_that_ends_two_processes_is_quarantined() -> None:
    box = BlackBox()
    culprit = digest("shop", b"SELECT 1")
    for strike in range(1, STRIKES + 1):
        done = subprocess.run([sys.executable, "-c", DYING, str(box.fd)], pass_fds=[box.fd], check=False, timeout=30)
        assert done.returncode == -signal.SIGKILL
        assert box.inquest() == ([culprit] if strike == STRIKES else [])
    assert box.quarantine == (culprit,)
    assert box.inquest() == [], "what was found once is not found again"
    box.close()


def test_what_was_finished_is_not_suspected() -> None:
    box = BlackBox()
    recorder = Recorder(os.dup(box.fd))
    for lane in range(LANES):
        for _ in range(STRIKES):
            recorder.begin(lane, digest("shop", b"x"))
            recorder.end(lane)
            assert box.inquest() == []
    assert box.quarantine == ()
    box.close()


def test_suspects_are_bounded() -> None:
    box = BlackBox()
    recorder = Recorder(os.dup(box.fd))
    for number in range(MAX_SUSPECTS + 100):
        recorder.begin(0, digest("shop", str(number).encode()))
        box.inquest()
    assert len(box._strikes) == MAX_SUSPECTS
    box.close()


def test_the_same_text_in_another_database_is_another_statement() -> None:
    assert digest("a", b"SELECT 1") != digest("b", b"SELECT 1")


def test_without_a_descriptor_nothing_is_recorded() -> None:
    recorder = Recorder(-1)
    recorder.begin(0, digest("a", b"x"))
    recorder.end(0)
