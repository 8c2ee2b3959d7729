"""A whole server: built from settings, started and stopped in order.

Start: endpoints are bound, the engine is opened (lock, recovery), workers start. Requests that come
before that wait. Stop, whatever its cause: new requests are refused, the keyspace is sealed and
saved, a client that sent END gets its reply, the broker drains and closes. If a step of the start
fails, the steps before it are undone. The endpoint for monitoring answers from the binding to the
end.

The thread that calls `ServerCore.wait` is the supervisor. Other threads put events into its queue:
END, a signal, a dead worker, a dead front, a function to run. The supervisor handles them.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import resource
import threading
import time
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from zkv import compiled
from zkv.activity import Activities
from zkv.broker.broker import Broker
from zkv.broker.doors import Doors
from zkv.broker.feed import FeedPlace
from zkv.broker.front import ConnectionLimits, FrontHandler
from zkv.broker.subscriptions import LONGEST_TOPIC, TopicBounds
from zkv.broker.upstream import Upstream
from zkv.broker.worker import WorkerHandler
from zkv.cluster.place import read_member
from zkv.collector import resident_bytes
from zkv.config import fit_memory
from zkv.durability.files import Files
from zkv.durability.quorum import ConfirmedWal, Quorum
from zkv.endpoint import is_exposed
from zkv.engine import Engine
from zkv.errors import BadRequest, ConfigError, DataDirError, EndpointError, ReadOnly, ShuttingDown
from zkv.keys import read_key_file
from zkv.keyspace import CacheBound
from zkv.log import AUDIT
from zkv.metrics import REFUSED
from zkv.protocol.codec import KeyLimits
from zkv.replication.handover import HandOver
from zkv.replication.incoming import BeginAnew
from zkv.replication.place import RoleFile, read_role
from zkv.replication.promises import Promises
from zkv.replication.role import Role
from zkv.replication.source import ReplicationSource
from zkv.replication.standby import Primary, Promoted, Standby
from zkv.replication.vote import Machines, Vote
from zkv.requests.account import Account
from zkv.requests.commands import Node, make_info
from zkv.requests.lane import open_lane, open_worker_lane
from zkv.requests.parking import Parking
from zkv.requests.slow_log import SlowLog
from zkv.requests.stopping import Stopping
from zkv.users.registry import Users

if TYPE_CHECKING:
    from collections.abc import Callable

    from zkv.cluster.joining import Connect, Joining
    from zkv.cluster.membership import Membership
    from zkv.config import Settings
    from zkv.engine import OpenLog
    from zkv.log import AnyRecord
    from zkv.metrics.endpoint import MetricsEndpoint
    from zkv.replication.place import RoleRecord
    from zkv.replication.vote import OtherMachine

_log = logging.getLogger("zkv.server")
_audit = logging.getLogger(AUDIT)

OPEN_MODE: Final = "0666"
"""The mode of the sockets of ipc endpoints where there are users."""

LOADING: Final = "the server is loading its data"
"""Why it is not ready yet."""
LOOK_SECONDS: Final = 1.0
"""Interval of checks that the main thread runs, and that all dead workers have been replaced."""
LOCK_SECONDS: Final = 1.0
"""How long `Liveness` waits for the lock of the store, which nobody holds for so long."""


class Event(enum.Enum):
    """Events that the supervisor handles."""

    STOP = enum.auto()
    WORKER_DIED = enum.auto()
    FRONT_DIED = enum.auto()


class Following(NamedTuple):
    """The primary of a standby.

    Args:
        source: the connection to it.
        member: the name of the standby.
        leader: endpoints to which clients are sent.
        connect: returns connections to another machine, one with each key that it may have; None:
            no other machine is asked.
    """

    source: Primary
    member: str
    leader: list[str]
    connect: Callable[[str], list[OtherMachine]] | None = None


class Liveness:
    """Finds out if the threads that all clients wait for do anything: the front and the committer.

    Both are made to turn, so that they do not have to be busy. While the disk is slow they may wait
    for it, and nothing is said about them.

    Args:
        broker: the broker, which serves.
        engine: the engine, which has been started.
    """

    def __init__(self, broker: Broker, engine: Engine) -> None:
        self._broker = broker
        self._engine = engine
        self._committer_turned = threading.Event()
        self._since = time.perf_counter()
        broker.front_has_turned()
        self._have_committer_turn()

    def stuck(self) -> list[str]:
        """Return what has done nothing since the last call. Only one thread may call this.

        A part may have been at work all the time if the last call was only a moment ago.
        """
        engine, now = self._engine, time.perf_counter()
        parts = [] if self._broker.front_has_turned() else ["the front"]
        if not self._committer_turned.is_set():
            parts.append("the committer")
        if engine.keyspace.lock.acquire(timeout=LOCK_SECONDS):
            engine.keyspace.lock.release()
        else:
            parts.append("who holds the lock of the store")
        waited = engine.disk is not None and engine.disk.wal.on_disk.overlaps(self._since, now)
        self._since = now
        self._have_committer_turn()
        return [] if waited else parts

    def _have_committer_turn(self) -> None:
        if self._engine.disk is None:
            self._committer_turned.set()
        else:
            # Another one each time: an old call may come late.
            self._committer_turned = threading.Event()
            self._engine.disk.committer.call(self._committer_turned.set)


class ServerCore:
    """A server, not started yet.

    Args:
        settings: all settings.
        write_log: takes request records while the settings say so; None if it never does.
        files: access to the file system.
        following: the primary of which it is a standby; None: it leads its store.
        joining: the store in etcd of which it is a member; None: it finds that out by itself.
    """

    def __init__(
        self,
        settings: Settings,
        write_log: Callable[[list[AnyRecord]], None] | None = None,
        files: Files | None = None,
        following: Following | None = None,
        joining: Joining | None = None,
    ) -> None:
        self._settings = settings
        self._following = following
        self._standby: Standby | None = None
        self._hand_over: HandOver | None = None
        self._joining = joining
        self._member: Membership | None = None
        self._record: RoleRecord | None = None  # What the data directory says of the role.
        self._role_file: RoleFile | None = None
        self._promises: Promises | None = None
        self._limits, self._fitted = fit_memory(settings.limits)
        self._write_log = write_log
        self._files = files
        self._events: SimpleQueue[Event | Callable[[], None]] = SimpleQueue()
        self._ending = threading.Lock()  # Protects the two attributes below.
        self._stopping = Stopping()
        self._ended: Future[int] | None = None
        self._failed = False
        self._started = time.monotonic()
        self.activities = Activities()
        """The activities beside requests."""
        self._slow = SlowLog(settings.metrics.slow, self.activities)
        self.role = Role()
        """The role: whether it leads its store."""
        self._engine: Engine
        self._parking: Parking
        self._source: ReplicationSource | None = None
        self._serving = False
        """True once requests are answered."""
        self.metrics = ""
        """Where it tells its figures, with the real port; empty = nowhere, or not yet."""
        self._metrics = _make_metrics(settings.metrics.endpoint, self)
        self._doors = _make_doors(settings)
        self._broker = Broker(
            endpoints=settings.server.endpoints,
            feed=_feed_place(settings),
            io_threads=settings.server.io_threads,
            limits=ConnectionLimits(
                settings.limits.max_message_bytes,
                settings.limits.max_in_flight,
                settings.limits.max_in_flight_bytes,
            ),
            doors=self._doors,
            worker_died=lambda: self._events.put(Event.WORKER_DIED),
            front_died=lambda: self._events.put(Event.FRONT_DIED),
            new_account=partial(
                Account, write_log, self._logs_requests(), self._slow, self.activities
            ),
        )

    @property
    def endpoints(self) -> list[str]:
        """Endpoints of clients, with real port numbers; empty before `start`."""
        return self._broker.endpoints

    @property
    def feed(self) -> str:
        """Endpoint of followers, likewise; empty if there is no feed."""
        return self._broker.feed or ""

    def start(self) -> None:
        """Start to serve requests.

        Raises:
            EndpointError: an endpoint cannot be bound; the data directory is untouched.
            DataDirError: the data directory cannot be used. In both cases no thread is left, and
                no connection.
        """
        self._broker.bind()
        try:
            self._look_at_exposure()
            for line in self._fitted:
                _log.warning("%s", line)
            if self._metrics is not None:
                self.metrics = self._metrics.start()
                _log.info("metrics at %s/metrics", self.metrics)
            self._engine = self._open()
        except BaseException:
            self._broker.stop()
            self._close_metrics()
            if self._joining is not None:
                self._joining.close()
            raise
        workers = self._settings.server.workers
        self._broker.serve(workers, self._make_handler, self._make_front_handler)
        self._serving = True
        if self._standby is not None:
            self._standby.start()
        if self._member is not None:
            self._start_member(self._member)
        if self._doors.users is not None:
            _audit.info("audit: %d users in %s", len(self._doors.users), self._doors.users.path)
        if slow := compiled.what_is_slow(self._facts()["stats"]):
            _log.info("built %s: %s", slow, compiled.ADVICE)

    def _start_member(self, member: Membership) -> None:
        """Start the thread of a member; one that is new first reads what there is.

        Raises DataDirError.
        """
        joining = self._joining
        is_new = self._engine.last_lsn == 0 or (joining is not None and joining.pin is not None)
        member.start()
        try:
            if is_new:
                self._await_current(member)
        except BaseException:
            self._stop()
            raise

    def _await_current(self, member: Membership) -> None:
        """Wait until a member has what etcd had, or a signal has come. Raises DataDirError."""
        while self._events.empty() and not member.current.done():
            with contextlib.suppress(TimeoutError):
                member.current.result(LOOK_SECONDS)
        if member.current.done():
            member.current.result()

    def when_led(self, function: Callable[[], None]) -> None:
        """Have the supervisor run a function once some server is known to lead the store."""
        if self._member is None:
            self.run_soon(function)
        else:
            self._member.led.add_done_callback(lambda _: self.run_soon(function))

    @property
    def failure(self) -> DataDirError | None:
        """Why a member of a replicated store had to stop; None = it had not."""
        return None if self._member is None else self._member.failure

    def info(self) -> dict[str, Any] | str:
        """See `zkv.metrics.endpoint.Watched`. It does not wait for the disk, as a reply would."""
        if not self._serving:
            return LOADING
        reply: dict[str, Any] = msgspec.to_builtins(make_info(self._node))
        return reply | {"rev": min(reply["rev"], self._engine.safe_rev)}

    def unready(self, for_write: bool) -> str:
        """See `zkv.metrics.endpoint.Watched`."""
        if self._stopping.begun or self._failed:
            return "the server is stopping"
        if not self._serving:
            return LOADING
        if for_write and not self._engine.takes_writes:
            return REFUSED
        return ""

    def liveness(self) -> Liveness:
        """Return what finds out if a server that has been started hangs."""
        return Liveness(self._broker, self._engine)

    def post(self, event: Event) -> None:
        """Send an event to the supervisor. From any thread, or a signal handler."""
        self._events.put(event)

    def run_soon(self, function: Callable[[], None]) -> None:
        """Have the supervisor run a function. From any thread, or a signal handler."""
        self._events.put(function)

    def apply(self, settings: Settings) -> None:
        """Take over settings that differ from the present ones in live settings only.

        Only the supervisor may call this.
        """
        self._settings = settings
        self._broker.log_requests(self._logs_requests())
        self._slow.set_threshold(settings.metrics.slow)

    def reload_users(self) -> None:
        """Read the users file again, if there is one. Only the supervisor may call this.

        Raises:
            ConfigError: it is bad; all users stay as they are, and the log says so.
        """
        users = self._doors.users
        if users is None:
            return
        try:
            reloaded = users.reload()
        except ConfigError as error:
            _log.error("%s; all users stay as they are", error)
            raise
        for change in reloaded.changes:
            _audit.info("audit: user %s, by %s", change, users.path)
        if reloaded.changes_what_is_followed:
            self._broker.users_changed()
        if reloaded.changes:
            self._engine.keyspace.set_quotas(users.quotas)

    def _look_at_exposure(self) -> None:
        """Refuse to serve where other machines can connect without CURVE, or warn of it."""
        security = self._settings.security
        for endpoint in [*self._broker.endpoints, self._broker.feed or ""]:
            if security.key_files or not is_exposed(endpoint):
                continue
            if not security.insecure:
                raise EndpointError(
                    f"{endpoint}: other machines can reach it, and anyone there could read, write "
                    f"and stop the server: set security.secret_key_file, which asks for keys, or "
                    f"security.insecure = true"
                )
            _log.warning("%s: anyone who reaches it can read, write and stop the server", endpoint)

    def wait(self, stopping: Callable[[], None] = lambda: None) -> bool:
        """Supervise until the server has stopped; return True if everything has been saved.

        Args:
            stopping: called when it begins to stop.

        If this is not the main thread, it also stops the server when the main thread has ended: the
        interpreter waits for the server's threads, and nothing else would ever stop them.
        """
        while (event := self._next_event()) is not Event.STOP:
            if event is Event.FRONT_DIED:
                self._failed = True
                break
            try:
                self._act(event)
            except BaseException:  # A bug, or no memory. Only this thread can stop the server.
                _log.critical("the supervisor failed; it continues", exc_info=True)
        stopping()
        self._stop()
        return not self._failed

    def _act(self, event: Event | Callable[[], None] | None) -> None:
        if callable(event):
            event()
        else:  # Also without an event: an earlier replacement may have failed.
            self._broker.replace_dead_workers()

    def _next_event(self) -> Event | Callable[[], None] | None:
        """Return the next event; None if there was none for a while."""
        if not threading.main_thread().is_alive():
            return Event.STOP
        with contextlib.suppress(Empty):
            return self._events.get(timeout=LOOK_SECONDS)
        return None

    def _logs_requests(self) -> bool:
        return self._write_log is not None and self._settings.log.shows_requests

    def _open(self) -> Engine:
        limits = self._limits
        joining = self._joining = self._join()
        if joining is not None:
            limits = joining.limits(limits)
        self.role = self._find_role() if joining is None else joining.role
        engine = Engine(
            self._settings.durability,
            limits,
            self._files,
            activities=self.activities,
            leads=self.role.leads,
            open_log=self._open_log(joining),
        )
        if self._doors.users is not None:
            engine.keyspace.sessions.share_among_users()
            engine.keyspace.set_quotas(self._doors.users.quotas)
        caches = self._settings.cache if joining is None else joining.caches
        engine.keyspace.set_caches([
            CacheBound(each.prefix, each.max_bytes, each.policy) for each in caches
        ])  # fmt: skip
        self._parking = parking = Parking(engine)
        if engine.disk is not None:
            self._source = ReplicationSource(engine, engine.disk, self.role, parking.later)
            if joining is None:
                self._role_file = file = RoleFile(
                    self._files or Files(), engine.disk.storage.directory, self._record
                )
                self._hand_over = HandOver(engine, self.role, file)
                self._promises = Promises(engine, self.role, file, self._settings.replication)
        keys = KeyLimits(limits.max_key_bytes, limits.max_value_bytes, limits.max_batch)
        self._node = Node(
            engine=engine,
            limits=keys,
            max_reply_bytes=limits.max_reply_bytes,
            facts=self._facts,
            stop=self._end,
            slow=self._slow,
            role=self.role,
            promote=self._promote,
            parking=self._parking,
            source=self._source,
            hand_over=self._hand_over,
            promises=self._promises,
            cluster=None if joining is None else self._cluster,
            stopping=self._stopping,
        )
        if joining is not None and engine.disk is not None:
            from zkv.cluster.membership import Membership

            self._member = Membership(
                engine,
                engine.disk,
                joining,
                self._advertised,
                lambda: self._events.put(Event.STOP),
            )
        elif not self.role.leads and self._promises is not None:
            self._standby = self._make_standby(engine, self._promises)
        self._lane = open_lane(engine.keyspace, keys, limits.max_reply_bytes, engine.syncs_each)
        self._broker.publish(engine.keyspace)
        engine.when_safe(
            self._broker.commits_are_safe,
            self._parking.commits_are_safe,
            listeners=(*self._broker.listeners, self._parking.parked),
        )
        engine.start()
        return engine

    def _join(self) -> Joining | None:
        """Return what a member has to know; None for a server alone. Raises StartupError."""
        if self._joining is not None:
            return self._joining
        if self._settings.store.url:
            from zkv.cluster.joining import join

            connect = connect_to_members(self._settings)
            return join(self._settings, self._files or Files(), connect)
        data_dir = self._settings.durability.data_dir
        if data_dir is not None and read_member(self._files or Files(), Path(data_dir)) is not None:
            raise DataDirError(
                f"{data_dir}: a member of a replicated store: start it with its store.url"
            )
        return None

    def _open_log(self, joining: Joining | None) -> OpenLog | None:
        """Return what opens the log, if others decide what is safe in it."""
        sync = self._settings.replication.sync
        if joining is not None:
            return joining.open_log
        return partial(ConfirmedWal, quorum=Quorum(sync)) if sync else None

    def _find_role(self) -> Role:
        """Return the role of this server. Raises DamageError, DataDirError."""
        data_dir = self._settings.durability.data_dir
        record = None if data_dir is None else read_role(self._files or Files(), Path(data_dir))
        self._record = record
        if self._following is not None:
            return Role(False, self._following.leader)
        if record is None:
            return Role()
        where = ", ".join(record.leader)
        if record.role == "standby":
            raise DataDirError(
                f"{data_dir}: a standby of {where}: start it with `zkv follow`, or let it take "
                f"over with `zkv promote`"
            )
        _log.warning("superseded by term %d, at %s: this server leads no more", record.term, where)
        return Role(False, record.leader)

    def _make_standby(self, engine: Engine, promises: Promises) -> Standby:
        engine.keyspace.seal(partial(self.role.error, "takes writes"))
        following = self._following
        standby = Standby(
            engine,
            None if following is None else following.source,
            "" if following is None else following.member,
            self._advertised,
            lambda: self._events.put(Event.STOP),
            self._lead,
            promises,
            self._make_vote(),
        )
        self.role.lag, self.role.age = standby.lag, standby.age
        return standby

    def _make_vote(self) -> Vote | None:
        """Return what asks the other machines; None if they are not known, or confirm nothing."""
        following, settings = self._following, self._settings.replication
        if following is None or following.connect is None:
            return None
        if not settings.machines or not settings.sync:
            return None
        own = {*settings.advertise, *self._settings.server.endpoints}
        others = [each for each in settings.machines if each not in own]
        return Vote(Machines(others, settings.sync, settings.machines), following.connect)

    def _advertised(self) -> list[str]:
        """Return the endpoints at which clients on other machines find this server."""
        return self._settings.replication.advertise or self._broker.endpoints

    def _lead(self) -> None:
        """Begin to lead: a term has begun, and is on disk. Raises OSError."""
        if self._role_file is not None:
            self._role_file.write(None)
        self._engine.lead()
        self._engine.keyspace.unseal()
        self.role.begin_to_lead()

    def _promote(self, force: bool) -> Future[Promoted]:
        if self.role.leads:
            raise BadRequest("this server leads already")
        if self._member is not None:
            raise BadRequest(
                "the members of a replicated store decide by themselves which one leads"
            )
        with self._ending:
            if self._stopping.begun:
                raise ShuttingDown("the server is stopping")
            if self._standby is None and self._promises is not None:  # Superseded since its start.
                self._standby = self._make_standby(self._engine, self._promises)
                self._standby.start()
        if self._standby is None:
            raise BadRequest("this server keeps its data in memory alone: it cannot take over")
        return self._standby.promote(force)

    @property
    def anew(self) -> BeginAnew | None:
        """Why a standby or a member has stopped that has to begin anew; None = it has not."""
        if self._ended is not None:
            return None  # A client that sent END wants no other server.
        if self._member is not None:
            return self._member.anew
        return None if self._standby is None else self._standby.anew

    def _stop(self) -> None:
        with self._ending:
            self._stopping.begun = True
            ended = self._ended
        _log.info("stopping")
        if self._standby is not None:
            self._standby.close()
        if self._member is not None:
            self._member.close()
        self._parking.close()
        try:
            rev = self._engine.save()
        except BaseException as error:
            self._failed = True
            bug = not isinstance(error, ReadOnly)
            _log.critical("not everything is saved: %s", error, exc_info=bug)
            if ended is not None:
                ended.set_exception(error)
        else:
            _log.info("everything is saved at revision %d", rev)
            if ended is not None:
                ended.set_result(rev)
        self._broker.stop()
        if self._source is not None:
            self._source.close()
        self._engine.close()
        if self._joining is not None:
            self._joining.close()
        if self._member is not None:
            self._member.join()
        self._close_metrics()
        _log.info("stopped")

    def _close_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.close()

    def _end(self) -> Future[int]:
        """Stop the server for END; the future gives the revision once everything is saved."""
        with self._ending:
            if self._stopping.begun:
                raise ShuttingDown("the server is stopping")
            self._stopping.begun = True
            self._ended = Future()
        self._events.put(Event.STOP)
        return self._ended

    def _make_handler(self, account: Account) -> WorkerHandler:
        node = self._node
        engine = node.engine
        lane = open_worker_lane(
            engine.keyspace, node.limits, node.max_reply_bytes, engine.syncs_each
        )
        return WorkerHandler(node, lane, account)

    def _make_front_handler(self, account: Account) -> FrontHandler:
        return FrontHandler(self._node, self._lane, account)

    def _cluster(self) -> dict[str, Any]:
        """Return the fields of INFO's ``replication`` that a member has besides."""
        member, joining = self._member, self._joining
        if member is None or joining is None:
            return {}
        observer = member.observer
        facts, members = member.facts(), observer.members()
        answered = facts.pop("answered_seconds")
        return facts | {
            "members": [each.report() for each in members],
            "declared": len(members),
            "alive": sum(each.is_alive for each in members),
            "etcd": observer.etcd()
            | {
                "append": joining.wal.append_times.report(),
                "append_commits": joining.wal.commits_per_append.report(),
                "answered_seconds": answered,
            },
        }

    def _facts(self) -> dict[str, Any]:
        return {
            "uptime": round(time.monotonic() - self._started, 3),
            "endpoints": self._broker.endpoints,
            "feed": self._settings.replication.advertise_feed or self._broker.feed,
            "limits": msgspec.to_builtins(self._limits),
            "durability": self._engine.statistics(),
            "stats": {
                **self._broker.statistics(),
                **self._engine.keyspace.statistics(),
                **self._engine.activity(),
                "store": "compiled" if self._lane else "plain",
                "workers": self._settings.server.workers,
                "process": _process(),
            },
        }


