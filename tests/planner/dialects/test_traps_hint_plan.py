"""What pg_hint_plan does with comments, those that `planner.dialects.hint_plan` writes and others."""

from __future__ import annotations

import itertools

import pytest

from planner.advice import Advice, JoinTree, RowsAdvice
from planner.dialects import hint_plan
from tests.planner.dialects.conftest import OpenSession
from tests.planner.dialects.plans import Session
from tests.support.wireclient import ServerError

TWO = "SELECT * FROM a JOIN b ON b.a_id = a.id"
CHAIN = "SELECT * FROM a JOIN b ON b.a_id = a.id JOIN c ON c.b_id = b.id JOIN d ON d.c_id = c.id"
CHAIN_ROWS = {"ab": 111, "bc": 222, "cd": 333, "abc": 444, "bcd": 555, "abcd": 666}


def rows(**wanted: float) -> Advice:
    """Of relations with names of one letter: ``rows(ab=7)``."""
    return Advice(rows=tuple(RowsAdvice(tuple(names), number) for names, number in wanted.items()), relations=4)


def prefix(advice: Advice) -> str:
    rendered = hint_plan.render(advice)
    assert not rendered.settings
    return rendered.prefix


def joins(count: int, *, explicit: bool) -> str:
    """A chain of ``count`` relations t0, t1 ... over one table, by JOIN ... ON or by commas."""
    conditions = [f"t{index}.id = t{index + 1}.k" for index in range(count - 1)]
    if explicit:
        return "SELECT * FROM t t0" + "".join(
            f" JOIN t t{index + 1} ON {condition}" for index, condition in enumerate(conditions)
        )
    return f"SELECT * FROM {', '.join(f't t{index}' for index in range(count))} WHERE {' AND '.join(conditions)}"


# What is added is obeyed to the row.


@pytest.mark.parametrize("order", list(itertools.permutations("abcd"))[::4])
async def test_every_join_of_a_chain_has_exactly_the_rows_wanted(session: Session, order: tuple[str, ...]) -> None:
    """Absolute rows do not compound, whichever joins the plan is made of."""
    tree: JoinTree | None = order[0]
    for alias in order[1:]:
        assert tree is not None
        tree = (tree, alias)
    advice = rows(**CHAIN_ROWS)
    plan = await session.explain(CHAIN, prefix(Advice(advice.rows, leading=tree, relations=4)))
    wanted = {frozenset(names): number for names, number in CHAIN_ROWS.items()}
    connected = {joined: number for joined, number in plan.joins.items() if joined in wanted}
    assert connected == {joined: wanted[joined] for joined in connected}
    assert frozenset("abcd") in connected
    assert session.notices == []


async def test_factors_compound(session: Session) -> None:
    """The reason for absolute rows: the parent's estimate is built from its corrected children."""
    text = "SELECT * FROM a JOIN b ON b.a_id = a.id JOIN c ON c.b_id = b.id"
    assert (await session.explain(text)).rows(*"abc") == 20_000
    plan = await session.explain(text, "/*+ Rows(a b *10) Rows(b c *10) Rows(a b c *10) */ ")
    assert plan.rows(*"abc") == 2_000_000
    plan = await session.explain(text, prefix(rows(ab=50_000, bc=200_000, abc=200_000)))
    assert plan.rows(*"abc") == 200_000


async def test_a_join_order_and_its_sides_are_obeyed(session: Session) -> None:
    for tree, sides in (((("a", "b"), "c"), ["a", "b"]), (("c", ("b", "a")), ["c"]), (("c", ("a", "b")), ["c"])):
        text = "SELECT * FROM a JOIN b ON b.a_id = a.id JOIN c ON c.b_id = b.id"
        plan = await session.explain(text, prefix(Advice(leading=tree, relations=3)))
        outer = plan.root["Plans"][0]
        found = sorted(child["Alias"] for child in outer.get("Plans", [outer]) if "Alias" in child) or [outer["Alias"]]
        assert set(sides) & set(found)
        assert frozenset("ab") in plan.joins
        assert frozenset("bc") not in plan.joins


