"""The trainer's folder: small JSON files that appear complete or not at all, and a lock for one trainer at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import msgspec

from model_runtime.bundle import replace
from training.errors import TrainingError

LOCK: Final = "trainer.lock"
_Read = TypeVar("_Read")


def write(path: Path, value: object) -> None:
    """Durably and atomically. Raises TrainingError, for instance on a full disk; the old content stays then."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n")
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from None


def read(path: Path, kind: type[_Read]) -> _Read | None:
    """None where there is no such file, or one that is not understood."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


class Lock:
    """Held by the running trainer; ends with its process, however that ends."""

    def __init__(self, folder: Path) -> None:
        """Raises TrainingError when another trainer has it, or the folder cannot be used."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TrainingError(f"{folder} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise TrainingError(f"another trainer works in {folder}") from None

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._descriptor)


def locked(folder: Path) -> bool:
    """Whether a trainer works there now."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
