"""The key of a statement: literals do not matter, everything else does, and whatever comes, it takes linear time."""

from __future__ import annotations

import time

import pglast
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pglast.parser import ParseError, fingerprint, scan

from planner.memory import comments
from proxy.steering.template import (
    BROKEN,
    HINTED,
    JOINS,
    OPTED_OUT,
    SETS,
    SEVERAL,
    glance,
    joined,
    template,
    uncommented,
)


def key(text: str) -> bytes:
    found, flags = template(text.encode())
    assert not flags & BROKEN
    return found


def print_of(text: str) -> str | None:
    """pglast's fingerprint; None for what does not parse."""
    try:
        return str(fingerprint(text))
    except (ParseError, UnicodeError):
        return None


NUMBERS = st.sampled_from(["1", "0", "42", "1.5", ".5", "7.", "1e10", "1.5E-3", "0x1F", "0b01", "0o17", "1_000"])
STRINGS = st.sampled_from(
    ["''", "'a'", "'it''s'", "'/* no */'", "'--'", "'$$'", "'\"'", "'é'", "';'", "$$'$$", "$a$ $$ ; ' $a$", "$é$x$é$"]
)
ESCAPED = st.sampled_from(["e'\\''", "E'\\\\'", "e'a''\\'b'", "E''"])
GAPS = st.sampled_from([" ", "\n", "\t ", " /* x */ ", " /* a /* 'b */ */ ", " -- 'c\n", "/**/"])
CHANGING = st.one_of(NUMBERS.map(lambda text: ("number", text)), STRINGS.map(lambda text: ("string", text)))
FIXED = st.sampled_from(
    [
        "a.b",
        "T.Col1",
        '"Quoted Name"',
        '"x""y"',
        '"plain"',
        "$1",
        "f(x)",
        "x::text",
        "count(*)",
        "c2_3",
        "a$b$c",
        "NULL",
    ]
)
EXPRESSIONS = st.lists(CHANGING | FIXED.map(lambda text: ("fixed", text)), min_size=1, max_size=12)


@given(EXPRESSIONS, st.data())
@settings(max_examples=300, deadline=None)
def test_literals_do_not_matter(items: list[tuple[str, str]], data: st.DataObject) -> None:
    def text() -> str:
        drawn = [
            data.draw(NUMBERS) if kind == "number" else data.draw(STRINGS) if kind == "string" else fixed
            for kind, fixed in items
        ]
        gap = data.draw(GAPS)
        word = data.draw(st.sampled_from(["SELECT", "select", "Select"]))
        return f"{word}{gap}{f',{gap}'.join(drawn)}{gap}FROM t{gap}WHERE x = {drawn[0]}"

    first, second = text(), text()
    # A comma close to a literal or apart from it, that much the key keeps.
    assert key(first).replace(b" ", b"") == key(second).replace(b" ", b"")
    assert print_of(first) == print_of(second) is not None


PIECES = [
    "'", "''", "\\'", "\\", "e'", " E'", "u&'", 'U&"', "b'1'", "x'1f'", "n'a'", "$$", "$a$", "$A$", "a$b$",
    "$1", "a", "T1", "1", "12", ".5", "1.5e3", "1e", "0x1F", "--", "\n", "/*", "*/", "/*+", '"', '"A"', '"b c"',
    '"d""e"', '"in (1)"', ",", " ", " ", "in (", " in(", ")", "(", "-", "- ", "+", "*", "::int", " and ",
    " or ", "=", ";", " from ", "t", "é", "array[", "]", "not ", "null", "interval ", "as x", ".", "case when ",
    " then ", " end", "x in (1, 2, -3)", "like ",
]  # fmt: skip


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@settings(max_examples=1500, deadline=None)
@example("x in (1, $2, -3.5)")
@example("1-1, 1 -1, - '1', -1")
@example("0xE-1")
@example("1 from t where a in ('a', 'b')")
@example("'a'\n'b', e'a'\n'\\''")
def test_a_key_is_a_text_with_the_same_fingerprint(rest: str) -> None:
    """So two texts with one key have one fingerprint. A text that breaks off is one that the server refuses too."""
    text = "select " + rest
    found, flags = template(text.encode())
    whole = print_of(text)
    if flags & BROKEN:
        assert whole is None
    elif whole is not None:
        statements = len(pglast.split(text)) if flags & SEVERAL or ";" in text else 1
        assert bool(flags & SEVERAL) == (statements > 1)
        if b"\0" not in found and "uescape" not in text and not flags & SEVERAL:
            assert print_of(found.decode()) == whole, found
        assert template(found)[0] == found


