"""The decision: a statement, what is known of its database, and the models; out comes advice or the reason for none.

Pure and synchronous; the library, the planner process and `pilotwire explain` all ask here. A statement is taken apart
into its blocks (`planner.resolve`), each block into connected inner joins (`planner.subplans`), for each of which
PostgreSQL's own estimate is computed (`planner.estimates`) and a model predicts the natural logarithm of actual rows
over that estimate. Where the model can be trusted, the join is told absolutely: estimate x exp(prediction), clipped as
the model's manifest says. Absolutely, since factors compound from join to join.

A hint reaches every level of a statement where all of its aliases are found, so whole statements are left alone when
parts of them are not what they seem: a view or an unknown table may bring in the same aliases, row-level security and
temporary tables make one name mean different rows. Of joins whose aliases all occur elsewhere in the statement too
nothing is said. One alias that is the statement's only one of that name is enough: where it is found, its whole block
is. Were another block merged into that level with one of the names, pg_hint_plan would drop the hint as ambiguous;
what is known to be merged (`planner.levels`) is not hinted in the first place.

A model of settings predicts for each of its arms how much longer a statement takes than by default, and how far off
that may be. An arm is advised where it is better by a margin even if it is as much worse than predicted as one in
twenty is; the default stays wherever that is not so.

Reasons are short stable labels, counted as metrics: those of `planner.sql.read`, and those of `Reason`.
"""

from __future__ import annotations

import enum
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import or_
from typing import Any, Final

import numpy as np

from model_runtime.manifest import KnownTemplates
from model_runtime.runner import Model
from planner import costs, subplans
from planner.advice import Advice, RowsAdvice
from planner.catalog_load import schema_hash
from planner.estimates import BlockEstimates
from planner.features import Featurizer, UnknownFeaturizerError, featurizer, known
from planner.features.flat import Flat
from planner.features.statement import Statement as StatementFeatures
from planner.graph import NO_PARAMETERS, JoinKind, Parameters, QueryBlock, QueryGraph
from planner.levels import levels
from planner.memory.records import MODEL_ARM
from planner.resolve import Resolved, ResolvedBlock, resolve
from planner.restraint import most_rows
from planner.snapshot import Snapshot, TableInfo
from planner.templates import digest, template


class Reason(enum.StrEnum):
    """Why a statement that was understood is left alone."""

    NO_JOIN = "no_join"
    OUTER_JOIN = "outer_join"  # joins, but none that rows can be told of
    UNKNOWN_TABLE = "unknown_table"
    VIEW = "view"
    FOREIGN_TABLE = "foreign_table"
    ROW_SECURITY = "row_security"
    TEMPORARY = "temporary"
    DUPLICATE_ALIAS = "duplicate_alias"
    CORRELATED = "correlated"  # joins of a sub-query that may be planned both for one outer row and for all of them
    UNION_ALL = "union_all"  # pg_hint_plan plans every one in parallel as soon as there is a hint, whatever it says
    VOLATILE = "volatile"
    NO_MODEL = "no_model"
    NO_DIALECT = "no_dialect"  # rows cannot be told to this server, and there is no model of settings
    SCHEMA_MISMATCH = "schema_mismatch"
    UNKNOWN_FEATURIZER = "unknown_featurizer"
    OUT_OF_RANGE = "out_of_range"
    NO_CHANGE = "no_change"
    UNCERTAIN = "uncertain"  # settings may be better, but not surely so
    CHEAP = "cheap"


