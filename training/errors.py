"""What training reports to the person who started it."""

from __future__ import annotations


class TrainingError(Exception):
    """Training cannot go on; the text is one sentence that says why and what to do."""
