"""What a folder of models remembers: arrivals, what served, what an operator chose, and copies of the last good files.

All of it is in the hidden folder ``.pilotwire-models``: ``state.json``, replaced by renaming, so that a crash leaves
the old or the new one; and ``<sha256>.onnx`` for each model that may be gone back to, even when its file was
overwritten. Several processes may use one folder (a running proxy and ``pilotwire model``): a change is made under a
file lock on what is on disk then. A folder that cannot be written is served all the same; what should be remembered
then lives as long as the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from model_runtime.bundle import FileBytes, Refused, read, replace, signature
from model_runtime.limits import Limits

FOLDER: Final = ".pilotwire-models"
LOCK_SECONDS: Final = 2.0
STALE_SECONDS: Final = 3600.0
MAX_STATE: Final = 4 << 20


class Seen(msgspec.Struct, frozen=True):
    """The last good content of a file of the folder, and when it came."""

    sha256: str
    kind: str
    name: str
    version: str
    arrived: float


class Served(msgspec.Struct, frozen=True):
    """A model that served; ``rolled_back``: an operator went back from it."""

    sha256: str
    name: str
    version: str
    file: str
    since: float
    rolled_back: bool = False


class Pin(msgspec.Struct, frozen=True):
    """An operator's choice. ``hold``: it stays whatever comes; else until a file arrives after ``at``."""

    sha256: str
    at: float
    hold: bool


class State(msgspec.Struct):
    """By file name and by kind of model. ``served`` is in order, the newest last, each content once."""

    files: dict[str, Seen] = {}
    pins: dict[str, Pin] = {}
    served: dict[str, list[Served]] = {}


class Memory:
    """The hidden folder. With ``record`` False nothing is written. Nothing here raises for what is on disk: what
    cannot be read or written goes to ``trouble``, for the owner to take."""

    def __init__(self, folder: Path, limits: Limits, *, record: bool = True) -> None:
        self.folder = folder / FOLDER
        self.limits = limits
        self.record = record
        self.trouble: list[str] = []
        self._file = self.folder / "state.json"
        self._unwritten: State | None = None
        self._known: tuple[int, int, int] | None = None

    def changed_elsewhere(self) -> bool:
        """Another process changed the state since it was loaded or written here."""
        return self._unwritten is None and self._signature() != self._known

    def _signature(self) -> tuple[int, int, int] | None:
        try:
            return signature(self._file.stat())
        except OSError:
            return None

    def load(self) -> State:
        """What is remembered; nothing, if that cannot be read."""
        if self._unwritten is not None:
            return self._unwritten
        self._known = None
        try:
            with self._file.open("rb") as file:
                self._known = signature(os.fstat(file.fileno()))
                data = file.read(MAX_STATE + 1)
            if len(data) > MAX_STATE:
                raise msgspec.ValidationError(f"more than {MAX_STATE} bytes")
            state = msgspec.json.decode(data, type=State)
        except FileNotFoundError:
            return State()
        except OSError as error:
            self.trouble.append(f"{self._file}: {error.strerror}")
            return State()
        except msgspec.MsgspecError as error:
            # Renaming makes this impossible for a crash of ours; somebody else wrote it.
            self.trouble.append(f"{self._file} is not readable and starts anew: {error}")
            return State()
        return state

    @contextlib.contextmanager
    def change(self) -> Iterator[State]:
        """The state as it is on disk now, to be changed; written at the end of the block if it was."""
        with self._locked():
            state = self.load()
            before = msgspec.json.encode(state)
            yield state
            after = msgspec.json.encode(state)
            if after != before:
                self._write(state, after)

    def _write(self, state: State, data: bytes) -> None:
        if self.record:
            try:
                self.folder.mkdir(exist_ok=True)
                replace(self._file, data)
                self._known = self._signature()
            except OSError as error:
                self.trouble.append(f"{self._file} cannot be written: {error.strerror}")
            else:
                self._unwritten = None
                return
        self._unwritten = state

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the folder's lock where that is possible: a stopped process that has it is not waited for long."""
        descriptor = -1
        if self.record:
            with contextlib.suppress(OSError):
                self.folder.mkdir(exist_ok=True)
                descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while descriptor >= 0 and time.monotonic() < deadline:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    time.sleep(0.01)
            yield
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    # ------------------------------------------------------------------ copies

    def keep(self, content: FileBytes) -> None:
        """Remember those bytes."""
        path = self._copy(content.sha256)
        if not self.record or path.exists():
            return
        try:
            self.folder.mkdir(exist_ok=True)
            # Its name is its hash: a copy that a power cut spoiled is told when it is read.
            replace(path, content.data, durable=False)
        except OSError as error:
            self.trouble.append(f"{path} cannot be written: {error.strerror}")

    def kept(self, sha256: str) -> FileBytes | None:
        """Those bytes, if they are kept and still the same."""
        try:
            content = read(self._copy(sha256), self.limits)
        except Refused:
            return None
        return content if content.sha256 == sha256 else None

    def has(self, sha256: str) -> bool:
        return self._copy(sha256).exists()

    def forget_others(self, wanted: set[str]) -> None:
        """Remove all copies but those, and what a crash left half-written."""
        if not self.record:
            return
        with contextlib.suppress(OSError):
            for path in list(self.folder.iterdir()):
                old = path.suffix == ".tmp" and path.stat().st_mtime < time.time() - STALE_SECONDS
                if old or (path.suffix == ".onnx" and path.stem not in wanted):
                    path.unlink()

    def _copy(self, sha256: str) -> Path:
        # The name comes from a file that anybody with access may have written: never a path out of the folder.
        safe = sha256 if len(sha256) == 64 and sha256.isalnum() else hashlib.sha256(sha256.encode()).hexdigest()
        return self.folder / f"{safe}.onnx"
