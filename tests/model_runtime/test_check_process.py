"""Files that crash, fill or stall the process that looks at them harm nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil

from model_runtime.check_process import CheckProcess
from model_runtime.limits import MIB, Limits
from model_runtime.verdict import PROCESS
from tests.model_runtime.wrong_models import bundled, constant_of, deep_tree, endless, plain, wrong
from tests.support.waiting import wait_until

LIMITS = Limits()
GOOD = bundled(plain())


def test_it_says_what_the_checks_say(checker: CheckProcess) -> None:
    good = checker.check(GOOD, LIMITS)
    assert good.good, good.reason
    data, step, words = wrong("lying test")
    refused = checker.check(data, LIMITS)
    assert refused.failed == step
    assert words in refused.reason


def test_a_file_that_crashes_the_runtime_is_refused(checker: CheckProcess) -> None:
    verdict = checker.check(bundled(deep_tree(20_000)), LIMITS)
    assert (verdict.failed, verdict.reason) == (PROCESS, "checking it crashed (signal 11)")
    assert checker.check(GOOD, LIMITS).good


def test_a_file_that_wants_much_memory_is_refused(checker: CheckProcess) -> None:
    helper = psutil.Process(checker.pid)
    before = helper.memory_info().rss
    verdict = checker.check(bundled(constant_of(1 << 29)), Limits(check_memory_bytes=256 * MIB))
    assert not verdict.good
    assert "alloc" in verdict.reason
    assert helper.memory_info().rss - before < 16 * MIB


def test_a_file_that_computes_for_long_is_stopped(checker: CheckProcess) -> None:
    begun = time.monotonic()
    verdict = checker.check(bundled(endless()), Limits(check_seconds=0.7))
    assert verdict.failed == PROCESS
    assert "more than 0.7 s" in verdict.reason
    assert time.monotonic() - begun < 5
    assert checker.check(GOOD, LIMITS).good


def test_the_helper_is_replaced_when_it_was_killed(checker: CheckProcess) -> None:
    assert checker.check(GOOD, LIMITS).good
    first = checker.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert checker.check(GOOD, LIMITS).good
    assert checker.pid not in (None, first)


def test_many_threads_may_ask(checker: CheckProcess) -> None:
    bad = wrong("text").data
    answers: list[tuple[bool, bool]] = []
    threads = [
        threading.Thread(target=lambda data=data: answers.append((data is GOOD, checker.check(data, LIMITS).good)))
        for data in (GOOD, bad) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [(False, False)] * 4 + [(True, True)] * 4


def test_closing_ends_a_check_that_is_under_way() -> None:
    process = CheckProcess()
    verdicts = []
    thread = threading.Thread(
        target=lambda: verdicts.append(process.check(bundled(endless()), Limits(check_seconds=30)))
    )
    thread.start()
    pid = wait_until(lambda: process.pid) or 0
    wait_until(lambda: psutil.Process(pid).children())
    process.close()
    thread.join(5)
    assert not thread.is_alive()
    assert verdicts[0].failed == PROCESS
    wait_until(lambda: not psutil.pid_exists(pid))


def test_it_ends_with_the_process_that_used_it() -> None:
    script = (
        "import os\nfrom model_runtime.check_process import CheckProcess\nfrom model_runtime.limits import Limits\n"
        "process = CheckProcess()\nprocess.check(b'', Limits())\nprint(process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    helper = int(run.stdout)
    wait_until(lambda: not psutil.pid_exists(helper) or psutil.Process(helper).status() == psutil.STATUS_ZOMBIE)


def test_an_idle_helper_leaves_and_another_comes() -> None:
    script = "import sys\nfrom model_runtime.check_process import serve\nserve(idle=0.05)\nprint('left')\n"
    run = subprocess.run(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, capture_output=True, timeout=60, check=False
    )
    assert run.returncode == 0
