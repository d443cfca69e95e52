"""Tests that need pg_hint_plan are skipped without it, and fail where CI promises it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.hinted import require_hint_plan

WITHOUT: Any = SimpleNamespace(hint_plan=False, server=SimpleNamespace(hint_plan=SimpleNamespace(reason="no network")))


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_without_pg_hint_plan(ci: str, outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="no network"):
        require_hint_plan(WITHOUT)


def test_with_it_the_server_is_given() -> None:
    server: Any = SimpleNamespace(hint_plan=True)
    assert require_hint_plan(server) is server
