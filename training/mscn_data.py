"""Sub-plans as sets, encoded as `planner.features.sets` serves them, and their labels: what MSCN learns from.

A query's tables, joins and predicates are the same in all of its sub-plans, so each is kept once and sub-plans name
theirs by number: some hundred queries with all their joins take a few megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from planner.estimates import BlockEstimates
from planner.features import sets
from planner.features.flat import Estimates
from planner.graph import NO_PARAMETERS
from training.dataset import Labelled

Array = npt.NDArray[Any]
BITMAP: Final = 64


@dataclass(frozen=True, slots=True)
class Counted:
    """Some sub-plans of one block with their true ``rows``; the number of its query, the name of its join template.
    ``lower`` tells which rows are only lower bounds, () for none; ``weight`` as in `training.dataset.Dataset`."""

    estimates: Estimates
    masks: Sequence[int]
    rows: Sequence[float]
    query: int
    template: str
    lower: Sequence[bool] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Elements:
    """One set of all sub-plans: ``rows`` float32 [1 + elements, width], the first all zero, and which of them each
    sub-plan has, ``index`` int32 [n, size], 0 for none."""

    rows: Array
    index: Array


@dataclass(frozen=True, slots=True)
class SetDataset:
    """One row per sub-plan with rows; the fields are those of `training.dataset.Dataset`, ``words`` is the vocabulary
    of ``parts``."""

    parts: Mapping[str, Elements]
    words: sets.Words
    bitmap: int
    native: Array
    actual: Array
    query: Array
    template: Array
    queries: int
    lower: Array
    weight: Array

    def __len__(self) -> int:
        return len(self.native)

    @property
    def target(self) -> Array:
        """ln(actual / native), [n]."""
        return np.asarray(np.log(self.actual) - np.log(self.native))

    @property
    def judged(self) -> Array:
        """bool [n]: exact rows of the workload's own statements."""
        return np.asarray(~self.lower & (self.weight >= 1))

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        return sets.names(self.words, sets.Options(self.bitmap))

    def inputs(self, chosen: Array) -> dict[str, Array]:
        """What the model takes, for these sub-plans."""
        found: dict[str, Array] = {}
        for part, elements in self.parts.items():
            index = elements.index[chosen]
            index = index[:, : max(int((index > 0).sum(axis=1).max(initial=0)), 1)]
            found[part] = elements.rows[index]
            found[f"{part}_mask"] = (index > 0).astype(np.float32)
        place = self.names["tables"].index("native")
        native = np.log(self.native[chosen]).astype(np.float32)
        found["tables"][:, :, place] = native[:, None] * found["tables_mask"]
        return found


def assemble(labelled: Labelled, *, bitmap: int = BITMAP) -> SetDataset:
    """All labelled sub-plans, in the order of ``labelled.data``. The vocabulary is theirs."""
    data = labelled.data
    counted = []
    for number in dict.fromkeys(data.block.tolist()):
        block = labelled.blocks[number]
        rows = np.flatnonzero(data.block == number)
        counted.append(
            Counted(
                BlockEstimates(block.resolved, labelled.snapshot, NO_PARAMETERS),
                [block.masks[place] for place in data.place[rows]],
                data.actual[rows].tolist(),
                block.query,
                block.template,
                data.lower[rows].tolist(),
                float(data.weight[rows[0]]),
            )
        )
    return encode(counted, bitmap)


def encode(counted: Sequence[Counted], bitmap: int = BITMAP) -> SetDataset:
    """`assemble` for sub-plans from anywhere; those without rows are left out."""
    words = sets.vocabulary([one.estimates for one in counted])
    options = sets.Options(bitmap)
    featurizer = sets.Sets(words, options)
    widths = {part: len(names) for part, names in sets.names(words, options).items()}
    rows: dict[str, list[Array]] = {part: [np.zeros((1, width), np.float32)] for part, width in widths.items()}
    counts = dict.fromkeys(widths, 0)
    indexes: dict[str, list[Array]] = {part: [] for part in widths}
    kept: list[tuple[float, float, int, int, bool, float]] = []
    templates: dict[str, int] = {}
    for one in counted:
        lower = one.lower or [False] * len(one.masks)
        found = [row for row in zip(one.masks, one.rows, lower, strict=True) if row[1] >= 1]
        if not found:
            continue
        masks = [mask for mask, *_ in found]
        for part, (elements, index) in featurizer.elements(one.estimates, masks).items():
            indexes[part].append(np.where(index > 0, index + counts[part], 0))
            rows[part].append(elements)
            counts[part] += len(elements)
        template = templates.setdefault(one.template, len(templates))
        kept += [
            (max(1.0, one.estimates.rows(mask)), actual, one.query, template, bound, one.weight)
            for mask, actual, bound in found
        ]
    columns = list(zip(*kept, strict=True)) or [()] * 6
    return SetDataset(
        parts={part: Elements(np.vstack(rows[part]), _stacked(indexes[part])) for part in widths},
        words=words,
        bitmap=bitmap,
        native=np.array(columns[0], np.float64),
        actual=np.array(columns[1], np.float64),
        query=np.array(columns[2], np.int64),
        template=np.array(columns[3], np.int64),
        queries=len({row[2] for row in kept if row[5] >= 1}),
        lower=np.array(columns[4], bool),
        weight=np.array(columns[5], np.float64),
    )


def _stacked(indexes: Sequence[Array]) -> Array:
    """Of the width of the widest."""
    found = np.zeros((sum(map(len, indexes)), max((index.shape[1] for index in indexes), default=1)), np.int32)
    start = 0
    for index in indexes:
        found[start : start + len(index), : index.shape[1]] = index
        start += len(index)
    return found


def normal(data: SetDataset, part: str) -> tuple[Array, Array]:
    """Center and scale of each number of an element, [width]; words and bits stay as they are."""
    names = data.names[part]
    center, scale = np.zeros(len(names), np.float32), np.ones(len(names), np.float32)
    rows = data.parts[part].rows[1:]
    for name in sets.NUMBERS[part]:
        place = names.index(name)
        values = np.log(data.native) if name == "native" else rows[:, place]
        if len(values):
            center[place] = values.mean()
            scale[place] = 1 / max(float(values.std()), 1e-3)
    return center, scale
