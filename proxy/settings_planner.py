"""Settings of the planner process: models, catalog, what is not steered, and on which evidence the rest is."""

from __future__ import annotations

import re
from typing import Final, Literal

from pydantic import BaseModel, field_validator

from proxy.options import Bytes, Names, Seconds, option
from proxy.settings_connections import CONFIG

PLANNER: Final = "Models and the planner process"
GUARD: Final = "Evidence and guardrails"
Evidence = Literal["measured", "none"]
_NAME: Final = r"(?:database|user|application|fingerprint)=[^\s,]+"
_RULE: Final = re.compile(rf"\s*(?:\*|{_NAME}(?:\s+{_NAME})*)\s*:\s*(?:off|observe|shadow|canary|on)\s*")


class PlannerSettings(BaseModel):
    """The part of `ProxySettings` that the planner process goes by. Without ``models`` and with ``evidence`` none there
    is no such process."""

    model_config = CONFIG

    models: str = option(
        "",
        group=PLANNER,
        description="Folder of model files (.onnx); a file dropped into it, or overwritten, takes over by itself.",
        unit="folder",
        reason="A model predicts how many rows joins really produce; without one only planner settings are tried.",
        warning="Who can write to the folder decides how your queries are planned, though not what they return.",
        reload=False,
    )
    model_batch_ms: float = option(
        10.0,
        group=PLANNER,
        description="Processor time that a model may take for 200 joins; a slower one is refused when it is loaded.",
        unit="milliseconds",
        reason="Statements wait for a decision at most a tenth of their own time.",
        warning="A larger model decides later; what it decides late is used the next time only.",
        reload=False,
        gt=0,
        le=60_000,
    )
    model_predict_ms: float = option(
        250.0,
        group=PLANNER,
        description="A prediction that takes longer is stopped, and its statement left alone.",
        unit="milliseconds",
        reason="Others wait behind it.",
        warning="None.",
        reload=False,
        gt=0,
        le=60_000,
    )
    planner_memory: Bytes = option(
        1 << 30,
        group=PLANNER,
        description="Resident memory above which the planner process ends and is started again.",
        unit="bytes",
        reason="It keeps statistics and a row sample of each table; something that grows without end must not.",
        warning="Below what your catalog needs it is restarted again and again: watch planner_restarts.",
        reload=True,
        shown_default="1GB",
        ge=128 << 20,
        le=1 << 40,
    )
    planner_databases: int = option(
        16,
        group=PLANNER,
        description="Databases whose catalog the planner process watches, with one connection each.",
        unit="databases",
        reason="A server with hundreds of databases should not see hundreds of connections for it.",
        warning="With more databases than this in use, catalogs are read again and again.",
        reload=True,
        ge=1,
        le=1000,
    )
    catalog_refresh: Seconds = option(
        300.0,
        group=PLANNER,
        description="How often statistics and row samples are read again; a changed schema is noticed earlier.",
        unit="seconds",
        reason="Advice is computed from the same statistics that the server plans with.",
        warning="Each time the planner's connection reads pg_stats and some pages of every table.",
        reload=True,
        ge=5,
        le=86400,
    )
    sample_rows: int = option(
        2000,
        group=PLANNER,
        description="Rows of each table kept in memory, to judge conditions that statistics cannot; 0 keeps none.",
        unit="rows",
        reason="LIKE, OR and functions of a column are evaluated on real rows.",
        warning="With 0 no statement text and no row of yours is in the planner's memory, and such conditions are "
        "guessed as the server does.",
        reload=True,
        ge=0,
        le=100_000,
    )
    steer_min_ms: float = option(
        1.0,
        group=PLANNER,
        description="Statements that take, or are thought to take, less than this are left alone.",
        unit="milliseconds",
        reason="A statement that is over in a millisecond has nothing to win and its planning time to lose.",
        warning="0 has every join thought about.",
        reload=True,
        ge=0,
        le=3_600_000,
    )
    steer_off_users: Names = option(
        [],
        group=PLANNER,
        description="Users whose statements are left alone, separated by commas.",
        unit="names",
        reason="An application can be kept out while the others gain.",
        warning="None.",
        reload=True,
    )
    steer_off_databases: Names = option(
        [],
        group=PLANNER,
        description="Databases in which statements are left alone, separated by commas.",
        unit="names",
        reason="A model knows one schema; other databases need not be looked at.",
        warning="None.",
        reload=True,
    )
    steer_off_applications: Names = option(
        [],
        group=PLANNER,
        description="Values of application_name whose statements are left alone, separated by commas.",
        unit="names",
        reason="Backup and maintenance programs know what they do.",
        warning="A client chooses its application_name itself.",
        reload=True,
    )
    steer_off_fingerprints: Names = option(
        [],
        group=PLANNER,
        description="Fingerprints of statements that are left alone, as `pilotwire explain` shows them.",
        unit="names",
        reason="One statement can be excluded without a change of the application.",
        warning="None.",
        reload=True,
    )
    evidence: Evidence = option(
        "measured",
        group=GUARD,
        description="measured: advice is tried on a part of the executions, and used where it was measured to win. "
        "none: a model's advice is used at once, on all executions, and nothing is compared.",
        unit="name",
        reason="A model that is right most of the time still ruins some statement; only measuring tells what wins.",
        warning="none is for judging a model by itself: what it gets wrong stays wrong until somebody notices.",
        reload=False,
    )
    steer_modes: Names = option(
        [],
        group=GUARD,
        description="Modes for some databases, users, applications and fingerprints, separated by commas; the first "
        "that matches counts: 'user=batch:off, database=app user=report:canary, *:shadow'.",
        unit="rules",
        reason="Steering can begin with one application, and spread from there.",
        warning="They only lower: the lowest of the rule, mode and the session's own holds.",
        reload=True,
    )
    control_share: float = option(
        0.05,
        group=GUARD,
        description="Share of the executions that are never steered, to be compared with those that are.",
        unit="share",
        reason="Load, caches and data drift: what won last month is compared again all the time.",
        warning="With 0 nothing that has become slower is ever noticed, but by its time limit.",
        reload=True,
        ge=0,
        le=0.5,
    )
    steer_min_calls: int = option(
        5,
        group=GUARD,
        description="How often a kind of statement must have been measured before anything is tried on it.",
        unit="executions",
        reason="What is asked once has nothing to gain from a trial.",
        warning="1 has trials made of statements of which hardly anything is known.",
        reload=True,
        ge=1,
        le=1_000_000,
    )
    steer_min_total_ms: float = option(
        100.0,
        group=GUARD,
        description="How long the executions of a kind of statement must have taken together before anything is tried "
        "on it.",
        unit="milliseconds",
        reason="What takes hardly any of the server's time has nothing to gain from a trial, however often it comes.",
        warning="0 leaves it to steer_min_calls and min_gain_ms.",
        reload=True,
        ge=0,
        le=86_400_000,
    )
    min_gain: float = option(
        1.2,
        group=GUARD,
        description="How many times as fast a statement must have become for its advice to be approved.",
        unit="factor",
        reason="A gain of a few percent is not worth a plan that somebody has to understand; half of what is asked for"
        " here will do where a run saves ten times min_gain_ms.",
        warning="Near 1, noise looks like a gain, and more is approved and withdrawn again.",
        reload=True,
        ge=1,
        le=100,
    )
    min_gain_ms: float = option(
        5.0,
        group=GUARD,
        description="What approved advice must save of an execution, in the median.",
        unit="milliseconds",
        reason="Statements are steered that matter.",
        warning="Statements that take hardly longer than this are left alone.",
        reload=True,
        ge=0,
        le=3_600_000,
    )
    template_gain: float = option(
        2.0,
        group=GUARD,
        description="The gain that an arm must have shown on a kind of statement to be used for values that it was not "
        "tried with.",
        unit="factor",
        reason="The best settings for one value can be the worst for another: there must be a margin.",
        warning="Below 1.5 the odd statement gets slower until it is noticed.",
        reload=True,
        ge=1,
        le=1000,
    )
    regret_budget: float = option(
        2.0,
        group=GUARD,
        description="How many times its unsteered time a steered statement may take before it is stopped and run "
        "again as the client sent it, where that can be done cleanly; 0 stops none.",
        unit="factor",
        reason="A wrong guess costs a bounded time.",
        warning="Below 1.5 statements are stopped that only had a slow moment. Trials are stopped at 1.2 always.",
        reload=True,
        ge=0,
        le=1000,
    )
    trial_share: float = option(
        0.05,
        group=GUARD,
        description="What trials may cost, as a share of the time that all statements take.",
        unit="share",
        reason="However wrong a model is, this is all that it can cost.",
        warning="0 has nothing tried after the first seconds of loss.",
        reload=True,
        ge=0,
        le=1,
    )
    evidence_max_age: Seconds = option(
        7 * 86400.0,
        group=GUARD,
        description="Evidence that is older is gathered again.",
        unit="seconds",
        reason="What lost in January may win in June.",
        warning="Short ages have the same trials made again and again.",
        reload=True,
        shown_default="7d",
        ge=60,
        le=10 * 365 * 86400,
    )

    @field_validator("steer_modes")
    @classmethod
    def _rules(cls, rules: list[str]) -> list[str]:
        for rule in rules:
            if _RULE.fullmatch(rule) is None:
                raise ValueError(
                    f"{rule!r} is no rule like user=batch:off, database=app user=report:canary or *:shadow "
                    "(database, user, application, fingerprint; off, observe, shadow, canary, on)"
                )
        return rules
