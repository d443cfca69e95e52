"""The read-only guard: which statements a read-only session may not send, judged by their text alone.

``default_transaction_read_only=on`` in the backend's start-up makes every transaction read-only; the server refuses
writes itself. What is left to do here is to refuse whatever would lift that. It guards against accidents: a function
in the database can still hide a SET, and only a role with nothing but SELECT rights is real protection.
"""

from __future__ import annotations

import re

_OPENERS = re.compile(rb"--|/\*|[eE]?'|\"|\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$")
_COMMENT_ENDS = re.compile(rb"/\*|\*/")
_ESCAPED_END = re.compile(rb"(?:[^'\\]|\\.|'')*'", re.DOTALL)
_READ_WRITE = re.compile(rb"\bread\s+write\b")
_SETTING = re.compile(rb"transaction_read_only")
_CHANGES = re.compile(rb"\b(?:set|reset|update|alter|set_config)\b")
_KEEPS_ON = re.compile(
    rb"\A[\s;]*set\s+(?:session\s+|local\s+)?\"?(?:default_)?transaction_read_only\"?\s*(?:=|to)\s*'?(?:on|true|yes|1)'?[\s;]*\Z"
)
_SET_CONFIG = re.compile(rb"\bset_config\b\"?\s*\(\s*")
_PLAIN_NAME = re.compile(rb"'[a-z_][\w.$]*'\s*,")
_HIDDEN_NAME = re.compile(rb"\bset\s+(?:session\s+|local\s+)?u&")
_UPDATES_SETTINGS = re.compile(rb"\bupdate\b.*\bpg_settings\b", re.DOTALL)
# A block that puts statements together, or whose own text is written in escapes.
_DYNAMIC = re.compile(rb"(?:\A|;)\s*do\b.*(?:\bexecute\b|\bu&'|\be'[^']*\\)", re.DOTALL)
_ALTER_SYSTEM = re.compile(rb"\balter\s+system\b")


def lifts_read_only(text: bytes) -> bool:
    """Whether a statement (or several in one text) would let this session write. Errs towards yes."""
    plain = without_comments(text).lower()
    if _READ_WRITE.search(without_comments(text, literals=False).lower()):
        return True
    if _ALTER_SYSTEM.search(plain) or _HIDDEN_NAME.search(plain):
        return True
    if _SETTING.search(plain) and _CHANGES.search(plain) and not _KEEPS_ON.match(plain):
        return True
    if any(not _PLAIN_NAME.match(plain, match.end()) for match in _SET_CONFIG.finditer(plain)):
        return True
    return bool(_UPDATES_SETTINGS.search(plain) or _DYNAMIC.search(plain))


def without_comments(text: bytes, *, literals: bool = True) -> bytes:
    """The text with each comment as a blank; quoted names and dollar-quoted bodies stay as they are, since settings
    are named in them, and so do ``literals`` unless they are not wanted."""
    pieces = []
    pos = 0
    while True:
        found = _OPENERS.search(text, pos)
        if found is None:
            pieces.append(text[pos:])
            return b"".join(pieces)
        opener, start = found[0], found.start()
        if opener == b"--":
            end = min((at for at in (text.find(b"\n", start), text.find(b"\r", start)) if at >= 0), default=len(text))
        elif opener == b"/*":
            end = _comment_end(text, found.end())
        else:
            end = _literal_end(text, opener, found.end())
        pieces.append(text[pos:start])
        blank = opener in (b"--", b"/*") or (not literals and opener.endswith(b"'"))
        pieces.append(b" " if blank else text[start:end])
        pos = end


def _comment_end(text: bytes, pos: int) -> int:
    depth = 1
    while depth:
        found = _COMMENT_ENDS.search(text, pos)
        if found is None:
            return len(text)
        depth += 1 if found[0] == b"/*" else -1
        pos = found.end()
    return pos


def _literal_end(text: bytes, opener: bytes, pos: int) -> int:
    if opener[:1] in (b"e", b"E"):
        found = _ESCAPED_END.match(text, pos)
        return found.end() if found is not None else len(text)
    end = text.find(opener, pos)
    return end + len(opener) if end >= 0 else len(text)