@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.sampled_from(["on", "off"]))
@settings(max_examples=500, deadline=None)
def test_white_space_and_case_and_comments_do_not_matter(rest: str, conforming: str) -> None:
    text = b"select " + rest.encode()
    strings = conforming == "on"
    found, flags = template(text, conforming=strings)
    wider, _ = template(b"  SELECT\r\n\t" + text[7:] + b" \n", conforming=strings)
    if not flags & BROKEN:
        assert wider == found
        commented, more = template(b"/* hello */ " + text, conforming=strings)
        assert commented == found
        assert more == flags


COMMENTS = ("C_COMMENT", "SQL_COMMENT")


def tokens(text: str) -> list[tuple[str, str]] | None:
    """PostgreSQL's own tokens without comments; None for what cannot be read."""
    try:
        return [(one.name, text[one.start : one.end + 1]) for one in scan(text) if one.name not in COMMENTS]
    except (ParseError, UnicodeError):
        return None


@given(st.lists(st.sampled_from(PIECES), max_size=14).map("".join))
@settings(max_examples=400, deadline=None)
@example("'a' /* x */\n'b'")
@example("'a' -- x\n'b' -- y")
@example("1 <--2\n, 2 */*x*/ 3, '--', \"/*\", $$ /* $$ -- /* a")
def test_without_comments_a_text_has_the_same_tokens(rest: str) -> None:
    """Both of the worker's and the planner's making, and both agree where the text can be read."""
    text = "select " + rest
    whole = tokens(text)
    if whole is None:
        return
    ours, theirs = uncommented(text.encode()).decode(), comments.uncommented(text)
    assert tokens(theirs) == whole
    if not template(text.encode())[1] & BROKEN:
        assert ours == theirs
        assert tokens(ours) == whole
        assert print_of(ours) == print_of(text)


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), st.text("ab'\"$;-*\n/ ", max_size=12))
@settings(max_examples=150, deadline=None)
@example("'--'\n", "")
def test_comments_that_differ_make_no_other_text(rest: str, said: str) -> None:
    text = b"select " + rest.encode()
    if template(text)[1] & BROKEN:
        return
    made = said.replace("*/", "").replace("/*", "").strip("/*").encode()
    plain = uncommented(text)
    tagged = (b"/* a */ " + text + b"\n/*" + made + b" */", text + b" -- " + made.replace(b"\n", b" "))
    if b"--" not in text and b"/*" not in text:
        assert plain is text
    plain = plain.strip(b" \t\n\r\f\v")  # a text without a comment keeps what stands at its ends
    if not text.rsplit(b"\n", 1)[-1].count(b"--"):
        assert {uncommented(one) for one in tagged} == {plain}


@pytest.mark.parametrize(
    "text",
    ["select 1", "select '-- no', \"/* no */\", $$ -- $$", "/*+ Set(a b) */ select 1", "select 1 /* pilotwire: off */",
     "select '/* x", "select 1 /* x", "select 1 /* /* x */"],
)  # fmt: skip
def test_what_is_no_plain_comment_stays(text: str) -> None:
    assert uncommented(text.encode()) == text.encode()
    assert comments.uncommented(text) == text


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("/*+ HashJoin(a b) */ select 1", HINTED),
        ("select /*+ x */ 1", HINTED),
        ("select /* a /*+ b */ */ 1", HINTED),
        ("select '/*+ x */'", 0),
        ('select $$/*+ x */$$, "/*+"', 0),
        ("/* pilotwire: off */ select 1", OPTED_OUT),
        ("select 1 -- PilotWire:off", OPTED_OUT),
        ("select '/* pilotwire: off */'", 0),
        ("/* pilotwire: official */ select 1", 0),
        ("select 1;", 0),
        ("select 1; ; -- x\n /* y */", 0),
        ("select 1; select 2", SEVERAL),
        ("select ';'", 0),
        ("select 'a", BROKEN),
        ("select e'a\\'", BROKEN),
        ('select "a', BROKEN),
        ("select $a$ x $b$", BROKEN),
        ("select 1 /* x", BROKEN),
        ("select 1 /* /* x */", BROKEN),
    ],
)
def test_what_forbids_steering(text: str, flags: int) -> None:
    assert template(text.encode())[1] == flags


