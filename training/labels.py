"""True cardinalities: runs the counts of `training.counting` within a budget and keeps every result in a file.

Counts run cheapest first on a few read-only connections, each under a statement timeout. Of a count's two forms the
one that EXPLAIN thinks cheaper runs first, with a handicap for the plain one, since what is looked for here are the
joins whose size is underestimated; when it runs out of time the other form is tried. What takes too long in both is
given up and remembered as such.

The file has one JSON object a line. Results are appended the moment they are there, so an interrupted run goes on
where it stopped, and a count is never made twice for one database. It holds digests of the counts' texts, not the
texts: no literal of a query is kept. A count holds for the data it was made on; removing the file makes all anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import asyncpg

from training.counting import Count
from training.errors import TrainingError

FORMAT: Final = 1
PLAIN_HANDICAP: Final = 5.0
EXPLAINED_AT_ONCE: Final = 50
"""How many EXPLAINs run between two looks at the clock."""
SESSION: Final[Mapping[str, str]] = {
    "application_name": "pilotwire train",
    "default_transaction_read_only": "on",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    # Many counts join more tables than the planner reorders by itself.
    "join_collapse_limit": "20",
    "from_collapse_limit": "20",
    "geqo": "off",
}
Progress = Callable[["Labels"], None]


@dataclass(slots=True)
class Labels:
    """How labelling stands. ``rows`` has the true rows by `digest` of the count's plain text."""

    wanted: int = 0
    known: int = 0
    """Of the wanted: found in the file of an earlier run."""
    counted: int = 0
    timed_out: int = 0
    failed: int = 0
    seconds: float = 0.0
    rows: dict[str, float] = field(default_factory=dict)
    first_failure: str = ""

    @property
    def left(self) -> int:
        """Not looked at: the budget was over before."""
        return self.wanted - self.known - self.counted - self.timed_out - self.failed


def digest(count: Count) -> str:
    """The name of a count in the file."""
    return hashlib.blake2b(count.plain.encode(), digest_size=16).hexdigest()


class LabelFile:
    """Results by digest; None stands for a count that ran out of time, with the time it was given."""

    def __init__(self, path: Path, database: str, schema_hash: str) -> None:
        """Open or begin the file. One of another database or schema is set aside under ``.old``. Raises TrainingError
        when it cannot be written."""
        self.path = path
        self.rows: dict[str, float] = {}
        self.timeouts: dict[str, float] = {}
        head = {"format": FORMAT, "database": database, "schema_hash": schema_hash}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not self._read(head):
                path.replace(path.with_name(f"{path.name}.old"))
            new = not path.exists()
            self._file: IO[str] = path.open("a", encoding="utf-8")
            if new:
                self._write(head)
        except OSError as error:
            raise TrainingError(f"the labels cannot be kept in {path}: {error.strerror}") from None

    def __enter__(self) -> LabelFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, name: str, rows: float | None, timeout: float) -> None:
        """Keep one result; on the disk's side as soon as the system likes, for the next run at once."""
        if rows is None:
            self.timeouts[name] = timeout
            self._write({"count": name, "timeout": timeout})
        else:
            self.rows[name] = rows
            self._write({"count": name, "rows": rows})

    def _write(self, entry: Mapping[str, Any]) -> None:
        try:
            self._file.write(json.dumps(entry) + "\n")
            self._file.flush()
        except OSError as error:
            raise TrainingError(f"the labels cannot be kept in {self.path}: {error.strerror}") from None

    def _read(self, head: Mapping[str, Any]) -> bool:
        """Take in what is there; False when it belongs to something else. A last line cut off by a crash is ended, so
        that what follows stays readable."""
        text = self.path.read_text(encoding="utf-8", errors="replace")
        lines = text.split("\n")
        if _entry(lines[0]) != dict(head):
            return False
        for line in lines[1:]:
            entry = _entry(line)
            name = entry.get("count")
            if not isinstance(name, str):
                continue
            rows, timeout = entry.get("rows"), entry.get("timeout")
            if isinstance(rows, int | float):
                self.rows[name] = float(rows)
            elif isinstance(timeout, int | float):
                self.timeouts[name] = float(timeout)
        if not text.endswith("\n"):
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n")
        return True


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


async def connect(dsn: str, **settings: str) -> asyncpg.Connection[asyncpg.Record]:
    """A read-only connection for counting. Raises TrainingError."""
    try:
        return await asyncpg.connect(dsn, server_settings={**SESSION, **settings}, timeout=30)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
        reason = " ".join(str(error).split()) or "no answer within 30 seconds"
        raise TrainingError(f"the database cannot be reached: {reason}") from None


