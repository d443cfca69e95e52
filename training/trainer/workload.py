"""The statements of a retraining: what the store has of late, and a file; and which of them are held out.

Held out are the statements that were first seen last: a model is to be judged by what comes, not by what it knows. Of a
file, where nothing has a time, a share is held out by the digest of each statement's text, so that it is the same share
in every training, and the model that serves has not learned from it either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from planner.memory.records import Execution
from training.evaluate.cases import normal
from training.queries import Query, Workload, read_text
from training.sources.parameters import bound

MOST: Final = 2000
"""Statements of one training, the newest ones of the store."""


@dataclass(frozen=True, slots=True)
class Divided:
    """``recent`` of the held-out statements come from the store, the others from the file."""

    train: Workload
    held_out: Workload
    recent: int


def statements(executions: Iterable[Execution]) -> list[str]:
    """The distinct statements among these that succeeded and whose text may be kept, with their values put in, in the
    order in which they were first seen; of more than `MOST` the last ones."""
    found: dict[str, str] = {}
    for one in executions:
        text = with_values(one.text, one.params) if one.text and not one.failed else ""
        if text:
            found.setdefault(normal(text), text)
    return list(found.values())[-MOST:]


def with_values(text: str, params: str) -> str:
    """The statement with the values of a JSON list of texts in place of its parameters; "" where that cannot be."""
    try:
        values = json.loads(params) if params else []
    except ValueError:
        return ""
    if not isinstance(values, list) or not all(value is None or isinstance(value, str) for value in values):
        return ""
    return bound(text, dict(enumerate(values, 1))) or ""


def divide(recent: list[str], filed: Iterable[Query], share: float) -> Divided:
    """Hold out the last ``share`` of the recent statements and that share of the file's."""
    cut = len(recent) - round(len(recent) * share)
    parsed = [query for text in recent[:cut] for query in read_text(text).queries[:1]]
    held = [query for text in recent[cut:] for query in read_text(text).queries[:1]]
    count = len(held)
    known = {normal(text) for text in recent}
    for query in filed:
        text = normal(query.text)
        if text in known:
            continue
        known.add(text)
        (held if _drawn(text) < share else parsed).append(query)
    return Divided(Workload(_numbered(parsed)), Workload(_numbered(held)), count)


def _numbered(queries: list[Query]) -> tuple[Query, ...]:
    return tuple(Query(number, query.text) for number, query in enumerate(queries, 1))


def _drawn(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest()) / 2**48
