"""A training set on disk: statements, labels and measured arms of one database, as Parquet files in a folder.

```
shop.training/
  set.json                       whose it is
  statements-000001.parquet ...  text, where it came from, what it took
  labels-000001.parquet ...      true rows of sub-plans, by digest
  arms-000001.parquet ...        latencies under other planner settings
  labels.journal                 what is in no Parquet file yet, a JSON object a line
```

Parquet files cannot be appended to, so every row goes to a table's journal first, at once, and from there into a new
file when the set is closed or the journal has become long; a file appears complete or not at all. Whatever ends the
process, no row is lost but the one being written. Of rows with one key the last one holds. One process at a time.

Labels are kept by digests of what was counted, without literals; the statements are kept as they are, since features
cannot be computed without their values: keep a training set where the queries themselves may be kept.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from training.errors import TrainingError

FORMAT: Final = 1
HEAD: Final = "set.json"
JOURNAL_ROWS: Final = 20_000
MOST_PARTS: Final = 16
EXACT: Final = "exact"
LOWER: Final = "lower"
STOPPED: Final = "stopped"
GENERATED: Final = "generated"
_STATEMENT_COLUMNS: Final = {
    "key": "string", "text": "string", "source": "string", "line": "int64", "calls": "int64", "total_ms": "float64",
    "rows": "float64", "cost": "float64", "decision": "string", "model": "string", "seen": "float64",
}  # fmt: skip
_LABEL_COLUMNS: Final = {
    "count": "string", "kind": "string", "rows": "float64", "limit": "float64", "source": "string", "at": "float64",
}  # fmt: skip
_ARM_COLUMNS: Final = {
    "statement": "string", "arm": "string", "status": "string", "ms": "float64", "default_ms": "float64",
    "plan": "string", "at": "float64",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of the workload with its values. ``source`` says who told: ``file``, ``pg_stat_statements``,
    ``log``, ``store`` or ``generated``; ``line`` is its line in a file. ``rows`` is -1 and times are 0 when not known;
    ``cost``, ``decision`` and ``model`` are those of `query_metrics`. ``seen`` is the moment, seconds since the
    epoch."""

    text: str
    source: str
    line: int = 0
    calls: int = 1
    total_ms: float = 0.0
    rows: float = -1.0
    cost: float = 0.0
    decision: str = ""
    model: str = ""
    seen: float = 0.0

    @property
    def key(self) -> str:
        """The same for the same text, whoever told."""
        return statement_key(self.text)


@dataclass(frozen=True, slots=True)
class ArmTime:
    """What one statement took under one arm: see `training.dataset.ArmRun`. ``plan`` is JSON, "" for none."""

    statement: str
    arm: str
    status: str
    ms: float = 0.0
    default_ms: float = 0.0
    plan: str = ""
    at: float = 0.0


