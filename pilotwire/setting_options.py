"""Command-line options for all settings, made from the settings' own documentation.

``with_settings`` gives a command function one option for each setting, in the order and groups of the documentation.
Values stay text: pilotwire/config.py validates them together with those from the other sources.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from pilotwire.config import LISTS, SECRETS
from proxy.options import OptionDoc, choices
from proxy.settings import ProxySettings, docs


def with_settings(function: Callable[..., int]) -> Callable[..., int]:
    """``function(config, ..., **settings)`` with its ``**settings`` spelt out as options of the command."""
    signature = inspect.signature(function, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    all_parameters = [*own, *(_parameter(name, doc) for name, doc in docs().items())]
    function.__signature__ = signature.replace(parameters=all_parameters)  # type: ignore[attr-defined]
    return function


def _parameter(name: str, doc: OptionDoc) -> inspect.Parameter:
    field = ProxySettings.model_fields[name]
    flag = "--" + name.replace("_", "-")
    kind: Any = str | None
    declarations = [flag]
    if field.annotation is bool:
        kind = bool | None
        declarations = [f"{flag}/--no-{flag[2:]}"]
    elif name in LISTS:
        kind = list[str] | None
    names = choices(field.annotation)
    text = (field.description or "") + (f" One of: {', '.join(names)}." if names else "")
    option = typer.Option(
        None,
        *declarations,
        help=_plain(text),
        show_default=False if kind == bool | None else _plain(doc.default),
        metavar=None if kind == bool | None else doc.unit.upper(),
        rich_help_panel=doc.group,
        hidden=name in SECRETS,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=option, annotation=kind)


def _plain(text: str) -> str:
    """Text whose square brackets rich does not take for mark-up."""
    return text.replace("[", "\\[")


CONFIG_OPTION: Path | None = typer.Option(
    None,
    "--config",
    "-c",
    metavar="FILE",
    help="TOML file with settings by the names of these options, with _ for -. Also PILOTWIRE_CONFIG.",
)
