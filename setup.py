"""The optional compiled build: with PILOTWIRE_COMPILE=1 mypyc compiles the modules that every message passes through.

Without it, or where there is no C compiler, the same files run as plain Python. mypy (which brings mypyc) must be
installed where the build runs, so build with ``pip install --no-build-isolation``.
"""

from __future__ import annotations

import os

from setuptools import setup

COMPILED = [
    "proxy/steering/__init__.py",
    "proxy/wire/frames.py",
    "proxy/wire/messages.py",
    "proxy/wire/statements.py",
    "proxy/wire/conversation.py",
    "proxy/wire/pins.py",
    "proxy/wire/carried.py",
    "proxy/wire/session_state.py",
    "proxy/wire/pooled.py",
]

extensions = []
if os.environ.get("PILOTWIRE_COMPILE") == "1":
    from mypyc.build import mypycify

    extensions = mypycify(COMPILED, opt_level="3", strip_asserts=True)

setup(ext_modules=extensions)
