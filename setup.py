"""Only for the optional compiled build (``make compiled``): mypyc turns the wire's hot path into C extensions.

What is compiled is the very Python that runs otherwise, and the same tests run on both. Everything else about the
distribution is in pyproject.toml.
"""

import os
import sys
from pathlib import Path

from setuptools import Extension, setup

HOT = [
    "proxy/metrics.py",
    "proxy/reuse.py",
    "proxy/session.py",
    "proxy/session_base.py",
    "proxy/steering/__init__.py",
    "proxy/steering/cache.py",
    "proxy/steering/steerer.py",
    "proxy/steering/template.py",
    "proxy/upstream/backend.py",
    "proxy/upstream/pool.py",
]
# Statements are weakly referenced, which compiled classes cannot be.
PURE = {"__init__.py", "prepared.py"}


def extensions() -> list[Extension]:
    if os.environ.get("PILOTWIRE_COMPILE") != "1":
        return []
    from mypyc.build import mypycify

    wire = sorted(str(path) for path in Path("proxy/wire").glob("*.py") if path.name not in PURE)
    built = list(mypycify(["--follow-imports=silent", *wire, *HOT], opt_level="3", debug_level="0"))
    if sys.platform.startswith("linux"):
        # Nobody replaces a function of ours at run time: calls within the build need no look-up.
        for extension in built:
            extension.extra_compile_args += ["-fvisibility=hidden", "-fno-semantic-interposition"]
            extension.extra_link_args += ["-Wl,-Bsymbolic"]
    return built


setup(ext_modules=extensions())
