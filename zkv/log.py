"""The server's log: one thread writes it, so that nobody waits for a terminal or a disk.

Two kinds of things come in. Log records of the standard library's logging, through the root logger
and a queue; and a record for each request, which workers hand over a batch at a time as plain
tuples: formatting a line costs as much as a small request, so it is done here, behind their back.

If the writer cannot keep up (a terminal that is held, a slow disk), request records are dropped,
counted, and the count is logged. Other records are never dropped.

Lines are written with single system calls on the descriptor: a buffered stream would be left locked
by a writer that is stuck, and then hang the end of the process.

Lines never hold a value. Keys are escaped: whatever a client sends stays on one line.
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
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from zkv.errors import ConfigError

if TYPE_CHECKING:
    from zkv.config import LogSettings

_log = logging.getLogger("zkv.log")

MOST_WAITING: Final = 10_000
"""Batches of request records that may wait for the writer before more are dropped."""


PAUSE_SECONDS: Final = 0.01
"""How long lines are gathered before they are written together. Measured with 50 clients: half the
time that the log takes, and two thirds of that of which it robs the workers."""

CLOSE_SECONDS: Final = 2.0
"""How long the end waits for what is still to be written, if nobody reads it."""
STDERR: Final = 2


class RequestRecord(NamedTuple):
    """What is logged of one request."""

    time: float
    """Unix time in seconds, when it was answered."""
    op: str
    subject: str | int | None
    """The key, or how many keys; None where the op has none."""
    result: str
    """``ok`` or the code of the failure, as the client sees it."""
    bytes_in: int
    bytes_out: int
    duration: float
    """Seconds from decoding to the reply's encoding."""


Subject = tuple[str | int, int, int]
"""Of a request: its key, or how many keys it has; the bytes of its body, and of its reply's."""


class RunRecord(NamedTuple):
    """What is logged of requests that were answered together, all of them with success.

    A line for each costs a quarter of what it does where each comes as a `RequestRecord`.
    """

    time: float
    """Unix time in seconds, when they were answered."""
    duration: float
    """Seconds from when the first was taken up."""
    ops: list[str]
    subjects: list[Subject | None]
    """As many; None for a request that was answered otherwise."""

    def requests(self) -> list[RequestRecord]:
        """The same, a record for each."""
        time, duration = self.time, self.duration
        return [
            RequestRecord(time, op, subject[0], "ok", subject[1], subject[2], duration)
            for op, subject in zip(self.ops, self.subjects, strict=True)
            if subject is not None
        ]


AnyRecord = RequestRecord | RunRecord


class LoggingFilter(logging.Filter):
    """Lets zkv's records pass, and of other libraries' only warnings and worse."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` passes."""
        ours = record.name == "zkv" or record.name.startswith("zkv.")
        return ours or record.levelno >= logging.WARNING


class _Reopen:
    """Asks the writer to open its file anew: the old one may have been renamed by rotation."""


_Item = logging.LogRecord | list[AnyRecord] | _Reopen | None


class Log:
    """The log of one server process. `start` installs it as the process's logging.

    Args:
        settings: level, format, file (standard error where empty), and whether to log requests.

    Raises:
        ConfigError: the file cannot be opened.
    """

    def __init__(self, settings: LogSettings) -> None:
        self._settings = settings
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        self._dropped = 0
        self._closing = threading.Event()
        self._descriptor = self._open()
        self._dump_on: int | None = None  # The signal, if there is one.
        self._format = _FORMATS[settings.format]
        self._thread = threading.Thread(target=self._write_all, name="zkv-log", daemon=True)
        self._handler = QueueHandler(self._queue)
        self._handler.addFilter(LoggingFilter())
        self.requests = settings.requests and settings.level in {"DEBUG", "INFO"}

    def start(self) -> None:
        """Take over the process's logging and start the writer."""
        root = logging.getLogger()
        root.addHandler(self._handler)
        root.setLevel(self._settings.level)
        self._thread.start()

    def dump_stacks_on(self, number: int) -> None:
        """Have signal ``number`` write where each thread is, then do what it does otherwise.

        The interpreter writes that by itself, at once and as it is, whatever its threads wait for.
        """
        self._dump_on = number
        self._register_dump()

    def _register_dump(self) -> None:
        if self._dump_on is not None:
            faulthandler.register(self._dump_on, self._descriptor, all_threads=True, chain=True)

    def close(self) -> None:
        """Give logging back, write what waits, and end the writer."""
        if self._dump_on is not None:
            faulthandler.unregister(self._dump_on)
            self._dump_on = None
        logging.getLogger().removeHandler(self._handler)
        self._queue.put(None)
        self._closing.set()
        self._thread.join(CLOSE_SECONDS)

    def reopen(self) -> None:
        """Open the log file anew, once what came before is written."""
        self._queue.put(_Reopen())

    def write_requests(self, records: list[AnyRecord]) -> None:
        """Log some requests. Never waits; drops them where too many batches wait already."""
        if self._queue.qsize() < MOST_WAITING:
            self._queue.put(records)
        else:  # Approximate under threads: it is a symptom, no bill.
            self._dropped += sum(
                len(record.requests()) if isinstance(record, RunRecord) else 1 for record in records
            )

    def _open(self) -> int:
        """The descriptor to write to."""
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
            # Whatever is there goes out together, and what comes within a moment waits for it: each
            # time that this thread is woken costs the workers as much as a request.
            items = [self._queue.get()]
            items += [self._queue.get() for _ in range(self._queue.qsize())]
            closing = None in items
            try:
                self._write(items)
            except OSError:
                pass  # The log itself cannot be written: there is nowhere left to say so.
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
            _log.error("%s; going on with the old file", error)
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


@functools.lru_cache(maxsize=2)  # Else it would be half of the work of a line.
def _whole_second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class _Text:
    """Lines for people: time, level, then what happened."""

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
        )

    @staticmethod
    def run(run: RunRecord) -> list[str]:
        begin = f"{_timestamp(run.time)} INFO "
        end = f" us={run.duration * 1e6:.0f}"
        return [
            f"{begin}{op} key={subject[0]!r} ok in={subject[1]} out={subject[2]}{end}"
            if isinstance(subject[0], str)
            else f"{begin}{op} keys={subject[0]} ok in={subject[1]} out={subject[2]}{end}"
            for op, subject in zip(run.ops, run.subjects, strict=True)
            if subject is not None
        ]


class _Json:
    """One JSON object a line, for machines."""

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
                "message": record.getMessage(),  # With the traceback, if there is one.
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
        return json.dumps(line)


_FORMATS: dict[str, type[_Text] | type[_Json]] = {"text": _Text, "json": _Json}