TEMPLATE_WIDE: Final = frozenset({
    Reason.NO_JOIN, Reason.OUTER_JOIN, Reason.UNKNOWN_TABLE, Reason.VIEW, Reason.FOREIGN_TABLE, Reason.ROW_SECURITY,
    Reason.TEMPORARY, Reason.DUPLICATE_ALIAS, Reason.CORRELATED, Reason.UNION_ALL, Reason.VOLATILE, Reason.NO_MODEL,
    Reason.NO_DIALECT, Reason.SCHEMA_MISMATCH, Reason.UNKNOWN_FEATURIZER,
})  # fmt: skip
"""Reasons that other values in the same statement would not change."""
WHOLE_STATEMENT: Final = (
    Reason.TEMPORARY,
    Reason.ROW_SECURITY,
    Reason.VIEW,
    Reason.FOREIGN_TABLE,
    Reason.UNKNOWN_TABLE,
)
"""What one relation is and the whole statement is left alone for, the reason that counts most first."""
MIN_CORRECTION: Final = math.log(1.5)
"""Corrections all nearer to 1 than this would hardly give another plan."""
ARM_GAIN: Final = math.log(1.25)
"""By how much a set of settings must be predicted to be faster."""
ARM_CONFIDENCE: Final = 1.645
"""How many standard deviations worse than predicted an arm may be and must still be no slower than the default: the
one-sided 95 % of a normal distribution, which training calibrates ``log_std`` for."""
PAIR_MS: Final = 0.02
"""What the server takes to weigh one pair of sub-plans (`planner.subplans.join_pairs`) where hints for all of them are
compared: 190 ms more planning for 6000 pairs."""
PLANNING_SHARE: Final = 0.05
"""The part of a statement's estimated time that looking at all of its join orders may take."""
MAX_FEATURIZERS: Final = 8
MAX_ROWS: Final = 1e15


@dataclass(frozen=True, slots=True)
class Models:
    """The models of one decision; either may be missing."""

    cardinality: Model | None = None
    hints: Model | None = None


