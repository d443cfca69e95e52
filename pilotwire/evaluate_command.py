"""``pilotwire evaluate``: runs a workload as PostgreSQL plans it, as a model has it planned, and at its best.

Prints tables, and with ``--html`` writes one page for people and every timing as JSON beside it. Everything is
read-only. Exit code 0: done; 1: it is not, and one line says why; 2: a wrong option; 130: interrupted. What was
measured until then is shown and written all the same.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotwire import interrupting
from pilotwire.errors import StartError

if TYPE_CHECKING:
    from rich.console import Console

    from training.evaluate.results import Results

INTERRUPTED = 130
ALL_SPLITS = ("random", "template", "values", "repeated")
ALL_ALGORITHMS = ("gbdt", "mscn", "hints")
ALGORITHMS_HELP = f"Which models the splits train: {','.join(ALL_ALGORITHMS)}, or all."


def evaluate(
    upstream: Annotated[
        str,
        typer.Option(
            "--upstream", metavar="DSN", envvar="PILOTWIRE_UPSTREAM", help="The database, read only: postgresql://..."
        ),
    ],
    queries: Annotated[
        Path, typer.Option("--queries", metavar="FILE", help="SQL divided by ';', or lines of 'count||SQL'.")
    ],
    models: Annotated[
        Path | None, typer.Option("--models", metavar="DIR", help="The folder whose serving models are evaluated.")
    ] = None,
    model: Annotated[
        list[Path] | None, typer.Option("--model", metavar="FILE", help="A model file; several are compared.")
    ] = None,
    train_queries: Annotated[
        Path | None,
        typer.Option("--train-queries", metavar="FILE", help="What the model was trained on: tells known from new."),
    ] = None,
    splits: Annotated[
        str,
        typer.Option(
            "--splits",
            metavar="NAMES",
            help=f"Cross-validate: {','.join(ALL_SPLITS)}, or all; the default when no model is given. 'none': do not.",
        ),
    ] = "",
    algorithms: Annotated[str, typer.Option("--algorithms", metavar="NAMES", help=ALGORITHMS_HELP)] = "gbdt",
    arms_budget: Annotated[
        float, typer.Option("--arms-budget", metavar="SECONDS", min=0, help="For the runs that hints learn from.")
    ] = 300.0,
    folds: Annotated[int, typer.Option("--folds", min=2, max=100, help="Of each split.")] = 5,
    proxy: Annotated[
        str, typer.Option("--proxy", metavar="DSN", help="The same database through a running pilotwire, measured too.")
    ] = "",
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=100, help="Counted runs of each kind.")] = 3,
    limit: Annotated[float, typer.Option("--limit", metavar="SECONDS", min=0.05, help="For one run.")] = 30.0,
    budget: Annotated[
        float,
        typer.Option("--budget", metavar="SECONDS", min=0, help="For all runs; counting has its own, --truth-budget."),
    ] = 1800.0,
    truth_budget: Annotated[
        float,
        typer.Option(
            "--truth-budget",
            metavar="SECONDS",
            min=0,
            help="For counting true rows before the runs; 0 leaves them out.",
        ),
    ] = 300.0,
    count_timeout: Annotated[
        float, typer.Option("--count-timeout", metavar="SECONDS", min=0.01, help="For a single count.")
    ] = 10.0,
    arms: Annotated[bool, typer.Option("--arms/--no-arms", help="Try the portfolio of planner settings too.")] = True,
    min_ms: Annotated[
        float, typer.Option("--min-ms", min=0, help="Leave alone what is estimated below it, as serving may.")
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Of the order and the splits.")] = 0,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Write a report; raw timings go beside it as .json."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> int:
    """Measure whether steering pays on a workload, against what it has to beat."""
    from training.evaluate.options import Options

    given = [*([models] if models else []), *(model or [])]
    options = Options(
        rounds=rounds, limit=limit, budget=budget, truth_budget=truth_budget, count_seconds=count_timeout, arms=arms,
        splits=_splits(splits, bool(given)), algorithms=_names(algorithms, ALL_ALGORITHMS, "algorithm"),
        arms_budget=arms_budget, folds=folds, seed=seed, min_ms=min_ms,
    )  # fmt: skip
    arguments = {"models": given, "trained_on": train_queries, "proxy": proxy, "options": options}
    return _evaluate(upstream, queries, arguments, html, as_json=as_json)


def _evaluate(upstream: str, queries: Path, arguments: dict[str, Any], html: Path | None, *, as_json: bool) -> int:
    """Run it, show and write what came of it, also of the part before an error."""
    from rich.console import Console

    from pilotwire.cli import fail
    from pilotwire.evaluate_view import show
    from pilotwire.progress import progress_bars
    from training.errors import TrainingError
    from training.evaluate.evaluation import Evaluation

    raw = _probe(html) if html is not None else None
    console = Console(highlight=False, soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200)
    code, said = 0, ""
    with tempfile.TemporaryDirectory(prefix="pilotwire-evaluate-") as work, progress_bars(quiet=as_json) as tell:
        kept = html.with_name(f"{html.stem}.counts") if html is not None else Path(work) / "counts"
        evaluation = Evaluation(
            upstream,
            queries,
            kept=kept,
            **arguments,
            progress=tell,
            keep=lambda results: _keep(results, raw),
        )
        try:
            interrupting.run(evaluation.run())
        except TrainingError as error:
            code, said = 1, str(error)
        except KeyboardInterrupt:
            code, said = INTERRUPTED, "interrupted"
    results = evaluation.results
    if as_json:
        print(json.dumps(results.as_json()))
    elif results.queries or results.sub_plans:
        show(results, console)
    if html is not None and (results.queries or results.sub_plans):
        _write(results, html, raw, None if as_json else console)
    if said:
        return fail(f"{said}{_until_then(results, kept if html is not None else None)}", code)
    return 0


def _until_then(results: Results, kept: Path | None) -> str:
    """What there is of an evaluation that did not come to its end."""
    if not results.queries and not results.sub_plans:
        return ""
    what = f"{len(results.queries)} statements" if results.queries else f"{len(results.sub_plans)} true counts"
    again = f"; the counts are kept in {kept}: the same command goes on" if kept is not None else ""
    return f"; what was measured until then, {what}, is above{again}"


def _splits(text: str, given: bool) -> tuple[str, ...]:
    """The splits to cross-validate."""
    if not text:
        return () if given else ALL_SPLITS
    if text == "none":
        return ()
    return _names(text, ALL_SPLITS, "split")


def _names(text: str, every: tuple[str, ...], what: str) -> tuple[str, ...]:
    """Those that are listed, each once; "all" for all."""
    names = every if text == "all" else tuple(name.strip() for name in text.split(","))
    if unknown := [name for name in names if name not in every]:
        raise typer.BadParameter(f"{unknown[0]!r} is no {what}: choose from {', '.join(every)}")
    return tuple(dict.fromkeys(names))


def _probe(html: Path) -> Path:
    """Where the raw timings go. Raises StartError before minutes of measuring, not after."""
    if html.is_dir():
        raise StartError(f"{html} is a folder: name a file in it, for instance {html / 'report.html'}")
    raw = html.with_suffix(".json")
    if raw == html:
        raise StartError(f"{html}: a report ends in .html, the raw timings beside it in .json")
    probe = html.with_name(f".{html.name}.probe")
    try:
        html.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartError(f"{html} cannot be written: {error.strerror}") from None
    return raw


def _keep(results: Results, raw: Path | None) -> None:
    """The raw timings so far, so that not even a crash loses them; a full disk is told at the end."""
    from model_runtime.bundle import replace

    if raw is not None and results.queries:
        try:
            replace(raw, results.dumps().encode(), durable=False)
        except OSError as error:
            warning = f"{raw} cannot be written: {error.strerror}"
            if warning not in results.warnings:
                results.warnings.append(warning)


def _write(results: Results, html: Path, raw: Path | None, console: Console | None) -> None:
    from model_runtime.bundle import replace
    from training.errors import TrainingError
    from training.evaluate.report import render

    try:
        page = render(results, raw.name if raw is not None else "")
        if raw is not None:
            replace(raw, results.dumps().encode())
        replace(html, page.encode())
    except TrainingError as error:
        raise StartError(str(error)) from None
    except OSError as error:
        raise StartError(f"{html} cannot be written: {error.strerror}; the figures are above") from None
    if console is not None:
        console.print(f"the report is in {html}, every timing in {raw}")
