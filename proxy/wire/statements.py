"""What a statement's text says about session state: what a pooled backend must know before it is given away.

The truth about session state comes from the server (command tags, ParameterStatus, `current_setting`); the text is
only asked for what the server does not tell: which settings a SET named, and whether something was done that binds the
client to its backend without a tag of its own. Everything errs towards keeping the backend.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

# What a text can say, as bits.
SETS: Final = 1  # may change settings: contains SET, RESET or set_config
SET_CONFIG: Final = 2
ADVISORY: Final = 4
TEMPORARY: Final = 8
HOLD: Final = 16
DATABASE: Final = 32  # creates, drops or alters a database
BY_NAME: Final = 64  # DEALLOCATE or EXECUTE of a prepared statement
UNLOCKS: Final = 128  # releases advisory locks
STATE: Final = 255  # all of them

NAME_LIMIT: Final = 62
"""Bytes of a prepared statement's or a portal's name that is kept; a longer one may have been cut by the server."""

_SETS = re.compile(rb"\b(?:re)?set\b")
_ADVISORY = re.compile(rb"pg_(?:try_)?advisory_lock")
_TEMPORARY = re.compile(rb"\b(?:pg_temp|temp\b|temporary\b)")
_HOLD = re.compile(rb"\bwith\s+hold\b")
_DATABASE = re.compile(rb"\b(?:create|drop|alter)\s+database\b")
_BY_NAME = re.compile(
    rb"(?is)\A(?>(?:[\s;]|--[^\n]*\n|/\*.*?\*/)*)"
    rb"(?:(?P<deallocate>deallocate)(?:\s+prepare)?"
    rb"|(?:explain\s+(?>(?:(?:analyze|verbose)\s+|\([^()]*\)\s*)*))?execute)\s+"
    rb'(?P<name>"(?:[^"]|"")+"|[a-z_\x80-\xff][\w$\x80-\xff]*)'
)


def classify(text: bytes) -> int:
    """The bits that a statement's text gives; about 0.4 us for a short text that gives none."""
    lower = text.lower()
    flags = 0
    if lower.find(b"set") >= 0:
        if lower.find(b"set_config") >= 0 or (lower.find(b"pg_settings") >= 0 and lower.find(b"update") >= 0):
            flags |= SETS | SET_CONFIG
        elif _SETS.search(lower):
            flags |= SETS
    if lower.find(b"advisory") >= 0:
        if _ADVISORY.search(lower):
            flags |= ADVISORY
        if lower.find(b"pg_advisory_unlock") >= 0:
            flags |= UNLOCKS
    if lower.find(b"temp") >= 0 and _TEMPORARY.search(lower):
        flags |= TEMPORARY
    if lower.find(b"hold") >= 0 and _HOLD.search(lower):
        flags |= HOLD
    if lower.find(b"database") >= 0 and _DATABASE.search(lower):
        flags |= DATABASE
    if (lower.find(b"deallocate") >= 0 or lower.find(b"execute") >= 0) and _BY_NAME.match(text):
        flags |= BY_NAME
    return flags


_NAME = rb'(?:"(?:[^"]|"")+"|[a-z_\x80-\xff][\w$\x80-\xff]*)'
# A SET or RESET that begins a statement, in SQL or in a procedural language: the SET of an UPDATE is none.
_SET = re.compile(
    rb"(?:\A|;|\b(?:begin|then|else|loop)\b)\s*"
    rb"(?P<verb>re)?set\s+(?:session\s+(?!authorization|characteristics)|(?P<local>local\s+))?"
    rb"(?P<name>time\s+zone|session\s+authorization|session\s+characteristics|"
    + _NAME
    + rb"(?:\s*\.\s*"
    + _NAME
    + rb")*)(?P<default>\s*(?:=|to\b)\s*default\b)?"
)
_SET_CONFIG = re.compile(rb"\bset_config\s*\(\s*'(?P<name>[^'\\]+)'")
_COMMENT = re.compile(rb"--[^\n\r]*|/\*.*?\*/", re.DOTALL)
_SPOKEN: Final[dict[bytes, tuple[bytes, ...]]] = {
    b"time zone": (b"timezone",),
    b"names": (b"client_encoding",),
    b"schema": (b"search_path",),
    b"xml": (b"xmloption",),
    b"transaction": (),
    b"constraints": (),
    b"session characteristics": (
        b"default_transaction_isolation",
        b"default_transaction_read_only",
        b"default_transaction_deferrable",
    ),
}
# Settings whose effect cannot be carried to another backend by setting them there.
UNTRACKABLE: Final = frozenset({b"session authorization", b"session_authorization", b"seed"})
# Settings of the transaction that is running: gone with it.
_PASSING: Final = frozenset({b"transaction_isolation", b"transaction_read_only", b"transaction_deferrable"})


# Whether constants and operators of a text mean the same does not depend on these, or the server reports them.
_NOT_READING: Final = re.compile(
    rb"(?:datestyle|intervalstyle|timezone|client_encoding|standard_conforming_strings|application_name|search_path|role"
    rb"|session_?authorization|client_min_messages|extra_float_digits|bytea_output|work_mem|maintenance_work_mem|jit|geqo"
    rb"|synchronous_commit|row_security|cursor_tuple_fraction|effective_cache_size|check_function_bodies|plan_cache_mode"
    rb"|session_replication_role|constraint_exclusion|local_preload_libraries|seed|compute_query_id|password_encryption"
    rb"|default_(?:tablespace|table_access_method|toast_compression|statistics_target|with_oids)|commit_\w+|parallel_\w+"
    rb"|(?:default_)?transaction_\w+|\w+_(?:timeout|cost|limit)|(?:enable|log|debug|track|max|min|vacuum|temp)_\w+"
    rb"|.*\..*)\Z"  # what applications keep there, mostly
)


