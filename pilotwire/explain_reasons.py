"""Why a statement is advised or left alone, as one sentence for people."""

from __future__ import annotations

from typing import Final

from pilotwire.explain_collect import Explained
from pilotwire.plan_tree import changed

REASONS: Final[dict[str, str]] = {
    "empty": "there is no statement in it",
    "syntax": "PostgreSQL's parser does not accept it",
    "several_statements": "it holds several statements, and one hint would reach all of them",
    "hinted": "it carries a hint of its own, and existing hints win",
    "opted_out": "it, or who sends it, has opted out",
    "too_large": "it is longer than 64 kB",
    "too_deep": "it is nested too deeply",
    "not_a_query": "it is not a query",
    "utility": "it is a utility statement",
    "not_understood": "its parse tree has a shape that is not known",
    "no_join": "it joins no tables, and rows can be told of joins only",
    "outer_join": "it has outer joins only, of which PostgreSQL takes no absolute rows",
    "unknown_table": "it reads a table that the catalog snapshot does not know",
    "view": "it reads a view, into which a hint would reach unseen",
    "foreign_table": "it reads a foreign table",
    "row_security": "it reads a table with row-level security, whose rows differ from user to user",
    "temporary": "it reads a temporary table, which other sessions do not have",
    "duplicate_alias": "the aliases of its joins all occur twice in it, and a hint would reach both",
    "correlated": "its joins are in a sub-query for each row of another, which may be planned in two ways",
    "union_all": "it has a UNION ALL, which pg_hint_plan plans in parallel as soon as there is any hint",
    "volatile": "it calls a volatile function",
    "others_code": "it names code of another user, which would run with our rights",
    "no_model": "no model serves",
    "no_dialect": "pg_hint_plan is not loaded in this server's sessions, and no model of settings serves",
    "schema_mismatch": "its tables have changed since the model was trained",
    "unknown_featurizer": "this program cannot compute the model's inputs, which belong to another version",
    "out_of_range": "the model has not seen the like of it in training",
    "uncertain": "other settings may be faster, but the model is not sure of it",
    "no_change": "the model agrees with PostgreSQL's own estimates",
    "cheap": "it is too short to gain anything",
    "not_expressible": "the advice cannot be written in this server's dialect",
    "failed": "the decision failed",
}


def sentence(found: Explained) -> str:
    """The conclusion."""
    if found.reason:
        return f"Left alone: {REASONS.get(found.reason, found.reason)}."
    corrected = [one for one in found.sub_plans if one.rows is not None]
    if not corrected:
        settings = found.outcome.advice.settings if found.outcome is not None else {}
        arms = ", ".join(f"{name}={value}" for name, value in settings.items())
        return f"Steered: the model expects it to be faster with {arms}."
    most = max(corrected, key=lambda one: max((one.rows or 1) / one.native, one.native / (one.rows or 1)))
    assert most.rows is not None
    text = (
        f"Steered: for the join of {' '.join(most.aliases)} the model expects {most.rows:,.0f} rows "
        f"where PostgreSQL expects {most.native:,.0f}"
    )
    if found.plain is None or found.steered is None:
        return f"{text}."
    steps = len(changed(found.steered.root, found.plain.root))
    text += f"; {steps} steps of the plan are new" if steps else "; the plan stays the same"
    if found.plain.execution_ms and found.steered.execution_ms:
        before, after = found.plain.execution_ms, found.steered.execution_ms
        if not steps:
            return f"{text}, and what its two runs took differs by chance ({before:.1f} and {after:.1f} ms)."
        text += f", {before / after:.2f} times faster" if before >= after else f", {after / before:.2f} times slower"
        text += f" in this one run ({before:.1f} -> {after:.1f} ms)"
    return f"{text}."
