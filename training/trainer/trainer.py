"""The trainer: looks for reasons to train, and does one job at a time, up to a handover or the reason why not.

Every look and every step survives what goes wrong around it: a database or store that is away is told once and asked
again at the next look; a job that fails waits and is tried again (`jobs`). Every count is kept in a training set the
moment it is made, so that the next attempt, also after kill -9, goes on where the last one stopped.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import asyncpg
import msgspec

from planner.memory.store import StoreError, open_store
from training.errors import TooLittleError, TrainingError
from training.evaluate import contenders
from training.evaluate.evaluation import Evaluation
from training.evaluate.options import Options
from training.evaluate.report import render
from training.evaluate.results import Results
from training.labels import connect
from training.queries import Query, Workload, read_file
from training.train import Kind, Limits, Sources, train_model
from training.trainer import files, handover, quality
from training.trainer.challenge import Judgement, judge
from training.trainer.events import Marks, NewStatements, check_schedule, drifted, next_time, schedule_due
from training.trainer.jobs import Job, Jobs, Part
from training.trainer.workload import Divided, divide, statements

DAY: Final = 86_400.0
PAGE: Final = 10_000
MOST_EXECUTIONS: Final = 100_000
MARKS: Final = "marks.json"
STATUS: Final = "status.json"
LEAST_STATEMENTS: Final = 20
DRIFT_RETRY: Final = 600.0
"""Seconds until estimates that could not be looked at are looked at again."""
SETTINGS_NAME: Final = "{}-settings"
SCHEMA: Final = """
SELECT current_database() AS database, md5(coalesce(string_agg(
    format('%s.%s.%s %s', n.nspname, c.relname, a.attname, a.atttypid), ',' ORDER BY n.nspname, c.relname, a.attnum
), '')) AS digest
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'm') AND a.attnum > 0 AND NOT a.attisdropped AND c.relpersistence <> 't'
    AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'
