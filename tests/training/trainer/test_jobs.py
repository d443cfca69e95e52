"""Jobs survive whatever ends their trainer, wait longer each time, and end up set aside."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from training.errors import TrainingError
from training.trainer.files import Lock, locked
from training.trainer.jobs import CRASHED, KEPT, Job, Jobs, JobState, delay


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path / "jobs", max_attempts=3)


def failed_once(jobs: Jobs, job: Job, why: str = "no database") -> Job:
    jobs.begin(job)
    jobs.failed(job, why)
    found = jobs.get(job.id)
    assert found is not None
    return found


def test_a_job_that_keeps_failing_waits_longer_and_is_set_aside(jobs: Jobs) -> None:
    job = jobs.add(["the schedule"])
    waits = []
    for _ in range(2):
        job = failed_once(jobs, job)
        assert job.state == JobState.WAITING
        waits.append(job.not_before - time.time())
        assert jobs.due() is None
        assert jobs.due(job.not_before) == job
    assert waits == [pytest.approx(60, abs=2), pytest.approx(120, abs=2)]
    job = failed_once(jobs, job, "still no database")
    assert job.state == JobState.SET_ASIDE
    assert job.errors == ["no database", "no database", "still no database"]
    assert jobs.due(time.time() + 1e6) is None

    # New reasons make a new job; the one set aside stays until a person looks at it.
    again = jobs.add(["new statements"])
    assert again.id != job.id
    assert {one.state for one in jobs.known()} == {JobState.SET_ASIDE, JobState.WAITING}
    jobs.retry(job.id)
    assert jobs.get(job.id).attempts == 0  # type: ignore[union-attr]
    with pytest.raises(TrainingError, match="no job nothing is set aside"):
        jobs.retry("nothing")


def test_the_delay_doubles_up_to_a_bound() -> None:
    assert [delay(attempts) for attempts in (1, 2, 3)] == [60, 120, 240]
    assert delay(100) == 6 * 3600


def test_a_job_whose_trainer_was_killed_is_found_and_counted(jobs: Jobs) -> None:
    job = jobs.add(["drift"])
    for attempt in (1, 2, 3):
        due = jobs.due(time.time() + 1e6)
        assert due is not None
        jobs.begin(due)
        # Here the process dies; the next one sees what is on the disk.
        (crashed,) = Jobs(jobs.folder, max_attempts=3).recover()
        assert (crashed.id, crashed.attempts, crashed.errors[-1]) == (job.id, attempt, CRASHED)
    assert crashed.state == JobState.SET_ASIDE


def test_an_interrupted_attempt_does_not_count(jobs: Jobs) -> None:
    job = jobs.add(["drift"])
    for _ in range(10):
        jobs.begin(job)
        jobs.interrupted(job)
    assert jobs.due() == job
    assert job.attempts == 0


def test_reasons_are_added_to_the_job_that_waits(jobs: Jobs) -> None:
    first = jobs.add(["a"])
    assert jobs.add(["b", "a"]).id == first.id
    assert jobs.due().reasons == ["a", "b"]  # type: ignore[union-attr]
    jobs.begin(first)
    # One that runs does not know of what came after it began.
    assert jobs.add(["c"]).id != first.id


def test_what_is_asked_for_does_not_wait_for_the_next_attempt(jobs: Jobs) -> None:
    job = failed_once(jobs, jobs.add(["the schedule"]))
    assert jobs.due() is None
    assert jobs.add(["drift"]).not_before == job.not_before
    jobs.add(["asked for"], at_once=True)
    assert jobs.due().reasons == ["the schedule", "drift", "asked for"]  # type: ignore[union-attr]


def test_only_the_latest_finished_jobs_are_kept(jobs: Jobs) -> None:
    for number in range(KEPT + 5):
        job = jobs.add([f"reason {number}"], now=1e9 + number)
        jobs.begin(job)
        jobs.done(job, "kept", "no better", {"error": 1.0})
    known = jobs.known()
    assert len(known) == KEPT
    assert known[0].reasons == [f"reason {KEPT + 4}"]
    assert known[0].figures == {"error": 1.0}


def test_a_file_that_is_not_understood_is_left_out(jobs: Jobs) -> None:
    job = jobs.add(["a"])
    (jobs.folder / "broken.json").write_text('{"id": ')
    (jobs.folder / ".hidden.json").write_text("{}")
    assert jobs.known() == [job]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text("a file")
    with pytest.raises(TrainingError, match=r"cannot be written: (File exists|Not a directory)"):
        Jobs(tmp_path / "jobs").add(["a"])


def test_one_trainer_at_a_time(tmp_path: Path) -> None:
    assert not locked(tmp_path)
    with Lock(tmp_path):
        assert locked(tmp_path)
        with pytest.raises(TrainingError, match="another trainer works in"):
            Lock(tmp_path)
    assert not locked(tmp_path)
    with Lock(tmp_path):
        pass
