"""Runs a server until END or a signal stops it: what ``zkv serve`` and ``zkv follow`` share.

A server with a copy of a store that others lead may have to begin anew, from a snapshot of another
one. Then it stops, and another server takes its place in the same process (`run_in_turn`), at the
same endpoints. While none runs, the first signal ends the process.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from zkv.activity import SHORT_SECONDS
from zkv.cli.manager import ServiceManager
from zkv.cli.outcome import FAILED, LEADER, announce
from zkv.cli.reload import Reloader
from zkv.cli.settings import read_settings
from zkv.collector import collecting
from zkv.config import Settings
from zkv.durability.files import Files
from zkv.errors import ConfigError, StartupError
from zkv.log import AnyRecord, Log
from zkv.replication.incoming import BeginAnew
from zkv.server import Event, ServerCore, connect_to_members
from zkv.system import raise_file_limit

_log = logging.getLogger("zkv.server")

LOADING: Final = "loading the data"
FIRST: Final = 1
"""The number of the first process of a container."""


MakeServer = Callable[[Callable[[list[AnyRecord]], None]], ServerCore]
"""Makes a server, not started yet, that writes request records there."""
Serving = Callable[[Settings, BeginAnew | None], contextlib.AbstractContextManager[MakeServer]]
"""Makes a data directory ready for a server, which has to begin anew or not; yields what makes that
server. At the exit the server has stopped."""


def serve(options: argparse.Namespace) -> int:
    """Run a server until END or a signal stops it. Raises StartupError."""
    settings = read_settings(options).settings
    with prepared(settings) as process:
        if settings.store.url:
            return run_in_turn(settings, options, process, _serving_member)
        server = ServerCore(settings, process.log.write_requests)
        status = run(server, settings, options, process)
    return status or 0


class Process(NamedTuple):
    """The log and the service manager of a process that runs servers."""

    log: Log
    manager: ServiceManager


@contextlib.contextmanager
def _serving_member(settings: Settings, anew: BeginAnew | None) -> Iterator[MakeServer]:
    from zkv.cli.dumped import commit_line
    from zkv.cluster.joining import join

    joining = join(settings, Files(), connect_to_members(settings), anew, commit_line)
    try:
        yield lambda write_log: ServerCore(settings, write_log, joining=joining)
    finally:
        joining.close()


def run_in_turn(
    settings: Settings, options: argparse.Namespace, process: Process, serving: Serving
) -> int:
    """Run one server after the other, until one has not to begin anew; return the exit status.

    Args:
        settings: the settings.
        options: where to read them again.
        process: this process.
        serving: makes the directory ready.

    Raises StartupError.
    """
    anew: BeginAnew | None = None
    for is_first in itertools.chain([True], itertools.repeat(False)):
        with contextlib.ExitStack() as stack:
            try:
                with _ended_by_signals():
                    make = stack.enter_context(serving(settings, anew))
            except _EndedError:
                _log.info("stopped before it had the store")
                return 0
            server = make(process.log.write_requests)
            status = run(server, settings, options, process, is_first)
        anew = server.anew
        if status is not None or anew is None:
            return status or 0
        settings = _bound(settings, server)
        _log.warning("beginning anew from a snapshot of another server: %s", anew.reason)
    raise AssertionError  # It is an endless loop.


class _EndedError(BaseException):
    """A signal ends the process."""


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise _EndedError within the block at SIGTERM or SIGINT. A server's handlers come later."""
    numbers = signal.SIGTERM, signal.SIGINT

    def end(_number: int, _frame: object) -> None:
        raise _EndedError

    before = [signal.signal(number, end) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _bound(settings: Settings, server: ServerCore) -> Settings:
    """Return settings with the ports that a server had, so that the next one has them, too."""
    places = {"endpoints": server.endpoints, "feed": server.feed}
    return msgspec.structs.replace(
        settings, server=msgspec.structs.replace(settings.server, **places)
    )


@contextlib.contextmanager
def prepared(settings: Settings) -> Iterator[Process]:
    """Make this process ready to run servers within the block.

    The log is written, the service manager is told, and as many files may be opened as possible.
    """
    raise_file_limit()
    if os.getpid() == FIRST:
        _act_as_first()
    log = Log(settings.log)
    log.start()
    manager = ServiceManager(os.environ, LOADING)
    try:
        yield Process(log, manager)
    finally:
        manager.close()
        log.close()


def _act_as_first() -> None:
    """Do what is expected of the first process of a container.

    It becomes the parent of all that lose theirs, such as what an interrupted health check leaves,
    and has to wait for them. And a signal does to it only what a handler does.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # The system waits for them.
    signal.signal(signal.SIGTERM, lambda number, _frame: os._exit(128 + number))


def run(
    server: ServerCore,
    settings: Settings,
    options: argparse.Namespace,
    process: Process,
    is_first: bool = True,
) -> int | None:
    """Run a server until END or a signal stops it; return the exit status.

    None: it has to begin anew.

    Args:
        server: the server, not started yet.
        settings: its settings.
        options: where to read them again.
        process: this process.
        is_first: say on standard output that it is ready.

    Raises StartupError.
    """
    log = process.log
    reloader = Reloader(
        settings, lambda: read_settings(options).settings, lambda new: _apply(new, server, log)
    )
    _handle_signals_of_operators(server, log, reloader)
    # One that begins anew answers before it is ready: a signal must not end it in the middle.
    stopped = None if is_first else _handle_signals_to_stop(server)
    server.start()
    stopped = stopped or _handle_signals_to_stop(server)
    line = f"READY {' '.join(server.endpoints)}\n" if is_first else ""
    with collecting(server.activities.new("collector", SHORT_SECONDS)):
        announcement = Announcement(server, line, process.manager)
        return _serve(server, announcement, options.wait, stopped)


class Announcement:
    """Says that a server is ready: a line on standard output, and a word to the service manager.

    Args:
        server: the server.
        line: the line; empty = none.
        manager: the service manager.
    """

    def __init__(self, server: ServerCore, line: str, manager: ServiceManager) -> None:
        self._server = server
        self._line = line
        self._manager = manager
        self.error: OSError | None = None
        """Why the line could not be written; then the server stops."""

    def make(self) -> None:
        """Write the line, and tell the manager."""
        try:
            announce(self._line)
        except OSError as error:
            self.error = error
            self._server.post(Event.STOP)
        else:
            where = " ".join(self._server.endpoints)
            self._manager.ready(f"serving at {where}", self._server.liveness().stuck)

    def withdraw(self, stops: bool) -> None:
        """Tell the manager that the server begins to stop.

        Args:
            stops: the process ends with it; else another server follows.
        """
        if stops:
            self._manager.busy("saving everything", "STOPPING=1")
        else:
            self._manager.busy("beginning anew from a snapshot of another server")


def _serve(
    server: ServerCore, announcement: Announcement, wait: str, stopped: threading.Event
) -> int | None:
    if wait == LEADER:
        server.when_led(announcement.make)
    else:
        announcement.make()

    def ends() -> bool:
        return server.anew is None or stopped.is_set()

    saved = server.wait(lambda: announcement.withdraw(ends()))
    if (error := announcement.error) is not None:
        raise StartupError(f"standard output: {error.strerror or error}") from error
    if server.failure is not None:
        raise server.failure
    if not ends():
        return None  # Another server follows in this process.
    # The server has stopped. A signal must not change the exit status while the interpreter ends.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    return 0 if saved else FAILED


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


def _handle_signals_to_stop(server: ServerCore) -> threading.Event:
    """The first SIGTERM or SIGINT saves everything and stops; the second ends the process.

    Returns an event that the first one sets.
    """
    stopped = threading.Event()

    def stop(number: int, _frame: object) -> None:
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda number, _frame: os._exit(128 + number))
        stopped.set()
        server.post(Event.STOP)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return stopped