@dataclass(frozen=True, slots=True)
class Options:
    """``min_ms``: statements estimated below it are not advised. ``estimate_anyway`` has the joins estimated even
    where it is clear that there will be no advice, to be shown. ``observe`` is called with the label of a model and the
    seconds of each run of it. ``plan`` is the default plan where the caller asked for it, the object under "Plan" of
    EXPLAIN (FORMAT JSON): models of settings may take it into account."""

    min_ms: float = 0.0
    estimate_anyway: bool = False
    limit: int = subplans.LIMIT
    observe: Callable[[str, float], None] | None = None
    plan: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class SubPlan:
    """One join of ``aliases`` in block ``block``: PostgreSQL's estimate by our arithmetic, and the model's rows;
    ``rows`` is None where no model was asked or it is not to be trusted, for ``reason``."""

    block: int
    mask: int
    aliases: tuple[str, ...]
    native: float
    rows: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``reason`` is "" where ``advice`` is not empty. ``estimated_ms`` is a rough time of the statement's joins
    without advice, 0.0 where nothing was estimated. ``model`` names the model that the advice comes from, ``arm`` its
    kind: `planner.memory.records.MODEL_ARM` for rows, for settings the arm's name in the model. ``expected_gain`` is
    how many times as fast settings are predicted to make the statement, 0.0 where nothing predicts it."""

    advice: Advice
    reason: str
    estimated_ms: float = 0.0
    sub_plans: tuple[SubPlan, ...] = ()
    model: str = ""
    resolved: Resolved | None = None
    estimates: Mapping[int, BlockEstimates] | None = None
    arm: str = ""
    expected_gain: float = 0.0

    @property
    def template_wide(self) -> bool:
        """Whether it holds for the same statement with other values too."""
        return self.reason in TEMPLATE_WIDE


@dataclass(frozen=True, slots=True)
class Statement:
    """A statement with its tables; ``resolved`` is None for one that joins nothing."""

    resolved: Resolved | None
    reason: str


NOTHING: Final = Advice()


@dataclass(slots=True)
class _Block:
    """One block under consideration."""

    resolved: ResolvedBlock
    estimates: BlockEstimates
    masks: list[int]
    native: list[float]
    log_ratio: list[float | None]
    reasons: list[str]
    sub_plans: list[SubPlan] = field(default_factory=list)


def advise(
    graph: QueryGraph,
    snapshot: Snapshot,
    models: Models,
    params: Parameters = NO_PARAMETERS,
    search_path: Sequence[str] = (),
    options: Options = Options(),
) -> Outcome:
    """The decision on one statement. May raise what numpy or a model raises (`model_runtime.runner.ModelError`);
    callers leave the statement alone then.

    Cost: a five-table join takes about 1.5 ms with 200 boosted trees, half of it the model.
    """
    return decide(look(graph, snapshot, search_path), snapshot, models, params, options)


def look(graph: QueryGraph, snapshot: Snapshot, search_path: Sequence[str] = ()) -> Statement:
    """The first half, which does not depend on values: the statement with its tables, and why it is left alone as a
    whole. 0.1 to 0.3 ms where column names are not qualified, less else; worth keeping for the same text."""
    if graph.joined < 2:
        return Statement(None, Reason.NO_JOIN)
    resolved = resolve(graph, snapshot, tuple(search_path) or snapshot.default_search_path)
    if graph.functions & snapshot.volatile_functions:
        return Statement(resolved, Reason.VOLATILE)
    for reason in WHOLE_STATEMENT:
        if reason in resolved.reasons:
            return Statement(resolved, reason)
    return Statement(resolved, "")


def decide(
    statement: Statement,
    snapshot: Snapshot,
    models: Models,
    params: Parameters = NO_PARAMETERS,
    options: Options = Options(),
) -> Outcome:
    """The second half of `advise`, over the same snapshot."""
    resolved, reason = statement.resolved, statement.reason
    if reason and not (options.estimate_anyway and resolved is not None):
        return Outcome(NOTHING, reason, resolved=resolved)
    if not reason:
        reason = _undeliverable(snapshot, models)
        if reason and not options.estimate_anyway:
            return Outcome(NOTHING, reason, resolved=resolved)
    assert resolved is not None
    blocks, shape_reason = _blocks(resolved, snapshot, params, options)
    reason = reason or shape_reason
    if models.cardinality is not None:
        for block in blocks:
            _predict(block, models.cardinality, snapshot, params, options)
    estimated = sum(_estimated_ms(block) for block in blocks)
    for block in blocks:
        block.sub_plans = _sub_plans(block)
    sub_plans = tuple(sub_plan for block in blocks for sub_plan in block.sub_plans)
    kept = {block.resolved.block.index: block.estimates for block in blocks}

    def outcome(advice: Advice, why: str, model: str = "", arm: str = "", gain: float = 0.0) -> Outcome:
        return Outcome(advice, why, estimated, sub_plans, model, resolved, kept, arm, gain)

    if reason:
        return outcome(NOTHING, reason)
    if estimated < options.min_ms:
        return outcome(NOTHING, Reason.CHEAP)
    advice, reason = NOTHING, str(Reason.NO_MODEL)
    if models.cardinality is not None and "hint_plan" in snapshot.capabilities:
        advice, reason = _rows_advice(blocks, estimated)
        if not reason and any(block.block.set_operation == "union all" for block in resolved.blocks):
            reason = Reason.UNION_ALL
        if not reason:
            return outcome(advice, "", models.cardinality.label, MODEL_ARM)
    if models.hints is not None:
        chosen, why = _chosen_arm(blocks, models.hints, snapshot, options)
        if chosen is not None:
            return outcome(chosen.advice, "", models.hints.label, chosen.name, chosen.gain)
        reason = reason if models.cardinality is not None else why
    return outcome(NOTHING, reason)


# ---------------------------------------------------------------------- what is left alone


def _undeliverable(snapshot: Snapshot, models: Models) -> str:
    if models.cardinality is None and models.hints is None:
        return Reason.NO_MODEL
    if models.hints is None and "hint_plan" not in snapshot.capabilities:
        return Reason.NO_DIALECT
    return ""


def _blocks(resolved: Resolved, snapshot: Snapshot, params: Parameters, options: Options) -> tuple[list[_Block], str]:
    """The blocks with joins that rows can be told of; the reason when there is none."""
    counts = Counter(resolved.graph.aliases)
    twice = _twice_in_a_level(resolved.graph) if max(counts.values(), default=0) > 1 else frozenset()
    blocks: list[_Block] = []
    reason = Reason.NO_JOIN
    for block in resolved.blocks:
        if len(block.block.relations) < 2:
            continue
        if any(edge.kind in (JoinKind.LEFT, JoinKind.FULL) for edge in block.block.edges):
            reason = Reason.OUTER_JOIN
        estimates = BlockEstimates(block, snapshot, params)
        masks = subplans.connected(block.block, estimates, options.limit)
        if not masks:
            continue
        native = [max(estimates.rows(mask), 1.0) for mask in masks]
        reasons = _ambiguous(block.block, masks, counts, twice)
        blocks.append(_Block(block, estimates, masks, native, [None] * len(masks), reasons))
    return blocks, "" if blocks else reason


def _twice_in_a_level(graph: QueryGraph) -> frozenset[tuple[int, str]]:
    """Block and alias of each relation that shares its alias with another one of its level."""
    place = levels(graph)
    seen = Counter((place[block.index], relation.alias) for block in graph.blocks for relation in block.relations)
    return frozenset(
        (block.index, relation.alias)
        for block in graph.blocks
        for relation in block.relations
        if seen[place[block.index], relation.alias] > 1
    )


def _ambiguous(
    block: QueryBlock, masks: Sequence[int], counts: Mapping[str, int], twice: frozenset[tuple[int, str]]
) -> list[str]:
    """Per set of relations "", or the reason why a hint cannot mean it alone.

    What reads the row of an enclosing query is planned for one such row, and an EXISTS or IN once more for all of them
    (AlternativeSubPlan): one number is wrong for one of the two."""
    own = sum(relation.bit for relation in block.relations if counts[relation.alias] == 1)
    shared = sum(relation.bit for relation in block.relations if (block.index, relation.alias) in twice)
    correlated = reduce(or_, (predicate.relations for predicate in block.predicates if predicate.outer), 0)
    reasons = []
    for mask in masks:
        if mask & correlated:
            reasons.append(str(Reason.CORRELATED))
        else:
            reasons.append("" if mask & own and not mask & shared else str(Reason.DUPLICATE_ALIAS))
    return reasons


# ---------------------------------------------------------------------- models


def _predict(block: _Block, model: Model, snapshot: Snapshot, params: Parameters, options: Options) -> None:
    """Fills in the corrections of one block, and the reason for each that is missing."""
    manifest = model.manifest
    made = _featurizer(model)
    trusted, changed = _trusted(block.resolved.tables, model, snapshot)
    chosen = []
    for index, mask in enumerate(block.masks):
        if block.reasons[index]:
            continue
        if made is None:
            block.reasons[index] = Reason.UNKNOWN_FEATURIZER
        elif mask & changed:
            block.reasons[index] = Reason.SCHEMA_MISMATCH
        elif mask & ~trusted:
            block.reasons[index] = Reason.OUT_OF_RANGE
        else:
            chosen.append(index)
    if not chosen or made is None:
        return
    masks = [block.masks[index] for index in chosen]
    inputs = made.inputs(block.estimates, masks)
    outputs = _run(model, inputs, options)
    low, high = manifest.clip
    limits, factor = manifest.abstention.limits(lambda: digest(template(block.resolved)))
    ratios = np.clip(factor * outputs["log_ratio"], low, high)
    most = most_rows(block.estimates, masks, params)
    doubtful = ~known(made, block.estimates, masks)
    if manifest.ranges and "features" in inputs:
        doubtful |= model.outside_ranges(inputs["features"]) > limits.outside_ranges
    if limits.log_std is not None and "log_std" in outputs:
        doubtful |= outputs["log_std"] > limits.log_std
    for index, ratio, out in zip(chosen, ratios.tolist(), doubtful.tolist(), strict=True):
        if out:
            block.reasons[index] = Reason.OUT_OF_RANGE
        else:
            mask = block.masks[index]
            held = mask in most
            block.log_ratio[index] = min(ratio, math.log(most[mask] / block.native[index])) if held else ratio


_featurizers: OrderedDict[str, Featurizer | None] = OrderedDict()
"""By the model's file: those with a vocabulary index it once. A dictionary's single operations need no lock."""


def _featurizer(model: Model) -> Featurizer | None:
    """What makes the model's inputs, None when this program has no such featurizer."""
    if model.sha256 not in _featurizers:
        manifest = model.manifest
        described = manifest.featurizer
        try:
            made: Featurizer | None = featurizer(
                described.name, described.version, manifest.vocabulary, described.options
            )
            if manifest.features and isinstance(made, Flat | StatementFeatures) and manifest.features != made.names:
                made = None
        except UnknownFeaturizerError:
            made = None
        _featurizers[model.sha256] = made
        while len(_featurizers) > MAX_FEATURIZERS:
            _featurizers.popitem(last=False)
        return made
    return _featurizers[model.sha256]


