"""The read-only guard: which statements a read-only session may not send, judged by their text alone.

``default_transaction_read_only=on`` in the backend's start-up makes every transaction read-only; the server refuses
writes itself. What is left to do here is to refuse whatever would lift that. It guards against accidents: a function
in the database can still hide a SET, and only a role with nothing but SELECT rights is real protection.
"""

from __future__ import annotations

import re

# Behind a letter of an identifier neither a dollar nor an e begins a literal.
_OPENERS = re.compile(
    rb"--|/\*|(?<![\w$\x80-\xff])[eE]'|'|\"|(?<![\w$\x80-\xff])\$(?:[A-Za-z_\x80-\xff][\w\x80-\xff]*)?\$"
)
_COMMENT_ENDS = re.compile(rb"/\*|\*/")
_ESCAPED_END = re.compile(rb"[^'\\]*(?:(?:\\.|'')[^'\\]*)*'", re.DOTALL)
_READ_WRITE = re.compile(rb"\bread\s+write\b")
_SETTING = re.compile(rb"transaction_read_only")
_CHANGES = re.compile(rb"\b(?:set|reset|update|alter|set_config)\b")
_KEEPS_ON = re.compile(
    rb"\A[\s;]*set\s+(?:session\s+|local\s+)?\"?(?:default_)?transaction_read_only\"?\s*(?:=|to)\s*'?(?:on|true|yes|1)'?[\s;]*\Z"
)
_SET_CONFIG = re.compile(rb"\bset_config\b\"?\s*\(\s*")
_PLAIN_NAME = re.compile(rb"'[a-z_][\w.$]*'\s*,")
_HIDDEN_NAME = re.compile(rb"\bset\s+(?:session\s+|local\s+)?u&")
# A name written in escapes, and what they begin with if it is no backslash.
_UNICODE_NAME = re.compile(rb"(?i)\bu&\"([^\"]*(?:\"\"[^\"]*)*)\"(\s*uescape\b\s*(?:'([^'\\])')?)?")
_UPDATE = re.compile(rb"\bupdate\b")
# A block is not taken apart: comments may be in it, its literal may go on in the next line, it may put statements
# together.
_BLOCK = re.compile(rb"(?:\A|;)\s*do\b")
_OPAQUE_IN_BLOCK = re.compile(
    rb"\b(?:execute|transaction|set_config|query_to_xml\w*|ts_stat|ts_rewrite)\b|\bu&'|\\|'[^\S\r\n]*[\r\n]\s*'"
)
# Functions of the server's own that run a statement which they are given as a text.
_RUNS_TEXT = re.compile(rb"\b(?:query_to_xml(?:schema|_and_xmlschema)?|ts_stat|ts_rewrite)\b\"?\s*\(\s*")
_PLAIN_TEXT = re.compile(rb"'[^'\\]*(?:''[^'\\]*)*'\s*[,)]")
_ALTER_SYSTEM = re.compile(rb"\balter\s+system\b")


def lifts_read_only(text: bytes) -> bool:
    """Whether a statement (or several in one text) would let this session write. Errs towards yes."""
    # Whether a backslash escapes a quote in any literal is the session's to choose (standard_conforming_strings).
    return _lifts(text, escapes=False) or (b"\\" in text and _lifts(text, escapes=True))


def _lifts(text: bytes, *, escapes: bool) -> bool:
    if _READ_WRITE.search(without_comments(text, literals=False, escapes=escapes).lower()):
        return True
    try:
        plain = _UNICODE_NAME.sub(_decoded, without_comments(text, escapes=escapes)).lower()
    except ValueError:
        return True
    if _ALTER_SYSTEM.search(plain) or _HIDDEN_NAME.search(plain):
        return True
    if _SETTING.search(plain) and _CHANGES.search(plain) and not _KEEPS_ON.match(plain):
        return True
    if any(not _PLAIN_NAME.match(plain, match.end()) for match in _SET_CONFIG.finditer(plain)):
        return True
    update, block = _UPDATE.search(plain), _BLOCK.search(plain)
    return (
        (update is not None and plain.find(b"pg_settings", update.end()) >= 0)
        or (block is not None and _OPAQUE_IN_BLOCK.search(plain, block.end()) is not None)
        or _runs_hidden_text(plain)
    )


def _runs_hidden_text(plain: bytes) -> bool:
    """Whether a text is run as a statement that is not there as one literal, or has comments where they matter."""
    for found in _RUNS_TEXT.finditer(plain):
        if b"set_config" in plain or b"ts_rewrite" in found[0] or not _PLAIN_TEXT.match(plain, found.end()):
            return True
    return False


def _decoded(name: re.Match[bytes]) -> bytes:
    """The quoted name that one with Unicode escapes stands for. ValueError when that is not certain."""
    if name[2] and not name[3]:
        raise ValueError("an escape character that is not written plainly")
    escape = name[3] or b"\\"
    first, *others = name[1].replace(escape * 2, b"\0").split(escape)
    pieces = [first]
    for piece in others:
        digits, rest = (piece[1:7], piece[7:]) if piece[:1] == b"+" else (piece[:4], piece[4:])
        pieces += [chr(int(digits, 16)).encode("utf-8", "surrogatepass"), rest]
    return b'"' + b"".join(pieces).replace(b"\0", escape) + b'"'


def without_comments(text: bytes, *, literals: bool = True, escapes: bool = False) -> bytes:
    """The text with each comment as a blank; quoted names and dollar-quoted bodies stay as they are, since settings
    are named in them, and so do ``literals`` unless they are not wanted. ``escapes``: a backslash escapes in every
    literal, as without standard_conforming_strings."""
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
            end = _literal_end(text, b"e'" if escapes and opener == b"'" else opener, found.end())
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
