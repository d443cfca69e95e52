"""One test at two sizes."""

from __future__ import annotations

import pytest


def scale(modest: int, full: int) -> list[object]:
    """Parameters of a test: the modest number for every run and the full one under the marker ``long``."""
    return [
        pytest.param(modest, id=f"{modest}"),
        pytest.param(full, id=f"{full}", marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
    ]
