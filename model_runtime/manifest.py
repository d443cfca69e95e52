"""What a model file says about itself: the JSON under ``pilotwire.manifest`` in an ONNX file's ``metadata_props``.

The manifest carries all that using the model safely needs, so that a model is one file: what its inputs mean
(featurizer, names in order, vocabulary), where it can be trusted (schema hash, ranges, thresholds), what its outputs
mean (clip, arms) and a self-test. A file may come from anywhere: every field is bounded and typed, numbers are finite,
unknown fields are refused, and an arm can set nothing but planner settings.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

import numpy as np
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StringConstraints,
    ValidationError,
    model_validator,
)

FORMAT: Final = 1
KIND_KEY: Final = "pilotwire.kind"
MANIFEST_KEY: Final = "pilotwire.manifest"
Kind: TypeAlias = Literal["cardinality", "hints"]
KINDS: Final[tuple[Kind, ...]] = ("cardinality", "hints")
SETS: Final = ("tables", "joins", "predicates")
FLAT_INPUT: Final = "features"
OUTPUTS: Final[Mapping[Kind, str]] = {"cardinality": "log_ratio", "hints": "log_latency_ratio"}
DEVIATION: Final = "log_std"
MEANINGS: Final[Mapping[Kind, str]] = {
    "cardinality": "ln(actual_rows/native_rows)",
    "hints": "ln(arm_latency/default_latency)",
}

PLANNER_SETTINGS: Final = frozenset({
    "constraint_exclusion", "cpu_index_tuple_cost", "cpu_operator_cost", "cpu_tuple_cost", "cursor_tuple_fraction",
    "effective_cache_size", "enable_async_append", "enable_bitmapscan", "enable_distinct_reordering",
    "enable_gathermerge", "enable_group_by_reordering", "enable_hashagg", "enable_hashjoin",
    "enable_incremental_sort", "enable_indexonlyscan", "enable_indexscan", "enable_material", "enable_memoize",
    "enable_mergejoin", "enable_nestloop", "enable_parallel_append", "enable_parallel_hash",
    "enable_partition_pruning", "enable_partitionwise_aggregate", "enable_partitionwise_join",
    "enable_presorted_aggregate", "enable_self_join_elimination", "enable_seqscan", "enable_sort", "enable_tidscan",
    "from_collapse_limit", "geqo", "geqo_effort", "geqo_generations", "geqo_pool_size", "geqo_seed",
    "geqo_selection_bias", "geqo_threshold", "jit", "jit_above_cost", "jit_inline_above_cost",
    "jit_optimize_above_cost", "join_collapse_limit", "max_parallel_workers_per_gather",
    "min_parallel_index_scan_size", "min_parallel_table_scan_size", "parallel_leader_participation",
    "parallel_setup_cost", "parallel_tuple_cost", "plan_cache_mode", "random_page_cost", "recursive_worktable_factor",
    "seq_page_cost",
})  # fmt: skip
"""All that an arm may set. Others could change what a query means, who runs it, or (work_mem) exhaust the server."""

_SEMANTIC_VERSION: Final = (
    r"^(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})"
    r"(-[0-9A-Za-z-]{1,20}(\.[0-9A-Za-z-]{1,20}){0,5})?(\+[0-9A-Za-z-]{1,20}(\.[0-9A-Za-z-]{1,20}){0,5})?$"
)
MAX_FEATURES: Final = 4096
MAX_WORDS: Final = 200_000
MAX_TEST_ROWS: Final = 64


def _unique(words: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(words)) != len(words):
        raise ValueError("the same name twice")
    return words


def _setting_value(value: str) -> str:
    # What is put into a statement's text: a word or a number with a unit, nothing that could end a literal.
    if not re.fullmatch(r"[A-Za-z0-9_.+-]{1,40}", value):
        raise ValueError("not a plain setting value")
    return value


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] > bounds[1]:
        raise ValueError("the lower bound is above the upper one")
    return bounds


Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
Version = Annotated[str, StringConstraints(pattern=_SEMANTIC_VERSION, max_length=100)]
Word = Annotated[str, StringConstraints(min_length=1, max_length=1000, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Short = Annotated[str, StringConstraints(max_length=200, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
Words = Annotated[tuple[Word, ...], Field(max_length=MAX_WORDS), AfterValidator(_unique)]
Names = Annotated[tuple[Word, ...], Field(max_length=MAX_FEATURES), AfterValidator(_unique)]
Scalar = bool | int | FiniteFloat | Short
Bounds = Annotated[tuple[FiniteFloat, FiniteFloat], AfterValidator(_ordered)]
SettingName = Annotated[str, StringConstraints(max_length=63)]
SettingValue = Annotated[str, AfterValidator(_setting_value)]
Count = Annotated[int, Field(ge=0, le=1 << 62)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Featurizer(_Part):
    """Which code of `planner.features` makes the inputs; ``options`` are that featurizer's own (set capacities)."""

    name: Name
    version: Short = Field(min_length=1)
    options: dict[Short, Scalar] = Field(default_factory=dict, max_length=100)


