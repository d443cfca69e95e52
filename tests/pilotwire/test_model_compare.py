"""``pilotwire model compare``: two files side by side, and their predictions on a workload against what is known."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from pilotwire.errors import StartError
from pilotwire.model_compare import compare
from planner.catalog_load import load
from planner.features import flat
from tests.pilotwire.test_model_command import as_json, model, one_line
from tests.support.models import hints_model
from tests.support.postgres import Postgres
from tests.support.shop import QUERY, SCHEMA, constant_model
from training.dataset import collect
from training.queries import read_text
from training.training_set import ArmTime, TrainingSet, statement_key

OTHER = QUERY.replace("'north'", "'south'")
WORKLOAD = f"{QUERY};\nSELEC 1;\n{OTHER};\nSELECT * FROM customers;\n"


@pytest.fixture(scope="module")
def dsn(hinted_postgres: Postgres) -> str:
    name = hinted_postgres.create_database()
    hinted_postgres.sql(SCHEMA, name)
    return hinted_postgres.dsn(name)


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    path = tmp_path / "queries.sql"
    path.write_text(WORKLOAD)
    return path


def arms_model(path: Path, *ratios: float) -> None:
    hints_model(
        path,
        path.stem,
        arms={"no_nestloop": {"enable_nestloop": "off"}, "no_hashjoin": {"enable_hashjoin": "off"}},
        log_latency_ratios=ratios,
        features=flat.NAMES,
        featurizer=("flat", flat.VERSION),
        clip=(-5.0, 5.0),
    )


def labelled(folder: Path, dsn: str) -> None:
    """A training set that says of every join that it has e**2 times the rows that are estimated."""

    async def catalog() -> Any:
        connection = await asyncpg.connect(dsn)
        try:
            return await load(connection)
        finally:
            await connection.close()

    with TrainingSet(folder) as known:
        for block in collect(read_text(WORKLOAD), asyncio.run(catalog()), ("public",)).blocks:
            for name, native in zip(block.digests, block.native, strict=True):
                known.add_label(name, "exact", float(native) * 7.389, 0.0, "test")
        known.add_arm(ArmTime(statement_key(QUERY), "no_nestloop", "timed", 100.0, 400.0))
        known.add_arm(ArmTime(statement_key(QUERY), "no_hashjoin", "stopped", 300.0, 400.0))


def test_manifests_side_by_side(tmp_path: Path) -> None:
    one, two = constant_model(tmp_path, "one"), constant_model(tmp_path, "two", "2.0.0", clip=(-1.0, 1.0))
    shown = model("compare", one, two)
    assert (shown.returncode, shown.stderr, "\x1b" in shown.stdout) == (0, "", False)
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "model one 1.0.0 two 2.0.0" in lines
    assert "clip -10 to 10 -1 to 1" in lines
    facts = as_json(model("compare", one, two, "--json"))
    assert (facts["ok"], facts["workload"]) == (True, None)
    assert {"name", "version", "clip"} <= set(facts["different"])
    assert "featurizer" not in facts["different"]
    assert (facts["a"]["manifest"]["name"], facts["b"]["bytes"]) == ("one", two.stat().st_size)


def test_a_refused_file_is_shown_and_predicts_nothing(tmp_path: Path, dsn: str, queries: Path) -> None:
    good, bad = constant_model(tmp_path, "good"), tmp_path / "bad.onnx"
    bad.write_bytes(b"\x1b[31m")
    shown = model("compare", good, bad)
    assert (shown.returncode, shown.stderr, "\x1b" in shown.stdout) == (1, "", False)
    assert "refused: onnx: not an ONNX file" in shown.stdout
    assert as_json(model("compare", good, bad, "--json"), 1)["b"]["manifest"] is None
    arguments = ("compare", good, bad, "--upstream", dsn, "--queries", queries)
    assert "is refused, so it predicts nothing" in one_line(model(*arguments), 1)


def test_predictions_against_the_truth(tmp_path: Path, dsn: str, queries: Path) -> None:
    """Everything has e**2 times the rows: one model says so, the other says e times."""
    one, two = constant_model(tmp_path, "right"), constant_model(tmp_path, "half", log_ratio=1.0)
    arguments = ("compare", one, two, "--upstream", dsn, "--queries", queries)
    unknown = as_json(model(*arguments, "--json"))["workload"]
    assert (unknown["labelled"], unknown["native"], unknown["sides"][0]["q_error"]) == (0, {}, {})
    assert unknown["differences"][0]["truth"] is None
    labelled(tmp_path / "right.training", dsn)
    found = as_json(model(*arguments, "--json"))["workload"]
    assert (found["statements"], found["skipped"], found["sub_plans"], found["labelled"]) == (3, 1, 6, 6)
    assert found["agreed"] == 0
    assert found["native"]["p50"] == pytest.approx(7.389, rel=0.01)
    assert [side["q_error"]["max"] for side in found["sides"]] == pytest.approx([1.0, 2.718], rel=0.02)
    assert [(side["steered"], side["corrected"]) for side in found["sides"]] == [(2, 6), (2, 6)]
    assert found["sides"][0]["reasons"] == {"no_join": 1}
    assert {one["line"] for one in found["differences"]} == {1, 3}
    shown = model(*arguments)
    lines = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    assert "q-error p90 7.39 1 2.72" in lines
    assert any(line.startswith("3 statements (1 could not be read): 6 sub-plans, 6 with known rows") for line in lines)
    elsewhere = as_json(model(*arguments, "--labels", tmp_path / "right.training", "--json"))
    assert elsewhere["workload"]["labelled"] == 6


def test_choices_of_settings(tmp_path: Path, dsn: str, queries: Path) -> None:
    arms_model(tmp_path / "bold.onnx", -1.0, 0.0)
    arms_model(tmp_path / "wrong.onnx", 0.0, -1.0)
    labelled(tmp_path / "set", dsn)
    arguments = ("compare", tmp_path / "bold.onnx", tmp_path / "wrong.onnx", "--upstream", dsn, "--queries", queries)
    found = as_json(model(*arguments, "--labels", tmp_path / "set", "--json"))["workload"]
    assert [side["arms"] for side in found["sides"]] == [
        {"no_nestloop": 2, "default": 1},
        {"no_hashjoin": 2, "default": 1},
    ]
    assert (found["agreed"], found["measured"], found["seconds_default"]) == (1, 1, pytest.approx(0.4))
    # What was stopped counts as the default at least.
    assert [side["seconds_chosen"] for side in found["sides"]] == pytest.approx([0.1, 0.4])
    shown = model(*arguments).stdout
    assert "where they differ most" in shown
    assert "no_hashjoin" in shown


def test_mistakes_are_one_sentence(tmp_path: Path, dsn: str, queries: Path) -> None:
    one = constant_model(tmp_path, "one")
    for more, words in (
        ({"upstream": f"{dsn}x", "queries": queries}, "cannot be reached"),
        ({"upstream": dsn, "queries": tmp_path / "nowhere.sql"}, "cannot be read"),
        ({"upstream": dsn, "queries": queries, "labels": tmp_path / "nowhere"}, "is no training set"),
    ):
        with pytest.raises(StartError, match=words):
            compare(one, one, **more)  # type: ignore[arg-type]
    assert "--upstream DSN" in model("compare", one, one, "--queries", queries).stderr


def test_models_of_two_kinds_have_no_predictions_in_common(tmp_path: Path, dsn: str, queries: Path) -> None:
    one = constant_model(tmp_path, "one")
    arms_model(tmp_path / "arms.onnx", -1.0, 0.0)
    assert as_json(model("compare", one, tmp_path / "arms.onnx", "--json"))["ok"]
    with pytest.raises(StartError, match="predict different things"):
        compare(one, tmp_path / "arms.onnx", upstream=dsn, queries=queries)
