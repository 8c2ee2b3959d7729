"""``zkv``: runs the server. `zkv.cli.doctor` checks a server, `zkv.cli.data` a data directory.

Exit status of ``zkv serve``: 0 after END, SIGTERM or SIGINT if everything was saved; 1 if not; 2 if
the server did not start.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zkv import __version__, config
from zkv.cli.verbs import add_data_verbs, add_doctor
from zkv.collector import collecting
from zkv.errors import StartupError
from zkv.log import Log
from zkv.server import Event, ServerCore
from zkv.streams import complain, guarded

_log = logging.getLogger("zkv.server")

SIGNALS = (
    "Signals: SIGTERM or SIGINT saves everything and stops the server, a second one kills it; "
    "SIGHUP reopens the log file; SIGUSR1 writes the stack of each thread to the log."
)
FAILED = 1
NOT_STARTED = 2
BESIDE = "tcp://127.0.0.1:*"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return guarded("zkv", NOT_STARTED, lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except StartupError as error:
        complain("zkv", str(error))
        return NOT_STARTED


def serve(options: argparse.Namespace) -> int:
    """Run a server until END or a signal stops it. Raises StartupError."""
    settings = _settings(options)
    raise_file_limit()
    log = Log(settings.log)
    log.start()
    try:
        server = ServerCore(settings, log.write_requests if log.requests else None, log.reopen)
        _handle_signals_of_operators(server, log)
        server.start()
        _handle_signals_to_stop(server)
        with collecting():
            return _serve(server)
    finally:
        log.close()


def _serve(server: ServerCore) -> int:
    try:
        announce(f"READY {' '.join(server.endpoints)}\n")
    except OSError as error:
        server.post(Event.STOP)
        server.wait()
        raise StartupError(f"standard output: {error.strerror or error}") from error
    saved = server.wait()
    # The server has stopped. A signal must not change the exit status while the interpreter ends.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return 0 if saved else FAILED


def announce(line: str) -> None:
    """Write to standard output, unless it was closed from the start. Raises OSError."""
    if sys.stdout is not None:
        os.write(sys.stdout.fileno(), line.encode())


def raise_file_limit() -> None:
    """Raise the soft limit of open files to the hard one: each connection takes one file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # Some systems refuse their own hard limit.
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _settings(options: argparse.Namespace) -> config.Settings:
    settings = config.load(options.config) if options.config else config.Settings()
    feed = options.feed
    if feed is None and options.endpoint and settings.server.feed:
        feed = BESIDE  # A second server must not use the feed port of the configured one.
    server: dict[str, Any] = {
        "endpoints": options.endpoint,
        "feed": feed,
        "workers": options.workers,
    }
    durability: dict[str, Any] = {"data_dir": options.data_dir, "fsync": options.fsync}
    return config.override(settings, server=_given(server), durability=_given(durability))


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _handle_signals_of_operators(server: ServerCore, log: Log) -> None:
    """SIGHUP reopens the log, SIGUSR1 dumps the threads' stacks; also while data is loaded."""
    signal.signal(signal.SIGHUP, lambda _number, _frame: server.post(Event.REOPEN_LOG))
    signal.signal(signal.SIGUSR1, lambda _number, _frame: _log_names())
    log.dump_stacks_on(signal.SIGUSR1)


def _log_names() -> None:
    """Log the names of all threads, since the dump of their stacks shows only numbers."""
    threads = [f"{thread.ident or 0:#018x} is {thread.name}" for thread in threading.enumerate()]
    _log.warning("SIGUSR1: the stacks of all threads are above; thread %s", ", ".join(threads))


def _handle_signals_to_stop(server: ServerCore) -> None:
    """The first SIGTERM or SIGINT saves everything and stops; the second ends the process."""

    def stop(number: int, _frame: object) -> None:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda number, _frame: os._exit(128 + number))
        server.post(Event.STOP)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zkv", description="A key-value store that speaks msgpack over ZeroMQ."
    )
    parser.add_argument("--version", action="version", version=f"zkv {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="COMMAND")
    run = verbs.add_parser(
        "serve", help="run a server", description="Run a server.", epilog=SIGNALS
    )
    run.add_argument("--config", type=Path, metavar="FILE", help="settings; see config.toml")
    run.add_argument(
        "--endpoint", action="append", metavar="E",
        help="where to listen: tcp://HOST:PORT (* = a free port) or ipc://PATH; may be repeated",
    )  # fmt: skip
    run.add_argument(
        "--feed", metavar="E",
        help="where to publish changes; empty = nowhere; default with --endpoint: a free port",
    )  # fmt: skip
    run.add_argument("--data-dir", metavar="DIR", help="the data directory")
    run.add_argument(
        "--fsync", choices=("always", "interval", "never"), help="when writes are made durable"
    )
    run.add_argument("--workers", type=int, metavar="N", help="the number of worker threads")
    run.set_defaults(run=serve)
    add_doctor(verbs)
    add_data_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
