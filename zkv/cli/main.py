"""``zkv``: runs the server. The other verbs are in modules of their own: see `zkv.cli.verbs`.

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

from zkv import __version__
from zkv.activity import SHORT_SECONDS
from zkv.cli.reload import Reloader
from zkv.cli.settings import add_flags, read_settings
from zkv.cli.verbs import (
    add_config,
    add_data_verbs,
    add_doctor,
    add_keygen,
    add_metrics,
    add_size,
    add_user,
)
from zkv.collector import collecting
from zkv.config import Settings
from zkv.errors import ConfigError, StartupError
from zkv.keys import joined
from zkv.log import Log
from zkv.server import Event, ServerCore
from zkv.streams import complain, guarded

_log = logging.getLogger("zkv.server")

SIGNALS = (
    "Signals: SIGTERM or SIGINT saves everything and stops the server, a second one kills it; "
    "SIGHUP reopens the log file and reads the settings again; SIGUSR1 writes the stack of each "
    "thread to the log."
)
FAILED = 1
NOT_STARTED = 2


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    return guarded("zkv", NOT_STARTED, lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    options = _parser().parse_args(joined(sys.argv[1:] if arguments is None else arguments))
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except StartupError as error:
        complain("zkv", str(error))
        return NOT_STARTED


def serve(options: argparse.Namespace) -> int:
    """Run a server until END or a signal stops it. Raises StartupError."""
    settings = read_settings(options).settings
    raise_file_limit()
    log = Log(settings.log)
    log.start()
    try:
        server = ServerCore(settings, log.write_requests)
        reloader = Reloader(
            settings, lambda: read_settings(options).settings, lambda new: _apply(new, server, log)
        )
        _handle_signals_of_operators(server, log, reloader)
        server.start()
        _handle_signals_to_stop(server)
        with collecting(server.activities.new("collector", SHORT_SECONDS)):
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


def _apply(settings: Settings, server: ServerCore, log: Log) -> None:
    """Have a running server take over its live settings."""
    log.set_level(settings.log.level)
    server.apply(settings)


def _reload_users(server: ServerCore) -> None:
    with contextlib.suppress(ConfigError):  # It is logged.
        server.reload_users()


def _handle_signals_of_operators(server: ServerCore, log: Log, reloader: Reloader) -> None:
    """SIGHUP reopens the log and reloads, SIGUSR1 dumps the threads' stacks; also during a start.

    A server that is still starting reloads once it serves.
    """

    def hang_up(_number: int, _frame: object) -> None:
        log.reopen()
        server.run_soon(reloader.reload)
        server.run_soon(lambda: _reload_users(server))

    signal.signal(signal.SIGHUP, hang_up)
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
    add_flags(run)
    run.set_defaults(run=serve)
    add_config(verbs)
    add_keygen(verbs)
    add_user(verbs)
    add_doctor(verbs)
    add_metrics(verbs)
    add_size(verbs)
    add_data_verbs(verbs)
    return parser


if __name__ == "__main__":
    sys.exit(main())