async def test_settings_act_while_planning_and_go_back(session: Session) -> None:
    settings = {"enable_hashjoin": "off", "enable_mergejoin": "off", "random_page_cost": "1.1"}
    plan = await session.explain(TWO, prefix(Advice(settings=settings, relations=2)))
    assert plan.methods == {frozenset("ab"): "Nested Loop"}
    assert await session.show("enable_hashjoin") == "on"
    assert await session.show("random_page_cost") == "4"
    assert session.notices == []


async def test_explain_obeys_the_comment_before_and_behind_the_keyword(session: Session) -> None:
    hint = prefix(rows(ab=77))
    assert (await session.explain(TWO, hint)).rows(*"ab") == 77
    assert (await session.explain(hint + TWO)).rows(*"ab") == 77
    for kind in ("DECLARE x CURSOR FOR", "CREATE TABLE x AS"):
        assert (await session.explain(f"{kind} {TWO.replace('*', 'a.id')}", hint)).rows(*"ab") == 77


# What goes wrong, and is avoided.


@pytest.mark.parametrize("place", ["/*+ Rows(a b #8) */ {}", "{} /*+ Rows(a b #8) */", "{} -- x /*+\n /*+ */"])
async def test_a_second_comment_anywhere_fails_the_query(session: Session, place: str) -> None:
    with pytest.raises(ServerError, match="hint syntax error") as refused:
        await session.explain(place.format(TWO), prefix(rows(ab=7)))
    assert refused.value.fields["D"] == "Multiple hints are not supported."


@pytest.mark.parametrize(
    "other", ["'/*+ Rows(a b #8) */'", "$$/*+ x */$$", '1 AS "/*+ x */"', "1 /* + x */", "1 --/*+ x"]
)
async def test_what_only_looks_like_a_second_comment_is_none(session: Session, other: str) -> None:
    text = f"SELECT {other}\n FROM a JOIN b ON b.a_id = a.id"
    assert (await session.explain(text, prefix(rows(ab=7)))).rows(*"ab") == 7


async def test_a_syntax_error_reaches_the_client_unless_messages_are_turned_down(open_session: OpenSession) -> None:
    loud, quiet = await open_session(), await open_session(**{"pg_hint_plan.parse_messages": "debug1"})
    for one in (loud, quiet):
        await one.explain(TWO, "/*+ Rows(a b #7) Nonsense(a) */ ")
        await one.explain(TWO, "/*+ Rows(a #7) */ ")
    assert [notice.split(":")[0] for notice in loud.notices] == ["INFO", "INFO"]
    assert "requires at least two relations" in loud.notices[1]
    assert quiet.notices == []


async def test_rows_below_one_warn_even_then(open_session: OpenSession) -> None:
    """So they are clamped; every value that a model can give passes in silence."""
    session = await open_session(**{"pg_hint_plan.parse_messages": "debug1"})
    await session.explain(TWO, "/*+ Rows(a b #0.4) */ ")
    assert [notice.split(":")[0] for notice in session.notices] == ["WARNING"]
    session.notices.clear()
    for wanted, shown in (
        (0.0, 1),
        (-5.0, 1),
        (0.4, 1),
        (1.6, 2),
        (1e9, 10**9),
        (float("inf"), 10**15),
        (1e300, 10**15),
    ):
        assert (await session.explain(TWO, prefix(rows(ab=wanted)))).rows(*"ab") == shown
    assert prefix(rows(ab=float("nan"))) == ""
    assert session.notices == []


async def test_rows_on_one_table_cannot_be_said(session: Session) -> None:
    assert prefix(rows(a=7)) == ""
    await session.explain(TWO, "/*+ Rows(a #7) */ ")
    assert len(session.notices) == 1


