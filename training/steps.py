"""How training and evaluation tell where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Step:
    """``done`` of ``total`` parts of what ``name`` says; ``note`` has details in a few words."""

    name: str
    done: int = 0
    total: int = 0
    note: str = ""


Tell = Callable[[Step], None]
