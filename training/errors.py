"""What training reports to the person who started it."""

from __future__ import annotations


class TrainingError(Exception):
    """Training cannot go on; the text is one sentence that says why and what to do."""


class TooLittleError(TrainingError):
    """There is too little to train from: more of the same work would not help."""
