"""A server inside a program: the same as `zkv serve` runs, without a process of its own.

A thread supervises the `zkv.server.ServerCore`, which is built from keyword arguments. The process
itself is not changed: no signal handlers, no logging setup (the loggers are named ``zkv...``), no
limits, and no files without a ``data_dir``.

Invariants: from `Server.start` to the end the thread ``zkv-server`` runs, and only it starts and
stops the server's parts. After `Server.stop` no thread and no socket is left. A child made by fork
has none of the threads: there the object does nothing, and the endpoints, connections and the data
directory are released (`zkv.broker.sockets`, `zkv.durability.files`).
"""

from __future__ import annotations

import itertools
import os
import threading
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, Self

import msgspec

from zkv import checks, config, server
from zkv.errors import ConfigError, ServerFailedError

if TYPE_CHECKING:
    from types import TracebackType

    from zkv.checks import Seconds

NOT_RUNNING: Final = "the server does not run"
_numbers = itertools.count(1)


class Server:
    """A zkv server in this process; a context manager.

    By default it listens on an inproc endpoint, which only this process can reach, and keeps its
    data only in memory: they are gone when it stops. With a ``data_dir`` it stores them as
    `zkv serve` does, and an acknowledged write survives a crash of the process or the machine.
    Without one, it refuses writes with ``durable``, and SNAPSHOT, as ``BAD_REQUEST``.

    A client in the same process connects to it as to any other server. Example::

        with zkv.Server("tcp://127.0.0.1:*", data_dir="var") as server:
            print(server.endpoint)
            ...  # at the end of the block everything is saved and closed

    It may be started and stopped from any thread, and started again, on the same ports as before.
    A process may run several, each with a data directory of its own. A server that is not stopped
    stops when the main thread ends, or when a client sends END.

    Each client takes an open file. `zkv serve` raises the limit of open files as far as it may;
    here the limit is the program's, often 1,024, and the program may raise it
    (`resource.setrlimit`).

    Args:
        *endpoints: where to listen: ``tcp://HOST:PORT`` (``*`` = a free port), ``ipc://PATH`` or
            ``inproc://NAME``.
        data_dir: the data directory; None = data is only in memory.
        feed: where to publish changes; None = beside the first endpoint, "" = nowhere.
        fsync: when a write reaches the disk: ``always``, ``interval`` or ``never``.
        workers: threads for requests that are not simple; None = 1 without a ``data_dir``, else 2.
        **settings: other settings of the tables ``server``, ``security``, ``durability`` and
            ``limits`` of config.toml, by their names there: ``max_value_bytes=1_000_000``; and
            ``slow`` of the table ``metrics``. Also ``cache``, a list with a dict for each
            [[cache]]: ``cache=[{"prefix": "cache/", "max_bytes": 1_000_000}]``. The variables
            ``ZKV_CFG_...`` are for `zkv serve`, and not read here.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range; also a ValueError.
        TypeError: ``data_dir`` is no path.
    """

    def __init__(
        self,
        *endpoints: str,
        data_dir: str | os.PathLike[str] | None = None,
        feed: str | None = None,
        fsync: Literal["always", "interval", "never"] = "always",
        workers: int | None = None,
        **settings: Any,
    ) -> None:
        listed = list(endpoints) or [f"inproc://zkv-{next(_numbers)}"]
        tables = _sorted_into_tables(settings)
        tables["server"] |= {
            "endpoints": listed,
            "feed": _beside(str(listed[0])) if feed is None else feed,
            "workers": (1 if data_dir is None else 2) if workers is None else workers,
        }
        directory = None if data_dir is None else _path(data_dir)
        tables["durability"] |= {"data_dir": directory, "fsync": fsync}
        self._settings = config.build(tables, source="zkv.Server")
        self._lock = threading.Lock()  # Protects `_running`.
        self._running: _Running | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            self.stop()
        except ServerFailedError as failure:
            if error is None:
                raise
            error.add_note(str(failure))  # The first error matters more.

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Server cannot be pickled or copied, since it has threads and sockets: send its "
            "endpoint, and make a client in the other process"
        )

    def __repr__(self) -> str:
        where = self._settings.durability.data_dir
        return f"<zkv.Server {' '.join(self._settings.server.endpoints)} data_dir={where!r}>"

    @property
    def endpoint(self) -> str:
        """The first endpoint; once the server has been started, with its real port number."""
        return self._settings.server.endpoints[0]

    @property
    def endpoints(self) -> list[str]:
        """All endpoints, likewise."""
        return list(self._settings.server.endpoints)

    @property
    def feed(self) -> str | None:
        """The endpoint that publishes changes; None = there is no feed."""
        return self._settings.server.feed or None

    @property
    def running(self) -> bool:
        """True from `start` until the server has stopped."""
        running = self._here()
        return running is not None and not running.outcome.done()

    def start(self) -> None:
        """Start the server; return once it serves clients.

        Raises:
            EndpointError: an endpoint cannot be bound; the data directory is untouched.
            LockedError: another server uses the data directory.
            DataDirError: the data directory cannot be used. In all cases no thread is left.
            RuntimeError: it is running already.
        """
        with self._lock:
            if self._running is not None and not self._running.outcome.done():
                raise RuntimeError("the server is running already")
            self._running = running = _Running(self._settings)
            self._settings = config.override(
                self._settings,
                server={"endpoints": running.endpoints, "feed": running.feed},
            )

    def stop(self) -> None:
        """Refuse new requests, answer those that have arrived, save everything, and close.

        Returns once that is done. It may be called again, and by several threads at once.

        Raises:
            ServerFailedError: it is closed, but not everything could be saved.
        """
        running = self._here()
        if running is not None:
            running.stop()

    def reload_users(self) -> None:
        """Read the file of the setting ``users`` again; it counts from then on.

        Raises:
            ConfigError: it is bad; all users stay as they are.
            RuntimeError: the server does not run.
        """
        running = self._here()
        if running is None or running.outcome.done():
            raise RuntimeError(NOT_RUNNING)
        running.reload_users()

    def wait(self, timeout: Seconds | None = None) -> bool:
        """Wait until the server has stopped, for instance because a client sent END.

        Args:
            timeout: longest time to wait: seconds up to a year, or a `timedelta`; None = forever.

        Returns:
            True if it has stopped, or was never started.

        Raises:
            ServerFailedError: it has stopped, but not everything could be saved.
            TypeError, ValueError: the timeout is none.
        """
        seconds = checks.wait(timeout)
        running = self._here()
        return running is None or running.wait(seconds)

    def _here(self) -> _Running | None:
        """Return the last started server, unless a process that forked this one started it."""
        with self._lock:
            running = self._running
        return running if running is not None and running.pid == os.getpid() else None


