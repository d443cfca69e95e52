"""What is left of psql's output when plans and the order of rows do not count."""

from __future__ import annotations

from tests.conformance.plans import PLAN, without_plans

TABLE = b"""select x,
  y from t;
 x |  y~~
---+-----
 2 | one+
   | two
 1 |~
(2 rows)

""".replace(b"~", b" ")
EXPLAINED = b"""explain (costs off) select 1;
   QUERY PLAN~~~
----------------
 Result
   Output: 1
(2 rows)

ERROR:  at last
LINE 1: x
        ^
""".replace(b"~", b" ")


def test_rows_are_sorted_and_nothing_else_changes() -> None:
    other = TABLE.replace(b" 2 | one+\n   | two\n 1 | \n", b" 1 | \n 2 | one+\n   | two\n")
    assert other != TABLE
    assert without_plans(other) == without_plans(TABLE)
    assert sorted(without_plans(TABLE).split(b"\n")) == sorted(TABLE.split(b"\n"))


def test_another_row_is_a_difference() -> None:
    for old, new in ((b"two", b"too"), (b" 1 | \n", b" 1 | \n 1 | \n"), (b"(2 rows)", b"(3 rows)"), (b" x |", b" z |")):
        assert without_plans(TABLE.replace(old, new)) != without_plans(TABLE)


def test_a_plan_is_one_line() -> None:
    found = without_plans(EXPLAINED)
    assert found == EXPLAINED.split(b"   QUERY", 1)[0] + PLAN + b"\n\n" + EXPLAINED.split(b"rows)\n\n", 1)[1]
    assert without_plans(EXPLAINED.replace(b"Result", b"Other\n   ->  Result")) == found
    assert without_plans(EXPLAINED.replace(b"at last", b"at first")) != found


def test_dashes_that_are_no_rule_are_text() -> None:
    text = b"-- a comment\n--------\nselect 1;\n b\n a\n(2 rows)\n" + b" head \n-----\n z\nb\n(1 row)\n"
    assert without_plans(text) == text
