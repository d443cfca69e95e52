"""From timings to states: the verdicts, the ways between states, and what is never changed."""

from __future__ import annotations

import pytest

from planner.advice import Advice
from planner.explore.runner import ArmResults, ArmRuns, Statement, Timing
from planner.memory.evidence import Rules
from planner.memory.explored import baseline, decide
from planner.memory.keys import Conditions
from planner.memory.records import MAX_LATENCIES, ArmRecord, QueryRecord, State

QUERY = QueryRecord(key="q", template="t", database="d", search_path="public", fingerprint="f")
NOW = Conditions("schema", 180000, "drift")


def timings(*ms: float, limit: bool = False) -> list[Timing]:
    return [Timing(one, limit) for one in ms]


def arm(name: str = "no_hashjoin", outcome: str = "", runs: tuple[float, ...] = (), **more: object) -> ArmRuns:
    found = ArmRuns(name, Advice(settings={"enable_hashjoin": "off"}), outcome=outcome, runs=timings(*runs))
    found.baseline = timings(*(100.0 for _ in runs))
    for field, value in more.items():
        setattr(found, field, value)
    return found


def results(*arms: ArmRuns) -> ArmResults:
    default = ArmRuns("default", runs=timings(100.0, 101.0))
    return ArmResults(Statement("SELECT 1"), default, {one.name: one for one in arms})


def states(*arms: ArmRuns, known: dict[str, ArmRecord] | None = None) -> dict[str, State]:
    decided, _ = decide(results(*arms), QUERY, known or {}, NOW, {}, 5.0, Rules())
    return {one.record.arm: one.record.state for one in decided}


FAST, SAME, SLOW = (40.0,) * 7, (99.0, 101.0, 100.0, 99.5, 100.5, 100.2, 99.8), (150.0,) * 7


@pytest.mark.parametrize(
    ("tried", "state"),
    [
        (arm(runs=FAST), State.APPROVED),
        (arm(runs=SAME), State.REJECTED),
        (arm(runs=SLOW), State.REJECTED),
        (arm(runs=(80.0, 95.0)), State.TRIAL),
        (arm(outcome="behind", runs=(90.0, 95.0, 92.0)), State.REJECTED),
        (arm(outcome="behind", runs=FAST), State.APPROVED),
        (arm(outcome="timed_out", first=Timing(100.0, True)), State.REJECTED),
        (arm(outcome="same_plan"), State.REJECTED),
        (arm(outcome="not_honoured"), State.REJECTED),
        (arm(outcome="failed", error="22012"), State.REJECTED),
    ],
)
def test_verdicts(tried: ArmRuns, state: State) -> None:
    assert states(tried) == {"no_hashjoin": state}


@pytest.mark.parametrize("outcome", ["not_expressible", "not_tried", "cheap"])
def test_what_says_nothing_is_not_written(outcome: str) -> None:
    assert states(arm("a", outcome=outcome), arm("b", outcome="same_as", twin="a")) == {}


def test_all_that_win_are_approved_and_equal_plans_are_not() -> None:
    found = states(arm("a", runs=FAST), arm("b", runs=(60.0,) * 7), arm("c", outcome="same_as", twin="a", runs=FAST))
    assert found == {"a": State.APPROVED, "b": State.APPROVED, "c": State.REJECTED}


@pytest.mark.parametrize("before", list(State))
@pytest.mark.parametrize("runs", [FAST, SLOW])
def test_every_way_is_in_the_ledger(before: State, runs: tuple[float, ...]) -> None:
    known = ArmRecord(key="q", arm="no_hashjoin", state=before)
    decided, ledger = decide(results(arm(runs=runs)), QUERY, {known.arm: known}, NOW, {}, 5.0, Rules())
    [one] = decided
    if before in (State.PREFERRED, State.FROZEN):
        assert (one.record.state, ledger) == (before, [])
        return
    wanted = State.APPROVED if runs is FAST else State.REJECTED
    assert one.record.state is wanted
    steps = [State(ledger[0].before), *(State(line.after) for line in ledger)] if ledger else [before]
    assert steps[0] is before
    assert steps[-1] is wanted
    assert [line.before for line in ledger[1:]] == [line.after for line in ledger[:-1]]


def test_undecided_does_not_withdraw_what_serves() -> None:
    known = ArmRecord(key="q", arm="no_hashjoin", state=State.APPROVED)
    assert states(arm(runs=(80.0, 95.0)), known={known.arm: known}) == {"no_hashjoin": State.APPROVED}


def test_a_persons_state_stands() -> None:
    known = ArmRecord(key="q", arm="no_hashjoin", state=State.REJECTED, actor="anna")
    assert states(arm(runs=FAST), known={known.arm: known}) == {"no_hashjoin": State.REJECTED}


def test_the_evidence() -> None:
    tried = arm(runs=FAST, expected_gain=1.5)
    decided, _ = decide(results(tried), QUERY, {}, NOW, {"no_hashjoin": "m-1"}, 5.0, Rules())
    record = decided[0].record
    assert (record.latencies, record.baseline) == (FAST, (100.0,) * 7)
    assert (record.runs, record.losses, record.model, record.expected_gain) == (7, 0, "m-1", 1.5)
    assert record.measured_gain == pytest.approx(2.5)
    assert (record.schema_hash, record.server_version, record.drift) == ("schema", 180000, "drift")
    assert decided[0].saved_ms == pytest.approx(60.0)
    stopped = arm(outcome="timed_out", first=Timing(100.0, True))
    [lost], _ = decide(results(stopped), QUERY, {}, NOW, {}, 5.0, Rules())
    assert (lost.record.latencies, lost.record.runs, lost.record.losses) == ((100.0,), 1, 1)


def test_the_baseline_is_bounded_and_complete_runs_only() -> None:
    found = results()
    found.default.runs.append(Timing(400.0, True))
    assert baseline(found) == (100.0, 101.0)
    assert len(baseline(found, [1.0] * 40)) == MAX_LATENCIES
