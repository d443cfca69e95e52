"""Reading the statements that are evaluated."""

from __future__ import annotations

from planner.snapshot import Snapshot
from training.evaluate.cases import Case, Seen, normal, read_cases, with_training
from training.queries import read_text

JOIN = "SELECT count(*) FROM orders o JOIN items i ON i.order_id = o.id WHERE o.id < {}"
OTHER = "SELECT count(*) FROM products p, items i WHERE i.product_id = p.id"


def cases(snapshot: Snapshot, text: str) -> tuple[list[Case], list[str]]:
    found, skipped = read_cases(read_text(text), snapshot, ("public",))
    return found, [str(one) for one in skipped]


def test_what_can_be_run_is_a_case_and_the_rest_is_named(shop_snapshot: Snapshot) -> None:
    text = ";\n".join(
        [
            f"/* large orders */ {JOIN.format(10)}",
            JOIN.format(20),
            f"{JOIN.format(20)}  -- again\n",
            "SELECT 1",
            "/*+ SeqScan(o) */ SELECT count(*) FROM orders o, items i WHERE i.order_id = o.id",
            "DELETE FROM items",
            "SELECT * FROM items FOR UPDATE",
            "SELECT * FROM items WHERE order_id + $1 = 3",
            "SELECT * FROM items WHERE order_id = $1",
            "CREATE TABLE x ()",
            "SELEC 1",
        ]
    )
    found, skipped = cases(shop_snapshot, text)
    assert [case.name for case in found] == ["large orders", "q2", "q3", "q4", "q5"]
    assert found[0].template == found[1].template != ""
    assert (found[2].template, found[2].relations) == ("", 0)
    assert found[3].reason == "hinted"
    assert found[0].relations == 2
    reasons = [line.split(": ")[1] for line in skipped]
    assert reasons.count("it is no query that only reads") == 2
    assert "it writes or locks" in reasons
    assert "it has parameters without values (no likely value for $1)" in reasons
    assert "$" not in found[4].sql
    assert "the same statement again" in reasons
    assert any("syntax error" in line for line in skipped)


def test_what_the_training_knew(shop_snapshot: Snapshot) -> None:
    trained, _ = cases(shop_snapshot, JOIN.format(10))
    judged, _ = cases(shop_snapshot, ";".join([f"/* x */ {JOIN.format(10)}", JOIN.format(11), OTHER]))
    assert {case.seen for case in judged} == {Seen.UNKNOWN}
    assert [case.seen for case in with_training(judged, trained)] == [
        Seen.REPEATED, Seen.NEW_VALUES, Seen.NEW_TEMPLATE,
    ]  # fmt: skip


def test_names_that_occur_twice_are_numbered(shop_snapshot: Snapshot) -> None:
    long = "far too long a comment to be the name of a query"
    found, _ = cases(shop_snapshot, f"-- one\nSELECT 1; /* one */ SELECT 2; /* {long} */ SELECT 3")
    assert [case.name for case in found] == ["one", "q2", "q3"]


def test_white_space_and_comments_do_not_make_another_statement() -> None:
    assert normal("/* a */ SELECT  1 ;") == normal("SELECT 1 -- b\n")
    assert normal("SELECT 'a  b'") != normal("SELECT 'a b'")
    assert normal("SELECT 'é' , 1") == "SELECT 'é' , 1"
    assert normal("SELECT 'open") == "SELECT 'open"
