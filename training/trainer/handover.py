"""Putting a candidate into the models folder: one rename within one file system, complete or not at all.

Candidates are kept in a folder inside the models folder, where serving does not look. The model that was there before
is kept by the serving side for a rollback.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from model_runtime.manifest import Kind
from model_runtime.runner import Model
from model_runtime.store import ModelStore
from training.errors import TrainingError

CANDIDATES: Final = "candidates"


def candidate_path(models: Path, name: str) -> Path:
    return models / CANDIDATES / f"{name}.onnx"


def serving(models: Path) -> list[Model]:
    """The models that serve from the folder now, looked at without leaving a trace. Starts a process for the checks:
    about 0.6 s. Empty for a folder that is not there yet."""
    if not models.is_dir():
        return []
    store = ModelStore(models, record=False)
    try:
        store.reload()
        kinds: tuple[Kind, ...] = ("cardinality", "hints")
        return [model for kind in kinds if (model := store.current(kind)) is not None]
    finally:
        store.close()


def hand_over(candidate: Path, models: Path) -> Path:
    """Move the candidate to where serving sees it. Raises TrainingError."""
    target = models / candidate.name
    try:
        descriptor = os.open(candidate, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        candidate.replace(target)
        for folder in (models, candidate.parent):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        raise TrainingError(f"{candidate} cannot be handed over to {models}: {error.strerror}") from None
    return target
