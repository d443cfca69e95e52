"""pgpool's transcripts: single protocol messages sent by ``pgproto``, every answer printed."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from tests.conformance.programs import Programs
from tests.conformance.regress import Tick
from tests.conformance.stage import Address

TIMEOUT = 20.0
_MESSAGE = re.compile(rb"'.'")


def transcripts(folder: Path) -> dict[str, Path]:
    """All files below `folder` that are transcripts, by a name made of their last folders."""
    found = {}
    for file in sorted(folder.rglob("*.data")):
        lines = [line.strip() for line in file.read_bytes().splitlines()]
        lines = [line for line in lines if line and not line.startswith(b"#")]
        if lines and _MESSAGE.match(lines[0]):
            found["-".join(file.relative_to(folder).with_suffix("").parts)] = file
    return found


def run(programs: Programs, address: Address, tick: Tick) -> dict[str, bytes]:
    """What pgproto printed and how it ended, by transcript; each in a schema of its own, made over `address`.

    One database for all, so that with transaction pooling the transcripts meet each other's backends.
    """
    outputs = {}
    chosen = transcripts(programs.pgproto_transcripts)
    schemas = [f"pgproto_{number}" for number in range(len(chosen))]
    _psql(programs, address, "; ".join(f"CREATE SCHEMA {schema}" for schema in schemas))
    for number, ((name, file), schema) in enumerate(zip(chosen.items(), schemas, strict=True)):
        outputs[name] = _play(programs.pgproto, file, address, schema)
        tick(number + 1, len(chosen))
    return outputs


def _play(pgproto: Path, transcript: Path, address: Address, schema: str) -> bytes:
    command = [str(pgproto), "-h", address.host, "-p", str(address.port), "-u", address.user, "-d", "postgres"]
    try:
        done = subprocess.run(
            [*command, "-f", str(transcript)],
            check=False,
            env={**address.environment(), "PGOPTIONS": f"-c search_path={schema}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=TIMEOUT,
        )
    except subprocess.TimeoutExpired as error:
        return (error.stdout or b"") + f"(no end within {TIMEOUT:.0f} s)\n".encode()
    return done.stdout + f"(exit code {done.returncode})\n".encode()


def _psql(programs: Programs, address: Address, statement: str) -> None:
    psql = programs.installation.binary("psql")
    subprocess.run(
        [psql, "-X", "-q", "-d", "postgres", "-c", statement],
        check=True,
        env=address.environment(),
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
