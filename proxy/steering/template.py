"""What a statement is without its literals: the key under which statements of one kind are judged together.

`template` makes the key of a text: literals become placeholders, lists of literals behind IN become one, comments go,
white space is one blank, and what is not quoted is lower case. Two texts with the same key have the same parse tree but
for literals; the converse need not hold. On the way it finds what forbids steering: a hint comment, an opt-out, several
statements, a literal without an end.

Cost: about 6 us for 300 bytes with ten literals, 5 us for 300 bytes of quoted names. One regular expression finds the
few places that matter (quotes, comments, digits that begin a number, semicolons); its first character class lets the
engine skip everything else. Quantifiers are possessive, groups that repeat are atomic (a possessive group matches what
it should not before CPython 3.11.5) and a literal without an end stops the walk, so that the time is linear for any
input. Texts longer than `HOLD_LIMIT` never get here.
"""

from __future__ import annotations

import re
from typing import Final

# What a text can be besides its key, as bits.
HINTED: Final = 1  # it carries a hint comment of its own
OPTED_OUT: Final = 2  # it carries /* pilotwire: off */
SEVERAL: Final = 4  # more than one statement
BROKEN: Final = 8  # a literal, quoted name or comment has no end

_WORD: Final = rb"[\w$\x80-\xff]"
# A string goes on behind white space with a line break in it, comments included.
_CONTINUED: Final = rb"(?>(?:[ \t\f\v]|--[^\n\r]*+)*)[\n\r](?>(?:[\s\v]|--[^\n\r]*+[\n\r])*)'"


def _pattern(*, conforming: bool) -> re.Pattern[bytes]:
    """What is looked for; the first byte of a match says which it is. ``conforming``: standard_conforming_strings."""
    escaped = rb"[^'\\]*+(?>(?:(?:\\.|'')[^'\\]*+)*)'"
    escaped += rb"(?>(?:" + _CONTINUED + escaped + rb")*)"
    plain = rb"[^']*+(?>(?:''[^']*+)*)'"
    plain = plain + rb"(?>(?:" + _CONTINUED + plain + rb")*)" if conforming else escaped
    return re.compile(
        rb"['\"$/;0-9.-](?:"
        # A number; digits within a word or behind the $ of a parameter are none.
        rb"(?<=[0-9])(?<!" + _WORD + rb"[0-9])(?:(?<=0)[xXoObB]\w++|[0-9_]*+(?:\.[0-9_]*+)?(?:[eE][+-]?[0-9]++)?)"
        rb"|(?<=\.)[0-9][0-9_]*+(?:[eE][+-]?[0-9]++)?"
        # A string: with escapes behind an E that is not the end of a word.
        rb"|(?<=')(?:(?<=[eE]')(?<!" + _WORD + rb"[eE]')" + escaped
        + rb"|(?:(?<![eE]')|(?<=" + _WORD + rb"[eE]'))" + plain + rb"|)"
        # Quoted names: as many as stand close together, when there is nothing in them to be kept apart.
        rb"|(?<=\")(?:[a-z_][a-z0-9_]*+\"(?!\")(?>(?:[^'\"$/;0-9-]*+\"[a-z_][a-z0-9_]*+\"(?!\"))*)"
        rb"|(?P<odd>[^\"]*+(?>(?:\"\"[^\"]*+)*)\")|)"
        rb"|(?<=-)-[^\r\n]*+"
        rb"|(?<=/)\*(?:[^*]*+\*++(?>(?:[^/*][^*]*+\*++)*)/)?"
        rb"|(?<=\$)(?<!" + _WORD + rb"\$)(?P<tag>(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*+)?)\$(?P<body>.*?\$(?P=tag)\$)?"
        rb"|(?<=;))",
        re.DOTALL,
    )  # fmt: skip


