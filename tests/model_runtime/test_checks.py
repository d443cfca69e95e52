"""Each way in which a model file can be wrong is refused by the right step, with a reason that names it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model_runtime.checks import check
from model_runtime.limits import Limits
from model_runtime.verdict import STEPS
from tests.model_runtime.wrong_models import CASES, bundled, plain, wrong
from tests.support.models import cardinality_model, hints_model, sets_model

LIMITS = Limits()
GOOD = bundled(plain())


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_file_is_refused_with_its_reason(name: str) -> None:
    data, step, words = wrong(name)
    verdict = check(data, LIMITS)
    assert (verdict.failed, verdict.good) == (step, False), verdict.reason
    assert words in verdict.reason
    assert "\n" not in verdict.reason
    # Every step before it has passed, in the order of the contract.
    assert [passed.name for passed in verdict.passed] == list(STEPS[1 : STEPS.index(step)])


def test_good_files_of_every_kind_pass_every_step(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    cardinality_model(path, log_ratio=1.5, weights={"joins": 2.0}, log_std=0.3, abstention={"log_std": 1.0})
    flat = check(path.read_bytes(), LIMITS)
    sets_model(path, log_ratio=0.5)
    sets = check(path.read_bytes(), LIMITS)
    hints_model(path, arms={"a": {"enable_hashjoin": "off"}, "b": {}}, log_latency_ratios=[0.1, -0.2])
    hints = check(path.read_bytes(), LIMITS)
    for verdict in (flat, sets, hints):
        assert verdict.good, verdict.reason
        assert [step.name for step in verdict.passed] == list(STEPS[1:])
    assert (flat.kind, sets.kind, hints.kind) == ("cardinality", "cardinality", "hints")
    assert flat.facts["outputs"] == ["log_ratio float[n]", "log_std float[n]"]
    assert "MatMul" in flat.facts["operators"]  # type: ignore[operator]


def test_the_size_and_the_manifests_size_are_bounded() -> None:
    assert check(GOOD, Limits(file_bytes=len(GOOD))).good
    assert check(GOOD, Limits(file_bytes=len(GOOD) - 1)).failed == "size"
    assert check(GOOD, Limits(manifest_bytes=100)).failed == "manifest"


def test_a_batch_has_a_time_limit() -> None:
    assert check(GOOD, Limits(batch_ms=1e-6)).failed == "time"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_damaged_files_never_raise(data: st.DataObject) -> None:
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    verdict = check(bytes(damaged), LIMITS)
    assert verdict.good or (verdict.failed in STEPS and verdict.reason)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, len(GOOD) - 1))
def test_truncated_files_are_refused(length: int) -> None:
    assert not check(GOOD[:length], LIMITS).good
