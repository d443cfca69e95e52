"""Queries and their labels as arrays: the features that serving computes, and log(actual / native) as the target.

`collect` reads the statements with the planner's own modules and so sees what the planner will see, including why it
leaves a statement alone. `assemble` joins the outcome to labels. A sub-plan's template is the join template of its
query (tables and join edges without values): splits that keep templates apart tell how a model does on joins it has
never seen, which is where learned estimates have fooled their makers most often.

Sub-plans that are empty are left out. The logarithm of their ratio is arbitrary, and models that were given some
number there became useless in the tail: they predict "almost nothing" where one row more or less decides.

A sub-plan of which only a lower bound is known is taken in with the bound: a prediction below it is wrong by that much
at least, one above it may be right. Bounds below the native estimate are taken in too, since predictions may undercut
them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from planner.estimates import BlockEstimates
from planner.features import featurizer, flat
from planner.graph import NO_PARAMETERS, QueryGraph
from planner.plan_rows import harvestable
from planner.resolve import ResolvedBlock, resolve
from planner.snapshot import Snapshot
from planner.sql import read
from planner.subplans import connected
from planner.templates import edge_names, template
from training.counting import BlockCounts, Count, selects, source_of
from training.labels import digest
from training.queries import Query, Skipped, Workload, excerpt
from training.words import in_words

Array = npt.NDArray[Any]
UNCOUNTABLE: Final = (
    "its joins cannot be counted: each is under a condition with a sub-query, of an outer join or on a column that is "
    "not known"
)
GENERATED_WEIGHT: Final = 0.5
"""What a sub-plan of a generated statement counts beside one of the workload's own."""


@dataclass(frozen=True, slots=True)
class Block:
    """The sub-plans of one query block: ``masks`` are their relations, ``features`` float32 [n, F], ``native``
    estimated rows [n], ``counts`` how to count each, ``digests`` their names among the labels. ``generated``: of no
    statement of the workload's own."""

    query: int
    template: str
    joins: tuple[str, ...]
    tables: tuple[str, ...]
    features: Array
    native: Array
    counts: tuple[Count, ...]
    digests: tuple[str, ...]
    resolved: ResolvedBlock
    masks: tuple[int, ...]
    generated: bool = False
    readable: bool = False
    """Whether the statement's plans tell its sub-plans (`training.explained.harvestable`)."""


@dataclass(frozen=True, slots=True)
class Collected:
    """All blocks of a workload; ``queries`` is how many statements they come from, ``uncountable`` how many sub-plans
    have no count."""

    blocks: tuple[Block, ...]
    skipped: tuple[Skipped, ...]
    queries: int
    uncountable: int


