"""``pilotwire model``: looks into model files, checks them, and chooses which of a folder serves.

Nothing here talks to a running proxy. What ``activate`` and ``rollback`` decide is written into the folder, and a
proxy that serves from it follows within a second or so. Files are checked as the proxy checks them, in a process of
their own. Exit code 0: done, and every file named is good; 1: refused, or nothing to do it with; 2: a wrong option.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pilotwire.errors import StartError
from pilotwire.model_compare import compare

if TYPE_CHECKING:
    from rich.console import Console

    from model_runtime.bundle import FileBytes
    from model_runtime.manifest import Doubts, Kind, Manifest
    from model_runtime.store import ModelStore
    from model_runtime.verdict import Verdict

app = typer.Typer(
    no_args_is_help=True, help="Look into model files and choose which one serves.", rich_markup_mode=None
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Models = Annotated[
    Path, typer.Option("--models", metavar="DIR", envvar="PILOTWIRE_MODELS", help="The folder of models.")
]
KindName = Annotated[str, typer.Option("--kind", help="Which kind of model: cardinality or hints.")]
app.command()(compare)
STATUS_STYLES = {"active": "green", "valid": "cyan", "kept": "dim", "refused": "red"}


@app.command()
def inspect(file: Annotated[Path, typer.Argument(metavar="FILE", help="A model file.")], as_json: Json = False) -> int:
    """Show what a model file says about itself and whether it would be used."""
    content, verdict = next(_judge([file]))
    manifest = _manifest(verdict)
    if as_json:
        print(
            json.dumps(_as_json(file, content, verdict) | {"manifest": manifest and manifest.model_dump(mode="json")})
        )
    elif manifest is None:
        return _fail(f"{file}: {verdict.reason}")
    else:
        _describe(file, content, verdict, manifest)
    return 0 if manifest else 1


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Model files.")], as_json: Json = False
) -> int:
    """Put files through every check that the proxy puts them through."""
    console = _console()
    results = []
    good = True
    for file, (content, verdict) in zip(files, _judge(files), strict=True):
        good = good and verdict.good
        results.append(_as_json(file, content, verdict))
        if not as_json:
            _show_checks(console, file, verdict)
    if as_json:
        print(json.dumps({"ok": good, "files": results}))
    return 0 if good else 1


@app.command("list")
def list_(models: Models, as_json: Json = False) -> int:
    """Show the models of a folder and which of them serve."""
    with _store(models, record=False) as store:
        rows = store.listing()
        trouble = [outcome.reason for outcome in store.outcomes if outcome.step == "store"]
    if as_json:
        print(json.dumps({"ok": True, "models": [asdict(row) for row in rows], "warnings": trouble}))
        return 0
    from rich.text import Text

    from model_runtime.verdict import plain

    console = _console()
    cells = [("status", "kind", "model", "came", "file", "")]
    cells += [
        (
            row.status + (" (pinned)" if row.pinned else ""), row.kind or "-",
            f"{row.name} {row.version}" if row.name else "-", _time(row.arrived), plain(row.file), row.reason,
        )
        for row in rows
    ]  # fmt: skip
    widths = [max(len(row[column]) for row in cells) for column in range(5)]
    for number, row in enumerate(cells):
        line = "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5]]).rstrip()
        style = "bold" if number == 0 else ""
        text = Text(line, style=style)
        if number:
            text.stylize(STATUS_STYLES[rows[number - 1].status], 0, len(row[0]))
        console.print(text)
    if not rows:
        console.print("no model files")
    for sentence in trouble:
        console.print(Text("warning: ", style="yellow").append(sentence, style="none"))
    return 0


@app.command()
def activate(
    models: Models,
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]", help="A name, name@version, name-version as logs have it, or a file of the folder."
        ),
    ] = "",
    newest: Annotated[bool, typer.Option("--newest", help="End a pin or rollback: what came last serves.")] = False,
    kind: KindName = "cardinality",
    as_json: Json = False,
) -> int:
    """Pin a model: it serves, whatever comes, until --newest or another activate."""
    if bool(model) == newest:
        raise typer.BadParameter("name a model, or give --newest")
    wanted = _kind(kind)
    with _store(models) as store:
        if newest:
            chosen = store.release(wanted)
        else:
            name, _, version = model.partition("@")
            chosen = store.activate(name, version or None)
    return _chosen(chosen, "serves" if newest else "is pinned", as_json)


@app.command()
def rollback(models: Models, kind: KindName = "cardinality", as_json: Json = False) -> int:
    """Go back to the model that served before; it serves until a newer file comes."""
    wanted = _kind(kind)
    with _store(models) as store:
        chosen = store.rollback(wanted)
    return _chosen(chosen, "serves again", as_json)


# ---------------------------------------------------------------------- doing


def _judge(files: list[Path]) -> Iterator[tuple[FileBytes | None, Verdict]]:
    from model_runtime import bundle
    from model_runtime.check_process import CheckProcess
    from model_runtime.limits import Limits

    with CheckProcess() as checker:
        for file in files:
            yield bundle.inspect(file, Limits(), checker)


@contextmanager
def _store(folder: Path, *, record: bool = True) -> Iterator[ModelStore]:
    from model_runtime.store import ModelStore, StoreError

    if not folder.is_dir():
        raise StartError(f"{folder} is not a folder")
    store = ModelStore(folder, record=record)
    try:
        store.reload()
        yield store
        if record and (trouble := [outcome.reason for outcome in store.outcomes if outcome.step == "store"]):
            raise StartError(trouble[-1])
    except StoreError as error:
        raise StartError(str(error)) from None
    finally:
        store.close()


def _kind(word: str) -> Kind:
    if word == "cardinality":
        return "cardinality"
    if word == "hints":
        return "hints"
    raise typer.BadParameter("--kind is cardinality or hints")


def _manifest(verdict: Verdict) -> Manifest | None:
    from model_runtime.manifest import parse

    try:
        return parse(verdict.manifest)
    except ValueError:
        return None


# ---------------------------------------------------------------------- showing


def _fail(sentence: str) -> int:
    from pilotwire.cli import fail

    return fail(sentence, 1)


def _console() -> Console:
    from rich.console import Console

    # Without a terminal rich would cut lines at 80 columns: a file or a pipe gets them whole.
    return Console(highlight=False, soft_wrap=True, markup=False)


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _chosen(model: Any, what: str, as_json: bool) -> int:
    if as_json:
        facts = {"name": model.name, "version": model.version, "kind": model.kind} if model else None
        print(json.dumps({"ok": True, "model": facts}))
    else:
        typer.echo(f"{model.name} {model.version} {what}" if model else "no model serves")
    return 0


def _as_json(file: Path, content: FileBytes | None, verdict: Verdict) -> dict[str, Any]:
    return {
        "ok": verdict.good,
        "file": str(file),
        "bytes": len(content.data) if content else None,
        "sha256": content.sha256 if content else None,
        "kind": verdict.kind,
        "checks": [{"name": step.name, "detail": step.detail} for step in verdict.passed],
        "failed": verdict.failed,
        "reason": verdict.reason,
        "graph": verdict.facts,
    }


def _show_checks(console: Console, file: Path, verdict: Verdict) -> None:
    from rich.text import Text

    console.print(Text(str(file), style="bold"))
    for step in verdict.passed:
        console.print(Text("  ok       ", style="green").append(f"{step.name:<10} {step.detail}", style="none"))
    if not verdict.good:
        console.print(Text("  refused  ", style="red").append(f"{verdict.failed:<10} {verdict.reason}", style="none"))


def _describe(file: Path, content: FileBytes | None, verdict: Verdict, manifest: Manifest) -> None:
    from rich.text import Text

    console = _console()
    console.print(Text(f"{manifest.name} {manifest.version}", style="bold").append(f"  ({file})", style="dim"))
    vocabulary, known = manifest.vocabulary, manifest.abstention.known
    words = {"tables": vocabulary.tables, "columns": vocabulary.columns, "join edges": vocabulary.joins}
    facts = {
        "kind": f"{manifest.kind}: {manifest.output_meaning}",
        "trained at": manifest.trained_at.isoformat(),
        "featurizer": f"{manifest.featurizer.name} {manifest.featurizer.version}",
        "features": f"{len(manifest.features)} flat" if manifest.sets is None else "sets",
        "vocabulary": ", ".join(f"{len(listed)} {name}" for name, listed in words.items()),
        "schema hash": manifest.schema_hash or "-",
        "clip": f"{manifest.clip[0]:g} to {manifest.clip[1]:g}",
        "abstains": _abstains(manifest.abstention),
        "  where known": f"{len(known.templates)} join templates: {_abstains(known)}" if known else "-",
        "inputs": ", ".join(_facts(verdict, "inputs")) or "-",
        "outputs": ", ".join(_facts(verdict, "outputs")) or "-",
        "operators": ", ".join(_facts(verdict, "operators")) or "-",
        "size": f"{len(content.data):,} bytes, {verdict.facts.get('parameters', 0):,} parameters" if content else "-",
        "sha256": content.sha256 if content else "-",
        "200 rows": f"{verdict.facts['batch_ms']:g} ms" if "batch_ms" in verdict.facts else "-",
        "trained on": f"{manifest.training.queries} queries, {manifest.training.sub_plans} sub-plans",
    }
    for split, summary in manifest.training.splits.items():
        errors = ", ".join(f"{key} {pair.before:.4g} -> {pair.after:.4g}" for key, pair in summary.q_error.items())
        facts[f"  {split}"] = f"{summary.queries} queries; q-error {errors or '-'}" + (
            f"; workload {summary.workload_seconds.before:.4g} s -> {summary.workload_seconds.after:.4g} s"
            if summary.workload_seconds
            else ""
        )
    for arm, settings in manifest.arms.items():
        facts[f"  arm {arm}"] = ", ".join(f"{name} = {value}" for name, value in settings.items()) or "(default)"
    width = max(map(len, facts))
    for name, fact in facts.items():
        console.print(Text(f"  {name:<{width}}  ", style="dim").append(fact, style="none"))
    if verdict.good:
        console.print(Text("All checks pass.", style="green"))
    else:
        console.print(Text("refused: ", style="red").append(f"{verdict.failed}: {verdict.reason}", style="none"))


def _abstains(limits: Doubts) -> str:
    from model_runtime.manifest import NEVER

    if limits.log_std is not None and limits.log_std <= NEVER:
        return "always, but for known join templates"
    found = [f"with more than {limits.outside_ranges} features out of range"]
    if limits.log_std is not None:
        found.append(f"above a log_std of {limits.log_std:g}")
    return ", ".join(found)


def _facts(verdict: Verdict, name: str) -> list[str]:
    found = verdict.facts.get(name)
    return found if isinstance(found, list) else []
