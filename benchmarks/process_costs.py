"""What a group of processes costs: CPU time and resident memory, read from /proc.

A proxy is its root process and all descendants, so that one that does its work in children is not let off. Only
processes alive at both readings count: a benchmark run in which one dies is not worth reading anyway.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil

TICKS = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


def cpu_seconds_of_stat(line: str, ticks: int = TICKS) -> float:
    """utime + stime in seconds from the text of /proc/PID/stat.

    The command's name stands in parentheses and may itself hold spaces and parentheses, so count from the last one.
    """
    fields = line.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / ticks


def resident_of_rollup(text: str) -> int:
    """The resident set size in bytes from the text of /proc/PID/smaps_rollup."""
    for line in text.splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise ValueError("smaps_rollup has no Rss line")


def family(root: int) -> list[int]:
    """`root` and all its living descendants."""
    try:
        return [root, *(child.pid for child in psutil.Process(root).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pids: Iterable[int]) -> dict[int, float]:
    """CPU time used so far by each of `pids` that is alive, its own threads included, its children not."""
    used = {}
    for pid in pids:
        try:
            used[pid] = cpu_seconds_of_stat((PROC / str(pid) / "stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return used


def stolen_share(before: Any, after: Any) -> float:
    """Which share of the time of all processors other guests of the machine took between two readings of
    ``psutil.cpu_times()``; 0 where that is not known."""
    passed = sum(after[:8]) - sum(before[:8])
    return max(getattr(after, "steal", 0.0) - getattr(before, "steal", 0.0), 0.0) / passed if passed > 0 else 0.0


def cpu_between(before: dict[int, float], after: dict[int, float]) -> float:
    """CPU seconds spent between two readings; a process that started in between counts from its start."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


def resident_bytes(pids: Iterable[int]) -> int:
    """Resident memory of `pids`. Pages shared by several count for each of them: then one that becomes a process's own,
    since that writes to it, is no growth."""
    return sum(resident_of_rollup((PROC / str(pid) / "smaps_rollup").read_text()) for pid in pids)


def settled_resident(
    pids: Iterable[int], *, step: float = 0.25, tolerance: int = 32 * 1024, patience: float = 15.0
) -> int:
    """Resident memory once three readings in a row lie within `tolerance` bytes, or after `patience` seconds."""
    chosen = list(pids)
    readings = [resident_bytes(chosen)]
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(step)
        readings.append(resident_bytes(chosen))
        if len(readings) >= 3 and max(readings[-3:]) - min(readings[-3:]) <= tolerance:
            break
    return readings[-1]


class PeakMemory:
    """Samples the memory of `pids` from a thread while the block runs; ``growth`` is the peak above the start."""

    def __init__(
        self, pids: Iterable[int], interval: float = 0.05, measure: Callable[[list[int]], int] = resident_bytes
    ):
        self._pids = list(pids)
        self._interval = interval
        self._measure = measure
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.start = 0
        self.peak = 0

    @property
    def growth(self) -> int:
        return self.peak - self.start

    def __enter__(self) -> PeakMemory:
        self.start = self.peak = self._measure(self._pids)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self.peak = max(self.peak, self._measure(self._pids))
            except (FileNotFoundError, ProcessLookupError):
                return
