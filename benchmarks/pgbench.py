"""Running pgbench and reading what it says."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.processes import BenchmarkError
from benchmarks.ratios import Mode

Script = Literal["select-only", "tpcb-like"]
HOST = "127.0.0.1"
USER = "postgres"
SCALE = 10
_TPS = re.compile(r"^tps = ([0-9.]+) \(without initial connection time\)", re.MULTILINE)
_COUNT = re.compile(r"^number of transactions actually processed: (\d+)", re.MULTILINE)
_FAILED = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run reports: tps without the time to connect, transactions done, and transactions failed."""

    tps: float
    transactions: int
    failed: int


def parse(output: str) -> Outcome:
    """Read pgbench's report; raises BenchmarkError when it is not one."""
    tps, count, failed = _TPS.search(output), _COUNT.search(output), _FAILED.search(output)
    if tps is None or count is None:
        raise BenchmarkError(f"pgbench printed no result: {output.strip()[-300:]!r}.")
    return Outcome(float(tps[1]), int(count[1]), int(failed[1]) if failed else 0)


@dataclass(frozen=True, slots=True)
class Pgbench:
    """One pgbench program; always over TCP on loopback, since that is what all targets offer."""

    program: Path
    database: str = "postgres"

    def initialise(self, port: int) -> None:
        """Make the tables at `SCALE` (a million rows), all of them in memory afterwards."""
        self._run(["-i", "-q", "-s", str(SCALE)], port, timeout=300)

    def run(self, port: int, clients: int, mode: Mode, seconds: float, script: Script = "select-only") -> Outcome:
        """One of pgbench's own scripts with one thread for `seconds`; any client error is a BenchmarkError.

        One thread leaves a core to the proxy and the server on a machine with two.
        """
        arguments = ["-b", script, "-n", "-M", mode, "-c", str(clients), "-j", "1", "-T", str(max(1, round(seconds)))]
        outcome = parse(self._run(arguments, port, timeout=seconds + 60))
        if outcome.failed:
            raise BenchmarkError(f"{outcome.failed} transactions of pgbench failed on port {port}.")
        return outcome

    def version(self) -> str:
        return subprocess.run([self.program, "--version"], check=True, capture_output=True, text=True).stdout.strip()

    def _run(self, arguments: list[str], port: int, timeout: float) -> str:
        command = [str(self.program), "-h", HOST, "-p", str(port), "-U", USER, *arguments, self.database]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"pgbench did not end within {timeout:.0f} s on port {port}.") from None
        if done.returncode:
            raise BenchmarkError(f"pgbench failed on port {port}: {done.stderr.strip()[-500:]}")
        return done.stdout
