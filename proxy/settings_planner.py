"""Settings of the planner process: models, catalog, what is not steered."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel

from proxy.options import Bytes, Names, Seconds, option
from proxy.settings_connections import CONFIG

PLANNER: Final = "Models and the planner process"


class PlannerSettings(BaseModel):
    """The part of `ProxySettings` that the planner process goes by. Without ``models`` there is none."""

    model_config = CONFIG

    models: str = option(
        "",
        group=PLANNER,
        description="Folder of model files (.onnx); a file dropped into it, or overwritten, takes over by itself.",
        unit="folder",
        reason="A model predicts how many rows joins really produce; without one nothing is steered.",
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
