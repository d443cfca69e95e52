"""``pilotwire model compare``: two model files side by side, and what they say of a workload.

Exit code 0: both files are good; 1: one is refused, or the workload cannot be read; 2: a wrong option; 130:
interrupted.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotwire import interrupting
from pilotwire.errors import StartError

if TYPE_CHECKING:
    from rich.console import Console

    from model_runtime.bundle import FileBytes
    from model_runtime.manifest import Manifest
    from model_runtime.runner import Model
    from model_runtime.verdict import Verdict
    from training.compare import Comparison

INTERRUPTED = 130


def compare(
    first: Annotated[Path, typer.Argument(metavar="A", help="A model file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    upstream: Annotated[
        str,
        typer.Option(
            "--upstream", metavar="DSN", envvar="PILOTWIRE_UPSTREAM", help="The database whose statements are compared."
        ),
    ] = "",
    queries: Annotated[
        Path | None, typer.Option("--queries", metavar="FILE", help="Compare what both predict for these statements.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels", metavar="DIR", help="A training set with the truth; without it those beside A and B are used."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> int:
    """Compare two model files: their manifests, and with --queries what they predict."""
    if queries is not None and not upstream:
        raise typer.BadParameter("--queries needs the database that they are for: --upstream DSN")
    files = (first, second)
    checked = _checked(files)
    manifests = [_manifest(verdict) for _, verdict in checked]
    compared = None
    if queries is not None:
        models = _loaded(files, checked)
        if labels is not None and not labels.is_dir():
            raise StartError(f"{labels} is no training set: a folder that pilotwire train or collect has made")
        folders = [labels] if labels is not None else [folder for file in files if (folder := _beside(file)).is_dir()]
        try:
            compared = _compared(upstream, queries, models, list(dict.fromkeys(folders)), quiet=as_json)
        except KeyboardInterrupt:
            from pilotwire.cli import fail

            return fail("interrupted", INTERRUPTED)
    good = all(verdict.good for _, verdict in checked)
    if as_json:
        sides = [_as_json(*one) for one in zip(files, checked, manifests, strict=True)]
        print(
            json.dumps({
                "ok": good,
                "a": sides[0],
                "b": sides[1],
                "different": _different(*manifests),
                "workload": compared.as_json() if compared is not None else None,
            })
        )  # fmt: skip
    else:
        console = _console()
        _show_manifests(console, files, checked, manifests)
        if compared is not None:
            _show_workload(console, compared)
    return 0 if good else 1


# ---------------------------------------------------------------------- files


def _checked(files: tuple[Path, Path]) -> list[tuple[FileBytes | None, Verdict]]:
    from model_runtime import bundle
    from model_runtime.check_process import CheckProcess
    from model_runtime.limits import Limits

    with CheckProcess() as checker:
        return [bundle.inspect(file, Limits(), checker) for file in files]


def _manifest(verdict: Verdict) -> Manifest | None:
    from model_runtime.manifest import parse

    try:
        return parse(verdict.manifest)
    except ValueError:
        return None


def _loaded(files: tuple[Path, Path], checked: list[tuple[FileBytes | None, Verdict]]) -> tuple[Model, Model]:
    from model_runtime import bundle
    from model_runtime.limits import Limits

    models = []
    for file, (content, verdict) in zip(files, checked, strict=True):
        if content is None or not verdict.good:
            raise StartError(f"{file} is refused, so it predicts nothing: {verdict.reason}")
        models.append(bundle.admit(content, verdict, Limits()))
    return models[0], models[1]


def _beside(file: Path) -> Path:
    """Where training leaves the labels of that model."""
    return file.with_name(f"{file.stem}.training")


def _as_json(file: Path, checked: tuple[FileBytes | None, Verdict], manifest: Manifest | None) -> dict[str, Any]:
    content, verdict = checked
    return {
        "file": str(file),
        "ok": verdict.good,
        "reason": verdict.reason,
        "bytes": len(content.data) if content else None,
        "sha256": content.sha256 if content else None,
        "parameters": verdict.facts.get("parameters"),
        "batch_ms": verdict.facts.get("batch_ms"),
        "manifest": manifest.model_dump(mode="json") if manifest else None,
    }


def _different(first: Manifest | None, second: Manifest | None) -> list[str]:
    """The names of the manifests' fields that are not the same."""
    if first is None or second is None:
        return []
    return [name for name in type(first).model_fields if getattr(first, name) != getattr(second, name)]


# ---------------------------------------------------------------------- the workload


def _compared(
    upstream: str, queries: Path, models: tuple[Model, Model], folders: list[Path], *, quiet: bool
) -> Comparison:
    from training.compare import compare as run
    from training.errors import TrainingError
    from training.queries import read_file

    try:
        with _progress(quiet=quiet) as tell:
            return interrupting.run(run(upstream, read_file(queries), models, folders, progress=tell))
    except TrainingError as error:
        raise StartError(str(error)) from None


