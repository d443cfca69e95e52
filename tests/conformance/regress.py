"""PostgreSQL's regression and isolation suites by their own drivers, with clients of the server's version."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conformance.programs import Driver, Programs
from tests.conformance.sources import ConformanceError
from tests.conformance.stage import Address, Place

PARALLEL = 20
TIMEOUT = 900.0
"""Seconds for one pass; a run that hangs is cut off and what it wrote until then is compared."""

_RESULT = re.compile(r"^(?:not )?ok \d+\s+[-+] (\S+)")

Tick = Callable[[int, int], None]
"""Called with the number of tests done and of all."""


def scheduled(schedule: Path) -> list[str]:
    """The tests of a schedule file, in its order."""
    lines = [line.removeprefix("test:") for line in schedule.read_text().splitlines() if line.startswith("test:")]
    return [test for line in lines for test in line.split()]


def run(
    programs: Programs,
    driver: Driver,
    place: Place,
    address: Address,
    tick: Tick,
    *,
    schedule: Path | None = None,
    tests: Sequence[str] = (),
) -> dict[str, bytes]:
    """Outputs by file: all of the driver's schedule, or of another `schedule`, or only `tests` in this order."""
    chosen = schedule or driver.schedule
    total = len(tests) or len(scheduled(chosen))
    out = place.fresh_out()
    command = [
        str(driver.program),
        f"--inputdir={driver.input}",
        f"--expecteddir={driver.input}",
        f"--outputdir={out}",
        f"--bindir={programs.installation.root / 'bin'}",
        f"--dlpath={programs.library_dir}",
        f"--host={address.host}",
        f"--port={address.port}",
        f"--user={address.user}",
        f"--max-concurrent-tests={PARALLEL}",
        *(tests or [f"--schedule={chosen}"]),
    ]
    seen, ended, tail = _watch(command, place, address, out, lambda done: tick(done, total))
    outputs = {file.name: file.read_bytes() for file in sorted((out / "results").glob("*.out"))}
    if not outputs or seen == 0:
        raise ConformanceError(f"{driver.program.name} ran no test: {' '.join(tail[-5:]) or 'it said nothing'}")
    outputs["(end of the run)"] = f"{'all tests ended' if ended else 'cut off'}, {seen} of {total}\n".encode()
    return outputs


def _watch(
    command: Sequence[str], place: Place, address: Address, out: Path, tick: Callable[[int], None]
) -> tuple[int, bool, list[str]]:
    """Run the driver; (tests done, whether it ended by itself, its last lines)."""
    account = place.account
    process = subprocess.Popen(
        command,
        cwd=out,
        env=address.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        user=account.uid if account else None,
        group=account.gid if account else None,
        extra_groups=[] if account else None,
    )
    cut = threading.Event()

    def cut_off() -> None:
        cut.set()
        _end_group(process)

    timer = threading.Timer(TIMEOUT, cut_off)
    timer.start()
    done = 0
    tail: list[str] = []
    try:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                tail = [*tail[-30:], line.strip()]
                if _RESULT.match(line):
                    done += 1
                    tick(done)
        process.wait()
    finally:
        timer.cancel()
        _end_group(process)
        process.wait()
    return done, not cut.is_set(), tail


def _end_group(process: subprocess.Popen[str]) -> None:
    """End the driver and its clients below it; they are a group of their own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
