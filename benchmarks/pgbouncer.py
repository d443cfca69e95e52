"""Finding a PgBouncer to compare with, and running it.

PgBouncer follows prepared statements in transaction mode since 1.21, and Debian 12 carries an older one. So the one of
a later Debian release is fetched together with the libraries it needs and run by that release's own dynamic loader;
where that cannot be had, the machine's own is taken.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.debian_packages import fetch
from benchmarks.processes import HOST, BenchmarkError, free_port, server_process
from pilotwire.postgres_files import Account

PoolMode = Literal["session", "transaction"]

SUITE = "forky"
PACKAGES = (
    "pgbouncer", "libc6", "libgcc-s1", "libcares2", "libevent-2.1-7t64", "libldap2", "libpam0g", "libssl3t64",
    "libsystemd0", "libaudit1", "libcap-ng0", "libsasl2-2", "libzstd1", "zlib1g",
)  # fmt: skip
FIRST_WITH_PREPARED = (1, 21)
_VERSION = re.compile(r"PgBouncer (\d+)\.(\d+)\S*")


@dataclass(frozen=True, slots=True)
class PgBouncerProgram:
    """How to start a PgBouncer (its loader and library path in front where needed) and which one it is."""

    command: tuple[str, ...]
    version: str

    @property
    def follows_prepared(self) -> bool:
        """Whether it can run prepared statements in transaction mode."""
        return version_of(self.version) >= FIRST_WITH_PREPARED


def version_of(text: str) -> tuple[int, int]:
    """Major and minor from what ``pgbouncer --version`` prints; raises BenchmarkError when it is something else."""
    match = _VERSION.search(text)
    if match is None:
        raise BenchmarkError(f"This is no PgBouncer version: {text.strip()!r}.")
    return int(match[1]), int(match[2])


def find(work: Path, report: Callable[[str], None], program: Path | None = None) -> PgBouncerProgram:
    """`program` when given, else that of `SUITE`, else the machine's; BenchmarkError when there is none.

    `work` gets a copy that any account may read, since PgBouncer refuses to run as root.
    """
    if program is not None:
        return _described((str(program),))
    try:
        return _later_release(work, report)
    except BenchmarkError as error:
        installed = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
        if installed is None:
            raise BenchmarkError(f"No PgBouncer to compare with ({error}): run `apt-get install pgbouncer`.") from None
        report(f"using the machine's PgBouncer ({error})")
        return _described((installed,))


def _later_release(work: Path, report: Callable[[str], None]) -> PgBouncerProgram:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cached = Path(home) / "pilotwire" / "pgbouncer" / f"{SUITE}-{platform.machine()}"
    if not cached.exists():
        report(f"getting PgBouncer of Debian's {SUITE}")
        fetch(PACKAGES, SUITE, cached)
    root = work / "pgbouncer-root"
    if not root.exists():
        shutil.copytree(cached, root, symlinks=True)
        root.chmod(0o755)
    loaders = sorted(root.glob("usr/lib/*/ld-linux*.so.*"))
    if not loaders:
        raise BenchmarkError(f"{cached} holds no dynamic loader.")
    loader = loaders[0]
    return _described((str(loader), "--library-path", str(loader.parent), str(root / "usr/sbin/pgbouncer")))


def _described(command: tuple[str, ...]) -> PgBouncerProgram:
    try:
        done = subprocess.run([*command, "--version"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchmarkError(f"{command[-1]} does not run: {error}.") from None
    version_of(done.stdout)
    return PgBouncerProgram(command, done.stdout.splitlines()[0].strip())


@contextlib.contextmanager
def running(
    program: PgBouncerProgram,
    work: Path,
    name: str,
    *,
    settings: dict[str, str | int],
    upstream_port: int,
    account: Account | None,
) -> Iterator[tuple[int, int]]:
    """Run a PgBouncer in front of `upstream_port` until the block ends; yields its port and its pid.

    `work` must be a directory that `account` can enter. ``settings`` go over the defaults of the package.
    """
    port = free_port()
    ini = work / f"{name}.ini"
    lines = {"listen_addr": HOST, "listen_port": port, "unix_socket_dir": "", **settings}
    ini.write_text(
        f"[databases]\n* = host={HOST} port={upstream_port}\n\n[pgbouncer]\n"
        + "".join(f"{key} = {value}\n" for key, value in lines.items())
    )
    ini.chmod(0o644)
    log = work / f"{name}.log"
    with server_process([*program.command, str(ini)], port, log, account=account) as pid:
        yield port, pid
