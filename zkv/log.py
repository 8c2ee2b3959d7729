"""The server's own log. One thread writes it, so that no other waits for a terminal or a disk.

It takes two kinds of records. Records of the standard library's logging come through the root
logger and a queue. For each request there is another record, a mere tuple, which the broker's
threads pass on a batch at a time: formatting a line costs as much as a small request, so the
writer does it.

If the writer cannot keep up (a stopped terminal, a slow disk), request records are dropped and
counted, and the count is logged. Other records are never dropped.

Lines are written by direct system calls: a writer that hangs would leave a buffered stream locked,
and the process could not end.

Lines never contain a value. Keys are escaped, so that nothing a client sends can begin a new line.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import logging
import os
import threading
from datetime import UTC, datetime
from logging.handlers import QueueHandler
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from zkv.errors import ConfigError

if TYPE_CHECKING:
    from zkv.config import LogSettings

_log = logging.getLogger("zkv.log")

AUDIT: Final = "zkv.audit"
"""The logger of what users have done that others may ask about. No level turns it off."""
MOST_WAITING: Final = 10_000
"""Batches of request records that wait for the writer; if there are more, they are dropped."""


PAUSE_SECONDS: Final = 0.01
"""How long the writer gathers lines before it writes them together. Measured with 50 clients: this
halves the log's CPU time, and takes a third off the time for which it delays the workers."""

CLOSE_SECONDS: Final = 2.0
"""How long the end waits for the remaining lines, if they cannot be written."""
STDERR: Final = 2


class RequestRecord(NamedTuple):
    """The log record of one request."""

    time: float
    """Unix time in seconds of the reply."""
    op: str
    subject: str | int | None
    """The key, or the number of keys; None if the op has neither."""
    result: str
    """``ok``, ``replayed`` or the error code, as in the reply."""
    bytes_in: int
    bytes_out: int
    duration: float
    """Seconds from decoding the request to encoding the reply."""
    trace: str | None = None
    """The field of that name in the request."""
    user: str | None = None
    """The name of the user; None = users are not known."""


class Named(Protocol):
    """A user."""

    @property
    def name(self) -> str:
        """Its name."""


Answer = tuple[str, str | int, int, int, str | None, Named | None]
"""Of a request that the lane has answered: its op, its key or number of keys, the bytes of its
body, the bytes of its reply, its trace, and its user."""


class RunRecord(NamedTuple):
    """The log record of requests that were answered together, all successfully.

    A line costs a quarter of what it costs as a `RequestRecord`.
    """

    time: float
    """Unix time in seconds of the replies."""
    duration: float
    """Seconds since the first request was taken up."""
    answers: list[Answer]

    def requests(self) -> list[RequestRecord]:
        """Return one record for each request."""
        time, duration = self.time, self.duration
        return [
            RequestRecord(
                time,
                op,
                subject,
                "ok",
                bytes_in,
                bytes_out,
                duration,
                trace,
                None if user is None else user.name,
            )
            for op, subject, bytes_in, bytes_out, trace, user in self.answers
        ]


AnyRecord = RequestRecord | RunRecord


class LoggingFilter(logging.Filter):
    """Passes all of zkv's records, and other libraries' warnings and errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if ``record`` is logged."""
        ours = record.name == "zkv" or record.name.startswith("zkv.")
        return ours or record.levelno >= logging.WARNING


class _Reopen:
    """Asks the writer to reopen its file, which log rotation may have renamed."""


_Item = logging.LogRecord | list[AnyRecord] | _Reopen | None