def _run(model: Model, inputs: Mapping[str, Any], options: Options) -> Mapping[str, Any]:
    begun = time.perf_counter()
    outputs = model.predict(inputs)
    if options.observe is not None:
        options.observe(model.label, time.perf_counter() - begun)
    return outputs


def _trusted(tables: Sequence[TableInfo | None], model: Model, snapshot: Snapshot) -> tuple[int, int]:
    """The relations that the model knows as they are now, and those that have changed since it was trained."""
    manifest = model.manifest
    words = frozenset(manifest.vocabulary.tables)
    same = not manifest.schema_hash or manifest.schema_hash == snapshot.schema_hash
    known = changed = 0
    for index, table in enumerate(tables):
        if table is None:
            continue
        name = f"{table.schema}.{table.name}"
        if not same and manifest.relation_hashes.get(name) != relation_hash(table, snapshot):
            changed |= 1 << index
        elif not words or name in words:
            known |= 1 << index
    return known, changed


def relation_hash(table: TableInfo, snapshot: Snapshot) -> str:
    """What `model_runtime.manifest.Manifest.relation_hashes` holds of a table: `planner.catalog_load.schema_hash` of it
    alone. Computed once per snapshot."""
    key = ("relation_hash", table.schema, table.name)
    found = snapshot.derived.get(key)
    if not isinstance(found, str):
        found = snapshot.derived[key] = schema_hash([table])
    return found