@dataclass(frozen=True, slots=True)
class Dataset:
    """One row per labelled sub-plan: ``features`` float32 [n, F], ``native`` and ``actual`` rows [n], ``query`` the
    index of its statement, ``template`` the index of its join template, ``block`` and ``place`` where it is: the index
    of its block and, in that, of its mask. ``lower`` bool [n]: ``actual`` is only a lower bound, which nothing is
    judged by. ``weight`` [n]: below 1 for sub-plans of generated statements, which nothing is judged by either."""

    features: Array
    native: Array
    actual: Array
    query: Array
    template: Array
    queries: int
    """How many of the workload's own statements are among them."""
    empty: int
    """How many labelled sub-plans were left out for having no rows."""
    lower: Array = field(default_factory=lambda: np.zeros(0, bool))
    weight: Array = field(default_factory=lambda: np.zeros(0))
    block: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    place: Array = field(default_factory=lambda: np.zeros(0, np.int64))

    def __post_init__(self) -> None:
        """Whatever was left out is as usual: exact, of the workload's own, each row a block."""
        count = len(self.native)
        usual = {
            "lower": np.zeros(count, bool),
            "weight": np.ones(count),
            "block": np.arange(count),
            "place": np.zeros(count, np.int64),
        }
        for name, values in usual.items():
            if len(getattr(self, name)) != count:
                object.__setattr__(self, name, values)

    @property
    def judged(self) -> Array:
        """bool [n]: exact rows of the workload's own statements."""
        return np.asarray(~self.lower & (self.weight >= 1))

    def __len__(self) -> int:
        return len(self.native)

    @property
    def target(self) -> Array:
        """ln(actual / native), [n]."""
        return np.asarray(np.log(self.actual) - np.log(self.native))


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One arm of one query, measured. ``status``: ``timed``, ``stopped`` (``ms`` is the limit, a lower bound),
    ``same_plan`` (as the default's) or ``failed``; times are medians in milliseconds, 0.0 where there are none. The
    default is among the arms, with ``plan``, the object that EXPLAIN (FORMAT JSON) gives."""

    query: int
    arm: str
    status: str
    ms: float
    default_ms: float
    plan: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Labelled:
    """All that a model may learn from. `Block.query` and `ArmRun.query` are places in ``workload.queries``, whose texts
    have no parameters."""

    snapshot: Snapshot
    search_path: tuple[str, ...]
    workload: Workload
    blocks: tuple[Block, ...]
    data: Dataset
    arms: tuple[ArmRun, ...] = ()


def collect(workload: Workload, snapshot: Snapshot, search_path: tuple[str, ...]) -> Collected:
    """What can be learned from these statements. A statement without any joins of known tables is skipped."""
    blocks: list[Block] = []
    skipped = list(workload.skipped)
    uncountable = 0
    learned = 0
    for number, query in enumerate(workload.queries):
        reading = read(query.text)
        if reading.graph is None:
            skipped.append(_skip(query, in_words(reading.reason)))
            continue
        found, left_out, reason = _statement(number, query, reading.graph, snapshot, search_path)
        uncountable += left_out
        blocks += found
        if found:
            learned += not query.generated
        elif not query.generated:
            skipped.append(_skip(query, (UNCOUNTABLE if left_out else reason) or "no join of tables"))
    return Collected(tuple(blocks), tuple(skipped), learned, uncountable)


def _skip(query: Query, reason: str) -> Skipped:
    return Skipped(query.line, reason, excerpt(query.text))


def _statement(
    number: int, query: Query, graph: QueryGraph, snapshot: Snapshot, search_path: tuple[str, ...]
) -> tuple[list[Block], int, str]:
    """The blocks of one statement, how many sub-plans cannot be counted, and a reason in case nothing is left."""
    if graph.functions & snapshot.volatile_functions:
        return [], 0, "it calls volatile functions"
    if graph.parameters:
        return [], 0, "it has parameters without values"
    encoder = featurizer(flat.Flat.name, flat.VERSION)
    resolved = resolve(graph, snapshot, search_path)
    candidates = selects(query.text)
    blocks = []
    uncountable = 0
    reason = ""
    for block in resolved.blocks:
        if len(block.block.relations) < 2:
            continue
        estimates = BlockEstimates(block, snapshot, NO_PARAMETERS)
        masks = connected(block.block, estimates)
        reason = reason or next((in_words(label) for label in block.reasons if label), "")
        select = source_of(block.block, candidates) if masks else None
        counter = BlockCounts(select, block.block, block.tables, resolved.graph.blocks) if select is not None else None
        counted = [(mask, count) for mask in masks if counter is not None and (count := counter.count(mask))]
        uncountable += len(masks) - len(counted)
        if not counted:
            continue
        countable = [mask for mask, _ in counted]
        blocks.append(
            Block(
                query=number,
                template=template(block),
                joins=tuple(sorted(edge_names(block))),
                tables=tuple(sorted({f"{table.schema}.{table.name}" for table in block.tables if table is not None})),
                features=encoder.inputs(estimates, countable)["features"],
                native=np.array([max(1.0, estimates.rows(mask)) for mask in countable]),
                counts=tuple(count for _, count in counted),
                digests=tuple(digest(count) for _, count in counted),
                resolved=block,
                masks=tuple(countable),
                generated=query.generated,
                readable=harvestable(resolved.graph, block),
            )
        )
    return blocks, uncountable, reason


def assemble(blocks: Sequence[Block], rows: Mapping[str, float], bounds: Mapping[str, float] | None = None) -> Dataset:
    """The labelled sub-plans of these blocks; ``rows`` has the true cardinalities by digest, ``bounds`` lower bounds of
    others."""
    kept: list[tuple[float, int, int, int, int, bool, float]] = []
    features: list[Array] = []
    templates: dict[str, int] = {}
    empty = 0
    for number, block in enumerate(blocks):
        template_number = templates.setdefault(block.template, len(templates))
        for place, name in enumerate(block.digests):
            actual, lower = rows.get(name), False
            if actual is None and bounds is not None and bounds.get(name, 0.0) >= 1:
                actual, lower = bounds[name], True
            if actual is None:
                continue
            if actual < 1:
                empty += not block.generated
                continue
            features.append(block.features[place])
            weight = GENERATED_WEIGHT if block.generated else 1.0
            kept.append((actual, block.query, template_number, number, place, lower, weight))
    width = blocks[0].features.shape[1] if blocks else 0
    columns = list(zip(*kept, strict=True)) or [()] * 7
    return Dataset(
        features=np.array(features, np.float32).reshape(len(features), width),
        native=np.array([blocks[row[3]].native[row[4]] for row in kept]),
        actual=np.array(columns[0], np.float64),
        query=np.array(columns[1], np.int64),
        template=np.array(columns[2], np.int64),
        block=np.array(columns[3], np.int64),
        place=np.array(columns[4], np.int64),
        lower=np.array(columns[5], bool),
        weight=np.array(columns[6], np.float64),
        queries=len({row[1] for row in kept if row[6] >= 1}),
        empty=empty,
    )
