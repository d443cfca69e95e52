"""What the supervisor and the planner process say to each other, over an inherited socket pair.

The supervisor sends one `Start` with everything the process needs, secrets included, so that none stands on a command
line or in the environment; later `Reload` and `Poll`. The planner process answers `Reload` with `Reloaded`, sends
`Report` every second and at each `Poll`, and `Event` for what belongs into the log, which only the supervisor writes.
Frames are those of `planner.messages`: a four-byte length and a msgpack body. A peer that breaks the framing loses the
channel. Like `planner.messages` it imports nothing heavy, since the supervisor loads it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from planner.messages import FrameReader

MAX_FRAME: Final = 4 << 20


class Upstream(msgspec.Struct, array_like=True):
    """How to log in to the server; the database comes from each request, ``database`` is the DSN's own.

    ``tls`` holds libpq's names (sslmode, sslrootcert, sslcert, sslkey); sslrootcert "system" means the system's store.
    """

    hosts: tuple[tuple[str, int], ...]
    user: str
    password: str
    database: str
    tls: dict[str, str] = {}
    connect_timeout: float = 10.0


class Limits(msgspec.Struct, array_like=True):
    """Bounds and policy; those of `Reload` replace those of `Start`, except ``evidence``: ``measured`` (advice is used
    on evidence, see `planner.memory`) or ``none`` (a model's advice is used at once, always)."""

    memory_bytes: int = 1 << 30
    databases: int = 16
    catalog_refresh_s: float = 300.0
    sample_rows: int = 2000
    min_ms: float = 1.0
    model_batch_ms: float = 10.0
    model_predict_ms: float = 250.0
    users_off: tuple[str, ...] = ()
    databases_off: tuple[str, ...] = ()
    applications_off: tuple[str, ...] = ()
    fingerprints_off: tuple[str, ...] = ()
    mode_rules: tuple[str, ...] = ()
    evidence: str = "none"
    min_calls: int = 5
    min_gain: float = 1.2
    min_gain_ms: float = 5.0
    template_gain: float = 2.0
    control_share: float = 0.05
    canary_share: float = 0.1
    regret_budget: float = 2.0
    trial_share: float = 0.05
    evidence_age_s: float = 7 * 86400.0
    audits_per_hour: float = 0.0
    audit_limit_ms: float = 5_000.0
    audit_most_active: int = 4
    min_total_ms: float = 100.0


class Keeping(msgspec.Struct, frozen=True, array_like=True):
    """Where the plan memory is kept: ``url`` opens the store, its password included, "" for none; ``literals`` and
    ``retention`` (seconds) as in `planner.memory.store`."""

    url: str = ""
    literals: bool = False
    retention: tuple[float, float, float, float] | None = None


class Start(msgspec.Struct, tag="start", array_like=True):
    """``socket`` is the path to listen on, ``models`` the folder of models ("" for none), ``quarantine`` the digests of
    statements that ended earlier incarnations (see `planner.blackbox`), ``blackbox`` the descriptor of their record."""

    socket: str
    upstream: Upstream
    models: str
    limits: Limits
    blackbox: int = -1
    quarantine: tuple[bytes, ...] = ()
    keeping: Keeping = Keeping()


class Reload(msgspec.Struct, tag="reload", array_like=True):
    """Read the models again, and take these limits."""

    number: int
    limits: Limits | None = None


class Poll(msgspec.Struct, tag="poll", array_like=True):
    """Send a `Report` now."""


class ModelState(msgspec.Struct, array_like=True):
    """One file of the models' folder: ``state`` and ``detail`` as in `model_runtime.store.Listed`."""

    file: str
    kind: str
    name: str
    version: str
    state: str
    detail: str = ""


class Report(msgspec.Struct, tag="report", array_like=True):
    """Counters so far, flat as in ``decisions{no_join}``, and the present state. ``catalog_age_s`` is that of the
    oldest snapshot, -1 for none; ``stuck_s`` how long the computation under way has taken; ``store`` why the store
    cannot be written, "" where it can; ``breakers_open`` how many models are off by a circuit breaker."""

    counters: dict[str, float]
    models: tuple[ModelState, ...] = ()
    databases: int = 0
    catalog_age_s: float = -1.0
    queue: int = 0
    stuck_s: float = 0.0
    store: str = ""
    breakers_open: int = 0


class Reloaded(msgspec.Struct, tag="reloaded", array_like=True):
    """``models`` is the folder's state afterwards."""

    number: int
    models: tuple[ModelState, ...] = ()


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """The socket is there."""


class Refuse(msgspec.Struct, tag="refuse", array_like=True):
    """It cannot start, for this reason; the process ends."""

    reason: str


class Event(msgspec.Struct, tag="event", array_like=True):
    """One line for the log."""

    name: str
    level: str
    fields: dict[str, str | int | float | bool | None] = {}


Control = Start | Reload | Poll | Report | Reloaded | Ready | Refuse | Event

_decoder: msgspec.msgpack.Decoder[Control] = msgspec.msgpack.Decoder(Control)


class Reader(FrameReader[Control]):
    """Reads what the supervisor and the planner process say to each other."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(_decoder, MAX_FRAME)