"""


@dataclass(frozen=True, slots=True)
class Settings:
    """What to train from, when, and what it may cost. ``store`` "" and ``queries`` None: not used, but one is needed.
    ``on_queries`` 0, ``on_drift`` 0 and ``schedule`` "": that event is off. ``on_drift`` is the factor by which the
    typical q-error must have grown. Times are seconds; ``name`` is the model's file in ``models``. With an
    ``arms_budget`` a model of settings is trained too, on statements run under each arm for so long, and judged and
    handed over by itself; its file is named `SETTINGS_NAME`."""

    dsn: str
    models: Path
    state: Path
    store: str = ""
    queries: Path | None = None
    name: str = "trained"
    schedule: str = ""
    on_queries: int = 0
    on_drift: float = 0.0
    on_schema: bool = True
    margin: float = 0.05
    held_out: float = 0.25
    days: float = 14.0
    labels_days: float = 7.0
    check_every: float = 60.0
    drift_every: float = 6 * 3600.0
    label_dsn: str = ""
    count_budget: float = 300.0
    count_seconds: float = 2.0
    arms_budget: float = 0.0
    run_budget: float = 300.0
    run_limit: float = 30.0
    rounds: int = 3
    seed: int = 0
    max_attempts: int = 5
    first_delay: float = 60.0


class Status(msgspec.Struct, kw_only=True):
    """What `pilotwire trainer status` tells beside the jobs."""

    started: float = 0.0
    looked: float = 0.0
    trouble: str = ""
    new_statements: int = 0
    next_scheduled: float = 0.0


class Trainer:
    """See the module. ``say`` gets one line for each thing that happens. To be used within the state folder's
    `files.Lock`."""

    def __init__(self, settings: Settings, say: Callable[[str], None]) -> None:
        """Raises TrainingError for settings that cannot work."""
        if not settings.store and settings.queries is None:
            raise TrainingError("there is nothing to train from: give a store or a file of queries")
        if settings.schedule:
            check_schedule(settings.schedule)
        self.settings = settings
        self.jobs = Jobs(settings.state / "jobs", max_attempts=settings.max_attempts, first_delay=settings.first_delay)
        self._say = say
        self._marks = files.read(settings.state / MARKS, Marks) or Marks()
        self._status = Status(started=time.time())
        self._fresh = NewStatements(self._marks.seen)
        self._database = ""

    async def run(self, *, once: bool = False, now: bool = False) -> bool:
        """Until cancelled, or with ``once`` until everything that is due has been tried; False when a job failed then.
        ``now`` makes a job without an event."""
        for job in self.jobs.recover():
            self._say(f"job {job.id} was running when the trainer ended: {_next(job)}")
        if now:
            self.jobs.add(["asked for"], at_once=True)
        good = True
        while True:
            await self._look()
            while (due := self.jobs.due()) is not None:
                good = await self._do(due) and good
            if once:
                return good
            await asyncio.sleep(self.settings.check_every)

    # ------------------------------------------------------------------ events

    async def _look(self) -> None:
        """Look for reasons once. What cannot be looked at is told once and asked again the next time."""
        trouble = ""
        reasons: list[str] = []
        for look in (self._scheduled, self._new_statements, self._schema_changed, self._drifted, self._nothing_serves):
            try:
                reasons += await look()
            except (TrainingError, StoreError) as error:
                trouble = trouble or str(error)
            except Exception as error:
                # A library's bug, a server that answers oddly: the next look may do better.
                trouble = trouble or f"{type(error).__name__}: {' '.join(str(error).split())}"
        if trouble and trouble != self._status.trouble:
            self._say(trouble)
        self._status.trouble, self._status.looked = trouble, time.time()
        if reasons:
            job = self.jobs.add(reasons)
            self._say(f"job {job.id}: {'; '.join(reasons)}")
            self._marks.seen = self._fresh.settle() or self._marks.seen
        self._save()

    def _save(self) -> None:
        self._status.new_statements = self._fresh.count
        with contextlib.suppress(TrainingError):
            # A full disk must not end the trainer: the marks are written again at the next look.
            files.write(self.settings.state / MARKS, self._marks)
            files.write(self.settings.state / STATUS, self._status)

    async def _scheduled(self) -> list[str]:
        now = time.time()
        last, self._marks.scheduled = self._marks.scheduled or now, now
        if self.settings.schedule:
            self._status.next_scheduled = next_time(self.settings.schedule, now)
        return ["the schedule"] if schedule_due(self.settings.schedule, last, now) else []

    async def _new_statements(self) -> list[str]:
        if not self.settings.store or not self.settings.on_queries:
            return []
        await asyncio.to_thread(self._read_new)
        count = self._fresh.count
        return [f"{count} new statements"] if count >= self.settings.on_queries else []

    def _read_new(self) -> None:
        with open_store(self.settings.store) as store:
            while page := store.executions(after_id=self._fresh.last, database=self._database or None, limit=PAGE):
                for one in page:
                    self._fresh.note(one.id, one.key or one.fingerprint)

    async def _schema_changed(self) -> list[str]:
        connection = await connect(self.settings.dsn)
        try:
            row = await connection.fetchrow(SCHEMA, timeout=30)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError) as error:
            raise TrainingError(f"the schema cannot be read: {' '.join(str(error).split())}") from None
        finally:
            with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
                await connection.close(timeout=5)
        self._database = row["database"] if row is not None else ""
        digest = row["digest"] if row is not None else ""
        before, self._marks.schema = self._marks.schema, digest
        return ["the schema changed"] if self.settings.on_schema and before and before != digest else []

    async def _nothing_serves(self) -> list[str]:
        if self.jobs.known():
            return []
        if await asyncio.to_thread(handover.serving, self.settings.models):
            return []
        return ["no model serves"]

    async def _drifted(self) -> list[str]:
        """Estimates of the serving model against fresh counts, now and then."""
        settings = self.settings
        due = self._marks.drift_checked + settings.drift_every
        if not settings.on_drift or time.time() < due:
            return []
        # What cannot be looked at now is not looked at again at once: it may cost seconds of counting each time.
        self._marks.drift_checked = time.time() - max(settings.drift_every - DRIFT_RETRY, 0.0)
        models = await asyncio.to_thread(handover.serving, settings.models)
        error = None
        if models:
            divided = await asyncio.to_thread(self._gather)
            error = await quality.present_error(
                settings.label_dsn or settings.dsn, divided.held_out, contenders.of_models(models).models
            )
        self._marks.drift_checked = time.time()
        if error is None:
            return []
        if self._marks.error_of != models[0].sha256:
            self._marks.error_of, self._marks.error = models[0].sha256, error
        self._marks.error_now = error
        if not drifted(self._marks.error, error, settings.on_drift):
            return []
        before, self._marks.error = self._marks.error, error
        self._marks.drifted = time.time()
        return [f"drift: the typical q-error went from {quality.typical(before):.2f} to {quality.typical(error):.2f}"]

    # ------------------------------------------------------------------ one job

    async def _do(self, job: Job) -> bool:
        """One attempt. Whatever goes wrong in it is the job's failure and not the trainer's."""
        self.jobs.begin(job)
        self._say(f"job {job.id}: attempt {job.attempts}: {'; '.join(job.reasons)}")
        try:
            await self._attempt(job)
        except asyncio.CancelledError:
            self.jobs.interrupted(job)
            raise
        except (TrainingError, StoreError) as error:
            self.jobs.failed(job, str(error))
        except Exception as error:
            # A bug in a library, memory that is gone: the loop must live to tell.
            self.jobs.failed(job, f"{type(error).__name__}: {' '.join(str(error).split())}")
        else:
            self._say(f"job {job.id}: {job.outcome.replace('_', ' ')}: {job.why}")
            return True
        self._say(f"job {job.id} failed: {job.errors[-1]}; {_next(job)}")
        return False

    async def _attempt(self, job: Job) -> None:
        """Each kind of model that is asked for: trained, judged, handed over or not. What an earlier attempt came to
        the end of is not done again."""
        settings = self.settings
        divided = await asyncio.to_thread(self._gather)
        count = len(divided.train.queries) + len(divided.held_out.queries)
        if count < LEAST_STATEMENTS:
            raise TrainingError(f"only {count} statements to train from and judge by, {LEAST_STATEMENTS} are needed")
        kinds: tuple[Kind, ...] = ("cardinality", "hints") if settings.arms_budget else ("cardinality",)
        for kind in kinds:
            if kind not in job.parts:
                job.parts[kind] = await self._part(job, kind, divided)
                self.jobs.save(job)
        first, *others = (job.parts[kind] for kind in kinds)
        handed_over = any(part.handed_over for part in (first, *others))
        why = "; ".join((first.why, *(f"settings: {part.why}" for part in others)))
        figures = {**first.figures, **({"settings": others[0].figures} if others else {})}
        self.jobs.done(job, "handed_over" if handed_over else "kept", why, figures, first.report)
        self._save()

    async def _part(self, job: Job, kind: Kind, divided: Divided) -> Part:
        """One model, up to its handover or the reason why not."""
        settings = self.settings
        rows = kind == "cardinality"
        name = settings.name if rows else SETTINGS_NAME.format(settings.name)
        candidate = handover.candidate_path(settings.models, name)
        limits = Limits(
            budget=settings.count_budget,
            statement=settings.count_seconds,
            arms=0.0 if rows else settings.arms_budget,
            label_dsn=settings.label_dsn,
        )
        try:
            # The set lends its labels only: what is held out here may have been kept there by an earlier job.
            trained = await train_model(
                settings.dsn,
                candidate,
                Sources(divided.train, kept=False),
                limits,
                kind=kind,
                training_set=self._training_set,
                seed=settings.seed,
                max_age=self._max_age(),
                progress=self._progress(job),
            )
        except TooLittleError as error:
            if rows:
                raise
            return Part(why=str(error))
        serving = await asyncio.to_thread(handover.serving, settings.models)
        judgement, results = await self._judge(job, kind, candidate, serving, divided)
        figures: dict[str, Any] = {
            **judgement.as_json(),
            "held_out": len(divided.held_out.queries),
            "held_out_recent": divided.recent,
            "trained_on": len(divided.train.queries),
            "training": {"model": trained.model, "seconds": trained.seconds, "counts_known": trained.counts_known},
        }
        report = await asyncio.to_thread(self._report, job, kind, results)
        if not judgement.better:
            return Part(why=judgement.why, figures=figures, report=report)
        target = await asyncio.to_thread(handover.hand_over, candidate, settings.models)
        if rows:
            self._marks.error_of, self._marks.error = "", 0.0
        why = judgement.why
        now_serving = await asyncio.to_thread(handover.serving, settings.models)
        if not any(model.label == trained.model for model in now_serving):
            why += f"; {target.name} is in the folder, but another model is pinned and serves on"
        return Part(handed_over=True, why=why, figures=figures, report=report)

    @property
    def _training_set(self) -> Path:
        return self.settings.state / f"{self.settings.name}.training"

    def _gather(self) -> Divided:
        """Recent statements of the store and those of the file, divided. Raises TrainingError and StoreError."""
        settings = self.settings
        recent: list[str] = []
        if settings.store:
            with open_store(settings.store) as store:
                latest = store.executions(
                    time.time() - settings.days * DAY,
                    database=self._database or None,
                    limit=MOST_EXECUTIONS,
                    newest=True,
                )
            recent = statements(reversed(latest))
        filed: tuple[Query, ...] = read_file(settings.queries).queries if settings.queries is not None else ()
        if not recent and not filed:
            raise TrainingError(
                f"the store has no statements with their texts of the last {settings.days:g} days: they are kept only "
                "with store_literals; or give a file of queries"
            )
        return divide(recent, filed, settings.held_out)

    def _max_age(self) -> float:
        """How old counts may be: not older than the last drift, which they do not know of."""
        return min(self.settings.labels_days * DAY, time.time() - self._marks.drifted)

    def _progress(self, job: Job) -> Callable[[Any], None]:
        """Tells the job's file where the training is, each second at most."""
        last = 0.0

        def show(step: Any) -> None:
            nonlocal last
            if time.monotonic() - last >= 1:
                last = time.monotonic()
                job.step = f"{step.name} {step.done}/{step.total}" if step.total else step.name
                with contextlib.suppress(TrainingError):
                    self.jobs.save(job)

        return show

    async def _judge(
        self, job: Job, kind: Kind, candidate: Path, serving: list[Any], divided: Divided
    ) -> tuple[Judgement, Results]:
        """The challenger beside what serves, on the held-out statements."""
        settings = self.settings
        challenger = await asyncio.to_thread(contenders.from_file, candidate)
        others = [model for model in serving if model.kind != kind]
        if others:
            # It would serve together with the model of the other kind that is there.
            own = challenger.models.cardinality if kind == "cardinality" else challenger.models.hints
            challenger = contenders.of_models([*([own] if own is not None else []), *others])
        champion = contenders.of_models(serving) if serving else None
        evaluation = Evaluation(
            settings.dsn,
            Workload(divided.held_out.queries),
            kept=self._training_set,
            models=[challenger, *([champion] if champion is not None else [])],
            options=Options(
                rounds=settings.rounds,
                limit=settings.run_limit,
                budget=settings.run_budget,
                truth_budget=settings.count_budget,
                count_seconds=settings.count_seconds,
                arms=False,
                max_age=self._max_age(),
                seed=settings.seed,
            ),
            progress=self._progress(job),
        )
        results = await evaluation.run()
        other = champion.name if champion is not None else ""
        return judge(results, challenger.name, other, settings.margin, estimates=kind == "cardinality"), results

    def _report(self, job: Job, kind: Kind, results: Results) -> str:
        """The evaluation as a page and as JSON beside the job; "" where it cannot be written, which is no failure."""
        name = job.id if kind == "cardinality" else SETTINGS_NAME.format(job.id)
        path = self.settings.state / "reports" / f"{name}.html"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.with_suffix(".json").write_text(results.dumps())
            path.write_text(render(results, path.with_suffix(".json").name))
        except (OSError, TrainingError):
            return ""
        return str(path)


def _next(job: Job) -> str:
    """What becomes of a job that failed."""
    if job.state == "set_aside":
        return f"it is set aside after {job.attempts} attempts"
    return f"tried again in {max(job.not_before - time.time(), 0):.0f} s"
