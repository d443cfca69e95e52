"""node-postgres with its companions for cursors, streams and copy; each check is a function of node/checks.js."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.clients.target import Target
from tests.clients.tools import need, output

pytestmark = pytest.mark.client("node-postgres")

SOURCE = Path(__file__).parent / "node"
CACHE = Path(__file__).resolve().parents[2] / ".pilotwire" / "npm"


@pytest.fixture(scope="session")
def modules() -> Path:
    """The folder with the packages package.json names, installed once per machine and again when that file changes."""
    wanted = (SOURCE / "package.json").read_text(encoding="utf-8")
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "lock", timeout=100):
        stamp = CACHE / "installed.json"
        if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
            shutil.copy(SOURCE / "package.json", CACHE)
            command: list[str | Path] = [need("npm", "npm"), "install", "--no-package-lock", "--no-audit", "--no-fund"]
            output(command, dict(os.environ), cwd=CACHE)
            stamp.write_text(wanted, encoding="utf-8")
    return CACHE / "node_modules"


@pytest.fixture(scope="session")
def client_version(modules: Path) -> str:
    return str(json.loads((modules / "pg" / "package.json").read_text(encoding="utf-8"))["version"])


@pytest.fixture
def check(modules: Path, target: Target) -> Callable[[str], Any]:
    """``check(name)`` runs that function against the target and returns what it found."""
    return lambda name: run_check(name, modules, target)


def run_check(name: str, modules: Path, target: Target) -> Any:
    environment = target.environment(NODE_PATH=str(modules))
    return json.loads(output([need("node", "nodejs"), SOURCE / "checks.js", name], environment))


def test_values_come_back(check: Callable[[str], Any]) -> None:
    found = check("values")
    assert found["row"] == {
        "a": 42,
        "b": "\u00e4\u4e16",
        "c": "2024-02-29T00:00:00.000Z",
        "d": {"x": [1, None]},
        "e": "00ff",
        "f": [1, 2],
        "g": None,
    }
    assert found["types"] == [23, 25, 1184, 3802, 17, 1007, 25]


def test_several_statements_in_one_message_and_an_empty_one(check: Callable[[str], Any]) -> None:
    assert check("several") == {"commands": ["CREATE", "INSERT", "SELECT"], "sum": 3, "empty": None}


def test_named_statements(check: Callable[[str], Any]) -> None:
    assert check("named") == [n * (n % 4 + 1) for n in range(20)]


def test_clients_with_statements_of_the_same_name(check: Callable[[str], Any]) -> None:
    assert check("interleaved") == [[n * 100 + step for n in range(5)] for step in range(10)]


def test_transactions(check: Callable[[str], Any]) -> None:
    assert check("transaction") == {"duplicate": "23505", "aborted": "25P02", "rows": [{"a": 2}]}


def test_errors_point_at_the_place(check: Callable[[str], Any]) -> None:
    message = 'column "nonsense" does not exist'
    assert check("error") == {"code": "42703", "position": "18", "message": message, "alive": 1}


def test_its_own_pool(check: Callable[[str], Any]) -> None:
    found = check("pool")
    assert found["numbers"] == list(range(100))
    assert (found["error"], found["after"], found["state"]) == ("22012", "alive", {"total": 4, "waiting": 0})


def test_a_cursor_by_portal_with_row_limits(check: Callable[[str], Any]) -> None:
    assert check("cursor") == {"sizes": [100, 100, 50, 0], "first": [1, 2, 3], "alive": 1}


def test_a_streamed_result(check: Callable[[str], Any]) -> None:
    assert check("stream") == 5000 * 5001 // 2


def test_copy_streams(check: Callable[[str], Any]) -> None:
    assert check("copy") == {"same": True, "refused": "22P02", "count": 20_000}


def test_notifications(check: Callable[[str], Any]) -> None:
    assert check("notify") == ["a", "b", "c"]


def test_a_time_limit_of_the_server(check: Callable[[str], Any]) -> None:
    assert check("timeout") == {"error": "57014", "alive": 1}


def test_settings_of_the_start(check: Callable[[str], Any]) -> None:
    assert check("settings") == ["matrix", "5MB", "1234ms"]


def test_pipelined_queries(check: Callable[[str], Any]) -> None:
    assert check("pipelined") == {"numbers": list(range(200)), "broken": "22012", "after": list(range(5))}


def test_tls_and_scram_with_channel_binding(modules: Path, secure_target: Target) -> None:
    message = f'password authentication failed for user "{secure_target.user}"'
    assert run_check("secure", modules, secure_target) == {
        "name": secure_target.user,
        "n": 2_000_000,
        "encrypted": True,
        "refused": {"code": "28P01", "message": message},
    }
