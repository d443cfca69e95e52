"""A folder of models, stores on it, and one checking process for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from model_runtime.check_process import CheckProcess
from model_runtime.store import ModelStore

Open = Callable[..., ModelStore]


@pytest.fixture(scope="session")
def checker() -> Iterator[CheckProcess]:
    with CheckProcess() as process:
        yield process


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "models"
    path.mkdir()
    return path


@pytest.fixture
def start(folder: Path, checker: CheckProcess) -> Open:
    """Opens a store on the folder, as a start of the program would."""

    def start(**options: Any) -> ModelStore:
        return ModelStore(folder, **{"checker": checker, **options})

    return start
