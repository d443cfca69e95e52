"""How commands find the store: the option, the environment, the TOML file, the default, as the proxy itself does.

Only the settings of the store are read, so that none of this needs an upstream.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from pilotwire.errors import StartError

if TYPE_CHECKING:
    from planner.memory.store import Store

StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="URL",
        help="A file, or postgresql://user@host/database; default: PILOTWIRE_STORE, the TOML file, the state folder.",
    ),
]
ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", envvar="PILOTWIRE_CONFIG", help="The proxy's TOML file."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
ActorOption = Annotated[
    str, typer.Option("--actor", metavar="NAME", help="Who decides, for the ledger; default: $USER.")
]
WhyOption = Annotated[str, typer.Option("--why", metavar="TEXT", help="The reason, for the ledger.")]
_RELATIVE = re.compile(r"\.{1,2}/.*|[^/:@=][^:@=]*\.(?:db|sqlite3?)", re.DOTALL)
_NAMES = ("store", "store_password", "store_literals")


class Found(NamedTuple):
    """``url`` may hold a password; ``literals``: statements are kept with them."""

    url: str
    literals: bool


def find(option: str = "", config: Path | None = None, *, alone: bool = False) -> Found:
    """Where the store is; with ``alone`` by the option only, so that a password that is meant for another server does
    not go to this one. Raises StartError."""
    from pydantic import ValidationError

    from proxy.settings_store import StoreSettings, fold_store, holds_password

    try:
        if holds_password(option):
            raise StartError(
                "a password on the command line can be read by every user of this machine: put it into "
                "PILOTWIRE_STORE_PASSWORD, or the whole URL into PILOTWIRE_STORE"
            )
        values = _from_file(config) if config is not None else {}
        values |= {} if alone else {name: os.environ[f"PILOTWIRE_{name.upper()}"] for name in _NAMES if _given(name)}
        if option:
            # A path on the command line is meant from where one stands.
            values["store"] = str(Path(option).absolute()) if _RELATIVE.fullmatch(option) else option
        settings = StoreSettings.model_validate(fold_store(values))
    except ValidationError as error:
        raise StartError(f"{error.errors()[0]['loc'][0]}: {error.errors()[0]['msg'].lower()}") from None
    except ValueError as error:
        raise StartError(str(error)) from None
    url = settings.store_url
    if url is None:
        raise StartError("the store is switched off (store = none): nothing is remembered")
    return Found(url, settings.store_literals)


@contextlib.contextmanager
def opened(option: str, config: Path | None, *, create: bool = False) -> Iterator[Store]:
    """The store; what goes wrong with it, or with a decision, ends the command with one line. Without ``create`` it
    must exist and have this program's schema."""
    from planner.memory.store import open_store

    found = find(option, config)
    with plain_errors():
        store = open_store(found.url, migrate=create, create=create, literals=found.literals)
        try:
            yield store
        finally:
            store.close()


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    from planner.memory.store import StoreError
    from planner.memory.store.decisions import DecisionError

    try:
        yield
    except (StoreError, DecisionError) as error:
        raise StartError(str(error)) from None


def person(given: str) -> str:
    """Who decides: ``--actor``, $USER, or the name of the process' user."""
    name = given.strip() or os.environ.get("USER", "").strip()
    if not name:
        try:
            name = getpass.getuser()
        except (KeyError, OSError):
            name = f"uid {os.getuid()}"
    return name[:200]


def _given(name: str) -> bool:
    return bool(os.environ.get(f"PILOTWIRE_{name.upper()}"))


def _from_file(config: Path) -> dict[str, Any]:
    try:
        with config.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise StartError(f"cannot read the configuration file {config}: {error.strerror}") from None
    except ValueError as error:
        raise StartError(f"{config} is not valid TOML: {error}") from None
    return {name: values[name] for name in _NAMES if name in values}
