"""Settings of the store: where the plan memory, the ledger and the history of metrics are kept, and how long.

Like ``upstream``, ``store`` loses its password when settings are built: it moves into ``store_password``, so that
``store`` can be shown and logged. ``store_url`` puts the two together again for whoever opens the store.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from pydantic import BaseModel, SecretStr

from proxy.options import Seconds, option
from proxy.settings_connections import CONFIG

STORE: Final = "The store"
DAY: Final = 86_400.0
TEN_YEARS: Final = 3_650 * DAY
OFF: Final = "none"
STATE_VARIABLE: Final = "PILOTWIRE_STATE_DIR"
_SQLITE: Final = "sqlite:///"
_POSTGRES: Final = ("postgresql://", "postgres://")
_FORMS: Final = (
    "store is the path of a file (/var/lib/pilotwire/store.db or sqlite:////var/lib/pilotwire/store.db), "
    "postgresql://user@host/database, or none"
)


class Kept(NamedTuple):
    """Seconds for which things are kept, 0: for ever; the fields of `planner.memory.store.Retention`, in order."""

    ledger: float
    samples: float
    history: float
    memory: float


class StoreSettings(BaseModel):
    """The part of `ProxySettings` that says where things are remembered."""

    model_config = CONFIG

    store: str = option(
        "",
        group=STORE,
        description="Where the plan memory, the ledger and the history of metrics are kept: a file (SQLite), "
        "postgresql://user@host/database for several instances that share them, or none.",
        unit="URL",
        reason="What was measured to win is used again after a restart, and what was decided can be looked up.",
        warning="With none every restart begins to learn anew, and nothing is recorded. SQLite needs a local disk: "
        "for instances on several machines take PostgreSQL. A password in it is refused on the command line.",
        reload=False,
        shown_default="store.db in $PILOTWIRE_STATE_DIR, else in /var/lib/pilotwire for root, else in "
        "~/.local/state/pilotwire",
    )
    store_password: SecretStr | None = option(
        None,
        group=STORE,
        description="Password of a PostgreSQL store's user, when it is not in store.",
        unit="text",
        reason="Lets a secret store set the password alone, as PILOTWIRE_STORE_PASSWORD; libpq's PGPASSFILE works too.",
        warning="Not accepted on the command line. Whoever knows it can change what steers your queries.",
        reload=False,
    )
    store_literals: bool = option(
        False,
        group=STORE,
        description="Keep statements with their literals and bound values; else literals are kept as hashes only.",
        unit="true or false",
        reason="Whole statements can be explained, explored and learned from after a restart.",
        warning="Names, addresses and whatever else is in your data will be in the store and its exports.",
        reload=False,
    )
    store_keep_ledger: Seconds = option(
        365 * DAY,
        group=STORE,
        description="How long lines of the ledger are kept; 0 keeps them for ever.",
        unit="seconds",
        reason="A year answers what was changed, by whom and why.",
        warning="Export it before shortening this: what is deleted is gone.",
        reload=False,
        shown_default="365d",
        ge=0,
        le=TEN_YEARS,
    )
    store_keep_samples: Seconds = option(
        14 * DAY,
        group=STORE,
        description="How long sampled executions (query_metrics) are kept; 0 keeps them for ever.",
        unit="seconds",
        reason="Two weeks show what a workload consists of, the end of a month apart.",
        warning="For ever, they are most of the store; never more than a million are kept.",
        reload=False,
        shown_default="14d",
        ge=0,
        le=TEN_YEARS,
    )
    store_keep_history: Seconds = option(
        90 * DAY,
        group=STORE,
        description="How long the history of metrics (metric_history) is kept; 0 keeps it for ever.",
        unit="seconds",
        reason="A quarter shows whether a model has become worse.",
        warning="Each model adds some hundred rows a day.",
        reload=False,
        shown_default="90d",
        ge=0,
        le=TEN_YEARS,
    )
    store_keep_memory: Seconds = option(
        90 * DAY,
        group=STORE,
        description="How long a query that is not seen any more is remembered; 0 remembers it for ever.",
        unit="seconds",
        reason="Queries of programs that are gone need not be loaded at each start.",
        warning="A report that runs once a year is then learned anew; what a person decided is kept always.",
        reload=False,
        shown_default="90d",
        ge=0,
        le=TEN_YEARS,
    )

    @property
    def store_url(self) -> str | None:
        """What opens the store, its password included; None when it is switched off. Not for showing."""
        if self.store == OFF:
            return None
        if self.store_password is None or not self.store.startswith(_POSTGRES):
            return self.store or default_store()
        parts = urlsplit(self.store)
        user, _, host = parts.netloc.rpartition("@")
        secret = quote(self.store_password.get_secret_value(), safe="")
        return urlunsplit(parts._replace(netloc=f"{user}:{secret}@{host}"))

    @property
    def store_retention(self) -> Kept:
        return Kept(self.store_keep_ledger, self.store_keep_samples, self.store_keep_history, self.store_keep_memory)


def state_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where what pilotwire learned is kept."""
    folder = environment.get(STATE_VARIABLE, "")
    if not folder:
        home = Path(environment.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pilotwire"
        folder = "/var/lib/pilotwire" if os.geteuid() == 0 else str(home)
    return Path(folder).absolute()


def default_store(environment: Mapping[str, str] = os.environ) -> str:
    """The URL of the file in the state folder."""
    return f"{_SQLITE}{state_folder(environment) / 'store.db'}"


def fold_store(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``store`` worked out and its password moved into ``store_password``. ValueError, which never
    quotes it, when it names no store."""
    folded = dict(values)
    if folded.get("store_password") in ("", None):
        folded.pop("store_password", None)
    store = folded.get("store", "")
    if not isinstance(store, str):
        return folded
    store = store.strip()
    if store == "":
        folded["store"] = default_store()
    elif store.startswith(_POSTGRES):
        folded["store"], password = _apart(store)
        if password is not None:
            folded.setdefault("store_password", password)
    elif store.startswith((f"{_SQLITE}/", "/")):
        folded["store"] = f"{_SQLITE}{Path(store.removeprefix(_SQLITE))}"
    elif store.lower() in (OFF, "off"):
        folded["store"] = OFF
    else:
        raise ValueError(_FORMS)
    return folded


def holds_password(store: object) -> bool:
    """Whether a DSN that was given as ``store`` has a password in it."""
    return isinstance(store, str) and store.startswith(_POSTGRES) and _apart(store)[1] is not None


def _apart(url: str) -> tuple[str, str | None]:
    """A DSN without its password, and the password."""
    try:
        parts = urlsplit(url)
        options = parse_qsl(parts.query, keep_blank_values=True)
    except ValueError:
        raise ValueError(_FORMS) from None
    login, at, host = parts.netloc.rpartition("@")
    user, colon, secret = login.partition(":")
    password = unquote(secret) if colon else None
    for name, value in options:
        if name == "password":
            password = value
    if not at:
        # A password is put back behind a user: without one there is no place for it.
        user = "" if password is None else next((value for name, value in options if name == "user"), "")
    rest = [(name, value) for name, value in options if name != "password"]
    netloc = f"{user}@{host}" if at or user else host
    return urlunsplit((parts.scheme, netloc, parts.path, urlencode(rest, safe="/,:"), "")), password
