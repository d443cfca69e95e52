"""Huge pages are taken for the time of a benchmark and given back, and nothing breaks where they cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import huge_pages


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in the kernel's place that has three pages reserved already."""
    place = tmp_path / "nr_hugepages"
    place.write_text("3\n")
    monkeypatch.setattr(huge_pages, "_RESERVED", place)
    monkeypatch.setattr(huge_pages, "_page_size", lambda: 2 << 20)
    return place


def test_pages_are_added_to_what_others_have_and_given_back(kernel: Path) -> None:
    told: list[str] = []
    with huge_pages.reserved((4 << 20) + 1, told.append):
        assert int(kernel.read_text()) == 6
    assert int(kernel.read_text()) == 3
    assert not told


def test_pages_are_given_back_after_a_failure(kernel: Path) -> None:
    with pytest.raises(KeyboardInterrupt), huge_pages.reserved(2 << 20, lambda _: None):
        raise KeyboardInterrupt
    assert int(kernel.read_text()) == 3


def test_without_them_the_run_goes_on(kernel: Path) -> None:
    kernel.unlink()
    kernel.mkdir()
    told: list[str] = []
    with huge_pages.reserved(2 << 20, told.append):
        pass
    assert len(told) == 1
    assert "page faults" in told[0]