class Labeller:
    """Counts sub-plans. ``timeout`` is for one statement, ``budget`` for everything, both in seconds."""

    def __init__(
        self,
        dsn: str,
        file: LabelFile,
        *,
        budget: float,
        timeout: float,
        connections: int = 2,
        progress: Progress | None = None,
    ) -> None:
        self._dsn = dsn
        self._file = file
        self._budget = budget
        self._timeout = timeout
        self._connections = connections
        self._progress = progress
        self._labels = Labels()
        self._started = 0.0

    async def run(self, counts: Iterable[Count]) -> Labels:
        """Label these counts, each once. TrainingError when the database goes away; what was counted is kept."""
        self._started = time.monotonic()
        wanted = {digest(count): count for count in counts}
        labels = self._labels = Labels(wanted=len(wanted))
        waiting: dict[str, Count] = {}
        for name, count in wanted.items():
            if name in self._file.rows:
                labels.rows[name] = self._file.rows[name]
                labels.known += 1
            elif self._file.timeouts.get(name, 0.0) >= self._timeout:
                labels.timed_out += 1
            else:
                waiting[name] = count
        self._tell()
        if waiting:
            await self._all(waiting)
        labels.seconds = time.monotonic() - self._started
        self._tell()
        return labels

    async def _all(self, waiting: Mapping[str, Count]) -> None:
        try:
            names = list(waiting)
            parts = [
                {name: waiting[name] for name in names[part :: self._connections]} for part in range(self._connections)
            ]
            async with asyncio.TaskGroup() as group:
                explained = [group.create_task(self._explain(part)) for part in parts]
            costed = sorted((item for task in explained for item in task.result()), reverse=True)
            queue = [(name, forms) for _, name, forms in costed]
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._connections, len(queue))):
                    group.create_task(self._work(queue))
        except BaseExceptionGroup as several:
            error = several.exceptions[0]
            if not isinstance(error, _GONE):
                raise error from None
            reason = " ".join(str(error).split())
            raise TrainingError(
                f"the database is gone in the middle of counting ({reason}); {len(self._file.rows)} counts are kept in "
                f"{self._file.path}: run the same command again to go on"
            ) from None

    @property
    def _remaining(self) -> float:
        return self._budget - (time.monotonic() - self._started)

    def _tell(self) -> None:
        self._labels.seconds = time.monotonic() - self._started
        if self._progress is not None:
            self._progress(self._labels)

    async def _explain(self, counts: Mapping[str, Count]) -> list[tuple[float, str, list[str]]]:
        """Each count's cost and its forms in the order they are tried. What the budget leaves out comes last."""
        found: list[tuple[float, str, list[str]]] = []
        connection = await connect(self._dsn)
        try:
            for name, count in counts.items():
                forms = [count.plain] if count.factored is None else [count.plain, count.factored]
                if self._remaining < self._budget / 2:
                    found.append((float("inf"), name, forms))
                    continue
                try:
                    costs = [await _cost(connection, form) for form in forms]
                except asyncpg.PostgresError as error:
                    self._refused(error)
                    continue
                if len(forms) == 2 and costs[1] < PLAIN_HANDICAP * costs[0]:
                    forms.reverse()
                    costs.reverse()
                found.append((costs[0], name, forms))
        finally:
            await connection.close(timeout=5)
        return found

    def _refused(self, error: Exception) -> None:
        """One statement was refused: the next one may still work, unless the server is gone. Raises the error then."""
        if isinstance(error, _GONE):
            raise error
        self._labels.failed += 1
        self._labels.first_failure = self._labels.first_failure or " ".join(str(error).split())

    async def _work(self, queue: list[tuple[str, list[str]]]) -> None:
        """Take counts off the end of the queue until it is empty or the budget is over."""
        connection = await connect(self._dsn, statement_timeout=str(max(1, round(self._timeout * 1000))))
        try:
            while queue and self._remaining > 0:
                name, forms = queue.pop()
                try:
                    rows = await self._one(connection, forms)
                except asyncpg.PostgresError as error:
                    self._refused(error)
                else:
                    if rows is None and self._remaining <= 0:
                        return
                    self._file.add(name, rows, self._timeout)
                    if rows is None:
                        self._labels.timed_out += 1
                    else:
                        self._labels.rows[name] = rows
                        self._labels.counted += 1
                self._tell()
        finally:
            await connection.close(timeout=5)

    async def _one(self, connection: asyncpg.Connection[asyncpg.Record], forms: Sequence[str]) -> float | None:
        """The rows, or None when no form ended in time."""
        for form in forms:
            if self._remaining <= 0:
                break
            try:
                async with asyncio.timeout(self._remaining):
                    return float(await connection.fetchval(form))
            except asyncpg.QueryCanceledError:
                continue
            except TimeoutError:
                break
        return None


_GONE: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the connection broke between two messages of one statement
    asyncpg.OperatorInterventionError,
)


async def _cost(connection: asyncpg.Connection[asyncpg.Record], form: str) -> float:
    plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {form}"))
    return float(plan[0]["Plan"]["Total Cost"])
