"""The bounds within which a model file is read, checked and run. Every one has a default that fits a planner's model:
small, answered in about a millisecond. They are the runtime's own: nothing in a file can widen them."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict, Field

MIB: Final = 1 << 20
BATCH_ROWS: Final = 200
"""Rows of the batch whose time is measured: as many as a query has sub-plans at most."""


class Limits(BaseModel):
    """Sizes in bytes, times as the names say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file_bytes: int = Field(default=64 * MIB, gt=0, le=1024 * MIB)
    manifest_bytes: int = Field(default=8 * MIB, gt=0, le=64 * MIB)
    check_memory_bytes: int = Field(default=1024 * MIB, ge=64 * MIB)
    """What the process that checks a file may allocate on top of what it has at its start."""
    check_seconds: float = Field(default=10.0, gt=0, le=300)
    """How long all checks of one file may take."""
    batch_ms: float = Field(default=10.0, gt=0)
    """For `BATCH_ROWS` rows, the best of some runs."""
    tolerance: float = Field(default=1e-3, ge=0, le=0.1)
    """How far an output of the self-test may be from what the manifest says, absolutely and relatively."""
    predict_ms: float = Field(default=250.0, gt=0)
    """A prediction that takes longer is stopped between two operators."""
    predict_rows: int = Field(default=10_000, gt=0)
    files: int = Field(default=100, gt=0)
    """Model files looked at in one folder."""
    kept: int = Field(default=5, ge=1, le=100)
    """Models of each kind whose bytes are kept for rollback."""