def statement_key(text: str) -> str:
    plain = text.strip().rstrip(";").rstrip()
    return hashlib.blake2b(plain.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def _arrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise TrainingError("a training set needs PyArrow: pip install 'pilotwire[train]'") from None
    return pyarrow, pyarrow.parquet


def explain_os(error: OSError) -> str:
    """In words that say what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "the disk is full: make room and run the same command again, what was kept before is still there"
    return error.strerror or str(error)


class _Table:
    """One table: its files, its journal, and its rows in memory by key."""

    def __init__(self, folder: Path, name: str, columns: Mapping[str, str], key: tuple[str, ...]) -> None:
        self.name = name
        self.rows: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._folder = folder
        self._columns = columns
        self._key = key
        self._pending: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._journal_path = folder / f"{name}.journal"
        for part in self.parts:
            self._read(part)
        self._recover()
        self._journal: IO[str] = self._journal_path.open("a", encoding="utf-8")

    @property
    def parts(self) -> list[Path]:
        return sorted(self._folder.glob(f"{self.name}-*.parquet"))

    def add(self, row: dict[str, Any]) -> None:
        """Keep a row: in the journal before this returns. Raises OSError."""
        key = tuple(row[name] for name in self._key)
        self._journal.write(json.dumps(row) + "\n")
        self._journal.flush()
        self.rows[key] = self._pending[key] = row
        if len(self._pending) >= JOURNAL_ROWS:
            self.seal()

    def seal(self) -> None:
        """Move the journal into a Parquet file; all files into one when there are many. Raises OSError."""
        if not self._pending:
            return
        parts = self.parts
        number = int(parts[-1].stem.rpartition("-")[2]) + 1 if parts else 1
        merge = len(parts) >= MOST_PARTS
        self._write(self._folder / f"{self.name}-{number:06}.parquet", (self.rows if merge else self._pending).values())
        for part in parts if merge else ():
            part.unlink()
        self._journal.truncate(0)
        self._pending.clear()

    def set_aside(self, folder: Path) -> None:
        """Move all files away and begin anew."""
        folder.mkdir(exist_ok=True)
        self.seal()
        for part in self.parts:
            part.replace(folder / part.name)
        self.rows.clear()

    def close(self) -> None:
        try:
            self.seal()
        finally:
            self._journal.close()

    def _write(self, path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
        arrow, parquet = _arrow()
        schema = arrow.schema([(name, getattr(arrow, kind)()) for name, kind in self._columns.items()])
        hidden = path.with_name(f".{path.name}.new")
        try:
            parquet.write_table(arrow.Table.from_pylist(list(rows), schema=schema), hidden, compression="zstd")
            with hidden.open("rb") as written:
                os.fsync(written.fileno())
            hidden.replace(path)
        finally:
            hidden.unlink(missing_ok=True)

    def _read(self, part: Path) -> None:
        arrow, parquet = _arrow()
        try:
            rows = parquet.read_table(part).to_pylist()
        except (arrow.ArrowException, OSError) as error:
            raise TrainingError(
                f"{part} cannot be read ({' '.join(str(error).split())[:120]}): remove it to go on without it"
            ) from None
        for row in rows:
            self._take(row)

    def _recover(self) -> None:
        """What an earlier process left in the journal. A last line cut off by a crash is ended, so that what follows
        stays readable."""
        if not self._journal_path.exists():
            return
        text = self._journal_path.read_text(encoding="utf-8", errors="replace")
        for line in text.split("\n"):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and (key := self._take(row)) is not None:
                self._pending[key] = self.rows[key]
        if text and not text.endswith("\n"):
            with self._journal_path.open("a", encoding="utf-8") as file:
                file.write("\n")

    def _take(self, row: Mapping[str, Any]) -> tuple[Any, ...] | None:
        if not all(isinstance(row.get(name), str) for name in self._key):
            return None
        key = tuple(row[name] for name in self._key)
        self.rows[key] = {name: row.get(name) for name in self._columns}
        return key


class TrainingSet:
    """An open training set; use it as a context manager. Everything raises TrainingError when the folder cannot be
    written or belongs to somebody else."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        """Sentences on what was found odd."""
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / ".lock").open("w")
        except OSError as error:
            raise self._failed(error) from None
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._lock)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._head = self._read_head()
                self._statements = self._open(stack, "statements", _STATEMENT_COLUMNS, ("key",))
                self._labels = self._open(stack, "labels", _LABEL_COLUMNS, ("count",))
                self._arms = self._open(stack, "arms", _ARM_COLUMNS, ("statement", "arm"))
            except BlockingIOError:
                raise TrainingError(f"the training set {path} is in use by another process") from None
            except OSError as error:
                raise self._failed(error) from None
            self._opened = stack.pop_all()

    def _open(self, stack: contextlib.ExitStack, name: str, columns: Mapping[str, str], key: tuple[str, ...]) -> _Table:
        table = _Table(self.path, name, columns, key)
        stack.callback(table.close)
        return table

    def __enter__(self) -> TrainingSet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._opened.close()
        except OSError as problem:
            # Nothing is lost: the journals hold what could not be made a file. An error on its way out says more.
            if error is None:
                raise self._failed(problem) from None

    def belongs_to(self, database: str, schema_hash: str, *, max_age: float | None = None) -> None:
        """Say whose it is. Labels of another schema are set aside in a folder ``old``; those older than ``max_age``
        seconds are forgotten. Raises TrainingError when it is another database's."""
        head = {"format": FORMAT, "database": database, "schema_hash": schema_hash}
        try:
            if self._head is not None and self._head.get("database") != database:
                raise TrainingError(
                    f"the training set {self.path} belongs to the database {self._head.get('database')}: name another "
                    "folder"
                )
            if self._head is not None and self._head.get("schema_hash") != schema_hash and self._labels.rows:
                self.notes.append(f"the schema has changed: {len(self._labels.rows)} labels were set aside")
                for table in (self._labels, self._arms):
                    table.set_aside(self.path / "old")
            if self._head != head:
                hidden = self.path / f".{HEAD}.new"
                hidden.write_text(json.dumps(head) + "\n")
                hidden.replace(self.path / HEAD)
                self._head = head
        except OSError as error:
            raise self._failed(error) from None
        if max_age is not None:
            oldest = time.time() - max_age
            for table in (self._labels, self._arms):
                for key in [key for key, row in table.rows.items() if (row["at"] or 0.0) < oldest]:
                    del table.rows[key]

    def _read_head(self) -> dict[str, Any] | None:
        try:
            head = json.loads((self.path / HEAD).read_text())
        except FileNotFoundError:
            return None
        except ValueError:
            head = None
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise TrainingError(f"{self.path / HEAD} is not that of a training set that this version understands")
        return head

    def _failed(self, error: OSError) -> TrainingError:
        return TrainingError(f"the training set {self.path} cannot be written: {explain_os(error)}")

    def _add(self, table: _Table, row: dict[str, Any]) -> None:
        try:
            table.add(row)
        except OSError as error:
            raise self._failed(error) from None

    # ------------------------------------------------------------------ statements

    @property
    def statements(self) -> list[Statement]:
        """In the order in which they came."""
        names = [one.name for one in fields(Statement)]
        return [Statement(**{name: row[name] for name in names}) for row in self._statements.rows.values()]

    def add_statement(self, statement: Statement) -> bool:
        """False when it was known; what is known of it is then brought up to date."""
        row = {"key": statement.key, **asdict(statement)}
        known = self._statements.rows.get((statement.key,))
        if known != row:
            self._add(self._statements, row)
        return known is None

    # ------------------------------------------------------------------ labels

    @property
    def rows(self) -> dict[str, float]:
        """Exact true rows by digest."""
        return self._of_kind(EXACT)

    @property
    def bounds(self) -> dict[str, float]:
        """Lower bounds of true rows by digest."""
        return self._of_kind(LOWER)

    def _of_kind(self, kind: str) -> dict[str, float]:
        return {key[0]: row["rows"] for key, row in self._labels.rows.items() if row["kind"] == kind}

    def label(self, digest: str) -> tuple[str, float, float] | None:
        """(kind, rows, limit in seconds) of a sub-plan; ``stopped``: it ran out of that time and nothing is known."""
        row = self._labels.rows.get((digest,))
        return None if row is None else (row["kind"], row["rows"] or 0.0, row["limit"] or 0.0)

    def add_label(self, digest: str, kind: str, rows: float, limit: float, source: str) -> None:
        """Exact labels are never replaced by weaker ones."""
        known = self._labels.rows.get((digest,))
        if known is not None and known["kind"] == EXACT and kind != EXACT:
            return
        row = {"count": digest, "kind": kind, "rows": rows, "limit": limit, "source": source, "at": time.time()}
        self._add(self._labels, row)

    # ------------------------------------------------------------------ arms

    @property
    def arms(self) -> list[ArmTime]:
        return [ArmTime(**row) for row in self._arms.rows.values()]

    def add_arm(self, arm: ArmTime) -> None:
        self._add(self._arms, asdict(arm))
