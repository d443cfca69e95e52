"""When there is something to train, and when it has been told already."""

from __future__ import annotations

import math
from datetime import UTC, datetime

import pytest

from training.errors import TrainingError
from training.trainer.events import NewStatements, check_schedule, drifted, mean_error, next_time, schedule_due


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def test_the_schedule_is_cron_in_utc() -> None:
    assert next_time("0 3 * * *", at("2026-01-01T02:59:00")) == at("2026-01-01T03:00:00")
    assert next_time("0 3 * * 1", at("2026-01-01T12:00:00")) == at("2026-01-05T03:00:00")
    assert not schedule_due("0 3 * * *", at("2026-01-01T03:00:30"), at("2026-01-02T02:59:59"))
    assert schedule_due("0 3 * * *", at("2026-01-01T03:00:30"), at("2026-01-02T03:00:00"))
    # However long the trainer was away, it is due once.
    assert schedule_due("0 3 * * *", at("2026-01-01T00:00:00"), at("2026-02-01T00:00:00"))
    assert not schedule_due("", 1.0, at("2026-01-01T00:00:00"))
    assert not schedule_due("* * * * *", 0.0, at("2026-01-01T00:00:00"))


@pytest.mark.parametrize("text", ["every day", "* * * *", "99 * * * *", ""])
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(TrainingError, match="is no schedule: five fields as in cron"):
        check_schedule(text)


def test_new_statements_are_those_after_the_mark_that_were_not_there_before() -> None:
    fresh = NewStatements(mark=2)
    for number, key in enumerate(["a", "b", "a", "c", "", "c", "d"], 1):
        fresh.note(number, key)
    assert fresh.count == 2
    assert fresh.settle() == 7
    assert fresh.count == 0
    fresh.note(8, "d")
    fresh.note(9, "e")
    assert fresh.count == 1


def test_an_error_is_the_mean_of_logarithms_of_at_least_a_row() -> None:
    assert mean_error([]) is None
    assert mean_error([(10.0, 100.0), (100.0, 10.0), (0.0, 1.0)]) == pytest.approx(2 * math.log(10) / 3)


def test_drift_is_a_factor_of_the_typical_q_error() -> None:
    assert not drifted(math.log(1.5), math.log(2.9), 2.0)
    assert drifted(math.log(1.5), math.log(3.1), 2.0)
    assert not drifted(math.log(3.1), math.log(1.5), 2.0)
