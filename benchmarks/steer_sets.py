"""The two data sets of the steering benchmark: how each is loaded, what is trained on, what is measured.

What is measured is never trained on: the demo's workload and its training queries come from different generators, and
travel_se brings its own split. Every input is named with its SHA-256, so that two runs can be told apart.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg

from benchmarks.processes import BenchmarkError
from pilotwire.demo import load, training_queries, workload

ROOT: Final = Path(__file__).resolve().parent.parent
MOST_ROWS: Final = 50_000_000
"""Test queries with more rows than this only measure how fast PostgreSQL makes rows."""
TRAVEL_TABLES: Final = ("users", "posts", "comments", "votes", "badges", "postlinks", "tags")
TRAVEL_FILES: Final = ("schema.sql", "indexes.sql", "queries_train.sql", "queries_test.sql")

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Query:
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class DataSet:
    """``training`` is the file that `pilotwire train` gets, ``queries`` are what is measured, ``inputs`` the SHA-256 of
    everything that the figures depend on, by name."""

    name: str
    training: Path
    queries: tuple[Query, ...]
    inputs: dict[str, str] = field(default_factory=dict)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def demo_set(dsn: str, work: Path, seed: int, scale: float, report: Report) -> DataSet:
    """Load the demo's rows into the database at `dsn` and write its training queries to a file."""
    last = ""

    def told(step: str, share: float) -> None:
        nonlocal last
        if step != last:
            last = step
            report(f"demo: {step}")

    asyncio.run(load.load(dsn, seed, scale, told))
    training = work / "demo-train.sql"
    training.write_text(";\n".join(training_queries.training_queries(seed, scale=scale)) + ";\n")
    queries = tuple(Query(one.name, one.sql) for one in workload.workload(seed, scale))
    inputs = {
        "training queries": digest(training.read_bytes()),
        "workload": digest("\n".join(query.sql for query in queries).encode()),
        "seed and scale": f"{seed} {scale:g}",
    }
    package = ROOT / "pilotwire" / "demo"
    inputs |= {
        name: digest((package / name).read_bytes()) for name in ("schema.py", "vocabulary.py", "data.py", "sales.py")
    }
    return DataSet("demo", training, queries, inputs)


def travel_files(folder: Path) -> list[Path]:
    """The files of travel_se; BenchmarkError when one is missing."""
    wanted = [folder / name for name in TRAVEL_FILES] + [folder / f"{table}.csv.gz" for table in TRAVEL_TABLES]
    missing = [path for path in wanted if not path.is_file()]
    if missing:
        raise BenchmarkError(f"travel_se is not complete in {folder} ({missing[0].name} is missing): set TRAVEL_SE.")
    return wanted


def travel_set(dsn: str, folder: Path, report: Report) -> DataSet:
    """Load travel_se from `folder` into the database at `dsn`."""
    files = travel_files(folder)
    asyncio.run(_load_travel(dsn, folder, report))
    queries = [
        Query(f"q{number}", sql)
        for number, (rows, sql) in enumerate(counted((folder / "queries_test.sql").read_text()), 1)
        if rows <= MOST_ROWS
    ]
    inputs = {path.name: digest(path.read_bytes()) for path in files}
    return DataSet("travel_se", folder / "queries_train.sql", tuple(queries), inputs)


def counted(text: str) -> list[tuple[int, str]]:
    """Lines of ``true row count||SQL``."""
    pairs = (line.split("||", 1) for line in text.splitlines() if line.strip())
    return [(int(rows), sql.strip().rstrip(";")) for rows, sql in pairs]


async def _load_travel(dsn: str, folder: Path, report: Report) -> None:
    connection = await asyncpg.connect(dsn, ssl=False)
    try:
        await connection.execute((folder / "schema.sql").read_text())
        for table in TRAVEL_TABLES:
            report(f"travel_se: copying {table}")
            with gzip.open(folder / f"{table}.csv.gz") as rows:
                columns = rows.readline().decode().strip().split(",")
                await connection.copy_to_table(table, source=rows, columns=columns, format="csv")
        report("travel_se: indexes and statistics")
        await connection.execute((folder / "indexes.sql").read_text())
        await connection.execute("VACUUM (ANALYZE)")
    finally:
        await connection.close()
