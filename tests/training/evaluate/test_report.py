"""The page stands alone, says what there is, and shows nothing as markup that came from outside."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest

from tests.training.evaluate.test_results import query
from training.evaluate.report import render
from training.evaluate.results import DEFAULT, Results, Split, Steered
from training.evaluate.truth import SubPlan

HOSTILE = "<script>alert('x')</script>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Checker(HTMLParser):
    """Every tag is closed, and in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("p", "li", "td", "th", "tr") or tag == self.open[-1]:
            assert self.open.pop() == tag


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    return checker


@pytest.fixture
def results() -> Results:
    found = Results(
        f"shop {HOSTILE}", server=HOSTILE, models=["m-1"], statements=9, options={"rounds": 3, "limit": 30.0, "seed": 0}
    )
    found.queries = [
        query(f"q{number} {HOSTILE}", default=100.0 + number, arm_x=90.0, true_rows=70.0, **{"m-1": 60.0 + 20 * number})
        for number in range(9)
    ]
    for one in found.queries:
        one.sql = HOSTILE
        one.steered["m-1"] = Steered("", 1.0, True)
    found.queries[-1].plans = {DEFAULT: f"Seq Scan {HOSTILE}", "m-1": "Index Scan"}
    found.sub_plans = [
        SubPlan(one.name, 0, 3, ("x", HOSTILE), 10.0, 100.0 * (1 + at), {"m-1": 50.0})
        for at, one in enumerate(found.queries)
    ]
    found.splits = [Split("values", f"Same template {HOSTILE}", "m-1", [one.name for one in found.queries[:4]])]
    found.inputs = {f"queries {HOSTILE}": "ab" * 32}
    found.skipped = [HOSTILE]
    found.complete = True
    return found


def test_one_page_without_anything_from_elsewhere(results: Results) -> None:
    page = render(results, "report.json")
    checker = check(page)
    assert "script" not in checker.tags
    assert all(link.startswith("#") for link in checker.links)
    assert not re.search(r"(?:https?:)?//\w|@import|url\(", page.replace("<!doctype html>", ""))
    assert page.count("<svg") == 5
    assert "prefers-color-scheme: dark" in page


def test_it_says_what_matters_first(results: Results) -> None:
    page = render(results, "report.json")
    first = page[: page.index('id="statements"')]
    assert "Not worth serving" in first
    assert "takes" in first
    assert "got slower" in first
    below = page[page.index('id="regressions"') :]
    assert "Index Scan" in below
    assert "ab" * 32 in below
    assert "report.json" in below


@pytest.mark.parametrize("change", ["nothing", "incomplete", "no model", "no truth"])
def test_what_is_missing_is_left_out(results: Results, change: str) -> None:
    if change == "nothing":
        results.queries, results.sub_plans, results.splits = [], [], []
    elif change == "incomplete":
        results.complete, results.stopped = False, "the database is gone"
    elif change == "no model":
        results.models, results.splits, results.sub_plans = [], [], []
    else:
        results.sub_plans = []
    page = render(results)
    check(page)
    assert ("is not complete: the database is gone" in page) == (change == "incomplete")
    assert ("Calibration" in page) == (change == "incomplete")
