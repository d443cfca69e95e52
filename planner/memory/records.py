"""What the plan memory knows, as plain records: the same in memory, in the store and in exports.

A *query* is one statement with its values; a *template* is a statement whatever its values (by fingerprint). Evidence
belongs to an *arm* of a query or of a template: one way of planning it, by name. All times are milliseconds, all
moments are seconds since the epoch (UTC).
"""

from __future__ import annotations

import enum
import hashlib
from typing import Final

import msgspec

from planner.memory.comments import uncommented

DEFAULT_ARM: Final = "default"
"""The statement as the client sent it: every arm is compared with it."""
MODEL_ARM: Final = "cardinality"
"""Advice of the cardinality model; its records name the model and version."""
COUNTED_ARM: Final = "counted"
"""Advice from counting the sub-plans of this very query."""
MAX_LATENCIES: Final = 32
"""Latencies kept per arm: the latest ones."""


class State(enum.StrEnum):
    """``candidate`` -> ``trial`` -> ``approved`` or ``rejected`` by evidence; ``preferred`` (used whatever the
    evidence, and never withdrawn by itself) and ``frozen`` (the query is left alone) only by a person; ``expired``
    is to be verified again."""

    CANDIDATE = "candidate"
    TRIAL = "trial"
    APPROVED = "approved"
    REJECTED = "rejected"
    EXPIRED = "expired"
    PREFERRED = "preferred"
    FROZEN = "frozen"


REPLAYED: Final = frozenset({State.APPROVED, State.PREFERRED})


class StoredAdvice(msgspec.Struct, frozen=True, array_like=True):
    """Advice free of syntax, as `planner.advice.Advice`, in a form that can be stored as JSON."""

    rows: tuple[tuple[tuple[str, ...], float], ...] = ()
    settings: tuple[tuple[str, str], ...] = ()
    relations: int = 0
    join_pairs: float = 0.0


class QueryRecord(msgspec.Struct, kw_only=True):
    """One query or template that is worth remembering. ``key`` is `query_key` or `template_key` in hexadecimal;
    ``template`` is the key of the template that a query belongs to, its own key for a template. ``text`` is kept only
    where literals may be kept; ``shape`` is the text with its literals hashed, made by the store when it is empty.
    ``opted_out``: a person froze it. ``calls`` and ``total_ms`` count unsteered and steered executions alike since
    ``first_seen``; ``baseline`` holds the latest unsteered latencies. ``revision`` is the store's, of the row that this
    record was made from, 0 for a new one: by it the store knows a write that has not seen a person's decision.
    ``forgotten``: a person had all of it forgotten, at ``updated``."""

    key: str
    template: str
    database: str
    search_path: str
    fingerprint: str
    text: str = ""
    params: str = ""
    first_seen: float = 0.0
    last_seen: float = 0.0
    calls: int = 0
    total_ms: float = 0.0
    baseline: tuple[float, ...] = ()
    opted_out: bool = False
    actor: str = "system"
    updated: float = 0.0
    shape: str = ""
    revision: int = 0
    forgotten: bool = False

    @property
    def scope(self) -> str:
        """As in `LedgerEntry`."""
        return "template" if self.key == self.template else "query"


class ArmRecord(msgspec.Struct, kw_only=True):
    """The evidence for one arm of one query or template. ``latencies`` are steered runs, ``baseline`` the unsteered
    runs that they were interleaved with, ``moments`` when each pair of the two was made: by those the pairs of several
    instances are told apart and put together. What was measured before ``since`` does not count any more.
    ``schema_hash``, ``server_version`` and ``drift`` (a digest of the tables' sizes and statistics) say under what it
    was measured. ``revision`` as in `QueryRecord`."""

    key: str
    arm: str
    state: State = State.CANDIDATE
    advice: StoredAdvice = StoredAdvice()
    dialect: str = ""
    model: str = ""
    latencies: tuple[float, ...] = ()
    baseline: tuple[float, ...] = ()
    runs: int = 0
    losses: int = 0
    expected_gain: float = 0.0
    measured_gain: float = 0.0
    schema_hash: str = ""
    server_version: int = 0
    drift: str = ""
    why: str = ""
    actor: str = "system"
    updated: float = 0.0
    revision: int = 0
    moments: tuple[float, ...] = ()
    since: float = 0.0


class GuardRecord(msgspec.Struct, kw_only=True):
    """What a guard that is about more than one query goes by: a circuit breaker, or what trials may cost. ``content``
    is its own business (JSON); of two the later ``updated`` stands. ``revision`` as in `QueryRecord`."""

    name: str
    content: str = "{}"
    updated: float = 0.0
    revision: int = 0


class LedgerEntry(msgspec.Struct, kw_only=True):
    """One line of the ledger, never changed afterwards. ``kind``: ``state`` (from ``before`` to ``after``),
    ``execution`` (a sample), ``breaker``, ``mode``, ``model``, ``person``. ``scope`` is ``query`` or ``template`` where
    it is about one: a run counts for both, and each has states of its own. Gains are factors, 2.0: twice as fast;
    0.0: not known. ``id`` is its number in the store, 0 before; ``uid`` is given by the store and keeps a line
    from being there twice."""

    at: float
    kind: str
    key: str = ""
    database: str = ""
    fingerprint: str = ""
    arm: str = ""
    advice: StoredAdvice = StoredAdvice()
    model: str = ""
    before: str = ""
    after: str = ""
    expected_gain: float = 0.0
    measured_gain: float = 0.0
    took_ms: float = 0.0
    actor: str = "system"
    why: str = ""
    text: str = ""
    scope: str = ""
    id: int = 0
    uid: str = ""


class Execution(msgspec.Struct, kw_only=True):
    """One sampled execution that the proxy saw (table ``query_metrics``). ``decision`` is ``steered``, ``control`` or
    the reason for leaving it alone; ``estimated_cost`` is the planner's rough time in milliseconds, 0.0 when not
    known; ``rows`` is -1 when not known. ``text`` and ``params`` (a JSON list) only where literals may be kept.
    ``id`` and ``uid`` as in `LedgerEntry`."""

    at: float
    database: str
    user: str = ""
    application: str = ""
    search_path: str = ""
    fingerprint: str = ""
    key: str = ""
    took_ms: float = 0.0
    rows: int = -1
    estimated_cost: float = 0.0
    decision: str = ""
    arm: str = ""
    model: str = ""
    failed: str = ""
    text: str = ""
    params: str = ""
    id: int = 0
    uid: str = ""


class HistoryPoint(msgspec.Struct, kw_only=True):
    """Quantiles of one metric of one model and version over one interval (table ``metric_history``). ``model`` is
    ``name-version``, or ``none``; ``metric`` is ``statement_latency``, ``inference_latency``, ``unsteered_latency`` or
    ``q_error``; ``seconds`` is the length of the interval that ends at ``at``."""

    at: float
    model: str
    metric: str
    seconds: float
    count: int
    p50: float
    p95: float
    p99: float


def query_key(database: str, search_path: str, text: str, params: str = "") -> str:
    """The key of one statement with its values; ``params`` is the canonical form of its bound values ("" for none).
    Comments, white space at the ends and a trailing semicolon do not count."""
    parts = "\0".join((database, search_path, uncommented(text).strip().rstrip(";").rstrip(), params))
    return hashlib.blake2b(parts.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def template_key(database: str, search_path: str, fingerprint: str) -> str:
    """The key of all statements with one fingerprint."""
    parts = "\0".join(("template", database, search_path, fingerprint))
    return hashlib.blake2b(parts.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
