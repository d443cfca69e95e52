"""Where settings come from: command line, PILOTWIRE_* environment, TOML file, in this order of precedence.

``Settings`` only joins the packages' own models for pydantic-settings; ``load`` reads each source apart, so that every
value is known with its origin, and builds the ``ProxySettings``. What a DSN says besides the address (its password,
sslmode and the like) counts as said by the source the winning DSN comes from; a DSN that was overruled leaves nothing
behind, so that no password is ever sent to a server it was not meant for.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from pilotwire import secret_files
from proxy import settings_rules, settings_store
from proxy.settings import ListenerOptions, ProxySettings, docs

PREFIX = "PILOTWIRE_"
COMMAND_LINE, ENVIRONMENT, DEFAULT = "command line", "environment", "default"
WORKED_OUT = "worked out from other settings"
SECRETS = frozenset({"admin_token", "store_password", "upstream_password"})
LISTS = frozenset({
    "admin_users", "listen", "read_only_users", "stats_users", "steer_off_applications", "steer_off_databases",
    "steer_off_fingerprints", "steer_modes", "steer_off_users",
})  # fmt: skip
_NOT_SETTINGS = frozenset({"PILOTWIRE_CONFIG", settings_store.STATE_VARIABLE})


class SettingsError(ValueError):
    """The settings cannot be used; ``str()`` is one sentence without secrets that says what to do."""


class Settings(BaseSettings, ProxySettings):
    """All settings of the program under flat names, as pydantic-settings reads them."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        env_prefix=PREFIX,
        env_ignore_empty=True,
        enable_decoding=False,
    )


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings with the origin of each one and the sentences worth showing when they are loaded."""

    settings: ProxySettings
    origins: dict[str, str]
    warnings: list[str]


@dataclass(slots=True)
class _Layer:
    origin: str
    values: dict[str, Any]


def load(config: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Loaded:
    """Read all sources. ``overrides`` holds what the command line gave, by field name.

    ``config`` falls back to PILOTWIRE_CONFIG. Raises SettingsError. Call it again to re-read what has changed.
    """
    if config is None and (named := os.environ.get("PILOTWIRE_CONFIG")):
        config = Path(named)
    layers = [
        _Layer(COMMAND_LINE, _from_command_line(overrides or {})),
        _Layer(ENVIRONMENT, _from_environment()),
    ]
    warnings = _unknown_variables()
    if config is not None:
        layers.append(_Layer(str(config), _from_toml(config)))
    try:
        secret_files.check_config(config, layers[-1].values, warnings)
        values, origins = _merge(layers)
        _read_passfile(values, origins)
        settings = ProxySettings.model_validate(values)
        secret_files.check_paths(settings, warnings)
    except ValidationError as error:
        raise SettingsError(_sentence(error, origins)) from None
    except ValueError as error:
        raise SettingsError(str(error)) from None
    for name, field in ProxySettings.model_fields.items():
        if name not in origins:
            as_declared = getattr(settings, name) == field.get_default(call_default_factory=True)
            origins[name] = DEFAULT if as_declared else WORKED_OUT
    return Loaded(settings, origins, warnings + settings.warnings())


def _from_command_line(overrides: Mapping[str, Any]) -> dict[str, Any]:
    values = {name: value for name, value in overrides.items() if value is not None}
    for name in LISTS & values.keys():
        # An option may be repeated and may hold several items separated by commas.
        values[name] = values[name] if isinstance(values[name], str) else ",".join(values[name])
    in_store = "store_password" in values or settings_store.holds_password(values.get("store"))
    if in_store or not SECRETS.isdisjoint(values) or _holds_password(values.get("upstream")):
        raise SettingsError(
            "a password on the command line can be read by every user of this machine: put the DSN into "
            f"{'PILOTWIRE_STORE' if in_store else 'PILOTWIRE_UPSTREAM'} or a TOML file of mode 0600, or the password "
            f"into {'the passfile of libpq (PGPASSFILE)' if in_store else 'a passfile (--upstream-passfile)'}"
        )
    return values


def _holds_password(upstream: object) -> bool:
    if not isinstance(upstream, str):
        return False
    try:
        return settings_rules.fold_dsn({"upstream": upstream}).get("upstream_password") is not None
    except ValueError as error:
        raise SettingsError(f"--upstream: {error}") from None


def _from_environment() -> dict[str, Any]:
    return EnvSettingsSource(Settings)()


def _unknown_variables() -> list[str]:
    """Warnings about variables that look like a misspelt setting; others with the prefix are not ours to judge
    (Kubernetes, for one, sets PILOTWIRE_SERVICE_HOST for a service of that name)."""
    known = {PREFIX + name.upper() for name in docs()}
    found: list[str] = []
    for variable in sorted(os.environ):
        name = variable.upper()
        if name.startswith(PREFIX) and name not in known and name not in _NOT_SETTINGS:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
            if near:
                found.append(f"the variable {variable} is not a setting; did you mean {near[0]}?")
    return found


def _from_toml(config: Path) -> dict[str, Any]:
    try:
        with config.open("rb"):
            pass
        values = dict(TomlConfigSettingsSource(Settings, toml_file=config)())
    except OSError as error:
        raise SettingsError(f"cannot read the configuration file {config}: {error.strerror}") from None
    except ValueError as error:
        # The message of a TOML error names a line and column and never quotes the text.
        raise SettingsError(f"{config} is not valid TOML: {error}") from None
    for name in values:
        if name not in docs():
            near = difflib.get_close_matches(name.replace("-", "_").lower(), docs(), n=1)
            raise SettingsError(
                f'unknown setting "{name}" in {config}' + (f'; did you mean "{near[0]}"?' if near else "")
            )
    folder = config.absolute().parent
    for name, doc in docs().items():
        value = values.get(name)
        if doc.unit in ("path", "folder") and isinstance(value, str) and value not in ("", "system"):
            values[name] = str(folder / value)
    return values


def _merge(layers: list[_Layer]) -> tuple[dict[str, Any], dict[str, str]]:
    """One value for each name with its origin; of several DSNs only the winning one is taken apart."""
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    upstream_taken = False
    for layer in layers:
        found = layer.values
        if "upstream" in found and not upstream_taken:
            upstream_taken = True
            try:
                found = settings_rules.fold_dsn(found)
            except ValueError as error:
                raise SettingsError(f"upstream ({layer.origin}): {error}") from None
        for name, value in found.items():
            if name not in values:
                values[name] = value
                origins[name] = layer.origin if name in layer.values else f"{layer.origin}, in upstream"
    return values, origins


def _read_passfile(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Fill ``upstream_password`` from the passfile when nothing nearer gives one."""
    path = values.get("upstream_passfile")
    if not path or values.get("upstream_password") or not isinstance(values.get("upstream"), str):
        return
    values["upstream_password"] = secret_files.passfile_password(Path(path), values["upstream"])
    origins["upstream_password"] = f"passfile {path}"


def _sentence(error: ValidationError, origins: dict[str, str]) -> str:
    parts = [_describe(detail, origins) for detail in error.errors(include_url=False)]
    return "; ".join(dict.fromkeys(parts))


def _describe(detail: ErrorDetails, origins: dict[str, str]) -> str:
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    if detail["type"] == "missing":
        if name == "upstream":
            return (
                "no upstream is given: pass --upstream postgresql://user@host:5432/database, or set PILOTWIRE_UPSTREAM "
                "or upstream in the TOML file"
            )
        return f"{'.'.join(str(part) for part in detail['loc'])} is missing"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(detail["loc"][-1]), ListenerOptions.model_fields, n=1)
        return f'{name}: unknown key "{detail["loc"][-1]}"' + (f'; did you mean "{near[0]}"?' if near else "")
    given = detail["input"]
    shown = (
        f" {given!r}" if name not in SECRETS | {"store", "upstream"} and isinstance(given, str | int | float) else ""
    )
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}{shown[:200]} ({origins.get(name, DEFAULT)}): {message}"
