"""Who and what is not steered, and which statements are worth it.

Pure: the caller brings names, fingerprints and times. The global mode and a session's own are the wire worker's to
obey, which does not ask while they say so; an opt-out inside a statement's text is found by `planner.sql`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

OBSERVATIONS: Final = 5
"""How often a template must have been measured before its times overrule the estimate."""
_AROUND: Final = re.compile(
    r"\s*(?:explain\b(?:\s*\([^()]*\)|(?:\s+(?:analyze|analyse|verbose)\b)*)"
    r"|prepare\s+(?:\"(?:[^\"]|\"\")+\"|[\w$]+)\s+as\b)\s*(?=(?:select|with|table|values)\b|\()",
    re.I,
)


@dataclass(frozen=True, slots=True)
class OptOuts:
    """Names as PostgreSQL knows them; fingerprints as `fingerprint` gives them."""

    users: frozenset[str] = frozenset()
    databases: frozenset[str] = frozenset()
    applications: frozenset[str] = frozenset()
    fingerprints: frozenset[str] = frozenset()

    def session(self, user: str, database: str, application: str) -> bool:
        """Whether nothing of such a session is steered."""
        return user in self.users or database in self.databases or application in self.applications

    def statement(self, text: str) -> bool:
        """Whether this statement, or the query in it, is not steered; costs a fingerprint (5 to 80 us) only when some
        are listed."""
        if not self.fingerprints:
            return False
        query = carried(text)
        return fingerprint(text) in self.fingerprints or (query != text and fingerprint(query) in self.fingerprints)


def carried(text: str) -> str:
    """The query in an EXPLAIN or in a PREPARE without parameters; any other text as it is."""
    return _AROUND.sub("", text, count=1)


def fingerprint(text: str) -> str:
    """The statement without its literals as 16 hexadecimal digits, the same as pg_query's; "" for what is no SQL."""
    import pglast
    from pglast.parser import ParseError

    try:
        return str(pglast.fingerprint(text))
    except (ParseError, ValueError, RecursionError):
        return ""


MODES: Final = ("off", "observe", "shadow", "canary", "on")
"""From the least to the most; see `proxy.settings_steering`."""
SCOPES: Final = ("database", "user", "application", "fingerprint")


class ModeError(ValueError):
    """A rule for a mode cannot be read."""


@dataclass(frozen=True, slots=True)
class ModeRule:
    """``names`` maps `SCOPES` to names; all must match. None at all: everything."""

    mode: str
    names: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Modes:
    """Modes for some databases, users, applications and fingerprints: the first rule that matches counts. The global
    mode and the session's own are the wire worker's to obey; the lower of all holds."""

    rules: tuple[ModeRule, ...] = ()

    @property
    def fingerprints(self) -> bool:
        """Whether a rule names a fingerprint."""
        return any(scope == "fingerprint" for rule in self.rules for scope, _ in rule.names)

    def mode(self, database: str, user: str, application: str, fingerprint: str = "") -> str:
        """The mode of one statement."""
        names = {"database": database, "user": user, "application": application, "fingerprint": fingerprint}
        for rule in self.rules:
            if all(names[scope] == name for scope, name in rule.names):
                return rule.mode
        return "on"


def modes(texts: Iterable[str]) -> Modes:
    """Rules from their texts: ``user=batch:off``, ``database=app user=report:canary``, ``*:shadow`` for the rest.
    Raises ModeError."""
    rules = []
    for text in texts:
        names, found, mode = text.strip().rpartition(":")
        if not found or mode.strip() not in MODES:
            raise ModeError(f"{text!r}: a rule is NAMES:MODE, with one of the modes {', '.join(MODES)}")
        parts = [] if names.strip() in ("", "*") else names.split()
        pairs = []
        for part in parts:
            scope, found, name = part.partition("=")
            if not found or scope not in SCOPES or not name:
                raise ModeError(f"{part!r}: names are {', '.join(f'{one}=NAME' for one in SCOPES)}, or * for all")
            pairs.append((scope, name.lower() if scope == "fingerprint" else name))
        rules.append(ModeRule(mode.strip(), tuple(pairs)))
    return Modes(tuple(rules))


@dataclass(slots=True)
class TemplateTimes:
    """What the statements of one template took when nothing was added: a moving mean and maximum in milliseconds."""

    count: int = 0
    mean_ms: float = 0.0
    peak_ms: float = 0.0

    def add(self, took_ms: float) -> None:
        self.count += 1
        weight = max(1 / self.count, 0.1)
        self.mean_ms += weight * (took_ms - self.mean_ms)
        # The peak fades, so that one slow run (a cold cache) is not held against the template for ever.
        self.peak_ms = max(took_ms, self.peak_ms * 0.95)

    @property
    def known(self) -> bool:
        return self.count >= OBSERVATIONS


def cheap(estimated_ms: float, times: TemplateTimes | None, min_ms: float) -> bool:
    """Whether a statement is not worth advice: measured below ``min_ms`` at its worst, or, never measured, estimated
    below it."""
    if times is not None and times.known:
        return times.peak_ms < min_ms
    return estimated_ms < min_ms
