"""The shape of the house: imports run down only, the protocol does no I/O, every module says what it is for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("imports")  # what was parsed is parsed once

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pilotwire", "proxy", "training", "planner", "model_runtime")
MAY_IMPORT = {
    "pilotwire": {"pilotwire", "proxy", "training", "planner", "model_runtime"},
    "proxy": {"proxy", "planner.messages"},
    "training": {"training", "planner", "model_runtime"},
    "planner": {"planner", "model_runtime"},
    "model_runtime": {"model_runtime"},
}
WITHOUT_IO = (
    "proxy/wire",
    "planner/graph.py",
    "planner/subplans.py",
    "planner/advice.py",
    "planner/features",
    "planner/dialects",
)
IO = {
    "aiohttp", "asyncio", "asyncpg", "httpx", "multiprocessing", "requests", "select", "selectors", "signal", "socket",
    "socketserver", "sqlalchemy", "ssl", "subprocess", "threading", "urllib", "uvloop",
}  # fmt: skip
HEAVY = {"pglast", "onnxruntime"}
"""What a wire worker must never load: a crash or a long computation there must not touch a connection."""
MODULES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
TESTS = sorted(file for folder in ("tests", "benchmarks") for file in (ROOT / folder).rglob("*.py"))
LINES, FUNCTION_LINES = 600, 80
POSSESSIVE_GROUP = re.compile(r"\)(?:[*+?]|\{[0-9,]*\})\+[^ \d]")


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements, however deep, without the expressions in them, which `ast.walk` would visit."""
    for field in ("body", "orelse", "handlers", "finalbody", "cases"):
        for inner in getattr(tree, field, ()):
            yield inner
            yield from statements(inner)


@cache
def imports(file: Path) -> tuple[str, ...]:
    """Every module that `file` imports, anywhere in it, by its full dotted name."""
    return tuple(_imports(file))


def _imports(file: Path) -> Iterator[str]:
    package = file.relative_to(ROOT).parent.parts
    for node in statements(parsed(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            # ``from planner import messages`` names a module too; for a name that is none the longer path harms nobody.
            yield from (f"{base}.{alias.name}" for alias in node.names)


def label(file: Path) -> str:
    return str(file.relative_to(ROOT))


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def test_imports_run_down_only() -> None:
    wrong = []
    for file in MODULES:
        own = file.relative_to(ROOT).parts[0]
        ours = {module for module in imports(file) if module.split(".")[0] in PACKAGES}
        wrong += [f"{label(file)}: {module}" for module in sorted(ours) if not within(module, MAY_IMPORT[own])]
    assert wrong == []


def test_the_protocol_and_the_planners_core_do_no_io() -> None:
    wrong = []
    for file in MODULES:
        if not label(file).startswith(WITHOUT_IO):
            continue
        wrong += [f"{label(file)}: {module}" for module in imports(file) if module.split(".")[0] in IO]
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open":
                wrong.append(f"{label(file)}: open()")
    assert wrong == []


def test_wire_workers_never_load_parsers_or_models() -> None:
    files = [file for file in MODULES if label(file).startswith("proxy/")]
    assert [label(file) for file in files if {module.split(".")[0] for module in imports(file)} & HEAVY] == []


def test_every_module_says_what_it_is_for() -> None:
    silent = []
    for file in MODULES:
        tree = parsed(file)
        if tree.body and not ast.get_docstring(tree):
            silent.append(label(file))
    assert silent == []


def test_modules_and_functions_stay_small() -> None:
    """A file one cannot read in one go, or a function one cannot see at once, hides its mistakes."""
    large = []
    for file in MODULES + TESTS:
        if (lines := file.read_text().count("\n")) > LINES:
            large.append(f"{label(file)}: {lines} lines")
        for node in statements(parsed(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    large.append(f"{label(file)}: {node.name} has {length} lines")
    assert large == []


def test_no_group_is_possessive() -> None:
    """``(?:...)*+`` takes too much where the group fails midway, before CPython 3.11.5; ``(?>(?:...)*)`` does not."""
    wrong = []
    for file in MODULES:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            if POSSESSIVE_GROUP.search(line):
                wrong.append(f"{label(file)}:{number}")
    assert wrong == []


def test_a_wrong_import_would_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks above see every spelling of an import."""
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    file = tmp_path / "proxy" / "wire" / "bad.py"
    file.parent.mkdir(parents=True)
    file.write_text(
        "from .. import settings\nfrom planner import graph\nimport asyncio\ndef f():\n    import pilotwire.cli\n"
    )
    assert sorted(imports(file)) == ["asyncio", "pilotwire.cli", "planner.graph", "proxy.settings"]
    assert within("planner.messages", MAY_IMPORT["proxy"])
    assert within("planner.messages.Hello", MAY_IMPORT["proxy"])
    assert not within("planner.graph", MAY_IMPORT["proxy"])


@pytest.mark.parametrize(
    ("program", "never"),
    [
        # Workers are copies of what it has loaded. The admin application is loaded when it is asked for.
        ("pilotwire.serve_command, pilotwire.supervisor", {*HEAVY, "numpy", "fastapi", "sqlalchemy"}),
        # The store's library is loaded where there is a store.
        ("planner.service", {"sqlalchemy"}),
    ],
)
def test_what_has_to_start_quickly_loads_little(program: str, never: set[str]) -> None:
    """Each would make the start half as long again."""
    text = f"import {program}, sys; print({never!r} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True)
    assert done.stdout == "set()\n"
