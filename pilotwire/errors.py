"""Errors that end the program with one sentence."""

from __future__ import annotations


class StartError(Exception):
    """The program cannot start. ``str()`` is one sentence that says what is wrong and what to do about it."""