async def test_absolute_rows_across_an_outer_join_are_ignored(session: Session) -> None:
    """pg_hint_plan's issue 217; a factor is obeyed. Inner joins on either side of the outer one take both."""
    text = "SELECT * FROM a LEFT JOIN b ON b.a_id = a.id"
    native = (await session.explain(text)).rows(*"ab")
    assert (await session.explain(text, prefix(rows(ab=77)))).rows(*"ab") == native
    assert (await session.explain(text, "/*+ Rows(a b *3) */ ")).rows(*"ab") == 3 * native
    assert session.notices == []
    text = "SELECT * FROM (a JOIN c ON c.id = a.id) LEFT JOIN (b JOIN d ON d.id = b.id) ON b.a_id = a.id"
    plan = await session.explain(text, prefix(rows(ac=78, bd=79)))
    assert (plan.rows(*"ac"), plan.rows(*"bd")) == (78, 79)


async def test_from_twelve_relations_on_the_genetic_search_ignores_joins(session: Session) -> None:
    text = joins(12, explicit=False)
    one = (RowsAdvice(("t3", "t4"), 77.0),)
    bare = f"{prefix(Advice(one, relations=2))}"
    forced = '/*+ Rows("t3" "t4" #77) Leading((t3 t4)) */ '
    assert (await session.explain(text, forced)).joins.get(frozenset({"t3", "t4"})) != 77
    assert "geqo" not in bare
    settings = hint_plan.render(Advice(one, relations=12)).prefix
    assert "Set(geqo off)" in settings
    plan = await session.explain(text, settings.replace("*/", "Leading((t3 t4)) */"))
    assert plan.rows("t3", "t4") == 77
    assert session.notices == []


async def test_above_eight_explicit_joins_the_order_is_partly_ignored(session: Session) -> None:
    """The first eight relations are planned apart, whatever order is asked for."""
    text = joins(11, explicit=True)
    tree: JoinTree = "t10"
    for index in reversed(range(10)):
        tree = (tree, f"t{index}")
    advice = Advice(leading=tree, relations=11)
    lead = hint_plan.render(Advice(leading=tree, relations=2)).prefix
    assert "Set(" not in lead
    wanted = {frozenset(f"t{index}" for index in range(first, 11)) for first in range(10)}
    found = set((await session.explain(text, lead)).joins)
    assert found != wanted
    assert found & wanted
    assert "Set(join_collapse_limit 20)" in prefix(advice)
    assert set((await session.explain(text, prefix(advice))).joins) == wanted
    assert session.notices == []


async def test_more_than_two_hundred_rows_are_not_written(session: Session) -> None:
    names = [f"t{index}" for index in range(9)]
    sets = [pair for size in (2, 3, 4) for pair in itertools.combinations(names, size)]
    assert len(sets) > hint_plan.MAX_ROWS_HINTS
    advice = Advice(tuple(RowsAdvice(one, 10.0) for one in sets), relations=9)
    rendered = hint_plan.render(advice)
    assert rendered.prefix.count("Rows(") == hint_plan.MAX_ROWS_HINTS
    assert rendered.notes == ("too many rows",)
    plan = await session.explain(joins(9, explicit=True), rendered.prefix)
    assert {number for joined, number in plan.joins.items() if len(joined) == 2} == {10}
    assert session.notices == []


# Names.


@pytest.mark.parametrize(
    "alias",
    [
        "x",
        "X",
        "Größe",
        "a b",
        'say "hi"',
        '"',
        '""',
        "a\\b",
        "new\nline",
        "it's",
        "(",
        ")",
        "#1",
        "*",
        "/",
        "a*",
        "$$",
        "$1",
        ";",
        "--",
        "a" * 63,
        "名前",
    ],
)
async def test_any_name_is_quoted_right(session: Session, alias: str) -> None:
    quoted = '"' + alias.replace('"', '""') + '"'
    text = f"SELECT * FROM a {quoted} JOIN b ON b.a_id = {quoted}.id"
    advice = Advice((RowsAdvice((alias, "b"), 77.0),), leading=(alias, "b"), relations=2)
    plan = await session.explain(text, prefix(advice))
    assert plan.rows(alias, "b") == 77
    assert plan.root["Plans"][0]["Alias"] == alias
    assert session.notices == []


