"""The whole run: passes straight at the server, passes through the proxy for each way of steering, verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pilotwire.embedded import EmbeddedServer
from tests.conformance import pgproto, pipeline, regress
from tests.conformance.extended import extended
from tests.conformance.plans import without_plans
from tests.conformance.programs import Programs, prepare
from tests.conformance.regress import Tick
from tests.conformance.sources import ConformanceError
from tests.conformance.stage import Address, Mode, Place, Stage
from tests.conformance.steering import OTHER_PLANS, UNADVISED, USUAL, Delivered, Steering
from tests.conformance.verdict import Outputs, Verdict, judge
from tests.support.ports import free_port

EXTENDED = "regress_extended"
SUITES = ("pgproto", "libpq_pipeline", "isolation", "regress", EXTENDED)
"""In the order in which a pass plays them; the regression suite leaves the most behind, so that its second run has a
server of its own."""

REGRESSION = {"regress", EXTENDED}
OF_SESSIONS = {*REGRESSION, "isolation"}
"""Suites that keep state in their sessions or know those by their backends' process ids."""

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done and how much there is (0: unknown)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run. `schedule` and `tests` narrow the regression suite, `specs` the isolation suite; `target` is a proxy
    that runs already, whose steering is its own."""

    suites: Sequence[str] = SUITES
    modes: Sequence[Mode] = ("session", "transaction")
    steerings: Sequence[Steering] = USUAL
    schedule: Path | None = None
    tests: Sequence[str] = ()
    specs: Sequence[str] = ()
    target: Address | None = None
    server_port: int = 0
    keep: bool = False

    def suites_of(self, mode: Mode, steering: Steering) -> list[str]:
        """The suites that such a pass plays: some are about sessions, and all but the regression suite hold nothing
        that can be steered."""
        left_out: set[str] = set()
        if mode == "transaction":
            left_out.update(OF_SESSIONS)
        if steering not in UNADVISED and mode != "direct":
            left_out.update(set(SUITES) - REGRESSION)
        return [it for it in SUITES if it in self.suites and it not in left_out]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A verdict for each suite, pool mode and way of steering, the last two of which name a pass; by its name what the
    proxy of that pass counted."""

    verdicts: Sequence[Verdict]
    delivered: Mapping[str, Delivered]
    place: Place


def compare(plan: Plan, progress: Progress) -> Comparison:
    """Play two direct passes and one for each pool mode and way of steering."""
    with closing(Place(plan.keep)) as place:
        installation = EmbeddedServer(place.run / "server").installation
        version = EmbeddedServer(place.run / "server").version
        programs = prepare(installation, version, place.cache, lambda step: progress(step, 0, 0))
        player = _Player(plan, place, programs, progress)
        direct = [player.play("direct", "off", f"direct-{number}") for number in (1, 2)]
        verdicts = []
        passes = [
            (mode, steering) for steering in plan.steerings for mode in plan.modes if plan.suites_of(mode, steering)
        ]
        for mode, steering in passes:
            name = f"{mode}-{steering}"
            proxied = player.play(mode, steering, name)
            for suite in proxied:
                outputs = [it[suite] for it in (*direct, proxied)]
                if steering in OTHER_PLANS and suite in REGRESSION:
                    outputs = [{file: without_plans(text) for file, text in it.items()} for it in outputs]
                verdicts.append(judge(f"{suite}/{mode}/{steering}", *outputs))
        if not verdicts:
            raise ConformanceError(
                "Nothing to compare: the regression and isolation suites run in session mode only, and but for the "
                "regression suite all run without advice."
            )
        _write_differences(place, verdicts)
        return Comparison(verdicts, player.delivered, place)


class _Player:
    def __init__(self, plan: Plan, place: Place, programs: Programs, progress: Progress) -> None:
        self._plan = plan
        self._place = place
        self._programs = programs
        self._progress = progress
        self._stage = Stage(place, plan.target, plan.server_port)
        self._relay_port = free_port()

    @property
    def delivered(self) -> Mapping[str, Delivered]:
        return self._stage.delivered

    def play(self, mode: Mode, steering: Steering, name: str) -> dict[str, Outputs]:
        """The outputs of every suite of this pass, by suite."""
        outputs: dict[str, Outputs] = {}
        suites = self._plan.suites_of(mode, steering)
        rest = [it for it in suites if it != EXTENDED]
        if rest:
            outputs |= self._play(mode, steering, name, rest)
        if EXTENDED in suites:
            outputs |= self._play(mode, steering, f"{name}-extended", [EXTENDED])
        return outputs

    def _play(self, mode: Mode, steering: Steering, name: str, suites: Sequence[str]) -> dict[str, Outputs]:
        self._progress(f"{name}: starting", 0, 0)
        outputs: dict[str, Outputs] = {}
        with self._stage.play(mode, steering, name) as address:
            for suite in suites:
                tick = partial(self._progress, f"{name}: {suite}")
                outputs[suite] = self._suite(suite, address, tick)
                if self._place.keep:
                    self._save(f"{name}/{suite}", outputs[suite])
        return outputs

    def _suite(self, suite: str, address: Address, tick: Tick) -> Outputs:
        if suite == "pgproto":
            return pgproto.run(self._programs, address, tick)
        if suite == "libpq_pipeline":
            return pipeline.run(self._programs, self._place, address, tick)
        if suite == "isolation":
            driver = self._programs.isolation
            return regress.run(self._programs, driver, self._place, address, tick, tests=self._plan.specs)
        if suite == "regress":
            return self._regress(address, tick)
        with extended(address, self._relay_port) as relayed:
            return self._regress(relayed, tick)

    def _regress(self, address: Address, tick: Tick) -> Outputs:
        plan, driver = self._plan, self._programs.regress
        return regress.run(self._programs, driver, self._place, address, tick, schedule=plan.schedule, tests=plan.tests)

    def _save(self, folder: str, outputs: Outputs) -> None:
        target = self._place.results / folder
        target.mkdir(parents=True)
        for name, text in outputs.items():
            (target / name).write_bytes(text)


def _write_differences(place: Place, verdicts: Sequence[Verdict]) -> None:
    for verdict in verdicts:
        for difference in verdict.differences:
            target = place.differences / verdict.part / f"{difference.file}.diff"
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(difference.diff)