@contextlib.contextmanager
def _progress(*, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True, highlight=False)
    if quiet or not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as bars:
        task = bars.add_task("asking both models", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


# ---------------------------------------------------------------------- showing


def _console() -> Console:
    from rich.console import Console

    # Without a terminal rich would cut lines at 80 columns: a file or a pipe gets them whole.
    return Console(highlight=False, soft_wrap=True, markup=False)


def _rows(console: Console, title: str, rows: Sequence[tuple[str, ...]], *, mark: bool = False) -> None:
    """Columns under a title; with ``mark`` the lines whose last two columns differ stand out."""
    from rich.text import Text

    console.print(Text(title, style="bold"))
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        console.print(Text(f"  {line}", style="" if not mark or row[-1] != row[-2] else "dim"))


def _facts(content: FileBytes | None, verdict: Verdict, manifest: Manifest | None) -> dict[str, str]:
    from model_runtime.verdict import plain

    facts = {"checks": "all pass" if verdict.good else f"refused: {verdict.failed}: {plain(verdict.reason)}"}
    if manifest is None or content is None:
        return facts
    training, limit = manifest.training, manifest.abstention.log_std
    facts |= {
        "model": f"{manifest.name} {manifest.version}",
        "kind": manifest.kind,
        "trained at": manifest.trained_at.isoformat(),
        "featurizer": f"{manifest.featurizer.name} {manifest.featurizer.version}",
        "features": str(len(manifest.features)) if manifest.sets is None else "sets",
        "tables": str(len(manifest.vocabulary.tables)),
        "join edges": str(len(manifest.vocabulary.joins)),
        "schema hash": manifest.schema_hash[:12] or "-",
        "clip": f"{manifest.clip[0]:.3g} to {manifest.clip[1]:.3g}",
        "log_std limit": "-" if limit is None else f"{limit:.3g}",
        "arms": ", ".join(manifest.arms) or "-",
        "size": f"{len(content.data):,} bytes",
        "200 rows": f"{verdict.facts['batch_ms']:g} ms" if "batch_ms" in verdict.facts else "-",
        "trained on": f"{training.queries} queries, {training.sub_plans} sub-plans",
        "training": f"{training.seconds:.0f} s",
    }
    for name, split in training.splits.items():
        for point, pair in split.q_error.items():
            facts[f"q-error {name} {point}"] = f"{pair.before:.3g} -> {pair.after:.3g}"
    for name, note in training.notes.items():
        facts[f"note {name}"] = f"{note:.4g}" if isinstance(note, float) else str(note)
    return facts


def _show_manifests(
    console: Console,
    files: tuple[Path, Path],
    checked: list[tuple[FileBytes | None, Verdict]],
    manifests: list[Manifest | None],
) -> None:
    both = [_facts(*one, manifest) for one, manifest in zip(checked, manifests, strict=True)]
    names = list(dict.fromkeys([*both[0], *both[1]]))
    rows = [("", str(files[0]), str(files[1]))]
    rows += [(name, both[0].get(name, "-"), both[1].get(name, "-")) for name in names]
    _rows(console, "manifests", rows, mark=True)


def _show_workload(console: Console, found: Comparison) -> None:
    first, second = found.sides
    skipped = f" ({found.skipped} could not be read)" if found.skipped else ""
    rows: list[tuple[str, ...]] = [
        ("", "PostgreSQL", first.label, second.label),
        ("statements steered", "-", str(first.steered), str(second.steered)),
    ]
    if found.kind == "cardinality":
        rows.append(("sub-plans corrected", "-", str(first.corrected), str(second.corrected)))
        for point, value in found.native.items():
            three = (value, first.q_error[point], second.q_error[point])
            rows.append((f"q-error {point}", *(f"{one:.3g}" for one in three)))
        said = f"{found.sub_plans} sub-plans, {found.labelled} with known rows, {found.agreed} seen alike"
    else:
        for arm in dict.fromkeys([*first.arms, *second.arms]):
            rows.append((arm, "-", str(first.arms.get(arm, 0)), str(second.arms.get(arm, 0))))
        if found.measured:
            times = (found.seconds_default, first.seconds_chosen, second.seconds_chosen)
            rows.append((f"time of {found.measured} measured", *(f"{seconds:.3f} s" for seconds in times)))
        said = f"{found.agreed} statements with the same choice"
    rows.append(("mean decision", "-", f"{first.decision_ms:.2f} ms", f"{second.decision_ms:.2f} ms"))
    _rows(console, f"{found.statements} statements{skipped}: {said}", rows)
    if not found.differences:
        return
    if found.kind == "cardinality":
        header: tuple[str, ...] = ("line", "sub-plan", "PostgreSQL", first.label, second.label, "true rows")
    else:
        header = ("line", "statement", first.label, second.label)
    lines = [header]
    for one in found.differences:
        middle = () if one.native is None else (_rows_shown(one.native),)
        last = () if one.native is None else ("-" if one.truth is None else _rows_shown(one.truth),)
        lines.append((str(one.line), one.what, *middle, _rows_shown(one.first), _rows_shown(one.second), *last))
    _rows(console, "where they differ most", lines)


def _rows_shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:,.0f}"