_CONFORMING: Final = _pattern(conforming=True)
_ESCAPING: Final = _pattern(conforming=False)
_APART: Final = re.compile(rb"[\s\v(]")  # what must not stand in a name, since keys are edited once more
_COMMENT_ENDS: Final = re.compile(rb"/\*|\*/")
_OPT_OUT: Final = re.compile(rb"\bpilotwire\s*:\s*off\b", re.IGNORECASE)
_ITEM: Final = rb"-?(?:0|''|\$[0-9]++)"
_IN_LIST: Final = re.compile(
    rb"in ?\((?<![\w$\x80-\xff\"]in\()(?<![\w$\x80-\xff\"]in \() ?" + _ITEM + rb"(?>(?: ?, ?" + _ITEM + rb")*) ?\)"
)
_QUOTE: Final = 0x27
_NAME: Final = 0x22
_DASH: Final = 0x2D
_SLASH: Final = 0x2F
_DOLLAR: Final = 0x24
_SEMICOLON: Final = 0x3B


def template(text: bytes, *, conforming: bool = True) -> tuple[bytes, int]:
    """The key of a text, and the bits of what forbids steering it. ``conforming``: standard_conforming_strings.

    With BROKEN the key covers the text up to the place where it broke.
    """
    lower = text.lower()
    pieces: list[bytes] = []
    pos = 0
    flags = 0
    semicolon = -1
    pattern = _CONFORMING if conforming else _ESCAPING
    resume = 0
    while resume >= 0 and not flags & BROKEN:
        matches = pattern.finditer(text, resume)
        resume = -1
        for match in matches:
            start, end = match.span()
            first = text[start]
            if first == _QUOTE:
                if end - start == 1:
                    flags |= BROKEN
                    break
                pieces.append(lower[pos:start])
                pieces.append(b"''")
            elif first == _NAME:
                if match.lastgroup is None:
                    if end - start == 1:
                        flags |= BROKEN
                        break
                    continue
                pieces.append(lower[pos:start])
                pieces.append(_name(text[start:end]))
            elif first == _DASH:
                pieces.append(lower[pos:start])
                pieces.append(b" ")
                flags |= _comment(text[start:end])
            elif first == _SLASH:
                pieces.append(lower[pos:start])
                pieces.append(b" ")
                if end - start > 2 and text.find(b"/*", start + 2, end) > 0:
                    end = resume = _comment_end(text, start + 2)
                flags |= _comment(text[start:end]) if end - start > 2 else BROKEN
            elif first == _DOLLAR:
                if match["body"] is None:
                    flags |= BROKEN
                    break
                pieces.append(lower[pos:start])
                pieces.append(b"''")
            elif first == _SEMICOLON:
                pieces.append(lower[pos:start])
                if semicolon < 0:
                    semicolon = len(pieces)
                pieces.append(b";")
            else:
                pieces.append(lower[pos:start])
                pieces.append(b"0")
            pos = end
            if flags & BROKEN or resume >= 0:
                break
    if pos:
        pieces.append(lower[pos:])
        lower = b"".join(pieces)
    if semicolon >= 0:
        if b"".join(pieces[semicolon:]).strip(b"; \t\n\r\f\v"):
            flags |= SEVERAL
        lower = lower.rstrip(b"; \t\n\r\f\v")
    key = b" ".join(lower.split())
    if key.find(b"in (") >= 0 or key.find(b"in(") >= 0:
        key = _IN_LIST.sub(b"in (0)", key)
    return key, flags


_SPACE: Final = b" \t\n\r\f\v"


def uncommented(text: bytes, *, conforming: bool = True) -> bytes:
    """The text with one blank for each comment and the white space around it, none at its ends; ``text`` itself where
    there is no comment, or a literal without an end. A hint comment and an opt-out mean something and stay. 0.1 us for
    a text without comments, else about 2 us and 0.5 us for each literal and comment.

    What `planner.memory.comments` does with the parser's tokens; comments that differ, a trace's among them, must not
    make each execution a statement of its own.
    """
    if text.find(b"--") < 0 and text.find(b"/*") < 0:
        return text
    pattern = _CONFORMING if conforming else _ESCAPING
    pieces: list[bytes] = []
    pos = resume = 0
    while resume >= 0:
        matches = pattern.finditer(text, resume)
        resume = -1
        for match in matches:
            start, end = match.span()
            first = text[start]
            if first not in (_DASH, _SLASH):
                if (end - start == 1 and first in (_QUOTE, _NAME)) or (first == _DOLLAR and match["body"] is None):
                    return text
                continue
            if first == _SLASH:
                if end - start == 2:
                    return text
                if text.find(b"/*", start + 2, end) > 0:
                    end = resume = _comment_end(text, start + 2)
                    if end == start + 2:
                        return text
            if not _comment(text[start:end]):
                pieces.append(text[pos:start].strip(_SPACE))
                pos = end
            if resume >= 0:
                break
    if not pos:
        return text
    pieces.append(text[pos:].strip(_SPACE))
    return b" ".join(piece for piece in pieces if piece)