class _Running:
    """A started server and the thread that supervises it.

    Raises the errors of `zkv.server.ServerCore.start`.
    """

    def __init__(self, settings: config.Settings) -> None:
        self.pid = os.getpid()
        self.outcome: Future[bool] = Future()
        self._server = server.ServerCore(settings)
        self._server.start()
        self.endpoints = self._server.endpoints
        self.feed = self._server.feed
        self._thread = threading.Thread(target=self._supervise, name="zkv-server")
        self._thread.start()

    def stop(self) -> None:
        self._server.post(server.Event.STOP)
        self.wait(None)

    def reload_users(self) -> None:
        done: Future[None] = Future()

        def reload() -> None:
            try:
                self._server.reload_users()
                done.set_result(None)
            except ConfigError as error:
                done.set_exception(error)

        self._server.run_soon(reload)
        either: list[Future[Any]] = [done, self.outcome]
        wait(either, return_when=FIRST_COMPLETED)
        if not done.done():  # It was stopped meanwhile.
            raise RuntimeError(NOT_RUNNING)
        done.result()

    def wait(self, timeout: float | None) -> bool:
        try:
            saved = self.outcome.result(timeout)
        except TimeoutError:
            return False
        self._thread.join()
        if not saved:
            raise ServerFailedError("the server did not save everything; its log says why")
        return True

    def _supervise(self) -> None:
        try:
            self.outcome.set_result(self._server.wait())
        except BaseException as error:
            self.outcome.set_exception(error)


_TABLES: dict[str, type[msgspec.Struct]] = {
    "server": config.ServerSettings,
    "security": config.SecuritySettings,
    "durability": config.DurabilitySettings,
    "limits": config.LimitSettings,
}


def _sorted_into_tables(settings: dict[str, Any]) -> dict[str, Any]:
    """Arrange ``settings`` by the tables of config.toml. Names of settings are unique."""
    table_of = {name: table for table, cls in _TABLES.items() for name in cls.__struct_fields__}
    table_of["slow"] = "metrics"  # Not its endpoint: a program watches its own server itself.
    tables: dict[str, Any] = {table: {} for table in set(table_of.values())}
    for name, value in settings.items():
        if name in config.ARRAYS:
            tables[name] = value
        elif name in table_of:
            tables[table_of[name]][name] = value
        else:
            raise ConfigError(f"zkv.Server: unknown setting `{name}`")
    return tables


def _path(directory: str | os.PathLike[str]) -> str:
    """A path as text; the setting judges its characters. Raises TypeError."""
    path = os.fspath(directory) if isinstance(directory, os.PathLike) else directory
    return checks.instance("data_dir", path, str)


def _beside(endpoint: str) -> str:
    """Return the feed's endpoint for ``endpoint``."""
    transport, _, address = endpoint.partition("://")
    match transport:
        case "tcp":
            return f"tcp://{address.rpartition(':')[0]}:*"
        case "ipc" if address == "*":
            return endpoint
        case _:
            return f"{endpoint}.feed"
