"""The trainer's jobs as files, one for each: what waits, what runs, what was done, and what is set aside.

An attempt is counted before it begins. So a job that takes the whole process down (out of memory, kill -9) is tried a
bounded number of times too, and one that was running when the process ended is found by the next one. What fails waits
twice as long each time; after `MAX_ATTEMPTS` it is set aside, to be looked at by a person, and never tried again by
itself. At most one job waits: further reasons to train are added to it.
"""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import Any, Final

import msgspec

from training.errors import TrainingError
from training.trainer import files

MAX_ATTEMPTS: Final = 5
FIRST_DELAY: Final = 60.0
LONGEST_DELAY: Final = 6 * 3600.0
KEPT: Final = 50
"""Finished jobs that are remembered; those set aside are kept until a person has them retried or dropped."""
CRASHED: Final = "the trainer ended in the middle of it (killed, or out of memory)"


class JobState(enum.StrEnum):
    """``waiting`` (also for another attempt) -> ``running`` -> ``done``, or ``waiting`` again, or ``set_aside``."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    SET_ASIDE = "set_aside"


class Part(msgspec.Struct, kw_only=True):
    """One kind of model of a job, done: was it handed over, and why or why not."""

    handed_over: bool = False
    why: str = ""
    figures: dict[str, Any] = msgspec.field(default_factory=dict)
    report: str = ""


class Job(msgspec.Struct, kw_only=True):
    """``reasons`` say why there is something to train. ``parts`` has what is done already, by kind of model.
    ``outcome`` is ``handed_over`` (some model was) or ``kept`` (what served before serves on) once all is done, with
    ``why`` and ``figures``; ``errors`` has one line for each attempt that failed. All moments are seconds since the
    epoch."""

    id: str
    reasons: list[str]
    created: float
    state: JobState = JobState.WAITING
    attempts: int = 0
    not_before: float = 0.0
    started: float = 0.0
    finished: float = 0.0
    step: str = ""
    parts: dict[str, Part] = msgspec.field(default_factory=dict)
    outcome: str = ""
    why: str = ""
    figures: dict[str, Any] = msgspec.field(default_factory=dict)
    report: str = ""
    errors: list[str] = msgspec.field(default_factory=list)


def delay(attempts: int) -> float:
    """Seconds to wait after so many attempts that failed."""
    return min(FIRST_DELAY * 2.0 ** max(attempts - 1, 0), LONGEST_DELAY)


class Jobs:
    """The jobs of one folder. One trainer writes; anybody may read."""

    def __init__(self, folder: Path, *, max_attempts: int = MAX_ATTEMPTS, first_delay: float = FIRST_DELAY) -> None:
        self.folder = folder
        self._max_attempts = max_attempts
        self._scale = first_delay / FIRST_DELAY

    def known(self) -> list[Job]:
        """The newest first. A file that is not understood is left out."""
        found = [job for path in self._paths() if (job := files.read(path, Job)) is not None]
        return sorted(found, key=lambda job: (job.created, job.id), reverse=True)

    def get(self, number: str) -> Job | None:
        return next((job for job in self.known() if job.id == number), None)

    def _paths(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.glob("*.json") if not path.name.startswith("."))
        except OSError:
            return []

    def save(self, job: Job) -> None:
        """Raises TrainingError."""
        files.write(self.folder / f"{job.id}.json", job)

    def add(self, reasons: list[str], now: float | None = None, *, at_once: bool = False) -> Job:
        """A new job, or the waiting one with these reasons added; ``at_once``: also if that waits for another
        attempt."""
        moment = time.time() if now is None else now
        every = self.known()
        waiting = next((job for job in every if job.state == JobState.WAITING), None)
        if waiting is not None:
            waiting.reasons += [reason for reason in reasons if reason not in waiting.reasons]
            waiting.not_before = 0.0 if at_once else waiting.not_before
            self.save(waiting)
            return waiting
        base = time.strftime("%Y%m%d-%H%M%S", time.gmtime(moment))
        taken = {job.id for job in every}
        number = next(name for name in (base, *(f"{base}-{n}" for n in range(2, 1000))) if name not in taken)
        job = Job(id=number, reasons=list(reasons), created=moment)
        self.save(job)
        return job

    def due(self, now: float | None = None) -> Job | None:
        """The job to do next, if its time has come."""
        moment = time.time() if now is None else now
        ready = [job for job in self.known() if job.state == JobState.WAITING and job.not_before <= moment]
        return ready[-1] if ready else None

    def begin(self, job: Job) -> None:
        job.state, job.attempts, job.started = JobState.RUNNING, job.attempts + 1, time.time()
        self.save(job)

    def interrupted(self, job: Job) -> None:
        """Somebody stopped the trainer: the attempt does not count."""
        job.state, job.attempts, job.step = JobState.WAITING, job.attempts - 1, ""
        self.save(job)

    def failed(self, job: Job, why: str) -> None:
        """Wait for another attempt, or set it aside."""
        now = time.time()
        job.errors.append(why)
        job.step = ""
        if job.attempts >= self._max_attempts:
            job.state, job.finished, job.why = JobState.SET_ASIDE, now, why
        else:
            job.state, job.not_before = JobState.WAITING, now + delay(job.attempts) * self._scale
        self.save(job)

    def done(self, job: Job, outcome: str, why: str, figures: dict[str, Any], report: str = "") -> None:
        job.state, job.finished, job.step = JobState.DONE, time.time(), ""
        job.outcome, job.why, job.figures, job.report = outcome, why, figures, report
        job.parts = {}
        self.save(job)
        self._forget_old()

    def recover(self) -> list[Job]:
        """To be called once by a trainer that starts: what was running then has failed with its process."""
        crashed = [job for job in self.known() if job.state == JobState.RUNNING]
        for job in crashed:
            self.failed(job, CRASHED)
        return crashed

    def retry(self, number: str) -> Job:
        """Have a job that was set aside done again. Raises TrainingError."""
        job = self.get(number)
        if job is None or job.state != JobState.SET_ASIDE:
            raise TrainingError(f"no job {number} is set aside")
        job.state, job.attempts, job.not_before, job.why = JobState.WAITING, 0, 0.0, ""
        self.save(job)
        return job

    def _forget_old(self) -> None:
        done = [job for job in self.known() if job.state == JobState.DONE]
        for job in done[KEPT:]:
            (self.folder / f"{job.id}.json").unlink(missing_ok=True)
