"""The models of one folder: which of them serves, and how one takes over from another while queries go on.

A file ``*.onnx`` that is dropped into the folder or overwritten is read once it has stopped changing (two looks that
find it the same), checked in a process of its own, loaded and warmed beside the model that serves, and then takes over
by the assignment of one attribute: a prediction under way ends on the model it began with. A file that fails any step
is refused with a reason, and what served before serves on.

Which model of a kind serves: the one that came last. `ModelStore.activate` pins one against whatever comes,
`ModelStore.rollback` goes back to the last good one until a newer file comes, `ModelStore.release` ends both.
"Came" means that the file's content was new, so touching or re-owning files changes nothing; it is remembered across
restarts. A file that was overwritten by a bad one counts with its last good content. A file that is removed is
switched off by that: the one that came before it takes over, and with none left of its kind nothing serves.

All methods but `current` and `watch` may block for as long as checking takes; they are for an executor thread and
exclude each other. Callbacks run in that thread, after the store has changed.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from model_runtime import bundle
from model_runtime.bundle import FileBytes, Refused
from model_runtime.check_process import CheckProcess
from model_runtime.folder import Folder
from model_runtime.limits import Limits
from model_runtime.manifest import KINDS, Kind, parse
from model_runtime.runner import Model, first_line
from model_runtime.state import Memory, Pin, Seen, Served, State
from model_runtime.verdict import Verdict

OUTCOMES: Final = 100
VERDICTS: Final = 64


class StoreError(Exception):
    """What was asked of the store cannot be done. ``str()`` is one sentence."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one file. ``step`` is a stable label: the check that refused it (see `model_runtime.verdict`),
    "" for a file that is good, ``removed``, or ``store`` for trouble with the folder itself (``file`` is "").
    ``seconds`` is what checking took."""

    file: str
    accepted: bool
    reason: str
    name: str = ""
    version: str = ""
    kind: str = ""
    step: str = ""
    at: float = field(default_factory=time.time)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Listed:
    """One row for a person. ``status`` is ``active``, ``valid``, ``refused`` or ``kept`` (only its copy is left)."""

    file: str
    status: str
    kind: str
    name: str
    version: str
    sha256: str
    arrived: float
    pinned: bool = False
    reason: str = ""


@dataclass(slots=True)
class _File:
    """``good`` is the last good content, ``refused`` why the present content is another one and not used."""

    good: Seen | None = None
    refused: Outcome | None = None


class ModelStore:
    """See the module. ``record=False`` looks without writing to the folder, for inspection beside a running proxy.
    ``checker`` may be one that several stores share."""

    def __init__(
        self,
        folder: Path | str,
        limits: Limits | None = None,
        on_event: Callable[[Outcome], None] | None = None,
        on_swap: Callable[[Kind, Model | None], None] | None = None,
        *,
        record: bool = True,
        checker: CheckProcess | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.limits = limits or Limits()
        self.generation = 0
        self.load_seconds = 0.0
        """What it took to load and warm the model that took over last."""
        self._on_event = on_event
        self._on_swap = on_swap
        self._memory = Memory(self.folder, self.limits, record=record)
        self._state = State()
        self._looks = Folder(self.folder, self.limits.files)
        self._files: dict[str, _File] = {}
        self._current: dict[Kind, Model | None] = dict.fromkeys(KINDS)
        self._fresh: dict[str, FileBytes] = {}
        self._verdicts: OrderedDict[str, Verdict] = OrderedDict()
        self._outcomes: deque[Outcome] = deque(maxlen=OUTCOMES)
        self._events: list[Outcome] = []
        self._swaps: list[tuple[Kind, Model | None]] = []
        self._trouble: set[str] = set()
        self._lock = threading.Lock()
        self._checker = checker or CheckProcess()
        self._own_checker = checker is None
        self._begun = False
        self._in_change = False

    def __repr__(self) -> str:
        serving = ", ".join(f"{kind}={model.label if model else None}" for kind, model in self._current.items())
        return f"<ModelStore {self.folder} {serving} generation={self.generation}>"

    # ------------------------------------------------------------------ serving

    def current(self, kind: Kind) -> Model | None:
        """The model that serves now. Take it once per decision: the next call may give another."""
        return self._current[kind]

    @property
    def outcomes(self) -> list[Outcome]:
        """What became of files, the newest last; bounded."""
        return list(self._outcomes)

    async def watch(self, interval: float = 1.0) -> None:
        """Look at the folder every ``interval`` seconds until cancelled."""
        while True:
            await asyncio.to_thread(self.poll)
            await asyncio.sleep(interval)

    def poll(self) -> list[Outcome]:
        """Look once; a file that changes is left until the next look finds it the same. Never raises."""
        return self._look(reload=False)

    def reload(self) -> list[Outcome]:
        """Look at everything now, also at what was refused before or has only just changed. Never raises."""
        return self._look(reload=True)

    def close(self) -> None:
        """Stop the checking process, if it is the store's own. Models that somebody holds stay usable."""
        if self._own_checker:
            self._checker.close()

    # ------------------------------------------------------------------ the operator's choice

    def activate(self, what: str, version: str | None = None) -> Model:
        """Pin the model of that name (the one that came last, or of that version), label or file. Raises
        `StoreError`."""
        with self._operation():
            known = sorted(self._known(), key=lambda item: item[1].arrived, reverse=True)
            for file, seen in known:
                names = (seen.name, f"{seen.name}-{seen.version}", file, seen.sha256)
                if what in names and version in (None, seen.version):
                    if not self._candidates(_kind(seen.kind)):
                        # Removing every file of a kind switches it off, and a copy must not undo that.
                        raise StoreError(f"no {seen.kind} file is left in {self.folder}: put one there first")
                    return self._pin(_kind(seen.kind), seen.sha256, hold=True)
            entry = self._files.get(what)
            if entry is not None and entry.refused is not None:
                raise StoreError(f"{what} is refused: {entry.refused.reason}")
            raise StoreError(f"no model {what}{f' {version}' if version else ''} in {self.folder}")

    def rollback(self, kind: Kind = "cardinality") -> Model:
        """Go back to the model that served before the present one. Raises `StoreError`."""
        with self._operation():
            present = self._current[kind]
            if present is None:
                raise StoreError(f"no {kind} model serves")
            for entry in reversed(self._state.served.get(kind, [])):
                if entry.sha256 != present.sha256 and not entry.rolled_back and self._bytes(entry.sha256) is not None:
                    return self._pin(kind, entry.sha256, hold=False, leaving=present.sha256)
            raise StoreError(f"there is no earlier {kind} model to go back to")

    def release(self, kind: Kind = "cardinality") -> Model | None:
        """End a pin or a rollback: the model that came last serves again."""
        with self._operation():
            with self._changing() as state:
                state.pins.pop(kind, None)
            self._choose()
            return self._current[kind]

    def listing(self) -> list[Listed]:
        """All files, and the copies that can be gone back to, the newest first."""
        with self._lock:
            active = {model.sha256 for model in self._current.values() if model}
            pinned = {pin.sha256 for pin in self._state.pins.values()}
            rows = []
            for name, seen in self._known():
                entry = self._files.get(name)
                here = entry is not None and entry.good == seen
                status = "active" if seen.sha256 in active else "valid" if here else "kept"
                bad = entry.refused if here and entry is not None else None
                reason = f"the file's present content is refused: {bad.reason}" if bad else ""
                rows.append(Listed(name, status, *_columns(seen), seen.sha256 in pinned, reason))
            for name, file in self._files.items():
                if file.refused and not file.good:
                    bad = file.refused
                    rows.append(Listed(name, "refused", bad.kind, bad.name, bad.version, "", bad.at, reason=bad.reason))
            return sorted(rows, key=lambda row: row.arrived, reverse=True)

    def _known(self) -> Iterator[tuple[str, Seen]]:
        """Every content that can serve, by file: the files' own, then copies of what no file holds any more."""
        held = set()
        for name, file in self._files.items():
            if file.good:
                held.add(file.good.sha256)
                yield name, file.good
        for kind in KINDS:
            for entry in self._state.served.get(kind, []):
                if entry.sha256 not in held and self._memory.has(entry.sha256):
                    yield entry.file, Seen(entry.sha256, kind, entry.name, entry.version, entry.since)

    def _pin(self, kind: Kind, sha256: str, *, hold: bool, leaving: str = "") -> Model:
        before = msgspec.json.encode(self._state)
        with self._changing() as state:
            state.pins[kind] = Pin(sha256, time.time(), hold)
            served = state.served.get(kind, [])
            state.served[kind] = [
                msgspec.structs.replace(entry, rolled_back=True) if entry.sha256 == leaving else entry
                for entry in served
            ]
        self._choose()
        model = self._current[kind]
        if model is None or model.sha256 != sha256:
            why = self._outcomes[-1].reason if self._outcomes else "its content is gone"
            earlier = msgspec.json.decode(before, type=State)
            with self._changing() as state:
                state.pins, state.served = earlier.pins, earlier.served
            self._choose()
            raise StoreError(f"that model does not load: {why}")
        return model

    # ------------------------------------------------------------------ looking

    @contextmanager
    def _operation(self) -> Iterator[None]:
        """One thing at a time, on a store that knows its folder; callbacks afterwards, outside of the lock."""
        try:
            with self._lock:
                if not self._begun:
                    self._begun = True
                    self._examine_folder(settled_only=False)
                yield
        finally:
            with self._lock:
                events, self._events = self._events, []
                swaps, self._swaps = self._swaps, []
            for event in events:
                if self._on_event:
                    self._on_event(event)
            for kind, model in swaps:
                if self._on_swap:
                    self._on_swap(kind, model)

    def _look(self, *, reload: bool) -> list[Outcome]:
        found: list[Outcome] = []
        try:
            begun = self._begun
            with self._operation():
                if begun:
                    for name in [name for name, file in self._files.items() if file.refused and reload]:
                        self._looks.forget(name)
                    self._examine_folder(settled_only=not reload)
                found = list(self._events)
        except Exception as error:
            # Serving goes on with what is loaded, whatever happened here; the next look may do better.
            self._outcomes.append(Outcome("", False, f"{type(error).__name__}: {first_line(error)}", step="store"))
            found.append(self._outcomes[-1])
        return found

    def _examine_folder(self, *, settled_only: bool) -> None:
        news = False
        if self._memory.changed_elsewhere():
            self._state = self._memory.load()
            self._adopt()
            news = True
        try:
            changes = self._looks.changes(settled_only=settled_only)
        except OSError as error:
            # Not being able to look is not the same as finding nothing: what serves goes on.
            self._complain(f"{self.folder} cannot be read: {error.strerror}")
            changes = None
        if changes is not None:
            if changes.ignored:
                self._complain(
                    f"{changes.ignored} of the oldest files are not looked at: more than {self.limits.files}"
                )
            for name in changes.changed:
                self._examine(name)
            gone = {*changes.gone, *(name for name in self._state.files if name not in self._looks)}
            if changes.changed or gone:
                # One write for what came and what serves because of it.
                with self._changing():
                    self._record(gone)
                    self._choose()
                news = False
        if news:
            self._choose()
        self._fresh.clear()
        while self._memory.trouble:
            self._complain(self._memory.trouble.pop(0))

    def _examine(self, name: str) -> None:
        """Judge the present content of a file."""
        file = self._files.setdefault(name, _File())
        remembered = self._state.files.get(name)
        if file.good is None and remembered is not None and self._memory.has(remembered.sha256):
            file.good = remembered
        try:
            shown = name.encode("utf-8", "backslashreplace").decode()
            if shown != name:
                raise Refused("read", "its name is not UTF-8")
            content = bundle.read(self.folder / name, self.limits)
        except Refused as error:
            file.refused = self._say(Outcome(shown, False, error.reason, step=error.step))
            if error.reason == bundle.CHANGING:
                self._looks.forget(name)
            return
        if file.good is not None and content.sha256 == file.good.sha256 and self._begun_with(content.sha256):
            file.refused = None
            return
        begun = time.monotonic()
        verdict = self._verdict(content)
        took = time.monotonic() - begun
        title, version, kind = _named(verdict)
        if not verdict.good:
            if file.good is not None and file.good.sha256 == content.sha256:
                # It passed in an earlier life of the store, under other libraries or limits.
                file.good = None
            bad = Outcome(name, False, verdict.reason, title, version, kind, verdict.failed, seconds=took)
            file.refused = self._say(bad)
            return
        arrived = self._arrival(name, content.sha256)
        file.good, file.refused = Seen(content.sha256, kind, title, version, arrived), None
        # Files come oldest first: the last of a kind is the one that will be loaded.
        self._fresh[kind] = content
        self._say(Outcome(name, True, "", title, version, kind, seconds=took))

    def _begun_with(self, sha256: str) -> bool:
        """That content was checked by this process."""
        return sha256 in self._verdicts or any(model and model.sha256 == sha256 for model in self._current.values())

    def _arrival(self, name: str, sha256: str) -> float:
        remembered = self._state.files.get(name)
        if remembered is not None and remembered.sha256 == sha256:
            return remembered.arrived
        if not self._state.files:
            # A folder that is looked at for the first time says itself what came last.
            return min(self._looks.modified(name), time.time())
        latest = max((file.good.arrived for file in self._files.values() if file.good), default=0.0)
        return max(time.time(), latest + 1e-6)

    def _adopt(self) -> None:
        """Take over what another process remembers of files that this one knows too."""
        for name, file in self._files.items():
            remembered = self._state.files.get(name)
            if file.good and remembered and file.good.sha256 == remembered.sha256:
                file.good = remembered

    def _record(self, gone: set[str]) -> None:
        removed = {}
        for name in gone:
            file = self._files.pop(name, None)
            good = file.good if file and file.good else self._state.files.get(name)
            if good:
                removed[name] = good
                self._say(Outcome(name, False, "removed", good.name, good.version, good.kind, "removed"))
        left = {file.good.sha256 for file in self._files.values() if file.good}
        with self._changing() as state:
            waiting = {n: seen for n, seen in state.files.items() if n in self._looks and n not in self._files}
            state.files = waiting | {name: file.good for name, file in self._files.items() if file.good}
            for good in removed.values():
                pin = state.pins.get(good.kind)
                if pin is not None and pin.sha256 == good.sha256 and good.sha256 not in left:
                    del state.pins[good.kind]

    @contextmanager
    def _changing(self) -> Iterator[State]:
        """The state, to be changed; inside of another such block it is written by the outer one."""
        if self._in_change:
            yield self._state
            return
        with self._memory.change() as state:
            self._state, self._in_change = state, True
            try:
                yield state
            finally:
                self._in_change = False

    # ------------------------------------------------------------------ choosing and swapping

    def _choose(self) -> None:
        """Let the right model of each kind serve."""
        for kind in KINDS:
            present = self._current[kind]
            for name, sha256 in self._candidates(kind):
                if present is not None and present.sha256 == sha256:
                    break
                if self._load(kind, name, sha256):
                    break
            else:
                if present is not None:
                    self._swap(kind, None)

    def _candidates(self, kind: Kind) -> list[tuple[str, str]]:
        """(file, content) in the order in which they are to serve: the first that loads does."""
        files = [(name, file.good) for name, file in self._files.items() if file.good and file.good.kind == kind]
        files.sort(key=lambda item: item[1].arrived, reverse=True)
        if not files:
            # The operator removed them all: a pin does not outlive that.
            return []
        everything = [(name, good.sha256) for name, good in files]
        pin = self._state.pins.get(kind)
        if pin is None:
            return everything
        newer = [] if pin.hold else [(name, good.sha256) for name, good in files if good.arrived > pin.at]
        served = self._state.served.get(kind, [])
        left = {entry.sha256 for entry in served if entry.rolled_back}
        rest = [item for item in everything if item[1] not in left]
        origin = next((entry.file for entry in served if entry.sha256 == pin.sha256), "")
        origin = next((name for name, sha256 in everything if sha256 == pin.sha256), origin)
        return [*newer, (origin, pin.sha256), *rest]

    def _load(self, kind: Kind, name: str, sha256: str) -> bool:
        """Check, load and warm that content beside the present model, then let it take over."""
        content = self._bytes(sha256)
        try:
            if content is None:
                raise Refused("read", "its content is gone")
            verdict = self._verdict(content)
            begun = time.monotonic()
            model = bundle.admit(content, verdict, self.limits)
            self.load_seconds = time.monotonic() - begun
            if model.kind != kind:
                raise Refused("manifest", f"it is a {model.kind} model")
        except Refused as error:
            self._say(Outcome(name, False, error.reason, kind=kind, step=error.step))
            return False
        self._swap(kind, model)
        self._memory.keep(content)
        with self._changing() as state:
            entry = Served(sha256, model.name, model.version, name, time.time())
            others = [earlier for earlier in state.served.get(kind, []) if earlier.sha256 != sha256]
            state.served[kind] = [*others, entry][-self.limits.kept :]
            wanted = {earlier.sha256 for served in state.served.values() for earlier in served}
            wanted.update(pin.sha256 for pin in state.pins.values())
            wanted.update(model.sha256 for model in self._current.values() if model)
            self._memory.forget_others(wanted)
        return True

    def _swap(self, kind: Kind, model: Model | None) -> None:
        self._current[kind] = model
        self.generation += 1
        self._swaps.append((kind, model))

    def _bytes(self, sha256: str) -> FileBytes | None:
        """That content, from what was just read, from its copy, or from a file that still holds it."""
        for content in self._fresh.values():
            if content.sha256 == sha256:
                return content
        if (copy := self._memory.kept(sha256)) is not None:
            return copy
        for name, file in self._files.items():
            if file.good and file.good.sha256 == sha256:
                try:
                    content = bundle.read(self.folder / name, self.limits)
                except Refused:
                    continue
                if content.sha256 == sha256:
                    return content
        return None

    def _verdict(self, content: FileBytes) -> Verdict:
        """What the checks say; good bytes stay good for the life of the process."""
        verdict = self._verdicts.get(content.sha256)
        if verdict is None:
            verdict = self._checker.check(content.data, self.limits)
            if verdict.good:
                self._verdicts[content.sha256] = verdict
                if len(self._verdicts) > VERDICTS:
                    self._verdicts.popitem(last=False)
        return verdict

    def _say(self, outcome: Outcome) -> Outcome:
        self._outcomes.append(outcome)
        self._events.append(outcome)
        return outcome

    def _complain(self, sentence: str) -> None:
        """Say what is wrong with the folder, each thing once."""
        if sentence not in self._trouble and len(self._trouble) < OUTCOMES:
            self._trouble.add(sentence)
            self._say(Outcome("", False, sentence, step="store"))


def _kind(word: str) -> Kind:
    return "hints" if word == "hints" else "cardinality"


def _columns(seen: Seen) -> tuple[str, str, str, str, float]:
    return seen.kind, seen.name, seen.version, seen.sha256, seen.arrived


def _named(verdict: Verdict) -> tuple[str, str, str]:
    """Name, version and kind as far as the file says them."""
    try:
        manifest = parse(verdict.manifest)
    except ValueError:
        return "", "", verdict.kind
    return manifest.name, manifest.version, manifest.kind