def changes_reading(text: bytes) -> bool:
    """Whether a text may change a setting by which constants and operators are read, and which the server does not
    report (transform_null_equals, xmloption, array_nulls), if only for its transaction."""
    lower = text.lower()
    if lower.find(b"set_config") < 0:
        if lower.find(b";") < 0 and lower.lstrip()[:6] in (b"update", b"insert", b"delete"):
            return False  # by far the most frequent with a SET in them, and they can be long
    else:
        literals = [match["name"] for match in _SET_CONFIG.finditer(lower)]
        if lower.count(b"set_config") > len(literals) or any(_NOT_READING.match(name) is None for name in literals):
            return True
    for match in _SET.finditer(_COMMENT.sub(b" ", lower)):
        if not (match["verb"] and match["name"] == b"all"):
            spoken = b" ".join(match["name"].split())
            names = _SPOKEN.get(spoken, (b"".join(spoken.replace(b'"', b"").split()),))
            if any(_NOT_READING.match(name) is None for name in names):
                return True
    return lower.find(b"pg_settings") >= 0 and lower.find(b"update") >= 0


def begins_set(text: bytes) -> bool:
    """Whether a statement in a text is a SET or RESET, as far as a piece of the text can tell."""
    return _SET.search(text.lower()) is not None


class NamedSettings:
    """What `settings_named` finds: the names that may change for the session, those among them that go back to their
    defaults, whether RESET ALL is there (``everything``), whether a set_config hides its setting's name (``opaque``),
    and how many SET and RESET statements there are, those without effect on the session included."""

    __slots__ = ("count", "everything", "names", "opaque", "to_default")

    def __init__(self) -> None:
        self.names: set[bytes] = set()
        self.to_default: set[bytes] = set()
        self.everything = False
        self.opaque = False
        self.count = 0


def settings_named(text: bytes) -> NamedSettings:
    """The settings that SET, RESET and set_config in a text may change for the session. Words that only look like
    settings may be among the names."""
    found = NamedSettings()
    lower = text.lower()
    # What looks like a comment may stand in a string, so the text is searched with and without it.
    for version in {lower, _COMMENT.sub(b" ", lower)}:
        count = 0
        for match in _SET.finditer(version):
            count += 1
            if not match["local"]:
                _note(found, match)
        found.count = max(found.count, count)
        if b"set_config" in version:
            literals = [match["name"] for match in _SET_CONFIG.finditer(version)]
            found.names.update(literals)
            found.opaque = found.opaque or version.count(b"set_config") > len(literals)
    if b"pg_settings" in lower and b"update" in lower:
        found.opaque = True
    found.names -= _PASSING
    return found


def _note(found: NamedSettings, match: re.Match[bytes]) -> None:
    name = b" ".join(match["name"].split())
    if match["verb"] and name == b"all":
        found.everything = True
        return
    names = _SPOKEN.get(name)
    if names is None:
        names = (b"".join(part.strip().strip(b'"') for part in _dotted(name)),)
    found.names.update(names)
    if match["verb"] or match["default"]:
        found.to_default.update(names)
    else:
        found.to_default.difference_update(names)


def _dotted(name: bytes) -> list[bytes]:
    parts = name.split(b".")
    return [part if at == 0 else b"." + part.strip().strip(b'"') for at, part in enumerate(parts)]


class PreparedName(NamedTuple):
    """Where a text names a prepared statement: ``name`` is as the server folds it."""

    start: int
    end: int
    name: bytes
    deallocates: bool

    def replaced(self, text: bytes, name: bytes) -> bytes:
        """The text about the statement of another name."""
        return text[: self.start] + identifier(name) + text[self.end :]


def prepared_name(text: bytes) -> PreparedName | None:
    """The statement that a DEALLOCATE, EXECUTE or EXPLAIN EXECUTE is about."""
    match = _BY_NAME.match(text)
    if match is None:
        return None
    name = match["name"]
    folded = name[1:-1].replace(b'""', b'"') if name.startswith(b'"') else name.lower()
    if folded in (b"all", b"prepare") and not name.startswith(b'"'):
        return None
    return PreparedName(match.start("name"), match.end("name"), folded, match["deallocate"] is not None)


_DATABASE_NAME = re.compile(
    rb'(?is)\b(?:database(?:\s+if\s+(?:not\s+)?exists)?|template)\s*=?\s*(?P<name>"(?:[^"]|"")+"|[a-z_\x80-\xff][\w$\x80-\xff]*)'
)


def databases_named(text: bytes) -> set[str]:
    """The databases that a CREATE, DROP or ALTER DATABASE touches, the template among them."""
    names = {"template1"}
    for match in _DATABASE_NAME.finditer(text):
        name = match["name"].decode("utf-8", "surrogateescape")
        names.add(name[1:-1].replace('""', '"') if name.startswith('"') else name.lower())
    return names


def literal(value: bytes) -> bytes:
    """An SQL string constant, good under either setting of standard_conforming_strings."""
    return b" E'" + value.replace(b"\\", b"\\\\").replace(b"'", b"''") + b"'"


def identifier(name: bytes) -> bytes:
    return b'"' + name.replace(b'"', b'""') + b'"'
