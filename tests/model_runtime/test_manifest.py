"""The manifest: it goes through JSON unchanged, names its inputs and outputs, and refuses what it should."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_runtime.manifest import PLANNER_SETTINGS, Manifest, SetFeatures, parse
from tests.model_runtime.wrong_models import ARMS, fields
from tests.support.postgres import Postgres

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)


def test_all_it_can_say_goes_through_json() -> None:
    both = {"before": 100.5, "after": 7.25}
    said = fields() | {
        "vocabulary": {
            "schemas": ["s"],
            "tables": ["s.t"],
            "columns": ["s.t.c"],
            "joins": ["a = b"],
            "operators": ["="],
        },
        "relation_hashes": {"s.t": "abc"},
        "ranges": {"joins": [0, 5]},
        "abstention": {
            "outside_ranges": 2,
            "log_std": 0.75,
            "known": {"outside_ranges": 3, "log_std": None, "templates": ["0a1b"], "factor": 2.0, "spread": 1.5},
        },
        "training": {
            "queries": 10,
            "sub_plans": 100,
            "seconds": 3.5,
            "splits": {"random": {"queries": 3, "sub_plans": 9, "q_error": {"p50": both}, "workload_seconds": both}},
            "notes": {"trees": 200, "library": "lightgbm", "rate": 0.1, "pruned": True},
        },
    }
    manifest = parse(json.dumps(said))
    assert parse(manifest.model_dump_json()) == manifest
    again = json.loads(manifest.model_dump_json())
    assert {key: again[key] for key in ("vocabulary", "training", "abstention", "ranges")} == {
        key: said[key] for key in ("vocabulary", "training", "abstention", "ranges")
    }


def test_inputs_and_outputs() -> None:
    flat = Manifest.model_validate(fields())
    assert flat.inputs() == {"features": (None, 3)}
    assert flat.outputs() == {"log_ratio": (None,), "log_std": (None,)}
    sets = flat.model_copy(
        update={"features": (), "sets": SetFeatures(tables=("a", "b"), joins=("c",), predicates=("d",))}
    )
    assert sets.inputs() == {
        "tables": (None, None, 2),
        "tables_mask": (None, None),
        "joins": (None, None, 1),
        "joins_mask": (None, None),
        "predicates": (None, None, 1),
        "predicates_mask": (None, None),
    }
    hints = Manifest.model_validate(fields() | ARMS | {"arms": {"a": {"geqo": "off"}, "default": {}}})
    assert hints.outputs() == {"log_latency_ratio": (None, 2), "log_std": (None, 2)}
    assert hints.label == "model-1.0.0"


@pytest.mark.parametrize("version", ["1.0.0", "0.12.3-rc.1", "1.2.3+build.7", "10.20.30"])
def test_versions(version: str) -> None:
    assert parse(json.dumps(fields() | {"version": version})).version == version


@pytest.mark.parametrize("version", ["1", "1.0", "01.0.0", "1.0.0\n", "v1.0.0", "1.0.0-", "1.0.0 rm -rf"])
def test_no_versions(version: str) -> None:
    with pytest.raises(ValueError, match="version"):
        parse(json.dumps(fields() | {"version": version}))


@given(st.sampled_from(sorted(fields())), JSON)
def test_any_value_anywhere_is_taken_or_refused_in_one_line(name: str, value: Any) -> None:
    said = ""
    try:
        parse(json.dumps(fields() | {name: value}))
    except ValueError as error:
        said = str(error)
    assert "\n" not in said


@given(st.binary(max_size=200))
def test_bytes_never_surprise(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(data)


def test_arms_can_set_what_the_planner_reads_and_no_more(postgres: Postgres) -> None:
    """Against the server's own list: query tuning, and the few others that only choose among plans."""
    groups = dict(line.split("|") for line in postgres.sql("SELECT name, category FROM pg_settings").splitlines())
    elsewhere = {name: groups[name] for name in PLANNER_SETTINGS & groups.keys() if "Query Tuning" not in groups[name]}
    assert set(elsewhere.values()) <= {"Resource Usage / Worker Processes"}
    assert "geqo" in groups