def _rows_advice(blocks: Sequence[_Block], estimated_ms: float) -> tuple[Advice, str]:
    rows: list[RowsAdvice] = []
    change = 0.0
    relations, pairs = 0, 0.0
    reasons: Counter[str] = Counter()
    for block in blocks:
        advised = False
        for sub_plan, ratio in zip(block.sub_plans, block.log_ratio, strict=True):
            if sub_plan.rows is None or ratio is None:
                reasons[sub_plan.reason] += 1
                continue
            rows.append(RowsAdvice(sub_plan.aliases, sub_plan.rows))
            change = max(change, abs(ratio))
            advised = True
        if advised:
            relations = max(relations, len(block.resolved.block.relations))
            pairs = max(pairs, subplans.join_pairs(block.resolved.block))
    if not rows:
        # Other values may bring the others into the model's range, but change nothing about these.
        lasting = [(reason, reasons.pop(reason, 0)) for reason in (Reason.DUPLICATE_ALIAS, Reason.CORRELATED)]
        return NOTHING, (reasons or Counter(dict(lasting))).most_common(1)[0][0]
    if change < MIN_CORRECTION:
        return NOTHING, Reason.NO_CHANGE
    if pairs * PAIR_MS > PLANNING_SHARE * estimated_ms:
        pairs = subplans.MOST_PAIRS
    return Advice(rows=tuple(rows), relations=relations, join_pairs=pairs), ""


@dataclass(frozen=True, slots=True)
class _Arm:
    """``gain``: how many times as fast it is predicted to be."""

    name: str
    advice: Advice
    gain: float


def largest_join(
    resolved: Resolved, snapshot: Snapshot, params: Parameters = NO_PARAMETERS
) -> tuple[BlockEstimates, int] | None:
    """Which join a model of settings is asked about, as a block's estimates and a set of its relations; None where it
    is not asked."""
    blocks, reason = _blocks(resolved, snapshot, params, Options())
    if reason:
        return None
    block = _largest(blocks)
    return block.estimates, block.masks[-1]


def _largest(blocks: Sequence[_Block]) -> _Block:
    return max(blocks, key=lambda one: one.masks[-1].bit_count())


