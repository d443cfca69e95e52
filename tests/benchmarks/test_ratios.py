"""The arithmetic behind the comparison with PgBouncer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ratios import Cell, CellRatio, Mode, Sample, Verdict, compare, percentile, verdicts

EIGHT = Cell(8, "simple")


def sample(target: str, number: int, tps: float, cpu: float, *, clients: int = 8, mode: Mode = "simple") -> Sample:
    return Sample(target, Cell(clients, mode), number, tps, 1000, cpu)


def ratio(tps: float, cpu: float | None = 1.0, *, clients: int = 8) -> CellRatio:
    return CellRatio(Cell(clients, "simple"), 1.0, tps, tps, tps, 1.0, cpu, 1)


def test_cpu_per_query_is_in_microseconds() -> None:
    assert sample("a", 0, 1.0, 0.02).cpu_us == pytest.approx(20.0)
    assert Sample("a", EIGHT, 0, 0.0, 0, 0.1).cpu_us == 0.0


def test_ratios_are_taken_within_a_round_and_then_the_median() -> None:
    # The machine became twice as fast after the first round; each round says 0.8, 0.9, 1.0 all the same.
    samples = [
        *(sample("ours", number, tps, 0.03) for number, tps in enumerate((80.0, 180.0, 200.0))),
        *(sample("theirs", number, tps, 0.02) for number, tps in enumerate((100.0, 200.0, 200.0))),
    ]
    (found,) = compare(samples, "ours", "theirs")
    assert found.tps_ratio == pytest.approx(0.9)
    assert [found.tps_ratio_low, found.tps_ratio_high] == pytest.approx([0.8, 1.0])
    assert found.cpu_ratio == pytest.approx(1.5)
    assert found.rounds == 3


def test_a_round_without_its_counterpart_does_not_count() -> None:
    samples = [sample("ours", 0, 50.0, 0.1), sample("ours", 1, 90.0, 0.1), sample("theirs", 1, 100.0, 0.1)]
    (found,) = compare(samples, "ours", "theirs")
    assert found.rounds == 1
    assert found.tps_ratio == pytest.approx(0.9)


def test_a_cell_only_one_side_could_run_is_left_out() -> None:
    samples = [
        sample("ours", 0, 1.0, 0.1, mode="prepared"),
        sample("ours", 0, 1.0, 0.1),
        sample("theirs", 0, 2.0, 0.1),
    ]
    assert [found.cell for found in compare(samples, "ours", "theirs")] == [EIGHT]


def test_without_cpu_there_is_no_cpu_ratio() -> None:
    (found,) = compare([sample("ours", 0, 1.0, 0.1), sample("direct", 0, 2.0, 0.0)], "ours", "direct")
    assert found.cpu_ratio is None


def test_three_promises_for_a_target() -> None:
    found = verdicts("x", [ratio(1.0, 1.2), ratio(0.79, 1.3, clients=1), ratio(0.95, 1.4, clients=32)])
    assert [(one.name, one.passed) for one in found] == [
        ("x: tps, median of the cells", True),
        ("x: tps, worst cell (1 simple)", False),
        ("x: CPU per query, median of the cells", True),
    ]
    assert verdicts("x", []) == []


def test_reaching_a_limit_exactly_passes() -> None:
    assert Verdict("tps", 0.9, 0.9, "x", higher_is_better=True).passed
    assert Verdict("cpu", 1.3, 1.3, "x").passed
    assert not Verdict("cpu", 1.31, 1.3, "x").passed


def test_percentiles_by_nearest_rank() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 50) == 50.0
    assert percentile(values, 99) == 99.0
    assert percentile([7.0], 99) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100), st.floats(0, 100))
def test_percentiles_are_values_and_grow(values: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert percentile(values, low) in values
    assert percentile(values, low) <= percentile(values, high)
    assert min(values) == percentile(values, 0)
    assert max(values) == percentile(values, 100)