class SetFeatures(_Part):
    """Names of what one element of each set carries, in order: the last dimension of each input."""

    tables: Names
    joins: Names
    predicates: Names


class Vocabulary(_Part):
    """What the model has seen, in the featurizer's own spelling: tables ``schema.table``, columns
    ``schema.table.column``, join edges ``schema.table.column = schema.table.column``."""

    schemas: Words = ()
    tables: Words = ()
    columns: Words = ()
    joins: Words = ()
    operators: Words = ()


NEVER: Final = 1e-6
"""A limit of ``log_std`` that no prediction meets: corrections are used for known templates alone."""


class Doubts(_Part):
    """When a prediction is not used: more than ``outside_ranges`` of its features lie outside of their ranges, or its
    ``log_std`` is above ``log_std``."""

    outside_ranges: int = Field(default=0, ge=0, le=MAX_FEATURES)
    log_std: FiniteFloat | None = Field(default=None, gt=0)


class KnownTemplates(Doubts):
    """The limits of join templates that the model was trained on, by `planner.templates.digest`. Their ``log_ratio`` is
    taken times ``factor``; of a model of settings ``log_std`` is taken times ``spread``."""

    templates: Words = ()
    factor: FiniteFloat = Field(default=1.0, gt=0, le=100)
    spread: FiniteFloat = Field(default=1.0, gt=0, le=100)

    @cached_property
    def digests(self) -> frozenset[str]:
        """The templates, for a look-up on the query path."""
        return frozenset(self.templates)


class Abstention(Doubts):
    """``known``: templates that have limits of their own."""

    known: KnownTemplates | None = None

    def limits(self, template: Callable[[], str]) -> tuple[Doubts, float]:
        """Those of a join template, and its factor; ``template`` gives its digest, where that matters."""
        if self.known is not None and template() in self.known.digests:
            return self.known, self.known.factor
        return self, 1.0


class BeforeAfter(_Part):
    """One figure for the server's own estimates or plans and for the model's."""

    before: FiniteFloat
    after: FiniteFloat


class SplitSummary(_Part):
    """How the model did on one split of the queries. ``q_error`` has percentiles by name (``p50``); times are
    seconds of the whole split."""

    queries: Count = 0
    sub_plans: Count = 0
    q_error: dict[Short, BeforeAfter] = Field(default_factory=dict, max_length=20)
    workload_seconds: BeforeAfter | None = None


class TrainingSummary(_Part):
    queries: Count = 0
    sub_plans: Count = 0
    seconds: FiniteFloat = Field(default=0.0, ge=0)
    splits: dict[Short, SplitSummary] = Field(default_factory=dict, max_length=50)
    notes: dict[Short, Scalar] = Field(default_factory=dict, max_length=200)


class SelfTest(_Part):
    """Inputs by name, as nested lists with the rows outermost, and the outputs they must give."""

    inputs: dict[Short, list[Any]] = Field(min_length=1, max_length=16)
    outputs: dict[Short, list[Any]] = Field(min_length=1, max_length=4)

    def arrays(self) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, np.ndarray[Any, Any]]]:
        """Inputs and outputs as float32. ValueError for what is no regular array of finite numbers, or has not the
        same 1 to `MAX_TEST_ROWS` rows everywhere."""
        inputs = {name: _array(name, value) for name, value in self.inputs.items()}
        outputs = {name: _array(name, value) for name, value in self.outputs.items()}
        rows = {len(array) for array in (*inputs.values(), *outputs.values())}
        if len(rows) != 1 or not 1 <= next(iter(rows)) <= MAX_TEST_ROWS:
            raise ValueError(f"the self-test needs the same 1 to {MAX_TEST_ROWS} rows in every array")
        return inputs, outputs


