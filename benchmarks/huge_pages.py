"""Huge pages for the benchmark's PostgreSQL, as its manual advises for a server of its own.

With pages of 4 kB each new backend faults in every page of shared buffers it meets for the first time: in runs of
seconds two to three faults a query, which a server connection that outlived its last client does not have any more. A
comparison of proxies would then show who opens connections, and not what the wire costs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

_RESERVED = Path("/proc/sys/vm/nr_hugepages")
_SIZE_LINE = "Hugepagesize:"


@contextlib.contextmanager
def reserved(size: int, report: Callable[[str], None]) -> Iterator[None]:
    """Reserve `size` bytes more of huge pages for as long as the block runs, where that is allowed (root, Linux).

    PostgreSQL's ``huge_pages = try`` takes them at its start; without them everything runs as before, and
    ``huge_pages_status`` tells which it was.
    """
    try:
        before = int(_RESERVED.read_text())
        wanted = before + -(-size // _page_size())
        _RESERVED.write_text(f"{wanted}\n")
    except (OSError, ValueError):
        report("no huge pages: new backends pay for page faults in their first seconds")
        yield
        return
    try:
        if int(_RESERVED.read_text()) < wanted:
            report("fewer huge pages than PostgreSQL needs: new backends pay for page faults in their first seconds")
        yield
    finally:
        with contextlib.suppress(OSError):
            _RESERVED.write_text(f"{before}\n")


def _page_size() -> int:
    """Bytes of one huge page; ValueError where the kernel has none."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(_SIZE_LINE):
            return int(line.split()[1]) * 1024
    raise ValueError("this kernel has no huge pages")
