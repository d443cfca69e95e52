"""What an evaluation is asked to do, and what is known before its first run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from planner.advise import Models
from planner.snapshot import Snapshot
from training.evaluate.cases import Case
from training.evaluate.contenders import Decision
from training.evaluate.truth import Truth


@dataclass(frozen=True, slots=True)
class Options:
    """What to do, and what it may cost; times in seconds. ``truth_budget`` 0: true cardinalities are not counted, which
    leaves out q-errors too. ``splits`` are cross-validated with models of each of ``algorithms``; for those
    of settings the statements are run under the arms for ``arms_budget`` first. Of regressions ``plans`` are explained.
    Counts that are
    older than ``max_age`` are made anew."""

    rounds: int = 3
    limit: float = 30.0
    budget: float = 1800.0
    truth_budget: float = 300.0
    count_seconds: float = 10.0
    arms: bool = True
    splits: tuple[str, ...] = ()
    algorithms: tuple[str, ...] = ("gbdt",)
    arms_budget: float = 300.0
    folds: int = 5
    seed: int = 0
    min_ms: float = 0.0
    plans: int = 20
    max_age: float | None = None


@dataclass(slots=True)
class Prepared:
    """``steering`` has each model by the kind's name and the case's; ``decisions`` by both names."""

    cases: list[Case]
    snapshot: Snapshot
    search_path: tuple[str, ...]
    steering: dict[str, Mapping[str, Models]] = field(default_factory=dict)
    truth: Truth = field(default_factory=Truth)
    decisions: dict[tuple[str, str], Decision] = field(default_factory=dict)
