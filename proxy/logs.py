"""The log: one line per event on standard error, for people or as JSON.

``Log.event`` formats the line in the caller's thread and puts it into a bounded queue; a thread of its own writes it.
A reader of standard error that stops reading therefore never stops the event loop: lines are dropped, counted, and one
line tells how many once the reader is back. A line is written by one ``write`` and kept below the size a pipe takes
whole, so that the lines of several processes do not mix.

Secrets never belong into a field. As a second fence, fields whose name says password or secret are blanked, and so is
the password of any URL in a value.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import re
import select
import signal
import threading
import time
from typing import Final, Literal

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["human", "json"]
Value = str | int | float | bool | None

QUEUE_LINES: Final = 10_000
"""Lines waiting to be written before further ones are dropped."""
MAX_VALUE: Final = 1000
"""Characters of one field's value."""
MAX_LINE: Final = 4096
"""Bytes of a line: PIPE_BUF on Linux, what a pipe takes in one piece."""

_RANK: Final[dict[str, int]] = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_SECRET: Final = re.compile(r"password|passwd|secret|token|verifier", re.IGNORECASE)
# Both spellings of a password in a connection string: a URL's and libpq's key=value.
_URL_PASSWORD: Final = re.compile(r"(://[^\s:/@]*):\S*@")
_KEY_PASSWORD: Final = re.compile(r"(\bpassword\s*=\s*)('(?:[^'\\]|\\.)*'|\S+)", re.IGNORECASE)
_PLAIN: Final = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+")


class _Ids:
    """A prefix of this process and a count; a copy of a process gets a prefix of its own."""

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        self.prefix = os.urandom(3).hex()
        self.numbers = itertools.count(1)


_ids: Final = _Ids()


def connection_id() -> str:
    """Names a client's connection in the log: short, and not given twice, by other processes or after a restart either;
    0.2 us."""
    return f"{_ids.prefix}-{next(_ids.numbers):x}"


def redact(text: str) -> str:
    """Blanks passwords of connection strings found in ``text``."""
    if "://" in text:
        text = _URL_PASSWORD.sub(r"\1:***@", text)
    if "assword" in text or "ASSWORD" in text:
        text = _KEY_PASSWORD.sub(r"\1***", text)
    return text


class Log:
    """Writes events of one process.

    ``process`` names it in each line (``supervisor``, ``worker-3``). ``fd`` is where lines go. Usable from any thread.
    """

    __slots__ = ("_closed", "_dropped_unsaid", "_fd", "_format", "_queue", "_rank", "_thread", "dropped", "process")

    def __init__(self, process: str, log_format: Format = "human", level: Level = "info", fd: int = 2) -> None:
        self.process = process
        self.dropped = 0
        """Lines lost so far because nobody read them."""
        self._dropped_unsaid = 0
        self._fd = fd
        self._queue: queue.Queue[bytes | None] = queue.Queue(QUEUE_LINES)
        self._thread: threading.Thread | None = None
        self._closed = False
        self.configure(log_format, level)

    def configure(self, log_format: Format, level: Level) -> None:
        """Changes form and level while running."""
        self._format = log_format
        self._rank = _RANK[level]

    def enabled(self, level: Level) -> bool:
        """Whether events of this level are written; lets callers skip costly fields."""
        return _RANK[level] >= self._rank

    def event(self, name: str, /, *, level: Level = "info", **fields: Value) -> None:
        """Writes one line. ``name`` is a short word with underscores; fields are kept in the order given."""
        if _RANK[level] < self._rank or self._closed:
            return
        self._put(self._line(name, level, fields))

    def close(self, limit: float = 1.0) -> None:
        """Writes what is queued, for at most ``limit`` seconds, and takes no more events."""
        self._closed = True
        if self._thread is None:
            return
        deadline = time.monotonic() + limit
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=limit)
        self._thread.join(max(0.0, deadline - time.monotonic()))

    def _put(self, line: bytes) -> None:
        if self._thread is None:
            # Started on first use, so that a Log made before a fork or exec costs nothing.
            self._thread = threading.Thread(target=self._write_lines, name="log", daemon=True)
            self._thread.start()
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self.dropped += 1
            self._dropped_unsaid += 1

    def _line(self, name: str, level: Level, fields: dict[str, Value]) -> bytes:
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        safe = {key: _safe(key, value) for key, value in fields.items()}
        line = self._render(stamp, level, name, safe)
        while len(line) > MAX_LINE:
            longest = max((key for key in safe if isinstance(safe[key], str)), key=lambda key: len(str(safe[key])))
            text = str(safe.pop(longest))
            if len(text) > 16:
                safe[longest] = text[: len(text) // 2] + "..."
            line = self._render(stamp, level, name, safe)
        return line

    def _render(self, stamp: str, level: Level, name: str, fields: dict[str, Value]) -> bytes:
        if self._format == "json":
            record = {"time": stamp, "level": level, "process": self.process, "event": name, **fields}
            text = json.dumps(record, ensure_ascii=False)
        else:
            parts = [stamp, level.upper(), self.process, name]
            parts += [f"{key}={_human(value)}" for key, value in fields.items() if value is not None]
            text = " ".join(parts)
        return text.encode("utf-8", "backslashreplace") + b"\n"

    def _write_lines(self) -> None:
        # Signals are the main thread's: once that has blocked them, none may end the process by way of this one.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        while (line := self._queue.get()) is not None:
            if not self._write(line):
                self.dropped += 1
                continue
            if self._dropped_unsaid and self._queue.empty():
                lost, self._dropped_unsaid = self._dropped_unsaid, 0
                self._write(self._line("log_lines_dropped", "warning", {"lines": lost}))

    def _write(self, line: bytes) -> bool:
        """False when standard error is gone; the program goes on without it."""
        while line:
            try:
                line = line[os.write(self._fd, line) :]
            except BlockingIOError:
                # Another holder of the same open file made it non-blocking.
                waiting = select.poll()
                waiting.register(self._fd, select.POLLOUT)
                waiting.poll()
            except OSError:
                return False
        return True


def _safe(key: str, value: Value) -> Value:
    if not isinstance(value, str):
        return value
    if _SECRET.search(key):
        return "***"
    if len(value) > MAX_VALUE:
        value = value[:MAX_VALUE] + "..."
    return redact(value)


def _human(value: Value) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and text.isprintable():
        return text
    # What a terminal could obey is escaped.
    return json.dumps(text, ensure_ascii=not text.isprintable())
