"""What a person decides holds, is written down with the name, and can be taken back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from planner.memory.records import QueryRecord, State
from planner.memory.store import Store, open_store
from planner.memory.store.decisions import ACTIONS, DecisionError, decide, find_key
from tests.planner.memory.store.made import TEMPLATE, arm, key, query


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    with open_store(sqlite_url) as opened:
        opened.save([query(1), query(2)], [arm(1), arm(1, "no_mergejoin"), arm(2)])
        yield opened


def test_people_share_a_server(postgres_url: str) -> None:
    with open_store(postgres_url) as ours, open_store(postgres_url) as theirs:
        ours.save([query(1)], [arm(1)])
        seen = theirs.revision()
        decide(ours, key(1), "prefer", actor="ann")
        decide(ours, key(1), "freeze", actor="ann")
        [changed], [there] = theirs.changed_since(seen).arms, theirs.changed_since(seen).queries
        assert (changed.state, changed.actor, there.opted_out) == (State.PREFERRED, "ann", True)
        decide(theirs, key(1), "forget", actor="bob")
        assert [record.forgotten for record in ours.changed_since(there.revision).queries] == [True]


def states(store: Store, number: int = 1) -> dict[str, tuple[str, str]]:
    return {record.arm: (str(record.state), record.actor) for record in store.arms(key(number))}


@pytest.mark.parametrize(
    ("action", "state"), [("approve", "approved"), ("reject", "rejected"), ("prefer", "preferred")]
)
def test_an_arm_gets_a_state(store: Store, action: str, state: str) -> None:
    before = store.revision()
    [changed] = decide(store, key(1), action, "no_hashjoin", actor="ann", why="I looked").arms
    assert states(store) == {"no_hashjoin": (state, "ann"), "no_mergejoin": ("trial", "system")}
    assert (changed.why, changed.latencies) == ("I looked", (4.0, 5.0))
    [entry] = store.ledger()
    assert (entry.kind, entry.before, entry.after, entry.actor, entry.why) == (
        "person",
        "trial",
        state,
        "ann",
        "I looked",
    )
    assert (entry.key, entry.arm, entry.database, entry.model) == (key(1), "no_hashjoin", "shop", "shop-1.0.0")
    assert [record.arm for record in store.changed_since(before).arms] == ["no_hashjoin"]


def test_one_arm_is_preferred(store: Store) -> None:
    decide(store, key(1), "prefer", "no_hashjoin", actor="ann")
    decide(store, key(1), "prefer", "no_mergejoin", actor="bob")
    assert states(store) == {"no_hashjoin": ("expired", "bob"), "no_mergejoin": ("preferred", "bob")}
    assert [(entry.arm, entry.before, entry.after) for entry in store.ledger()] == [
        ("no_mergejoin", "trial", "preferred"),
        ("no_hashjoin", "preferred", "expired"),
        ("no_hashjoin", "trial", "preferred"),
    ]


def test_a_shipped_arm_needs_no_evidence(store: Store) -> None:
    [made] = decide(store, key(2), "prefer", "no_nestloop", actor="ann").arms
    assert made.advice.settings == (("enable_nestloop", "off"),)
    [custom] = decide(store, key(2), "approve", "force_custom_plan", actor="ann").arms
    assert custom.advice.settings == (("plan_cache_mode", "force_custom_plan"),)
    assert store.ledger(key=key(2))[1].before == ""


def test_the_only_arm_need_not_be_named(store: Store) -> None:
    decide(store, key(2), "reject", actor="ann")
    assert states(store, 2) == {"no_hashjoin": ("rejected", "ann")}
    with pytest.raises(DecisionError, match="name the arm: no_hashjoin, no_mergejoin"):
        decide(store, key(1), "reject", actor="ann")


def frozen(store: Store, wanted: str) -> tuple[bool, str]:
    found = store.query(wanted)
    assert isinstance(found, QueryRecord)
    return found.opted_out, found.actor


def test_a_query_is_frozen_and_thawed(store: Store) -> None:
    decide(store, key(1), "freeze", actor="ann", why="audit")
    assert frozen(store, key(1)) == (True, "ann")
    decide(store, key(1), "unfreeze", actor="bob")
    assert frozen(store, key(1)) == (False, "bob")
    assert [(entry.before, entry.after, entry.actor) for entry in store.ledger()] == [
        ("frozen", "", "bob"),
        ("", "frozen", "ann"),
    ]


def test_a_whole_template_opts_out(store: Store) -> None:
    decide(store, key(1), "opt_out", actor="ann")
    assert (frozen(store, TEMPLATE)[0], frozen(store, key(1))[0]) == (True, False)
    decide(store, key(2), "opt_in", actor="ann")
    assert not frozen(store, TEMPLATE)[0]


def test_what_people_decided_is_taken_back(store: Store) -> None:
    with pytest.raises(DecisionError, match="nobody has decided"):
        decide(store, key(1), "release", actor="ann")
    decide(store, key(1), "prefer", "no_hashjoin", actor="ann")
    decide(store, key(1), "freeze", actor="ann")
    decide(store, key(1), "release", actor="bob", why="done")
    assert states(store) == {"no_hashjoin": ("expired", "system"), "no_mergejoin": ("trial", "system")}
    assert frozen(store, key(1)) == (False, "system")
    assert {entry.actor for entry in store.ledger(limit=2)} == {"bob"}


def test_a_query_is_forgotten(store: Store) -> None:
    decide(store, key(1), "forget", actor="ann")
    assert (store.query(key(1)), store.arms(key(1))) == (None, [])
    assert store.ledger()[0].after == "forgotten"
    with pytest.raises(DecisionError, match="no query") as caught:
        decide(store, key(1), "forget", actor="ann")
    assert caught.value.missing


@pytest.mark.parametrize("action", [action for action in ACTIONS if action != "release"])
def test_nothing_is_decided_about_what_is_not_known(store: Store, action: str) -> None:
    counts = store.counts()
    with pytest.raises(DecisionError, match="is remembered") as caught:
        decide(store, "ab" * 16, action, "no_hashjoin", actor="ann")
    assert caught.value.missing
    assert store.counts() == counts


def test_what_cannot_be_decided(store: Store) -> None:
    with pytest.raises(DecisionError, match="no arm 'x'; there are no_hashjoin") as caught:
        decide(store, key(1), "approve", "x", actor="ann")
    assert caught.value.missing
    with pytest.raises(DecisionError, match="there is no decision 'explode'"):
        decide(store, key(1), "explode", actor="ann")
    for actor in ("", "system"):
        with pytest.raises(DecisionError, match="names the person"):
            decide(store, key(1), "freeze", actor=actor)
    assert store.ledger() == []


def test_a_decision_is_not_stale_and_not_written_over(store: Store) -> None:
    [before] = [record for record in store.arms(key(1)) if record.arm == "no_hashjoin"]
    decide(store, key(1), "reject", "no_hashjoin", actor="ann")
    before.state = State.APPROVED
    store.save(arms=[before])
    assert states(store)["no_hashjoin"] == ("rejected", "ann")


def test_a_key_may_be_cut_short(store: Store) -> None:
    whole = key(1)
    assert find_key(store, whole) == find_key(store, whole[:6].upper()) == whole
    with pytest.raises(DecisionError, match="first four hexadecimal digits"):
        find_key(store, whole[:3])
    with pytest.raises(DecisionError, match="first four hexadecimal digits"):
        find_key(store, "%%%%")
    store.save([query(7, key="abcd" + "0" * 28), query(8, key="abcd" + "1" * 28)])
    with pytest.raises(DecisionError, match=r"several queries.*abcd0+, abcd1+"):
        find_key(store, "abcd")
