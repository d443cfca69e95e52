"""OpenTelemetry traces (``otel_endpoint``): a span for each statement, with the decision and the server's time.

A client that names its own span in a comment of the statement, as sqlcommenter does
(``/*traceparent='00-<trace>-<span>-01'*/``), finds this one below it; one that says it is not sampled gets none.
Others begin a trace of their own, a share of them by ``otel_share``.

On the event loop a statement costs 2 us: what is known of it goes into a bounded queue. A thread makes spans of that
and sends them (OTLP over HTTP); a collector that is slow or away costs spans, which are counted, and nothing else. The
packages of the extra ``otel`` are imported in that thread. Where no endpoint is set there is no tracer at all, and a
statement pays for one comparison. Headers for the collector, which may be secret, come from the environment
(``OTEL_EXPORTER_OTLP_HEADERS``).
"""

from __future__ import annotations

import importlib.util
import logging
import re
import signal
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from random import getrandbits, random
from typing import TYPE_CHECKING, Any, Final

from proxy.logs import Log
from proxy.slow_log import MAX_TEXT, shown
from proxy.wire.messages import rows_told

if TYPE_CHECKING:
    from proxy.session_base import Session

MAX_QUEUE: Final = 4096
"""Statements that wait to be sent; further ones are dropped."""
BATCH: Final = 512
INTERVAL_SECONDS: Final = 1.0
EXPORT_SECONDS: Final = 5.0
"""How long the collector may take for one batch, retries included."""
CLOSE_SECONDS: Final = 2.0
KEPT_TEXT: Final = 4096
"""Bytes of a text that are kept for its span."""
_TRACEPARENT: Final = re.compile(rb"traceparent\s*=\s*'[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})'")


@dataclass(slots=True)
class _Statement:
    """``ended`` is nanoseconds since 1970; ``trace`` and ``parent`` are 0 where the client named none."""

    ended: int
    took: float
    ran: float
    text: bytes
    conforming: bool | None
    outcome: dict[str, str]
    rows: int
    trace: int
    parent: int
    fields: dict[str, str]


def parent_of(text: bytes) -> tuple[int, int, bool] | None:
    """Trace, span, and whether it is sampled, that a comment of the statement names; 0.2 us where there is none."""
    at = text.rfind(b"traceparent")
    if at < 0 or text.rfind(b"/*", 0, at) < 0:
        return None
    match = _TRACEPARENT.match(text, at)
    if match is None:
        return None
    trace, span = int(match[1], 16), int(match[2], 16)
    return (trace, span, bool(int(match[3], 16) & 1)) if trace and span else None


def available() -> bool:
    """Whether the packages of the extra are installed."""
    try:
        return importlib.util.find_spec("opentelemetry.exporter.otlp.proto.http") is not None
    except ModuleNotFoundError:
        return False