def _chosen_arm(
    blocks: Sequence[_Block], model: Model, snapshot: Snapshot, options: Options
) -> tuple[_Arm | None, str]:
    """The model's best set of settings for the block that joins most, where it is surely better than none; else why
    not."""
    block = _largest(blocks)
    trusted, changed = _trusted(block.resolved.tables, model, snapshot)
    made = _featurizer(model)
    if made is None:
        return None, Reason.UNKNOWN_FEATURIZER
    if block.masks[-1] & changed:
        return None, Reason.SCHEMA_MISMATCH
    if block.masks[-1] & ~trusted:
        return None, Reason.OUT_OF_RANGE
    if isinstance(made, StatementFeatures):
        inputs = made.inputs(block.estimates, block.masks[-1:], options.plan)
    else:
        inputs = made.inputs(block.estimates, block.masks[-1:])
    outputs = _run(model, inputs, options)
    abstention = model.manifest.abstention
    limits, _ = abstention.limits(lambda: digest(template(block.resolved)))
    if model.manifest.ranges and model.outside_ranges(inputs["features"])[0] > limits.outside_ranges:
        return None, Reason.OUT_OF_RANGE
    spreads = outputs["log_std"][0] if "log_std" in outputs else None
    if spreads is not None and isinstance(limits, KnownTemplates):
        spreads = spreads * limits.spread
    ratios = np.clip(outputs["log_latency_ratio"][0], *model.manifest.clip)
    best, why = best_arm(ratios, spreads, tuple(model.manifest.arms.values()), limits.log_std)
    if best is None:
        return None, why
    name = tuple(model.manifest.arms)[best]
    advice = Advice(
        settings=model.manifest.arms[name],
        relations=len(block.resolved.block.relations),
        join_pairs=subplans.join_pairs(block.resolved.block),
    )
    return _Arm(name, advice, math.exp(-float(ratios[best]))), ""


def best_arm(
    ratios: np.ndarray[Any, Any],
    spreads: np.ndarray[Any, Any] | None,
    settings: Sequence[Mapping[str, str]],
    most_spread: float | None = None,
) -> tuple[int | None, str]:
    """Which arm to take, or None and why the default stays. ``ratios`` [arms] are ln(arm's latency / the default's),
    ``spreads`` [arms] their standard deviations or None for a model that gives none, ``settings`` those of each arm,
    empty for the default. An arm that is less certain than ``most_spread`` is not taken.

    Of the arms that are surely no slower, the one whose pessimistic prediction is the best."""
    certain = ratios if spreads is None else ratios + ARM_CONFIDENCE * spreads
    worthwhile = (ratios <= -ARM_GAIN) & np.array([bool(one) for one in settings])
    if not worthwhile.any():
        return None, Reason.NO_CHANGE
    sure = worthwhile & (certain <= 0)
    if spreads is not None and most_spread is not None:
        sure &= spreads <= most_spread
    if not sure.any():
        return None, Reason.UNCERTAIN
    return int(np.argmin(np.where(sure, certain, np.inf))), ""


# ---------------------------------------------------------------------- what comes out


def _sub_plans(block: _Block) -> list[SubPlan]:
    names = {relation.bit: relation.alias for relation in block.resolved.block.relations}
    known: dict[int, tuple[str, ...]] = {0: ()}

    def aliases(mask: int) -> tuple[str, ...]:
        """Most sets are one that came before and one relation more."""
        found = known.get(mask)
        if found is None:
            last = 1 << mask.bit_length() - 1
            found = known[mask] = (*aliases(mask ^ last), names[last])
        return found

    found = []
    for mask, native, ratio, reason in zip(block.masks, block.native, block.log_ratio, block.reasons, strict=True):
        rows = None if ratio is None else min(max(native * math.exp(ratio), 1.0), MAX_ROWS)
        found.append(SubPlan(block.resolved.block.index, mask, aliases(mask), native, rows, reason))
    return found


def _estimated_ms(block: _Block) -> float:
    """By the larger of the server's estimate and the model's, so that what either thinks large is looked at."""
    corrected = {
        mask: native * math.exp(max(ratio or 0.0, 0.0))
        for mask, native, ratio in zip(block.masks, block.native, block.log_ratio, strict=True)
    }

    def rows(mask: int) -> float:
        found = corrected.get(mask)
        return max(block.estimates.rows(mask), 1.0) if found is None else found

    return costs.estimated_ms(block.resolved.block, tuple(block.resolved.tables), block.estimates, rows)
