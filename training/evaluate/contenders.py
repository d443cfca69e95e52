"""What steers in an evaluation: models, asked as serving asks them, with the time that a decision takes.

A decision is timed from the text to the text that is sent: parsing, features, model, hints. It is taken three times and
the least time counts, as the planner process is warm when it serves.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_runtime import bundle
from model_runtime.runner import Model
from model_runtime.store import ModelStore
from planner.advise import Models, Options, Outcome, advise
from planner.dialects import render
from planner.snapshot import Snapshot
from planner.sql import read
from training.errors import TrainingError

TIMES: Final = 3


@dataclass(frozen=True, slots=True)
class Contender:
    """A model, or the pair of models that serve together. ``files`` are the SHA-256 of each by name."""

    name: str
    models: Models
    files: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Decision:
    """``reason`` is why the statement is left alone, "" for advice; ``ms`` what deciding took. ``predicted`` has the
    rows of each sub-plan, by block and set of relations, None where the model abstains."""

    reason: str
    ms: float
    prefix: str = ""
    settings: tuple[tuple[str, str], ...] = ()
    model: str = ""
    predicted: Mapping[tuple[int, int], float | None] | None = None


def from_file(path: Path) -> Contender:
    """The model in a file, after all checks. Raises TrainingError."""
    try:
        model = bundle.load(path)
    except bundle.Refused as refused:
        raise TrainingError(f"{path} is not used: {refused.reason} ({refused.step})") from None
    return of_models([model])


def from_folder(folder: Path) -> Contender:
    """What serves from a folder. Raises TrainingError when nothing does."""
    if not folder.is_dir():
        raise TrainingError(f"{folder} is not a folder")
    store = ModelStore(folder, record=False)
    try:
        store.reload()
        models = [model for model in (store.current("cardinality"), store.current("hints")) if model is not None]
        if not models:
            refused = [outcome.reason for outcome in store.outcomes if not outcome.accepted]
            why = f": {refused[-1]}" if refused else ""
            raise TrainingError(f"no model serves from {folder}{why}")
        return of_models(models)
    finally:
        store.close()


def of_models(models: Sequence[Model]) -> Contender:
    """At most one model of each kind, together."""
    by_kind = {model.kind: model for model in models}
    return Contender(
        " + ".join(model.label for model in models),
        Models(by_kind.get("cardinality"), by_kind.get("hints")),
        {model.label: model.sha256 for model in models},
    )


def decide(sql: str, models: Models, snapshot: Snapshot, search_path: tuple[str, ...], min_ms: float = 0.0) -> Decision:
    """What serving would do with the statement. Never raises: what fails leaves the statement alone, as there."""
    least = float("inf")
    for _ in range(TIMES):
        begun = time.perf_counter()
        outcome, reason, prefix, settings = _once(sql, models, snapshot, search_path, min_ms)
        least = min(least, time.perf_counter() - begun)
    predicted = {(one.block, one.mask): one.rows for one in outcome.sub_plans} if outcome is not None else {}
    return Decision(reason, least * 1000, prefix, settings, outcome.model if outcome is not None else "", predicted)


def _once(
    sql: str, models: Models, snapshot: Snapshot, search_path: tuple[str, ...], min_ms: float
) -> tuple[Outcome | None, str, str, tuple[tuple[str, str], ...]]:
    reading = read(sql)
    if reading.graph is None:
        return None, reading.reason, "", ()
    try:
        outcome = advise(reading.graph, snapshot, models, {}, search_path, Options(min_ms=min_ms))
    except Exception:
        return None, "failed", "", ()
    if outcome.reason:
        return outcome, outcome.reason, "", ()
    rendered = render(outcome.advice, snapshot.capabilities)
    if rendered.empty:
        return outcome, "not_expressible", "", ()
    return outcome, "", rendered.prefix, rendered.settings
