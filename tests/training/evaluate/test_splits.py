"""What is judged was not trained on in the way that the split says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.evaluate.cases import Case
from training.evaluate.splits import SPLITS, Fold, divide

TEMPLATES = st.lists(st.sampled_from(["a", "b", "c", "d", ""]), max_size=40)


def cases(templates: Sequence[str]) -> list[Case]:
    return [Case(f"q{number}", number, f"SELECT {number}", name, 2, "") for number, name in enumerate(templates)]


def judged(folds: list[Fold]) -> list[int]:
    return [place for fold in folds for place in fold.test]


@given(TEMPLATES, st.integers(2, 8), st.integers(0, 3), st.sampled_from(list(SPLITS)))
def test_nothing_is_judged_twice_and_all_is_reproducible(
    templates: list[str], count: int, seed: int, split: str
) -> None:
    made = cases(templates)
    folds = divide(split, made, count, seed)
    assert folds == divide(split, made, count, seed)
    assert len(folds) <= count
    assert len(judged(folds)) == len(set(judged(folds)))
    assert all(made[place].template for fold in folds for place in (*fold.train, *fold.test))
    assert all(fold.test and (split == "repeated" or not set(fold.train) & set(fold.test)) for fold in folds)


@given(TEMPLATES, st.integers(2, 8))
def test_templates_left_out_are_left_out_as_a_whole(templates: list[str], count: int) -> None:
    made = cases(templates)
    folds = divide("template", made, count, 0)
    for fold in folds:
        assert not {made[place].template for place in fold.train} & {made[place].template for place in fold.test}
    if len(set(templates) - {""}) > 1:
        assert len(judged(folds)) == sum(bool(name) for name in templates)


@given(TEMPLATES, st.integers(2, 8))
def test_new_values_always_have_siblings_in_the_training(templates: list[str], count: int) -> None:
    made = cases(templates)
    folds = divide("values", made, count, 0)
    for fold in folds:
        known = {made[place].template for place in fold.train}
        assert all(made[place].template in known for place in fold.test)
    several = [name for name in templates if name and templates.count(name) > 1]
    assert len(judged(folds)) == len(several)


def test_repeated_statements_are_those_trained_on() -> None:
    (fold,) = divide("repeated", cases(["a", "", "b"]), 5, 0)
    assert fold.train == fold.test == (0, 2)


def test_folds_are_about_equally_large() -> None:
    sizes = [len(fold.test) for fold in divide("random", cases(["a"] * 23), 5, 1)]
    assert max(sizes) - min(sizes) <= 1


def test_an_unknown_split() -> None:
    with pytest.raises(ValueError, match="no split other"):
        divide("other", cases(["a"]), 5, 0)
