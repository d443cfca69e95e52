"""How a setting is declared: its value's type and everything the documentation says about it, in one place.

``option(...)`` returns a pydantic field whose ``json_schema_extra`` holds an ``OptionDoc``: group, unit, reason,
warning and whether the setting follows a SIGHUP. The command line's help, ``pilotwire check`` and
docs/configuration.md are all made from it, so nothing is written down twice.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BeforeValidator, Field
from pydantic.fields import FieldInfo

_DURATION_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
# As PostgreSQL counts them: kB, MB and GB are powers of 1024; the IEC names mean the same.
_SIZE_UNITS = {
    "b": 1,
    "kb": 1 << 10,
    "mb": 1 << 20,
    "gb": 1 << 30,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*\Z")


class OptionDoc(NamedTuple):
    """What the documentation says of one setting besides its name, type and description."""

    group: str
    default: str
    unit: str
    reason: str
    warning: str
    reload: bool


def option(
    default: object = ...,
    *,
    group: str,
    description: str,
    unit: str,
    reason: str,
    warning: str,
    reload: bool,
    shown_default: str | None = None,
    **constraints: Any,
) -> Any:
    """A field with its documentation; ``shown_default`` replaces a default that is worked out from other settings.

    ``constraints`` go to pydantic's ``Field`` (ge, le, gt, max_length ...). A list default is copied per instance.
    """
    doc = OptionDoc(group, _show(default) if shown_default is None else shown_default, unit, reason, warning, reload)
    extra: dict[str, Any] = {"pilotwire": doc._asdict()}
    if isinstance(default, list):
        return Field(default_factory=default.copy, description=description, json_schema_extra=extra, **constraints)
    return Field(default=default, description=description, json_schema_extra=extra, **constraints)


def option_doc(field: FieldInfo) -> OptionDoc:
    """The documentation of a field declared by ``option``; KeyError for any other field."""
    extra = field.json_schema_extra
    if not isinstance(extra, dict):
        raise KeyError("pilotwire")
    doc: Any = extra["pilotwire"]
    return OptionDoc(**doc)


def choices(annotation: object) -> list[str]:
    """The texts that a Literal (or an optional one) allows; [] for any other type."""
    found: list[str] = []
    if get_origin(annotation) is Literal:
        return [str(part) for part in get_args(annotation)]
    for part in get_args(annotation):
        found += choices(part)
    return found


def _show(default: object) -> str:
    if default is ...:
        return "required"
    if default is None or default in ("", []):
        return "not set"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list):
        return ", ".join(str(item) for item in default)
    if isinstance(default, float):
        return f"{default:g}"
    return str(default)


def parse_duration(value: object) -> object:
    """Seconds from '250ms', '30 s', '5min', '1h', '2d'; a bare number is seconds already. ValueError otherwise."""
    return _quantity(
        value, _DURATION_UNITS, "a duration is a number of seconds or has a unit: 250ms, 30s, 5min, 1h, 2d"
    )


def parse_size(value: object) -> object:
    """Bytes from '64kB', '1MB', '2GiB' (powers of 1024); a bare number is bytes already. ValueError otherwise."""
    number = _quantity(value, _SIZE_UNITS, "a size is a number of bytes or has a unit: 64kB, 1MB, 2GB")
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _quantity(value: object, units: dict[str, float] | dict[str, int], complaint: str) -> object:
    if not isinstance(value, str):
        if isinstance(value, bool):
            raise ValueError(complaint)
        return value
    match = _QUANTITY.match(value)
    if match is None:
        raise ValueError(complaint)
    factor = units.get(match[2].lower()) if match[2] else 1.0
    if factor is None:
        raise ValueError(complaint)
    return float(match[1]) * factor


def split_list(value: object) -> object:
    """A list from a comma-separated text (environment, command line); lists pass through."""
    if isinstance(value, str):
        return [item for part in value.split(",") if (item := part.strip())]
    return value


Seconds = Annotated[float, BeforeValidator(parse_duration)]
Bytes = Annotated[int, BeforeValidator(parse_size)]
Names = Annotated[list[str], BeforeValidator(split_list)]
