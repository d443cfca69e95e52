"""The advice that conformance runs make up: joins are found, and the same text gets the same rows."""

from __future__ import annotations

import re

import pytest

from planner.messages import Ask
from tests.conformance.steering import made_up_rows

JOIN = b"select * from a join b using (x), c where c.y = b.y"


def _ask(text: bytes) -> Ask:
    return Ask(7, "d", "u", "", "", b"", text, None, ())


def test_rows_of_every_join() -> None:
    answer = made_up_rows(_ask(JOIN))
    assert answer.number == 7
    found = re.findall(rb'Rows\(((?:"\w" )+)#\d+\)', answer.prefix)
    assert sorted(found) == [b'"a" "b" ', b'"a" "b" "c" ', b'"b" "c" ']
    assert made_up_rows(_ask(JOIN)) == answer
    others = {made_up_rows(_ask(JOIN + b" and %d = 0" % number)).prefix for number in range(20)}
    assert len(others) > 1


@pytest.mark.parametrize("text", [b"select 1", b"select from", b"vacuum", b"\xff", JOIN + b"; select 1"])
def test_no_rows_without_a_join(text: bytes) -> None:
    answer = made_up_rows(_ask(text))
    assert answer.prefix == b""
    assert answer.reason