def _name(quoted: bytes) -> bytes:
    return b'"\0' + quoted.hex().encode() + b'"' if _APART.search(quoted) else quoted


def _comment(comment: bytes) -> int:
    flags = HINTED if b"/*+" in comment else 0
    return flags | OPTED_OUT if _OPT_OUT.search(comment) else flags


def _comment_end(text: bytes, pos: int) -> int:
    """Behind the end of a comment whose beginning ends at ``pos``; ``pos`` itself for one without an end."""
    depth = 1
    for match in _COMMENT_ENDS.finditer(text, pos):
        depth += 1 if match[0] == b"/*" else -1
        if not depth:
            return match.end()
    return pos


_CLAUSE: Final = re.compile(
    rb"\b(?:where|group|order|limit|having|union|intersect|except|window|returning|offset|fetch|for|on)\b|[()]"
)
_SOURCE: Final = re.compile(rb"\b(?:from|join)\b")


def joined(key: bytes) -> int:
    """Roughly how many tables the statement of this key joins: those behind FROM, its commas, and JOIN."""
    count = 0
    for match in _SOURCE.finditer(key):
        count += 1
        if match[0] == b"from":
            stop = _CLAUSE.search(key, match.end())
            count += key.count(b",", match.end(), stop.start() if stop is not None else len(key))
    return count


# How the statements begin that can carry a query to be steered.
_STEERED: Final = frozenset({b"sele", b"with", b"expl", b"decl", b"copy", b"crea", b"inse", b"prep", b"refr"})


# What a first glance at a text finds, as bits; those of `proxy.wire.statements.classify` are below them.
JOINS: Final = 0x100  # it may join tables
SETS: Final = 0x200  # it may change a setting


def glance(text: bytes) -> int:
    """Whether a text may join tables and whether it may change a setting, judged in a third of a microsecond: most
    texts do neither, and nothing more is asked about those.

    No `JOINS` only where that cannot be: no steered kind of statement, or one table behind the only FROM.
    """
    # Not `in`: for bytes it makes and drops an error each time.
    lower = text.lower()
    found = SETS if lower.find(b"set") >= 0 or lower.find(b"discard") >= 0 else 0
    start = lower.find(b"from")
    if start >= 0 and (lower.find(b",", start) >= 0 or lower.find(b"join") >= 0 or lower.find(b"from", start + 4) >= 0):
        begin = lower.lstrip(b" \t\r\n\f\v(;")[:4]
        if begin in _STEERED or begin[:2] in (b"/*", b"--"):
            found |= JOINS
    return found


_WRITES: Final = re.compile(
    rb"\b(?:into|insert|update|delete|merge|for (?:no key )?update|for (?:key )?share"
    # Functions of the server's own whose effects stay, or are not undone by a savepoint.
    rb"|nextval|setval|set_config|pg_notify|pg_(?:try_)?advisory\w*|lo_\w+|dblink\w*|pg_cancel_backend"
    rb"|pg_terminate_backend|pg_logical_emit_message|pg_reload_conf|pg_rotate_logfile|pg_switch_wal|txid_current|pg_current_xact_id)\b"
)
_READS: Final = (b"select", b"with", b"values", b"table")


def repeatable(key: bytes) -> bool:
    """Whether the statement of this key may be run twice, as far as its words tell: it reads and does nothing else.
    Whether functions of the user's own are volatile only the planner knows, and it gives no advice for those."""
    return key.lstrip(b"( ").startswith(_READS) and _WRITES.search(key) is None
