"""The C parts of the suites, compiled against the embedded PostgreSQL's own headers and libpq, kept in the cache."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from pilotwire.postgres_files import Installation
from tests.conformance.sources import ConformanceError, Report, SourceArchive

COMPILE_TIMEOUT = 300.0
LOADED_BY_TESTS = ("refint.so", "autoinc.so")
"""Extensions of contrib that the regression tests load from beside regress.so."""


@dataclass(frozen=True, slots=True)
class Driver:
    """A suite of PostgreSQL's own with the program that plays it; all of them take pg_regress's options."""

    program: Path
    input: Path
    """Its folder in PostgreSQL's ``src/test``."""
    schedule: Path


@dataclass(frozen=True, slots=True)
class Programs:
    """Where everything lies that the suites need."""

    installation: Installation
    server_version: str
    regress: Driver
    isolation: Driver
    library_dir: Path
    """The folder with regress.so, for ``--dlpath``."""
    libpq_pipeline: Path
    pgproto: Path
    pgproto_transcripts: Path
    """pgpool's ``src/test/regression/tests``."""


def prepare(installation: Installation, server_version: str, cache: Path, report: Report) -> Programs:
    """Fetch and compile what is missing in `cache`; needs gcc, and the network the first time."""
    with SourceArchive(cache, report) as sources:
        package = f"postgresql-{installation.major}"
        postgres = sources.tree(package, ["src/test/"], server_version) / "src" / "test"
        pgpool = sources.tree("pgpool2", ["src/include/", "src/test/", "src/tools/"]) / "src"
    built = cache / "built" / f"{installation.version}"
    with FileLock(cache / "built.lock", timeout=COMPILE_TIMEOUT):
        if not built.exists():
            report("compiling regress.so, libpq_pipeline and pgproto")
            unfinished = built.with_name(f"{built.name}.new")
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            _compile_all(installation, postgres, pgpool, unfinished)
            unfinished.rename(built)
    drivers = installation.library_dir / "pgxs" / "src" / "test"
    regress, isolation = postgres / "regress", postgres / "isolation"
    return Programs(
        installation=installation,
        server_version=server_version,
        regress=Driver(drivers / "regress" / "pg_regress", regress, regress / "parallel_schedule"),
        isolation=Driver(drivers / "isolation" / "pg_isolation_regress", isolation, isolation / "isolation_schedule"),
        library_dir=built,
        libpq_pipeline=built / "libpq_pipeline",
        pgproto=built / "pgproto",
        pgproto_transcripts=pgpool / "test" / "regression" / "tests",
    )


def _compile_all(installation: Installation, postgres: Path, pgpool: Path, target: Path) -> None:
    include = installation.root / "include"
    headers = [f"-I{include}", f"-I{include}/internal", f"-I{include}/server"]
    libpq = [f"-L{installation.library_dir}", "-lpq", f"-Wl,-rpath,{installation.library_dir}"]
    _compile(["-shared", "-fPIC", *headers], [postgres / "regress" / "regress.c"], [], target / "regress.so")
    # The wheel's static libraries are not position independent.
    _compile(
        ["-no-pie", *headers],
        [postgres / "modules" / "libpq_pipeline" / "libpq_pipeline.c"],
        [*libpq, "-lpgcommon", "-lpgport", "-lm"],
        target / "libpq_pipeline",
    )
    pgpool_headers = ["-D_GNU_SOURCE", f"-I{pgpool}/include", *headers]
    sources = sorted((pgpool / "tools" / "pgproto").glob("*.c"))
    _compile(pgpool_headers, sources, libpq, target / "pgproto")
    for name in LOADED_BY_TESTS:
        if (installation.library_dir / name).exists():
            shutil.copy(installation.library_dir / name, target / name)


def _compile(options: Sequence[str], sources: Sequence[Path], libraries: Sequence[str], target: Path) -> None:
    command = ["gcc", "-O1", "-w", *options, "-o", str(target), *map(str, sources), *libraries]
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=COMPILE_TIMEOUT)
    except FileNotFoundError:
        raise ConformanceError("There is no C compiler: install gcc.") from None
    if done.returncode:
        first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
        raise ConformanceError(f"{target.name} does not compile against the embedded PostgreSQL: {first}")
