"""What is typed in the administration database, as commands. Pure.

Words are read as the server reads them: names without quotes are lower case, ``"quoted"`` ones are as they stand,
values are ``'strings'``, words or numbers, comments are skipped. What is not understood is refused in the server's own
way: SQLSTATE 42601, the word that was not expected, and the place where it stands.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

SHOWN: Final[dict[str, str]] = {
    "help": "these commands",
    "stats": "what has gone through by database since the start, and averages of the last minute",
    "pools": "connections by user and database",
    "clients": "who is connected; the id is for KILL",
    "servers": "connections to the server",
    "databases": "databases in use, and which are paused",
    "models": "files in the models' folder, and which serve",
    "decisions": "statements by what steering decided",
    "memory": "remembered queries, by what steering saved",
    "config": "settings in force",
    "version": "this program's version",
}
"""What SHOW takes, and what it shows. The name of a setting is taken as well."""

CHANGES: Final[dict[str, str]] = {
    "RELOAD": "read the settings again, as SIGHUP does",
    "PAUSE [database]": "let transactions end and new ones wait",
    "RESUME [database]": "let them go on",
    "KILL id": "cancel what a client runs, and end it",
    "SET name = value": "change a setting until RELOAD; SET mode = off stops steering at once",
}
"""The commands that only administrators may give."""

MAX_COMMANDS: Final = 100
"""In one message."""


@dataclass(frozen=True, slots=True)
class Command:
    """``verb`` is SHOW, RELOAD, PAUSE, RESUME, KILL or SET; ``name`` what it is about ("": everything), ``value`` what
    SET is to set. ``text`` is the command as it was typed, for the log."""

    verb: str
    name: str = ""
    value: str = ""

    @property
    def changes(self) -> bool:
        """Whether it does more than show."""
        return self.verb != "SHOW"


class CommandError(Exception):
    """A command that cannot be carried out: SQLSTATE, text, hint, and where in the text (from 1; 0: nowhere)."""

    def __init__(self, sqlstate: str, text: str, hint: str = "", position: int = 0) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate
        self.text = text
        self.hint = hint
        self.position = position


_TOKEN: Final = re.compile(
    r"(?P<space>\s+|--[^\n]*+)"
    r"|(?P<comment>/\*.*?\*/)"
    r"|\"(?P<quoted>(?>(?:[^\"]|\"\")*))\""
    r"|'(?P<string>(?>(?:[^']|'')*))'"
    r"|(?P<word>[^\s\"';=,()]+)"
    r"|(?P<sign>[;=,()])",
    re.DOTALL,
)
_HINT: Final = "SHOW HELP lists what there is."


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    raw: str
    position: int

    def word(self) -> str:
        """As a key word; "" when it cannot be one."""
        return self.text.upper() if self.kind == "word" else ""


_END: Final = _Token("end", "", "", 0)


def parse(text: str) -> list[Command]:
    """The commands of one message, in order; none for an empty one. Raises CommandError."""
    found: list[Command] = []
    part: list[_Token] = []
    for token in _tokens(text):
        if token.raw != ";":
            part.append(token)
            continue
        if part:
            found.append(_command(part))
            part = []
    if part:
        found.append(_command(part))
    if len(found) > MAX_COMMANDS:
        raise CommandError("54001", f"more than {MAX_COMMANDS} commands in one message")
    return found


def _tokens(text: str) -> Iterator[_Token]:
    pos = 0
    while pos < len(text):
        match = _TOKEN.match(text, pos)
        if match is None:
            what = "quoted identifier" if text[pos] == '"' else "quoted string" if text[pos] == "'" else "comment"
            raise CommandError("42601", f"unterminated {what} at or near {_shown(text[pos:])}", position=pos + 1)
        kind = str(match.lastgroup)
        if kind not in ("space", "comment"):
            value = match[kind]
            if kind == "quoted":
                value = value.replace('""', '"')
            elif kind == "string":
                value = value.replace("''", "'")
            yield _Token(kind, value, match[0], pos + 1)
        pos = match.end()


def _command(tokens: list[_Token]) -> Command:
    verb = tokens[0].word()
    rest = tokens[1:]
    match verb:
        case "SHOW":
            name = _name(rest[0]) if rest else ""
            if name == "all":
                name = "config"
            _end(rest, 1, least=1)
            return Command("SHOW", name)
        case "RELOAD":
            _end(rest, 0)
            return Command(verb)
        case "PAUSE" | "RESUME":
            _end(rest, 1)
            return Command(verb, _name(rest[0]) if rest else "")
        case "KILL":
            _end(rest, 1, least=1)
            if rest[0].kind not in ("word", "string"):
                raise _unexpected(rest[0])
            return Command(verb, rest[0].text)
        case "SET":
            return _set(rest)
    raise _unexpected(tokens[0])


def _set(rest: list[_Token]) -> Command:
    if rest and rest[0].word() == "SESSION":
        rest = rest[1:]
    if not rest:
        raise _unexpected(_END)
    name = _name(rest[0])
    if len(rest) < 2 or not (rest[1].raw == "=" or rest[1].word() == "TO"):
        raise _unexpected(rest[1] if len(rest) > 1 else _END)
    values = rest[2:]
    if not values:
        raise _unexpected(_END)
    for index, token in enumerate(values):
        # A list is values with commas between them.
        if (token.raw == ",") is not (index % 2 == 1) or token.raw in ("=", "(", ")"):
            raise _unexpected(token)
    if len(values) % 2 == 0:
        raise _unexpected(_END)
    return Command("SET", name, ",".join(token.text for token in values[::2]))


def _name(token: _Token) -> str:
    if token.kind == "word":
        return token.text.lower()
    if token.kind == "quoted" and token.text:
        return token.text
    raise _unexpected(token)


def _end(rest: list[_Token], most: int, least: int = 0) -> None:
    if len(rest) > most:
        raise _unexpected(rest[most])
    if len(rest) < least:
        raise _unexpected(_END)


def _unexpected(token: _Token) -> CommandError:
    if token is _END:
        return CommandError("42601", "syntax error at end of input", _HINT)
    return CommandError("42601", f"syntax error at or near {_shown(token.raw)}", _HINT, token.position)


def _shown(text: str) -> str:
    return f'"{text[:40]}"'