def _array(name: str, value: Sequence[Any]) -> np.ndarray[Any, Any]:
    # Bounds checked before numpy sees it: only lists and numbers, so that no odd object can get in.
    stack: list[Any] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, bool) or not isinstance(item, int | float):
            raise ValueError(f"self-test {name}: something else than a number")
    try:
        array = np.asarray(value, dtype=np.float64)
    except (ValueError, OverflowError):
        raise ValueError(f"self-test {name}: not a regular array") from None
    # Beyond float32 a finite number becomes infinite.
    if not np.all(np.abs(array) <= np.finfo(np.float32).max):
        raise ValueError(f"self-test {name}: a number that is not finite")
    return array.astype(np.float32)


class Manifest(_Part):
    """See the module. ``features`` names the columns of the flat input; a model of sets has ``sets`` instead. ``clip``
    bounds the output (natural logarithms). ``relation_hashes`` tells which relations changed when ``schema_hash`` does
    not fit: relation as in the vocabulary -> hash. ``arms`` are in the order of the output's columns."""

    format: Literal[1] = FORMAT
    kind: Kind
    name: Name
    version: Version
    trained_at: AwareDatetime
    featurizer: Featurizer
    features: Names = ()
    sets: SetFeatures | None = None
    vocabulary: Vocabulary = Vocabulary()
    schema_hash: Short = ""
    relation_hashes: dict[Word, Short] = Field(default_factory=dict, max_length=MAX_WORDS)
    ranges: dict[Word, Bounds] = Field(default_factory=dict, max_length=MAX_FEATURES)
    clip: Bounds
    abstention: Abstention = Abstention()
    output_meaning: Short
    training: TrainingSummary = TrainingSummary()
    arms: dict[Name, Annotated[dict[SettingName, SettingValue], Field(max_length=50)]] = Field(
        default_factory=dict, max_length=64
    )
    self_test: SelfTest

    @property
    def label(self) -> str:
        """``name-version``, as decisions name their model."""
        return f"{self.name}-{self.version}"

    def inputs(self) -> dict[str, tuple[int | None, ...]]:
        """The ONNX inputs by name with their dimensions; None is any size. Rows come first."""
        if self.sets is None:
            return {FLAT_INPUT: (None, len(self.features))}
        shapes: dict[str, tuple[int | None, ...]] = {}
        for name in SETS:
            shapes[name] = (None, None, len(getattr(self.sets, name)))
            shapes[f"{name}_mask"] = (None, None)
        return shapes

    def outputs(self) -> dict[str, tuple[int | None, ...]]:
        """The same for the outputs; `DEVIATION` may be missing from the file."""
        shape: tuple[int | None, ...] = (None,) if self.kind == "cardinality" else (None, len(self.arms))
        return {OUTPUTS[self.kind]: shape, DEVIATION: shape}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.output_meaning != MEANINGS[self.kind]:
            raise ValueError(f"the output of a {self.kind} model means {MEANINGS[self.kind]}")
        if (self.sets is None) == (not self.features):
            raise ValueError("either features or sets has to name the inputs")
        if self.kind == "hints":
            if self.sets is not None:
                raise ValueError("a hints model takes flat features")
            if not self.arms:
                raise ValueError("a hints model needs arms")
        elif self.arms:
            raise ValueError("a cardinality model has no arms")
        for arm, settings in self.arms.items():
            if foreign := settings.keys() - PLANNER_SETTINGS:
                raise ValueError(f"arm {arm}: {min(foreign)} is not a planner setting")
        known = set(self.features)
        if self.sets is not None:
            known.update(*(getattr(self.sets, part) for part in SETS))
        if unknown := self.ranges.keys() - known:
            raise ValueError(f"a range for {min(unknown)!r}, which is no feature")
        self.self_test.arrays()
        return self


def parse(text: str | bytes) -> Manifest:
    """The manifest in that JSON. ValueError with one sentence that names the first wrong field."""
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:200]
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ValueError(f"{place or 'manifest'}: {first['msg']}{more}") from None
