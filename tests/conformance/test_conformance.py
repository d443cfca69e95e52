"""The suites through the proxy: a part of them in every run of the tests, all of them with the long ones."""

from __future__ import annotations

import pytest

from tests.conformance import ledger
from tests.conformance.runner import Plan, compare

# One at a time: two conformance runs at once would only slow each other down.
pytestmark = pytest.mark.xdist_group("conformance")

FEW = (
    "test_setup",
    "errors",
    "prepare",
    "portals",
    "psql_pipeline",
    "async",
)
"""Regression tests that need no other than test_setup and use many kinds of messages."""


def _complaints(plan: Plan, complete: bool) -> str:
    found = compare(plan, lambda *_: None)
    verdicts = found.verdicts
    for name, counted in found.delivered.items():
        assert (counted.steered > 0) is ("-on" not in name), f"{name}: {counted}"
    assert all(len(verdict.files) > len(verdict.unjudged) for verdict in verdicts), "nothing could be compared"
    differences = "\n".join(it.diff for verdict in verdicts for it in verdict.differences)
    complaints = ledger.load().complaints(verdicts, complete=complete)
    return "\n".join([*complaints, differences]) if complaints else ""


@pytest.mark.timeout(300)
def test_a_part_of_the_suites_cannot_tell_the_proxy_from_the_server() -> None:
    plan = Plan(suites=("pgproto", "regress"), tests=FEW, steerings=("on", "settings"))
    assert _complaints(plan, complete=False) == ""


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_suite_can_tell_the_proxy_from_the_server() -> None:
    assert _complaints(Plan(), complete=True) == ""
