"""Advice as text, without a server: what is written, what is left out and noted, and that nothing leaves its place."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.advice import Advice, JoinTree, Rendered, RowsAdvice
from planner.dialects import hint_plan, plan_advice, render, settings

ADVICE = Advice(
    rows=(RowsAdvice(("b", "a"), 12.6), RowsAdvice(("a", "b", "c"), 1e5)),
    settings={"random_page_cost": "1.1", "enable_nestloop": "off"},
    leading=(("a", "b"), "c"),
    relations=3,
)
NAMES = st.text(min_size=1, max_size=12) | st.sampled_from(
    ["*/", "/*", 'a"', "x */ DROP TABLE y; /*", "a/", "*b", "\0"]
)
TREES = st.recursive(NAMES, lambda inner: st.tuples(inner, inner), max_leaves=8)


def test_each_server_gets_the_richest_dialect_it_knows() -> None:
    assert render(ADVICE, frozenset({"hint_plan", "plan_advice"})) == Rendered(
        '/*+ Rows("b" "a" #13) Rows("a" "b" "c" #100000) Leading((("a" "b") "c")) Set(enable_nestloop off) '
        "Set(random_page_cost 1.1) */ ",
        dialect="hint_plan",
    )
    plain = (("enable_nestloop", "off"), ("random_page_cost", "1.1"))
    assert render(ADVICE, {"plan_advice"}) == Rendered(
        settings=(*plain, ("pg_plan_advice.advice", 'JOIN_ORDER("a" "b" "c")')),
        dialect="plan_advice",
        notes=("rows not expressible",),
    )
    assert render(ADVICE, ()) == Rendered(
        settings=plain, dialect="settings", notes=("rows not expressible", "join order not expressible")
    )


def test_nothing_to_say_is_empty() -> None:
    for capabilities in ({"hint_plan"}, {"plan_advice"}, set[str]()):
        assert render(Advice(relations=15), capabilities).empty
    assert hint_plan.render(Advice(rows=(RowsAdvice(("a",), 5.0),), relations=12)).empty


def test_what_acts_before_planning_stays_a_setting() -> None:
    rendered = hint_plan.render(Advice(settings={"plan_cache_mode": "force_custom_plan", "jit": "off"}))
    assert rendered.prefix == "/*+ Set(jit off) */ "
    assert rendered.settings == (("plan_cache_mode", "force_custom_plan"),)


@pytest.mark.parametrize(
    ("relations", "pairs", "expected"),
    [
        (8, 0.0, ""),
        (9, 0.0, " Set(join_collapse_limit 20) Set(from_collapse_limit 20)"),
        (12, 0.0, " Set(geqo off) Set(join_collapse_limit 20) Set(from_collapse_limit 20)"),
        (25, 2000.0, " Set(geqo off) Set(join_collapse_limit 25) Set(from_collapse_limit 25)"),
        (13, 0.0, None),
        (10, 28501.0, None),
        (14, float("inf"), None),
    ],
)
def test_limits_are_lifted_where_that_is_affordable(relations: int, pairs: float, expected: str | None) -> None:
    rows = (RowsAdvice(("a", "b"), 5.0),)
    rendered = hint_plan.render(Advice(rows, leading=("a", "b"), relations=relations, join_pairs=pairs))
    if expected is None:
        assert rendered.prefix == '/*+ Rows("a" "b" #5) */ '
        assert rendered.notes == ("limits kept", "join order not expressible")
    else:
        assert rendered.prefix == f'/*+ Rows("a" "b" #5) Leading(("a" "b")){expected} */ '
        assert rendered.notes == ()


def test_an_advised_limit_is_not_overruled() -> None:
    wanted = {"join_collapse_limit": "1", "geqo": "on"}
    assert hint_plan.render(Advice(settings=wanted, relations=12)).prefix == (
        "/*+ Set(geqo on) Set(join_collapse_limit 1) */ "
    )
    advice = Advice((RowsAdvice(("a", "b"), 5.0),), wanted, relations=12)
    assert hint_plan.render(advice).prefix == (
        '/*+ Rows("a" "b" #5) Set(geqo on) Set(join_collapse_limit 1) Set(from_collapse_limit 20) */ '
    )


@given(st.lists(st.tuples(st.lists(NAMES, max_size=4), st.floats())), TREES, st.dictionaries(st.text(), st.text()))
def test_nothing_ends_the_comment_but_its_end(
    rows: list[tuple[list[str], float]], tree: JoinTree, wanted: dict[str, str]
) -> None:
    advice = Advice(tuple(RowsAdvice(tuple(names), number) for names, number in rows), wanted, tree, relations=4)
    rendered = hint_plan.render(advice)
    if rendered.prefix:
        assert rendered.prefix.startswith("/*+ ")
        assert rendered.prefix.index("*/") == len(rendered.prefix) - 3
        assert "/*" not in rendered.prefix[2:]
        assert "\0" not in rendered.prefix
        numbers = re.findall(r" #(-?[0-9.a-z]+)\)", re.sub(r'"(?:[^"]|"")*"', "", rendered.prefix))
        assert all(1 <= int(number) <= hint_plan.MOST_ROWS for number in numbers)
    plan_advice.render(advice)
    settings.render(advice)


@given(st.dictionaries(st.sampled_from(sorted(settings.ALLOWED)) | st.text(), st.text(max_size=12)))
def test_settings_are_names_of_the_list_with_plain_values(wanted: dict[str, str]) -> None:
    found = settings.render(Advice(settings=wanted)).settings
    assert all(name in settings.ALLOWED and re.fullmatch(r"[a-z0-9_.]+", value) for name, value in found)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("enable_hashjoin", "OFF", "off"),
        ("enable_hashjoin", "0", "off"),
        ("enable_hashjoin", "maybe", None),
        ("jit", "true", "on"),
        ("join_collapse_limit", "1", "1"),
        ("join_collapse_limit", "007", "7"),
        ("join_collapse_limit", "0", None),
        ("join_collapse_limit", "101", None),
        ("join_collapse_limit", "²", None),
        ("random_page_cost", "1.1", "1.1"),
        ("random_page_cost", "-1", None),
        ("random_page_cost", "nan", None),
        ("random_page_cost", "1e9", None),
        ("random_page_cost", "1'; DROP TABLE x; --", None),
        ("max_parallel_workers_per_gather", "0", "0"),
        ("plan_cache_mode", "force_custom_plan", "force_custom_plan"),
        ("plan_cache_mode", "x", None),
        ("work_mem", "4MB", None),
        ("session_authorization", "postgres", None),
    ],
)
def test_values_are_checked(name: str, value: str, expected: str | None) -> None:
    rendered = settings.render(Advice(settings={name: value}))
    assert rendered.settings == (() if expected is None else ((name, expected),))
    assert bool(rendered.notes) == (expected is None)


def read_order(text: str) -> JoinTree:
    """JOIN_ORDER's grammar as contrib/pg_plan_advice has it: identifiers and lists in parentheses."""
    tokens = re.findall(r'"(?:[^"]|"")+"|[()]', text.removeprefix("JOIN_ORDER"))

    def items(place: int) -> tuple[JoinTree, int]:
        tree: JoinTree | None = None
        while tokens[place] != ")":
            if tokens[place] == "(":
                item, place = items(place + 1)
            else:
                item = tokens[place][1:-1].replace('""', '"')
            place += 1
            tree = item if tree is None else (tree, item)
        assert tree is not None
        return tree, place

    tree, end = items(1)
    assert end == len(tokens) - 1
    return tree


@given(TREES.filter(lambda tree: isinstance(tree, tuple)))
def test_a_join_order_reads_back_as_it_was(tree: JoinTree) -> None:
    [(name, value)] = plan_advice.render(Advice(leading=tree)).settings
    assert name == "pg_plan_advice.advice"
    assert read_order(value) == tree