def connect_to_members(settings: Settings) -> Connect:
    """Return what connects to other members of the store."""
    replication = settings.replication
    return lambda endpoints: Upstream(endpoints, replication.server_keys, replication.key_file)


def _process() -> dict[str, int | float]:
    """Return INFO's ``stats.process``, as far as the system provides it."""
    process: dict[str, int | float] = {
        "pid": os.getpid(),
        "cpu_seconds": round(time.process_time(), 3),
        "max_open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }
    if (rss := resident_bytes()) is not None:
        process["rss"] = rss
    try:
        process["open_files"] = len(os.listdir("/proc/self/fd"))
    except OSError:
        pass  # There is no /proc, or the process cannot open another file.
    return process


def _feed_place(settings: Settings) -> FeedPlace | None:
    limits = settings.limits
    topics = TopicBounds(limits.max_topics, max(LONGEST_TOPIC, limits.max_key_bytes))
    return FeedPlace(settings.server.feed, topics) if settings.server.feed else None


def _make_metrics(endpoint: str, server: ServerCore) -> MetricsEndpoint | None:
    """Return the endpoint for monitoring, if there is to be one. Raises EndpointError."""
    if not endpoint:
        return None
    from zkv.metrics.endpoint import MetricsEndpoint  # It takes a tenth of a start to import HTTP.

    return MetricsEndpoint(endpoint, "metrics.endpoint", server)


def _make_doors(settings: Settings) -> Doors:
    """Read keys and users. Raises ConfigError."""
    security, mode = settings.security, settings.server.ipc_mode
    users = Users(Path(security.users)) if security.users else None
    keys = tuple(read_key_file(file) for file in security.key_files)
    # With users a peer is known by its number: the mode need not keep others out.
    mode = mode or ("" if users is None else OPEN_MODE)
    return Doors(keys, users, int(mode, 8) if mode else None)
