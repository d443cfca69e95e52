"""What the compiled build's profile is made of: pgbench in all its modes through a build that counts.

``python -m benchmarks.profile_run TREE``: TREE is the folder of a build made with ``-fprofile-generate``. Clients that
look rows up and clients that change them in transactions of several statements, in both pool modes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Final

from benchmarks.pgbench import Pgbench, Script
from benchmarks.pgbouncer import PoolMode
from benchmarks.processes import BenchmarkError
from benchmarks.speed import MODES
from benchmarks.targets import Variant, prepared_bench

CLIENTS: Final = 8
SECONDS: Final = 2.0
POOL_MODES: Final[tuple[PoolMode, ...]] = ("transaction", "session")
SCRIPTS: Final[tuple[Script, ...]] = ("select-only", "tpcb-like")

# Counts are written when a process ends in order, which workers do not: they leave by os._exit. Without pidfds there is
# no nursery, and each worker starts by itself.
_ORDERLY: Final = """import os
import sys

del os.pidfd_open
if "proxy.worker" in sys.orig_argv:
    os._exit = sys.exit
"""


@contextlib.contextmanager
def _leaving_in_order(tree: Path) -> Iterator[None]:
    hook = tree / "sitecustomize.py"
    hook.write_text(_ORDERLY)
    try:
        yield
    finally:
        hook.unlink()


def run(tree: Path) -> None:
    """Runs all of it through the build in ``tree``, about half a minute. Raises `BenchmarkError` when pgbench fails."""
    with (
        _leaving_in_order(tree),
        prepared_bench(lambda line: print(line, flush=True), want_pgbouncer=False, compiled=tree) as bench,
    ):
        pgbench = Pgbench(bench.server.binary("pgbench"))
        pgbench.initialise(bench.server.port)
        for pool_mode in POOL_MODES:
            with bench.start(Variant("pilotwire", pool_mode, compiled=True)) as target:
                for mode, script in product(MODES, SCRIPTS):
                    outcome = pgbench.run(target.port, CLIENTS, mode, SECONDS, script)
                    print(f"{target.name}, {mode}, {script}: {outcome.transactions} transactions", flush=True)


def main() -> int:
    if len(sys.argv) != 2 or not Path(sys.argv[1], "proxy").is_dir():
        print("usage: python -m benchmarks.profile_run TREE", file=sys.stderr)
        return 2
    try:
        run(Path(sys.argv[1]).resolve())
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
