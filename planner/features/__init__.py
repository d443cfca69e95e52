"""From estimates to arrays: what models see of a sub-plan. One code path for training and serving.

A model's manifest names its featurizer and the version; `featurizer` gives the object that makes the inputs. `flat` has
one row of numbers per sub-plan, `sets` the three sets of MSCN over a vocabulary, `statement` one row per statement.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from planner.features import flat, sets, statement
from planner.features.flat import Estimates

__all__ = ["Featurizer", "UnknownFeaturizerError", "featurizer", "known"]


class UnknownFeaturizerError(ValueError):
    """A model asks for a featurizer, or a version of one, that this program does not have."""


class Featurizer(Protocol):
    """``inputs`` are a model's inputs by name, each with the sub-plans as its first dimension."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    def inputs(self, estimates: Estimates, masks: Sequence[int]) -> dict[str, np.ndarray[Any, Any]]: ...


def featurizer(
    name: str,
    version: str,
    vocabulary: sets.Vocabulary | None = None,
    options: Mapping[str, object] | None = None,
) -> Featurizer:
    """The featurizer of a manifest: its ``featurizer.name``, ``.version`` and ``.options``, and its ``vocabulary``. One
    with a vocabulary indexes it, so make it once per model. Raises UnknownFeaturizerError."""
    if (name, version) == (flat.Flat.name, flat.VERSION):
        return flat.Flat()
    if (name, version) == (statement.Statement.name, statement.VERSION):
        return statement.Statement()
    if (name, version) == (sets.Sets.name, sets.VERSION) and vocabulary is not None:
        try:
            return sets.Sets(vocabulary, sets.Options.of(options or {}))
        except ValueError as error:
            raise UnknownFeaturizerError(str(error)) from None
    raise UnknownFeaturizerError(f"there is no featurizer {name} of version {version} here")


def known(made: Featurizer, estimates: Estimates, masks: Sequence[int]) -> np.ndarray[Any, Any]:
    """bool [sub-plans]: whether a model with that featurizer can know the sub-plan at all; it abstains on others."""
    if isinstance(made, sets.Sets):
        return made.known(estimates, masks)
    return np.ones(len(masks), dtype=bool)
