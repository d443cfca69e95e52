"""Tests that need the real pg_hint_plan: skipped where it cannot be had, failed where CI promises that it can."""

from __future__ import annotations

import os

import pytest

from tests.support.postgres import Postgres


def require_hint_plan(server: Postgres) -> Postgres:
    """``server`` if pg_hint_plan is in every session of it (session_preload_libraries); else skips, or fails in CI."""
    if not server.hint_plan:
        reason = server.server.hint_plan.reason
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return server
