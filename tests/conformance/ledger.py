"""The ledger: differences that are known, each with the reason why it stays.

It excuses exactly what it names, however the proxy steers. A difference that is not in it, or whose fingerprint
changed, fails the run; so does an entry whose difference is gone, since it would hide the next one; so does a ledger
with more than `LIMIT` entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tests.conformance.sources import ConformanceError
from tests.conformance.verdict import Difference, Verdict

LIMIT = 5
PATH = Path(__file__).with_name("ledger.json")


class Entry(BaseModel):
    """One known difference; ``part`` is a suite and a pool mode."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    part: str
    file: str
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    reason: str = Field(min_length=20)

    def names(self, part: str, file: str) -> bool:
        """Whether this is about that file of that part of a run, which has a way of steering besides."""
        return file == self.file and self.covers(part)

    def covers(self, part: str) -> bool:
        return part == self.part or part.startswith(f"{self.part}/")


class Ledger(BaseModel):
    """The file: at most `LIMIT` entries."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    differences: tuple[Entry, ...] = Field(max_length=LIMIT)

    def reason(self, difference: Difference) -> str | None:
        """Why this very difference is excused; None when it is not."""
        for entry in self.differences:
            if entry.names(difference.part, difference.file) and entry.sha256 == difference.fingerprint:
                return entry.reason
        return None

    def complaints(self, verdicts: Sequence[Verdict], *, complete: bool = True) -> list[str]:
        """What is wrong, one sentence each; with `complete` every file of each part was to be there."""
        found = [it for verdict in verdicts for it in verdict.differences]
        said = [self._unexcused(it) for it in found if self.reason(it) is None]
        seen = [(it.part, it.file) for it in found] + [(it.part, file) for it in verdicts for file in it.unjudged]
        for entry in self.differences:
            looked_at = any(entry.covers(it.part) and (complete or entry.file in it.files) for it in verdicts)
            if looked_at and not any(entry.names(*it) for it in seen):
                said.append(f"{entry.part}: {entry.file} is the same now: take its entry out of the ledger.")
        return said

    def _unexcused(self, difference: Difference) -> str:
        listed = any(it.names(difference.part, difference.file) for it in self.differences)
        what = "differs in another way than the ledger says" if listed else "differs through the proxy"
        return f"{difference.part}: {difference.file} {what} ({difference.fingerprint})."


def load(path: Path = PATH) -> Ledger:
    """Read the ledger; `ConformanceError` when it is no ledger or holds too many entries."""
    try:
        return Ledger.model_validate_json(path.read_text())
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ConformanceError(f"{path.name} is not a valid ledger ({place}: {problem['msg']}): correct it.") from None