class Log:
    """The log of one server process. `start` installs it as the process's logging.

    Args:
        settings: level, format and file (empty = standard error).

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._dropped = 0
        self._closing = threading.Event()
        self._descriptor = self._open()
        self._dump_on: int | None = None  # The signal that dumps stacks.
        self._format = _FORMATS[settings.format]
        self._thread = threading.Thread(target=self._write_all, name="zkv-log", daemon=True)
        self._handler = QueueHandler(self._queue)
        self._handler.addFilter(LoggingFilter())

    def start(self) -> None:
        """Install the log as the process's logging, and start the writer."""
        logging.getLogger().addHandler(self._handler)
        self.set_level(self._settings.level)
        logging.getLogger(AUDIT).setLevel(logging.INFO)
        self._thread.start()

    def set_level(self, level: str) -> None:
        """Log no records below ``level`` from now on."""
        logging.getLogger().setLevel(level)

    def dump_stacks_on(self, number: int) -> None:
        """Write the stacks of all threads on signal ``number``, then run its usual handler.

        Also when the process is aborted, as a service manager does with a server that hangs.

        The interpreter does this itself and at once, whatever its threads are waiting for.
        """
        self._dump_on = number
        self._register_dump()

    def _register_dump(self) -> None:
        if self._dump_on is not None:
            faulthandler.register(self._dump_on, self._descriptor, all_threads=True, chain=True)
            faulthandler.enable(self._descriptor, all_threads=True)

    def close(self) -> None:
        """Uninstall the log, write the remaining lines, and end the writer."""
        if self._dump_on is not None:
            faulthandler.unregister(self._dump_on)
            faulthandler.disable()
            self._dump_on = None
        logging.getLogger().removeHandler(self._handler)
        self._queue.put(None)
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)

    def reopen(self) -> None:
        """Reopen the log file, after the lines so far have been written."""
        self._queue.put(_Reopen())

    def write_requests(self, records: list[AnyRecord]) -> None:
        """Log some requests. Never waits: drops them if too many batches are waiting."""
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(records)
        else:  # Not exact with several threads, and need not be.
            self._dropped += sum(
                len(record.answers) if isinstance(record, RunRecord) else 1 for record in records
            )

    def _open(self) -> int:
        """Open the file, and return its descriptor. Raises ConfigError."""
        if not self._settings.file:
            return STDERR
        try:
            return os.open(self._settings.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise ConfigError(
                f"log.file: {self._settings.file}: {error.strerror or error}"
            ) from error

    def _write_all(self) -> None:
        closing = False
        while not closing:
            # Lines that are there, and those that come within a moment, are written together: each
            # wake-up of this thread costs the workers as much as a request.
            items = [self._queue.get()]
            items += [self._queue.get() for _ in range(self._queue.qsize())]
            closing = None in items
            try:
                self._write(items)
            except OSError:
                pass  # The log cannot be written, so nothing can report it.
            except Exception:
                _log.critical("lines of the log are lost", exc_info=True)
            if not closing:
                self._closing.wait(PAUSE_SECONDS)
        if self._descriptor != STDERR:
            os.close(self._descriptor)

    def _write(self, items: list[_Item]) -> None:
        lines: list[str] = []
        for item in items:
            if isinstance(item, list):
                for record in item:
                    if isinstance(record, RunRecord):
                        lines += self._format.run(record)
                    else:
                        lines.append(self._format.request(record))
            elif isinstance(item, _Reopen):
                self._write_lines(lines)
                lines = []
                self._reopen_now()
            elif item is not None:
                lines.append(self._format.record(item))
        if self._dropped and self._queue.qsize() == 0:
            dropped, self._dropped = self._dropped, 0
            lines.append(self._format.record(_dropped_record(dropped)))
        self._write_lines(lines)

    def _write_lines(self, lines: list[str]) -> None:
        if lines:
            rest = memoryview(("\n".join(lines) + "\n").encode(errors="backslashreplace"))
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]

    def _reopen_now(self) -> None:
        if self._descriptor == STDERR:
            return
        try:
            new = self._open()
        except ConfigError as error:
            _log.error("%s; the old file stays in use", error)
            return
        old, self._descriptor = self._descriptor, new
        self._register_dump()
        os.close(old)


def _dropped_record(count: int) -> logging.LogRecord:
    message = f"{count} request lines were dropped: the log could not be written fast enough"
    return logging.LogRecord("zkv.log", logging.WARNING, "", 0, message, None, None)


def _timestamp(seconds: float) -> str:
    whole = int(seconds)
    return f"{_whole_second(whole)}.{int((seconds - whole) * 1000):03d}Z"


@functools.lru_cache(maxsize=2)  # Without the cache this is half of the cost of a line.
def _whole_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _further(trace: str | None, user: str | None) -> str:
    return ("" if not user else f" user={user}") + ("" if trace is None else f" trace={trace!r}")


class _Text:
    """Lines for people: time, level, and text."""

    @staticmethod
    def record(record: logging.LogRecord) -> str:
        return f"{_timestamp(record.created)} {record.levelname} {record.getMessage()}"

    @staticmethod
    def request(record: RequestRecord) -> str:
        match record.subject:
            case str(key):
                subject = f" key={key!r}"
            case int(count):
                subject = f" keys={count}"
            case _:
                subject = ""
        return (
            f"{_timestamp(record.time)} INFO {record.op}{subject} {record.result}"
            f" in={record.bytes_in} out={record.bytes_out} us={record.duration * 1e6:.0f}"
            f"{_further(record.trace, record.user)}"
        )

    @staticmethod
    def run(run: RunRecord) -> list[str]:
        begin = f"{_timestamp(run.time)} INFO "
        end = f" us={run.duration * 1e6:.0f}"
        return [
            (
                f"{begin}{op} key={subject!r} ok in={bytes_in} out={bytes_out}{end}"
                if isinstance(subject, str)
                else f"{begin}{op} keys={subject} ok in={bytes_in} out={bytes_out}{end}"
            )
            # No call for what most requests lack: it takes as long as a third of the line.
            + (
                ""
                if trace is None and user is None
                else _further(trace, None if user is None else user.name)
            )
            for op, subject, bytes_in, bytes_out, trace, user in run.answers
        ]


class _Json:
    """Lines for programs: one JSON object each."""

    @staticmethod
    def run(run: RunRecord) -> list[str]:
        return [_Json.request(record) for record in run.requests()]

    @staticmethod
    def record(record: logging.LogRecord) -> str:
        return json.dumps(
            {
                "time": _timestamp(record.created),
                "level": record.levelname,
                "logger": record.name,
                "message": record.getMessage(),  # With the traceback, if any.
            }
        )

    @staticmethod
    def request(record: RequestRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record.time),
            "level": "INFO",
            "op": record.op,
            "result": record.result,
            "bytes_in": record.bytes_in,
            "bytes_out": record.bytes_out,
            "duration_us": round(record.duration * 1e6),
        }
        if isinstance(record.subject, str):
            line["key"] = record.subject
        elif record.subject is not None:
            line["keys"] = record.subject
        if record.trace is not None:
            line["trace"] = record.trace
        if record.user:
            line["user"] = record.user
        return json.dumps(line)


_FORMATS: dict[str, type[_Text] | type[_Json]] = {"text": _Text, "json": _Json}