def test_strings_without_standard_conformity() -> None:
    text = b"select 'a\\' from t -- '"
    assert template(text, conforming=False) == (b"select ''", 0)
    assert template(text, conforming=True) == (b"select '' from t", 0)


def test_lists_of_literals_are_one() -> None:
    same = ["x in (1)", "x IN (1, 2,3)", "x in('a','b')", "x in ( -1, $1 )", "x in ('a'\n, /* c */ 2)"]
    assert {key(f"select 1 from t where {text}") for text in same} == {b"select 0 from t where x in (0)"}
    apart = ["x in (1 + 2)", "x in (a, 1)", 'x = "in"(1, 2)', "x = f(1, 2)", "min(1, 2)", "x in (select 1)"]
    assert len({key(f"select 1 from t where {text}") for text in apart}) == len(apart)


def test_names_that_only_look_alike_stay_apart() -> None:
    names = [
        '"a b"',
        '"a  b"',
        '"A b"',
        "ab",
        '"in (1)"',
        '"in (1, 2)"',
        '"in(0)"',
        '"in(0,0)"',
        '"a"',
        '"A"',
        "a1",
        "a2",
    ]
    assert len({key(f"select {name} from t") for name in names}) == len(names)


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("select 1", 0),
        ("select a, b from t where x in (1, 2)", 1),
        ("select * from a, b, c where a.x = b.x", 3),
        ("select * from a join b on a.x = b.x left join c using (x)", 3),
        ("select * from a, (select x, y from b, c) d", 4),
        ("with x as (select * from a, b) select u, v from x join c using (i) order by 1, 2", 4),
    ],
)
def test_joined_tables_are_counted(text: str, tables: int) -> None:
    assert joined(key(text)) == tables


@pytest.mark.parametrize(
    "text",
    [
        "select abalance from accounts where aid = 17",
        "select a, b from t where x = 1",
        "update a set x = 1 from b, c",
        "delete from a using b, c",
        "insert into t (a, b) values (1, 2)",
        "begin",
        "set x = 'from, from'",
        "",
    ],
)
def test_most_statements_are_told_at_once(text: str) -> None:
    assert not glance(text.encode()) & JOINS


@pytest.mark.parametrize("text", ["SET a = 1", "reset a", "select set_config('a', 'b', true)", "DISCARD ALL"])
def test_what_may_change_a_setting_is_looked_at(text: str) -> None:
    assert glance(text.encode()) & SETS


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM a JOIN b USING (x)",
        "  (select 1 from a, b)",
        "/* hello */ select 1 from a, b",
        "-- hello\nselect 1 from a where exists (select 1 from b)",
        "explain analyze select 1 from a, b",
        "declare c cursor for select 1 from a, b",
        "copy (select 1 from a, b) to stdout",
        "create table x as select 1 from a, b",
        "insert into x select 1 from a, b",
        "with x as (select 1 from a) select 1 from x",
    ],
)
def test_what_may_join_is_looked_at(text: str) -> None:
    assert glance(text.encode()) == JOINS


@pytest.mark.parametrize(
    "unit",
    [
        "'",
        "''",
        "e'\\'",
        '"',
        '"a"',
        "$a$",
        "$$",
        "/*",
        "*/",
        "/* ",
        "--",
        "1e",
        "in (0,",
        "in(",
        "a1",
        ";",
        "/*/",
        "e'",
    ],
)
def test_hostile_texts_take_linear_time(unit: str) -> None:
    text = ("select " + unit * (65_000 // len(unit))).encode()
    began = time.process_time()
    template(text)
    glance(text)
    joined(text)
    assert time.process_time() - began < 0.5


@given(st.binary(max_size=300), st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_bytes(text: bytes, conforming: bool) -> None:
    found, _ = template(text, conforming=conforming)
    assert isinstance(found, bytes)
    assert joined(found) >= 0
    glance(text)


def test_each_dollar_tag_is_distinct() -> None:
    """Unterminated openers with a tag of their own each: the first one ends the walk."""
    text = b"select " + b" ".join(b"$a%d$" % number for number in range(9000))
    began = time.process_time()
    assert template(text)[1] == BROKEN
    assert time.process_time() - began < 0.2
