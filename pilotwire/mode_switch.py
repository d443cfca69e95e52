"""The mode of steering while the proxy runs: what the settings say, until somebody switches it.

SIGUSR2 is the kill switch: it turns steering off in every worker at once, and the next one turns it back. The admin
port can set any mode. What was switched stays when the settings are read again and when another process takes over (a
certificate that is renewed, or an upgrade, must not turn steering on behind somebody's back); a process that is started
afresh goes by its settings. While one instance drains and another serves, a switch in either holds in both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Final, get_args

from pilotwire.handover import Neighbour
from pilotwire.workers import WorkerProcess, gather_quietly
from proxy.control import ControlLostError
from proxy.logs import Log
from proxy.settings import ProxySettings, SteeringMode

TELL_SECONDS: Final = 5.0
"""How long a worker may take to say that it has heard."""
MODES: Final[tuple[str, ...]] = get_args(SteeringMode)


class ModeSwitch:
    """``workers`` and ``neighbours`` give those that run now, as in `pilotwire.pausing`."""

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerProcess]],
        log: Log,
        neighbours: Callable[[], Iterable[Neighbour | None]] = tuple,
    ) -> None:
        self._workers = workers
        self._neighbours = neighbours
        self._log = log
        self._switched: str | None = None

    def in_force(self, settings: ProxySettings) -> ProxySettings:
        """The settings with the mode that holds now."""
        return settings if self._switched is None else settings.model_copy(update={"mode": self._switched})

    def other(self, settings: ProxySettings) -> str:
        """The mode that the kill switch changes to: off, or what the settings say when it was switched off before."""
        return settings.mode if self._switched == "off" else "off"

    def choose(self, settings: ProxySettings, mode: str, actor: str, why: str) -> str:
        """Remembers the mode that is to hold; which one held before. Raises ValueError for one that there is not."""
        if mode not in MODES:
            raise ValueError(f"mode: {mode[:50]!r} is none of {', '.join(MODES)}")
        before = self.in_force(settings).mode
        self._switched = None if mode == settings.mode else mode
        self._log.event("mode_set", level="warning", before=before, mode=mode, actor=actor, why=why or None)
        return before

    async def tell(self, settings: ProxySettings) -> None:
        """Has every worker go by it; returns when all that answer do. It does not wait for a reload that is under way
        or for a worker that hangs."""
        mode = self.in_force(settings).mode
        await gather_quietly([worker.ask("mode", TELL_SECONDS, mode=mode) for worker in self._workers()])

    async def tell_neighbours(self, settings: ProxySettings) -> None:
        """Has the instances before and after this one go by it too."""
        for neighbour in self._neighbours():
            if neighbour is not None:
                with contextlib.suppress(ControlLostError):
                    await neighbour.ask("mode", TELL_SECONDS, mode=self.in_force(settings).mode)

    def to_wire(self) -> dict[str, Any]:
        """For the instance that takes over: what was switched, None for nothing."""
        return {"mode": self._switched}

    def take(self, settings: ProxySettings, message: dict[str, Any]) -> bool:
        """Another instance said what holds there; whether that changes anything here."""
        mode = message.get("mode")
        if mode not in MODES or mode == self.in_force(settings).mode:
            return False
        self._log.event("mode_inherited", level="warning", mode=mode, settings=settings.mode)
        self._switched = None if mode == settings.mode else mode
        return True

    def reread(self, settings: ProxySettings) -> None:
        """The settings have been read again."""
        if self._switched == settings.mode:
            self._switched = None
        elif self._switched is not None:
            self._log.event("mode_kept", level="warning", mode=self._switched, settings=settings.mode)
