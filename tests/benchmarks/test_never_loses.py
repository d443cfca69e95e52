"""The arithmetic of the repeated-workload benchmark, and its saboteur."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import never_loses, saboteur
from benchmarks.never_loses_results import DIRECT, ORACLE, STEERED, Kind, Results, Timings, show
from tests.support.models import cardinality_model, load_model


def kind(*timings: Timings, model: str = "honest") -> Kind:
    found = Kind("demo", model, {}, "00", {}, {})
    found.timings = {one.name: one for one in timings}
    return found


def timed(name: str, direct: float, steered: float, oracle: float | None = None) -> Timings:
    runs = {DIRECT: [direct], STEERED: [steered]} | ({} if oracle is None else {ORACLE: [oracle]})
    return Timings(name, "SELECT 1", [direct], [steered], runs)


def test_shares_of_the_possible_gain() -> None:
    found = kind(timed("a", 100, 20, 10), timed("b", 50, 50))
    assert found.total_share == pytest.approx(80 / 90)
    assert found.mean_share == pytest.approx(np.log(5) / np.log(10))
    passed = {verdict.name: verdict.passed for verdict in found.verdicts()}
    assert list(passed.values()) == [True, False, False]


def test_what_is_missed_on_purpose() -> None:
    # 1.1 times as fast, and 4 ms.
    found = kind(timed("a", 100, 50, 50), timed("b", 110, 110, 100), timed("c", 10, 10, 6))
    assert found.small_share == pytest.approx(np.log(1.1 * 10 / 6) / np.log(2 * 1.1 * 10 / 6))


def test_nothing_to_gain_is_all_of_it() -> None:
    found = kind(timed("a", 100, 100))
    assert (found.total_share, found.mean_share) == (1.0, 1.0)


def test_the_floor() -> None:
    assert not timed("a", 1.0, 5.4).slower()
    assert timed("a", 1.0, 5.6).slower()
    assert not timed("a", 100, 109).slower()
    assert timed("a", 100, 111).slower()


def test_a_machine_that_is_slow_for_a_while_is_no_loss() -> None:
    one = timed("a", 100, 100)
    one.runs = {DIRECT: [100, 40, 41, 99, 40], STEERED: [102, 41, 98, 103, 42]}
    assert one.ms(STEERED) / one.ms(DIRECT) > 2
    assert not one.slower()


def test_a_saboteur_is_judged_by_what_it_harms_only() -> None:
    found = kind(timed("a", 100, 120), model="saboteur")
    [verdict] = found.verdicts()
    assert not verdict.passed
    assert verdict.value == pytest.approx(1.2)


def test_no_query_takes_all_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("benchmarks.never_loses.time.monotonic", lambda: now)
    left = never_loses.Allotment(100.0, 50)
    taken = []
    for _ in range(50):
        end = left.until()
        taken.append(end - now)
        now = end
    assert max(taken) <= never_loses.SPREAD * 100.0 / 50
    assert sum(taken) == pytest.approx(100.0)
    assert left.until() == now


def test_what_got_slower_is_shown_with_its_memory() -> None:
    one = timed("a", 100, 150)
    one.memory = [["no_hashjoin: trial, 3 runs, tried"], ["no_hashjoin: rejected, 9 runs, lost"]]
    output = io.StringIO()
    show(Results({}, kinds=[kind(one)]), Console(file=output, width=190))
    assert "steered/direct, in turns: 150/100" in output.getvalue()
    assert "after: no_hashjoin: rejected, 9 runs, lost" in output.getvalue()


def test_what_the_warm_up_lost() -> None:
    one = Timings("a", "SELECT 1", [100.0], [110.0, 150.0, 90.0])
    assert one.lost_ms == pytest.approx(50.0)


def test_tables_and_json() -> None:
    found = Results({"rounds": 1}, kinds=[kind(timed("a", 100, 20, 10))])
    output = io.StringIO()
    show(found, Console(file=output, width=190))
    assert "geometric mean" in output.getvalue()
    told = json.loads(found.as_json())
    assert told["kinds"][0]["timings"]["a"]["runs"][DIRECT] == [100]
    assert not told["complete"]


def test_the_saboteur_passes_all_checks_and_tells_nonsense(tmp_path: Path) -> None:
    cardinality_model(tmp_path / "honest.onnx", ranges={"tables": (0.0, 1.0)})
    saboteur.write(tmp_path / "honest.onnx", tmp_path / "saboteur.onnx")
    model = load_model(tmp_path / "saboteur.onnx")
    assert model.manifest.name == "saboteur"
    assert not model.manifest.ranges
    rows = np.random.default_rng(1).random((200, 3), np.float32)
    told = model.predict({"features": rows})["log_ratio"]
    assert told.std() > 3
    assert np.abs(told).max() <= saboteur.LARGEST
    np.testing.assert_array_equal(told, model.predict({"features": rows})["log_ratio"])
