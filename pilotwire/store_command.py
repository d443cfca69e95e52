"""``pilotwire store``: the store's schema, backups of it, and moving it to another place.

Exit code 0: done; 1: not done, and one line says why; 2: a wrong option. Ctrl-C changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from pilotwire.errors import StartError
from pilotwire.store_access import ConfigOption, JsonOption, StoreOption, find, opened, plain_errors

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    no_args_is_help=True, help="The store: its schema, backups, moving it elsewhere.", rich_markup_mode=None
)


@app.command()
def info(store: StoreOption = "", config: ConfigOption = None, as_json: JsonOption = False) -> int:
    """Show where the store is, its schema and how much it holds."""
    with opened(store, config) as open_:
        from planner.memory.store.schema import HEAD

        rows = open_.counts()
        path = open_.location.path
        size = path.stat().st_size if path is not None else None
        facts = {"ok": True, "store": open_.location.shown, "schema": HEAD, "bytes": size, "rows": rows}
    if as_json:
        print(json.dumps(facts))
    else:
        print(f"store      {facts['store']}" + (f" ({size / 1e6:.1f} MB)" if size is not None else ""))
        print(f"schema     {HEAD}")
        for name, count in rows.items():
            print(f"{name:<16} {count:>12,}")
    return 0


@app.command()
def migrate(
    store: StoreOption = "",
    to: Annotated[
        str,
        typer.Option(
            "--to", metavar="URL", help="Also copy everything into this store. Its password: PGPASSWORD or ~/.pgpass."
        ),
    ] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Bring the store's schema up to date, creating the store if there is none; with --to, copy it elsewhere."""
    from planner.memory.store import open_store
    from planner.memory.store.connect import Connector
    from planner.memory.store.location import locate
    from planner.memory.store.schema import upgrade
    from planner.memory.store.transfer import copy

    found = find(store, config)
    copied: dict[str, int] | None = None
    with plain_errors():
        connector = Connector(locate(found.url))
        try:
            if not to:
                connector.create_file()
            before, after = upgrade(connector)
        finally:
            connector.close()
        shown = target_shown = connector.location.shown
        if to:
            target_url = find(to, alone=True).url
            if locate(target_url).shown == shown:
                raise StartError("--to is the store itself")
            with open_store(found.url, migrate=False) as source, open_store(target_url) as target, _progress() as tell:
                target_shown = target.location.shown
                copied = copy(source, target, tell)
    facts = {"ok": True, "store": shown, "before": before or None, "schema": after}
    if copied is not None:
        facts |= {"to": target_shown, "copied": copied}
    if as_json:
        print(json.dumps(facts))
    else:
        said = f"schema {after}" if before == after else f"schema {before or '(none)'} -> {after}"
        print(f"{shown}: {said}")
        if copied is not None:
            print(f"copied to {target_shown}: {_sum(copied)}")
    return 0


@app.command()
def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to; - for standard output.")] = "-",
    store: StoreOption = "",
    config: ConfigOption = None,
) -> int:
    """Write everything that the store holds as JSON lines: a backup that `import` reads."""
    from planner.memory.store.transfer import export_lines

    def write(out: BinaryIO, tell: Callable[[int], None]) -> None:
        for line in export_lines(open_, tell):
            out.write(line)

    with opened(store, config) as open_, _progress() as tell:
        if file == "-":
            write(sys.stdout.buffer, tell)
            sys.stdout.buffer.flush()
        else:
            with new_file(Path(file)) as out:
                write(out, tell)
    return 0


@app.command("import")
def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="An export; - for standard input.")],
    store: StoreOption = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> int:
    """Read an export into the store: all of it or nothing. Of what is there already the later one stands."""
    from planner.memory.store.transfer import LONGEST_LINE, import_lines

    def lines(source: BinaryIO) -> Iterator[bytes]:
        while line := source.readline(LONGEST_LINE + 1):
            yield line

    with _source(file) as source, opened(store, config, create=True) as open_, _progress() as tell:
        counts = import_lines(open_, lines(source), tell)
        shown = open_.location.shown
    if as_json:
        print(json.dumps({"ok": True, "store": shown, "imported": counts}))
    else:
        print(f"imported into {shown}: {_sum(counts)}")
    return 0


@contextlib.contextmanager
def _source(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        with Path(file).open("rb") as source:
            yield source
    except OSError as error:
        raise StartError(f"cannot read {file}: {(error.strerror or 'error').lower()}") from None


@contextlib.contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """A file to write that only this user can read; it is there under its name only when it is whole. StartError when
    it cannot be written."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        try:
            yield part
            with part.open("rb") as written:
                os.fsync(written.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise StartError(f"cannot write {path}: {(error.strerror or 'error').lower()}") from None


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """The same, open."""
    with new_path(path) as part, part.open("wb") as file:
        yield file


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Counts records on standard error, on a terminal only."""
    console = _console()
    if not console.is_terminal:
        yield lambda _count: None
        return
    with console.status("0 records") as status:
        total = 0

        def tell(count: int) -> None:
            nonlocal total
            total += count
            if count > 1 or total % 1000 == 0:
                status.update(f"{total:,} records")

        yield tell


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def _sum(counts: dict[str, int]) -> str:
    plural = {
        "query": "queries",
        "arm": "arms",
        "ledger": "ledger lines",
        "execution": "samples",
        "history": "points",
        "guard": "guards",
    }
    return ", ".join(f"{count:,} {plural[name]}" for name, count in counts.items())
