"""What is computed from timings: baselines, regressions, and what the report is about."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from pilotwire.evaluate_view import show
from training.evaluate.measure import Series
from training.evaluate.results import (
    BEST_ARM,
    DEFAULT,
    ONE_SETTING,
    PROXY,
    TRUE_ROWS,
    Measured,
    Results,
    Split,
    Steered,
)
from training.evaluate.truth import SubPlan
from training.evaluate.verdict import judge


def query(name: str, shared: dict[str, str] | None = None, /, **times: Any) -> Measured:
    made = Measured(name, 1, f"SELECT '{name}'", "t", 2, "unknown", shared=shared or {})
    for kind, found in times.items():
        runs = found if isinstance(found, list) else [found]
        made.series[kind.replace("arm_", "arm:").replace("true_rows", TRUE_ROWS)] = Series(times=runs, tag="1")
    return made


@pytest.fixture
def results() -> Results:
    found = Results("shop", models=["m-1"])
    found.queries = [
        query("a", default=[100.0, 300.0, 110.0], arm_x=50.0, arm_y=120.0, **{"m-1": 60.0}),
        query("b", default=40.0, arm_x=200.0, arm_y=20.0, **{"m-1": 90.0}),
        query("c", {"arm:x": DEFAULT, "arm:y": DEFAULT, "m-1": DEFAULT}, default=10.0),
    ]
    found.queries[0].steered["m-1"] = Steered("", 2.0, True)
    found.queries[1].steered["m-1"] = Steered("", 2.0, True)
    found.queries[2].steered["m-1"] = Steered("no_change", 1.0)
    return found


def test_decisions_are_part_of_the_time_and_medians_of_the_runs(results: Results) -> None:
    assert [query.ms("m-1") for query in results.queries] == [62.0, 92.0, 11.0]
    assert results.queries[0].ms(DEFAULT) == 110.0
    summary = results.summary("m-1")
    assert summary is not None
    assert summary.total == pytest.approx(160 / 165)
    assert [(query.name, factor) for query, factor in results.regressions("m-1")] == [("b", 92 / 40)]
    assert results.reasons("m-1") == {"new plan": 2, "no_change": 1}


@pytest.mark.parametrize("width", [80, 60])
def test_narrow_terminals_lose_figures_before_names(
    results: Results, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    # One that ran fewer statements than the others: each row says how many.
    results.queries.append(query("d", default=100.0, arm_x=[50.0, 60.0], arm_y=90.0))
    results.queries[3].series["arm:x"].timeouts = 1
    show(results, Console(width=width))
    shown = capsys.readouterr().out
    lines = shown[: shown.index("what got slower")].splitlines()
    assert max(map(len, lines)) <= width
    assert "statements" in lines[1]
    assert [line.split()[0] for line in lines[2:5]] == ["one", "best", "m-1"]
    assert "> 2x" not in lines[1]


def test_without_anything_to_compare_there_is_no_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    alone = Results("shop")
    alone.queries = [query("a", default=100.0)]
    show(alone, Console(width=80))
    assert "against PostgreSQL" not in capsys.readouterr().out


def test_one_setting_is_the_arm_with_the_least_total_and_the_best_arm_is_each_querys_own(results: Results) -> None:
    # x takes 50 + 200 + 10, y takes 120 + 20 + 10, PostgreSQL's own 110 + 40 + 10.
    assert results.one_setting() == "arm:y"
    assert [after for _, _, after in results.pairs(ONE_SETTING)] == [120.0, 20.0, 10.0]
    assert [after for _, _, after in results.pairs(BEST_ARM)] == [50.0, 20.0, 10.0]
    assert results.kinds() == [ONE_SETTING, BEST_ARM, "m-1"]


def test_statements_without_arms_are_no_part_of_those_baselines(results: Results) -> None:
    results.queries.append(query("d", default=500.0, **{"m-1": 400.0}))
    assert [after for _, _, after in results.pairs(ONE_SETTING)] == [120.0, 20.0, 10.0]
    assert [after for _, _, after in results.pairs(BEST_ARM)] == [50.0, 20.0, 10.0]
    assert len(results.pairs("m-1")) == 4


def test_without_arms_there_are_no_such_baselines(results: Results) -> None:
    for one in results.queries:
        one.series = {kind: series for kind, series in one.series.items() if not kind.startswith("arm:")}
        one.shared = {kind: other for kind, other in one.shared.items() if not kind.startswith("arm:")}
    assert results.kinds() == ["m-1"]
    assert results.one_setting() is None


def test_what_the_server_refused_is_no_time(results: Results) -> None:
    results.queries[1].series["m-1"].error = "42703"
    assert [one.name for one, _, _ in results.pairs("m-1")] == ["a", "c"]


def test_timeouts_count(results: Results) -> None:
    results.queries[0].series["m-1"].timeouts = 1
    summary = results.summary("m-1")
    assert summary is not None
    assert summary.timeouts == 1


def test_what_the_report_is_about(results: Results) -> None:
    assert results.main() == ("m-1", None)
    results.queries[0].series[PROXY] = Series(times=[1.0])
    assert results.main() == (PROXY, None)
    del results.queries[0].series[PROXY]
    folded = Results("shop", models=["trained: random"], training={"trained: random": {}})
    folded.queries = results.queries
    folded.splits = [Split("random", "title", "trained: random", ["a"])]
    assert folded.main() == ("trained: random", ["a"])
    assert "trained: random" not in folded.kinds()
    assert Results("shop").main() == ("", None)


def test_q_errors_leave_empty_joins_out(results: Results) -> None:
    results.sub_plans = [
        SubPlan("a", 0, 3, ("x", "y"), 10.0, 100.0, {"m-1": 50.0}),
        SubPlan("a", 0, 7, ("x", "y", "z"), 10.0, 1000.0, {"m-1": 10.0}),
        SubPlan("b", 0, 3, ("x", "y"), 10.0, 0.0, {"m-1": 10.0}),
        SubPlan("b", 0, 3, ("x", "y"), 10.0, 10.0),
    ]
    count, points = results.q_errors("m-1")
    assert (count, points["p50"]) == (2, (55.0, 51.0))
    assert results.q_errors("m-1", ["b"]) == (0, {})
    assert results.q_errors_by_joins("m-1") == {
        1: {"native": [10.0], "model": [2.0]},
        2: {"native": [100.0], "model": [100.0]},
    }


def test_everything_is_in_the_json(results: Results) -> None:
    found = json.loads(results.dumps())
    assert found["queries"][0]["series"]["default"]["times"] == [100.0, 300.0, 110.0]
    assert found["summaries"]["best arm"]["total"] == pytest.approx(2.0)
    assert found["one_setting"] == "arm:y"
    assert found["regressions"]["m-1"] == [{"query": "b", "factor": 2.3}]


@pytest.mark.parametrize(
    ("times", "level"),
    [
        ([(100.0, 50.0)] * 6, "good"),
        ([(100.0, 99.0)] * 6, "none"),
        ([(100.0, 50.0)] * 4, "none"),
        ([(100.0, 50.0)] * 6 + [(100.0, 250.0)], "mixed"),
        ([(900.0, 100.0)] + [(100.0, 100.0)] * 6, "mixed"),
        ([(100.0, 150.0)] * 6, "bad"),
        ([(900.0, 100.0)] + [(100.0, 130.0)] * 20, "bad"),
    ],
)
def test_verdicts(times: list[tuple[float, float]], level: str) -> None:
    found = Results("shop", models=["m-1"])
    found.queries = [
        query(f"q{place}", default=before, **{"m-1": after}) for place, (before, after) in enumerate(times)
    ]
    verdict = judge(found)
    assert verdict.level == level, verdict
    assert f"of {len(times)} statements" in verdict.sentences[1]


def test_a_verdict_without_a_model() -> None:
    found = Results("shop")
    assert judge(found).word == "Nothing was run"
    found.queries = [query("a", default=1.0)]
    assert judge(found).word == "Nothing was steered"


def test_tables_fit_a_narrow_terminal(results: Results, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers stand whole, names give way."""
    name = "a-model-with-quite-a-long-name-2026.1122.101"
    results.models = [name]
    for one in results.queries:
        one.steered[name] = one.steered.pop("m-1")
        if "m-1" in one.series:
            one.series[name] = one.series.pop("m-1")
        if "m-1" in one.shared:
            one.shared[name] = one.shared.pop("m-1")
    results.splits = [Split("template", "Templates left out: as a whole", name, ["a", "b", "c"])]
    show(results, Console(width=80))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "against PostgreSQL as configured: 3 statements in 160 ms" in "".join(lines)
    (model,) = (line.split() for line in lines if line.startswith("a-model"))
    assert model[1:] == ["165", "ms", "0.97x", "0.91x", "0.89x", "1", "1", "2.30x"]