@pytest.mark.parametrize("alias", ["*/", "/*", "a*/b", "x */ SELECT 1; /*", "/*+"])
async def test_a_name_that_could_leave_the_comment_is_never_written(session: Session, alias: str) -> None:
    advice = Advice((RowsAdvice((alias, "b"), 77.0), RowsAdvice(("b", "c"), 5.0)), leading=(alias, "b"), relations=3)
    rendered = hint_plan.render(advice)
    assert rendered.prefix == '/*+ Rows("b" "c" #5) */ '
    assert rendered.notes == ("name not expressible",)
    quoted = '"' + alias.replace('"', '""') + '"'
    text = f"SELECT * FROM a {quoted} JOIN b ON b.a_id = {quoted}.id JOIN c ON c.b_id = b.id"
    await session.explain(text, rendered.prefix)


async def test_names_are_the_alias_in_its_own_case(session: Session) -> None:
    text = 'SELECT * FROM a "X" JOIN b x ON x.a_id = "X".id'
    native = (await session.explain(text)).rows("X", "x")
    for wrong in ("/*+ Rows(X X #7) */ ", "/*+ Rows(x x #7) */ ", "/*+ Rows(a b #7) */ "):
        assert (await session.explain(text, wrong)).rows("X", "x") == native
    right = prefix(Advice((RowsAdvice(("X", "x"), 7.0),), relations=2))
    assert (await session.explain(text, right)).rows("X", "x") == 7


async def test_a_name_used_twice_in_one_flattened_query_is_an_error_in_the_hint(session: Session) -> None:
    text = f"{TWO} WHERE a.id IN (SELECT a.id FROM a JOIN b ON b.a_id = a.id)"
    native = await session.explain(text)
    hinted = await session.explain(text, prefix(rows(ab=7)))
    assert sorted(hinted.joins.values()) == sorted(native.joins.values())
    assert any("ambiguous" in notice for notice in session.notices)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ("ab", "WITH x AS MATERIALIZED (SELECT a.id FROM a JOIN b ON b.a_id = a.id) SELECT * FROM x JOIN t USING (id)"),
        ("ab", "SELECT id FROM t UNION ALL SELECT a.id FROM a JOIN b ON b.a_id = a.id"),
        ("ab", "SELECT (SELECT count(*) FROM a JOIN b ON b.a_id = a.id) FROM t"),
        ("abt", "UPDATE t SET k = 0 FROM a JOIN b ON b.a_id = a.id WHERE t.id = b.id"),
        (
            "abt",
            "MERGE INTO t USING (SELECT b.id FROM a JOIN b ON b.a_id = a.id) ON t.id = b.id WHEN MATCHED THEN DELETE",
        ),
        ("abt", "SELECT * FROM v JOIN t ON t.id = v.id"),
    ],
    ids=["cte", "union", "subquery", "update", "merge", "view"],
)
async def test_a_hint_reaches_every_level_where_its_names_are(session: Session, names: str, text: str) -> None:
    """So names are looked for in the whole tree before anything is added."""
    await session.sql("CREATE VIEW pg_temp.v AS SELECT b.id FROM a JOIN b ON b.a_id = a.id")
    text = text.replace("ON t.id = b.id WHEN", "s ON t.id = s.id WHEN")
    assert 7 not in (await session.explain(text)).joins.values()
    assert (await session.explain(text, prefix(rows(**{names: 7})))).rows(*names) == 7


async def test_rows_said_twice_of_one_join_are_written_once(session: Session) -> None:
    await session.explain(TWO, "/*+ Rows(a b #7) Rows(b a #8) */ ")
    assert any("Conflict" in notice for notice in session.notices)
    session.notices.clear()
    advice = rows(ab=7, ba=8)
    assert (await session.explain(TWO, prefix(advice))).rows(*"ab") == 7
    assert session.notices == []


async def test_one_comment_applies_to_all_statements_of_a_message(session: Session) -> None:
    explained = await session.sql(f"{prefix(rows(ab=7))}EXPLAIN {TWO}; EXPLAIN {TWO}")
    assert sum("rows=7 " in (line or "") for line in explained) == 2
