"""PostgreSQL's ``libpq_pipeline``: pipelining and cancelling with libpq, with a trace of every message."""

from __future__ import annotations

import subprocess

from tests.conformance.programs import Programs
from tests.conformance.regress import Tick
from tests.conformance.stage import Address, Place

ROWS = 700
TIMEOUT = 30.0
UNTRACED = frozenset({"cancel", "protocol_version", "pipelined_insert", "uniqviol"})
"""Tests whose messages come in no fixed order, or which trace nothing; PostgreSQL compares no trace of them either."""

CHATTY = frozenset({"uniqviol"})
"""Tests that print how far they got whenever the socket is full: only how they end can be compared."""


def run(programs: Programs, place: Place, address: Address, tick: Tick) -> dict[str, bytes]:
    """Result and trace of each test, by its name and the protocol version asked for."""
    listed = subprocess.run([programs.libpq_pipeline, "tests"], check=True, capture_output=True, text=True, timeout=10)
    names = listed.stdout.split()
    runs = [(name, "latest") for name in names] + [("cancel", "3.0"), ("simple_pipeline", "3.0"), ("prepared", "3.0")]
    out = place.fresh_out()
    outputs = {}
    for number, (name, version) in enumerate(runs):
        trace = out / f"{name}.trace"
        trace.unlink(missing_ok=True)
        traced = [] if name in UNTRACED else ["-t", str(trace)]
        connection = f"host={address.host} port={address.port} user={address.user} dbname=postgres sslmode=disable"
        command = [str(programs.libpq_pipeline), "-r", str(ROWS), *traced, name]
        try:
            done = subprocess.run(
                [*command, f"{connection} max_protocol_version={version}"],
                check=False,
                env=address.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=TIMEOUT,
            )
            said = (b"" if name in CHATTY else done.stdout) + f"(exit code {done.returncode})\n".encode()
        except subprocess.TimeoutExpired as error:
            said = (error.stdout or b"") + f"(no end within {TIMEOUT:.0f} s)\n".encode()
        outputs[f"{name}, protocol {version}"] = said + (trace.read_bytes() if trace.exists() else b"")
        tick(number + 1, len(runs))
    return outputs
