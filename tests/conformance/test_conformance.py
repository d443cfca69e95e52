"""The suites through the proxy."""

from __future__ import annotations

import pytest

from tests.conformance import ledger
from tests.conformance.runner import Plan, compare


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_no_suite_can_tell_the_proxy_from_the_server() -> None:
    found = compare(Plan(), lambda *_: None)
    verdicts = found.verdicts
    for name, counted in found.delivered.items():
        assert (counted.steered > 0) is ("-on" not in name), f"{name}: {counted}"
    assert all(len(verdict.files) > len(verdict.unjudged) for verdict in verdicts), "nothing could be compared"
    differences = "\n".join(it.diff for verdict in verdicts for it in verdict.differences)
    complaints = "\n".join(ledger.load().complaints(verdicts, complete=True))
    assert not complaints, f"{complaints}\n{differences}"