class Tracer:
    """One for each worker. `statement` is for the event loop, all else for whoever starts and stops the worker."""

    def __init__(self, endpoint: str, share: float, *, literals: bool, worker: int, log: Log) -> None:
        self.exported = 0
        self.dropped = 0
        self.failed = 0
        self.share = share
        self.literals = literals
        self._endpoint = endpoint
        self._worker = worker
        self._log = log
        self._queue: deque[_Statement] = deque()
        self._wake = threading.Event()
        self._closed = False
        self._complained = False
        self._thread = threading.Thread(target=self._run, name="tracing", daemon=True)
        self._thread.start()

    def statement(self, session: Session, took: float, answer: bytes) -> None:
        """A batch is over; called before steering has forgotten what it decided about it."""
        steering = session.talk.steering
        text = steering.text
        trace = parent = 0
        named = parent_of(text) if text else None
        if named is not None:
            trace, parent, sampled = named
            if not sampled:
                return
        elif self.share < 1.0 and random() >= self.share:  # noqa: S311 (a coin, no secret)
            return
        if len(self._queue) >= MAX_QUEUE:
            self.dropped += 1
            return
        login, own = session.login, session._steering
        fields = {
            "db.namespace": login.database,
            "db.user": login.user,
            "network.peer.address": login.peer,
            "pilotwire.connection": login.id,
        }
        if own is not None and own.application:
            fields["pilotwire.application"] = own.application
        self._queue.append(
            _Statement(
                time.time_ns(),
                took,
                took if own is None else took - own.held_up,
                text[:KEPT_TEXT],
                None if own is None else own.conforming,
                {} if own is None else own.outcome(),
                rows_told(answer),
                trace,
                parent,
                fields,
            )
        )

    def close(self) -> None:
        """Sends what waits, for at most two seconds."""
        self._closed = True
        self._wake.set()
        self._thread.join(CLOSE_SECONDS)

    # ------------------------------------------------------------------ in the thread

    def _run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        # What the library has to say of a collector that is away is said by us, once.
        library = logging.getLogger("opentelemetry")
        library.addHandler(logging.NullHandler())
        library.propagate = False
        try:
            spans = _Spans(self._endpoint, self._worker)
        except Exception as error:
            self._log.event("tracing_failed", level="error", error=repr(error))
            while not self._closed:
                self.dropped += len(self._taken(MAX_QUEUE))
                self._wake.wait(INTERVAL_SECONDS)
            return
        while True:
            self._wake.wait(INTERVAL_SECONDS)
            closing = self._closed
            while self._queue:
                self._send(spans, self._taken(BATCH))
            if closing:
                spans.close()
                return

    def _taken(self, most: int) -> list[_Statement]:
        return [self._queue.popleft() for _ in range(min(most, len(self._queue)))]

    def _send(self, spans: _Spans, batch: Sequence[_Statement]) -> None:
        try:
            sent = spans.send(batch, literals=self.literals)
        except Exception as error:
            self._log.event("tracing_failed", level="error", error=repr(error))
            sent = False
        if sent:
            self.exported += len(batch)
        else:
            self.failed += len(batch)
        if sent is self._complained:
            self._complained = not sent
            if sent:
                self._log.event("tracing_resumed")
            else:
                self._log.event("tracing_failed", level="warning", detail="the collector does not take spans")


class _Spans:
    """Makes spans and sends them; all that touches the OpenTelemetry packages."""

    def __init__(self, endpoint: str, worker: int) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource

        self._exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS)
        found = Resource.create({"pilotwire.worker": worker})
        if str(found.attributes.get("service.name", "unknown_service")).startswith("unknown_service"):
            found = found.merge(Resource({"service.name": "pilotwire"}))
        self._resource = found

    def send(self, batch: Sequence[_Statement], *, literals: bool) -> bool:
        """Whether the collector took them."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        result = self._exporter.export([self._span(statement, literals=literals) for statement in batch])
        return result is SpanExportResult.SUCCESS

    def close(self) -> None:
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _span(self, statement: _Statement, *, literals: bool) -> Any:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

        sampled = TraceFlags(TraceFlags.SAMPLED)
        trace = statement.trace or getrandbits(128)
        text = shown(statement.text[:MAX_TEXT], statement.conforming, literals=literals) if statement.text else ""
        operation = text.lstrip("( ").partition(" ")[0].upper()[:40]
        attributes: dict[str, str | int | float] = {
            "db.system.name": "postgresql",
            **statement.fields,
            "pilotwire.server_ms": round(statement.ran * 1000, 3),
            "pilotwire.held_up_ms": round((statement.took - statement.ran) * 1000, 3),
            **{f"pilotwire.{name}": value for name, value in statement.outcome.items() if value and name != "sqlstate"},
        }
        if text:
            attributes |= {"db.query.text": text, "db.operation.name": operation}
        if statement.rows >= 0:
            attributes["db.response.returned_rows"] = statement.rows
        status = Status()
        if statement.outcome.get("sqlstate"):
            attributes["db.response.status_code"] = statement.outcome["sqlstate"]
            status = Status(StatusCode.ERROR, statement.outcome["sqlstate"])
        parent = None
        if statement.parent:
            parent = SpanContext(trace, statement.parent, is_remote=True, trace_flags=sampled)
        return ReadableSpan(
            operation or "statement",
            SpanContext(trace, getrandbits(64) or 1, is_remote=False, trace_flags=sampled),
            parent,
            self._resource,
            attributes,
            kind=SpanKind.SERVER,
            status=status,
            start_time=statement.ended - int(statement.took * 1e9),
            end_time=statement.ended,
        )
