"""What counts as the same, and what as a known difference."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.ledger import LIMIT, Ledger, load
from tests.conformance.sources import ConformanceError
from tests.conformance.verdict import Outputs, Verdict, judge

REASON = "a reason that is long enough to be one"


def _verdict(proxied: Outputs, second: Outputs | None = None) -> Verdict:
    first: Outputs = {"a": b"one\ntwo\n", "b": b"oid 16384\n"}
    return judge("suite/session", first, first if second is None else second, proxied)


def _ledger(*entries: tuple[str, str]) -> Ledger:
    rows = [{"part": "suite/session", "file": file, "sha256": sha, "reason": REASON} for file, sha in entries]
    return Ledger.model_validate({"differences": rows})


def test_the_same_is_the_same() -> None:
    verdict = _verdict({"a": b"one\ntwo\n", "b": b"oid 16384\n"})
    assert (verdict.files, verdict.differences, verdict.unstable) == (("a", "b"), (), ())


def test_one_changed_byte_is_a_difference() -> None:
    [difference] = _verdict({"a": b"one\ntwO\n", "b": b"oid 16384\n"}).differences
    assert difference.file == "a"
    assert "-two" in difference.diff
    assert "+twO" in difference.diff


@pytest.mark.parametrize("proxied", [{"a": b"one\ntwo\n"}, {"a": b"one\ntwo\n", "b": b"oid 16384\n", "c": b""}])
def test_a_missing_and_an_extra_file_are_differences(proxied: Outputs) -> None:
    assert len(_verdict(proxied).differences) == 1


def test_bytes_that_are_no_text_are_told_apart() -> None:
    verdict = judge("p", {"a": b"\xff"}, {"a": b"\xff"}, {"a": b"\xfe"})
    assert [it.file for it in verdict.differences] == ["a"]


def test_a_file_unstable_by_its_numbers_is_still_compared() -> None:
    second = {"a": b"one\ntwo\n", "b": b"oid 17000\n"}
    same = _verdict({"a": b"one\ntwo\n", "b": b"oid 18000\n"}, second)
    assert (same.unstable, same.unjudged, same.differences) == (("b",), (), ())
    assert len(_verdict({"a": b"one\ntwo\n", "b": b"OID 18000\n"}, second).differences) == 1


def test_a_file_unstable_in_its_words_is_listed_apart() -> None:
    verdict = _verdict({"a": b"x", "b": b"oid 16384\n"}, {"a": b"y", "b": b"oid 16384\n"})
    assert (verdict.unstable, verdict.unjudged, verdict.differences) == (("a",), ("a",), ())


def test_the_fingerprint_ignores_long_numbers_and_nothing_else() -> None:
    prints = [
        _verdict({"a": b"one\ntwo\n", "b": text}).differences[0].fingerprint
        for text in (b"OID 16384\n", b"OID 99999\n", b"OID 16384!\n")
    ]
    assert prints[0] == prints[1] != prints[2]


def test_an_unknown_difference_fails() -> None:
    [complaint] = _ledger().complaints([_verdict({"a": b"x", "b": b"oid 16384\n"})])
    assert "a differs through the proxy" in complaint


def test_a_known_difference_passes_until_it_changes() -> None:
    known = _verdict({"a": b"x", "b": b"oid 16384\n"})
    ledger = _ledger(("a", known.differences[0].fingerprint))
    assert ledger.complaints([known]) == []
    assert ledger.reason(known.differences[0]) == REASON
    [complaint] = ledger.complaints([_verdict({"a": b"y", "b": b"oid 16384\n"})])
    assert "in another way" in complaint


def test_a_known_difference_is_known_however_the_proxy_steers() -> None:
    steered = judge("suite/session/on", {"a": b"1"}, {"a": b"1"}, {"a": b"2"})
    other = judge("suite/session/rows", {"a": b"1"}, {"a": b"1"}, {"a": b"1"})
    pooled = judge("suite/sessions/on", {"a": b"1"}, {"a": b"1"}, {"a": b"2"})
    ledger = _ledger(("a", steered.differences[0].fingerprint))
    assert ledger.complaints([steered, other]) == []
    assert len(ledger.complaints([steered, pooled])) == 1
    assert "out of the ledger" in ledger.complaints([other])[0]


def test_an_entry_no_longer_needed_fails() -> None:
    same = _verdict({"a": b"one\ntwo\n", "b": b"oid 16384\n"})
    for file in ("a", "gone"):
        [complaint] = _ledger((file, "0" * 64)).complaints([same])
        assert "out of the ledger" in complaint


def test_an_entry_for_what_was_not_run_or_not_judged_stays() -> None:
    same = _verdict({"a": b"one\ntwo\n", "b": b"oid 16384\n"})
    assert _ledger(("elsewhere", "0" * 64)).complaints([same], complete=False) == []
    unjudged = _verdict({"a": b"x", "b": b"oid 16384\n"}, {"a": b"y", "b": b"oid 16384\n"})
    assert _ledger(("a", "0" * 64)).complaints([unjudged]) == []


def test_the_ledger_is_valid_and_bounded(tmp_path: Path) -> None:
    assert len(load().differences) <= LIMIT
    full = _ledger(*((str(number), "0" * 64) for number in range(LIMIT)))
    path = tmp_path / "ledger.json"
    path.write_text(full.model_dump_json())
    assert len(load(path).differences) == LIMIT
    rows = [it.model_dump() for it in full.differences] + [full.differences[0].model_dump()]
    with pytest.raises(ValueError, match="at most"):
        Ledger.model_validate({"differences": rows})
    path.write_text('{"differences": [{}]}')
    with pytest.raises(ConformanceError, match="not a valid ledger"):
        load(path)
