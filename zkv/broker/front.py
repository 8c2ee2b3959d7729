"""The front: the thread that owns the ROUTER and answers simple requests.

Strategy: waking a thread costs as much as a simple request. So the front passes all waiting
requests to the lane (`zkv.requests.lane`) in one turn, and forwards those that the lane leaves,
unchanged, through a DEALER to the workers. It sends the workers' replies on. The front must not
block, since every client waits for it: it waits only for messages, and for a disk that is quick.
ARCHITECTURE.md says which requests are simple, what the front may wait for, and how a large request
affects others.

While the workers have no capacity, the front takes no requests from clients; those that are left of
the last batch wait here. Without the compiled store there is no lane: all requests are forwarded.
Both sockets are created, used and closed in this thread. Other threads set a flag and wake it.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import zmq

from zkv.broker.arrivals import Arrivals
from zkv.broker.connections import ConnectionCounter
from zkv.broker.frames import FRAMES, PassedMessages, new_in_flight
from zkv.broker.handshakes import HANDSHAKE_MS
from zkv.broker.mailbox import FRONTS_BATCH, QUEUED_PER_WORKER, FrontMailbox
from zkv.broker.sockets import close
from zkv.broker.waiting import Answered, PendingRun, Safe, commit, make_safe, safe_now
from zkv.broker.worker import serve
from zkv.durability.committer import CommitGroup
from zkv.errors import EndpointError, Overload, ReadOnly
from zkv.requests.batch import ALL, BadEnvelope
from zkv.requests.call import Caller

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zkv.broker.connections import Monitor
    from zkv.broker.doors import Doors
    from zkv.broker.frames import InFlight
    from zkv.broker.mailbox import Answer
    from zkv.compiled._store import Run
    from zkv.requests.account import Account
    from zkv.requests.batch import Batch
    from zkv.requests.commands import Node
    from zkv.requests.lane import Lane

_log = logging.getLogger("zkv.broker")

ENVELOPE_BYTES: Final = 1 << 20
"""Bytes of a message beside its body, such as the routing frames of a chain of brokers."""
REQUESTS_PER_CLIENT: Final = 64
"""Requests of one connection that libzmq receives before the front takes them: each may be as large
as a message. With 16, clients with 16 in flight cost a twentieth more CPU."""
LINGER_MS: Final = 5_000
"""How long the broker waits at its end for clients to take their last replies."""
HEARTBEAT_MS: Final = 10_000
"""Silence on a connection after which libzmq checks that the peer still answers."""

LIVENESS_SECONDS: Final = 1.0
"""Interval at which `Front.drain` checks that workers are still alive."""

BACKLOG: Final = 4_096
"""Connections that may wait to be accepted. With libzmq's default of 100, many of 500 clients that
connected at once, as after a restart, waited a second for a retry of the operating system."""

_Socket = zmq.Socket[bytes]


class ConnectionLimits(NamedTuple):
    """Limits of one connection of a client.

    Args:
        max_message_bytes: a larger frame ends it.
        max_in_flight: replies that may wait for it; further ones may be dropped.
        max_in_flight_bytes: bytes of them; beyond that its requests are refused.
    """

    max_message_bytes: int
    max_in_flight: int
    max_in_flight_bytes: int


class FrontHandler:
    """Answers simple requests, and leaves the others to the workers.

    With the compiled store, a turn in C (zkv/compiled/turn.c) takes the usual way through `answer`,
    and leaves everything else to the methods here.

    Every client waits for the front, so it waits for the disk only if that is quick. With syncs of
    0.2 ms this saves a sixth of a write's latency: two threads fewer have to be woken.

    Args:
        node: the commands' environment.
        lane: runs simple requests; None if the store is not compiled.
        account: the front's account.
    """

    def __init__(self, node: Node, lane: Lane | None, account: Account) -> None:
        self._engine = node.engine
        self._log = node.engine.log
        self._role = node.role
        self._lane = lane
        self._account = account
        self._stopping = node.stopping
        self._caller = Caller(node, account)
        self.must_wait = node.engine.has_much_unsafe
        """Returns true while no more requests are to be taken up, until the disk has caught up."""
        self.answer: Answer = self._leave_all
        """See `Handler`."""
        if lane is not None and account.of_lane is not None:
            self.answer = lane.turn(
                self._log,
                self._role,
                account,
                account.of_lane,
                node.stopping,
                self._finish,
                node.engine.writing_snapshot,
                secures=not node.engine.syncs_each,
            ).answer

    def _leave_all(self, batch: Batch) -> Answered:
        """Leave all requests of a batch to the workers."""
        return Answered(left=self._refuse(batch, range(len(batch))))

    def _finish(
        self,
        batch: Batch,
        run: Run | None,
        epoch: int,
        executed: float,
        secured: bool | BaseException | None,
    ) -> Answered | None:
        """Do what is left of a turn.

        Args:
            batch: the batch.
            run: the results of its run; None = it has not run.
            epoch: the log's epoch before that.
            executed: when it had run, by `time.perf_counter`.
            secured: what came of an attempt to make its commits safe; None = there was none.
        """
        if isinstance(secured, BaseException) and not isinstance(secured, ReadOnly):
            raise secured
        log, account = self._log, self._account
        if run is None:
            if self._lane is None or self._stopping.begun or not self._role.leads:
                return self._leave_all(batch)
            run = self._lane.run(batch, account.logs_requests)
            executed = time.perf_counter()
        newest = run.newest
        answered = Answered(left=self._refuse(batch, run.left)) if run.left else None
        if run.end < len(batch):
            answered = answered or Answered()
            answered.end = run.end
        safe_rev = ALL
        # The order matters: see `zkv.broker.waiting`. Most batches are safe, and end here.
        if newest > log.safe_rev or log.epoch != epoch or log.confirms_reads:
            held = answered or Answered()
            held.refusal = secured if isinstance(secured, ReadOnly) else None
            safe_rev = self._hold(held, batch, newest, epoch, executed, secured is not None)
            answered = held if held.group is not None else answered
        account.add_run(batch, safe_rev, executed)
        account.flush()
        return answered

    def _hold(
        self,
        answered: Answered,
        batch: Batch,
        newest: int,
        epoch: int,
        executed: float,
        tried: bool,
    ) -> int:
        """Have the replies that are not safe wait for a commit group; return what is safe."""
        engine = self._engine
        if tried:
            safe = safe_now(engine, epoch)
        else:
            safe, answered.refusal = make_safe(engine, epoch, Safe(newest, 0), patient=False)
        if newest <= safe.rev:
            return ALL
        # Not for `durable` under other policies: the lane takes no request with that field.
        group = CommitGroup(epoch, durable=engine.syncs_each)
        places = batch.places(safe.rev)
        if len(places) == len(batch) and self._sync(answered, epoch):
            return ALL
        if places:
            group.lsn = engine.last_lsn
            answered.group = group
            run = PendingRun(self._caller, self._account, group, executed)
            answered.later = [(places, run)]
        return safe.rev

    def _sync(self, answered: Answered, epoch: int) -> bool:
        """Wait for a quick disk; return True if all commits are on it now.

        With one sync of its own for a batch that only writes, the front is quicker than with the
        committer, with which it would compete for Python's lock.
        """
        engine = self._engine
        if not (engine.syncs_each and engine.syncs_quickly):
            return False
        try:
            return engine.sync() and engine.epoch == epoch
        except ReadOnly as error:
            answered.refusal = error
            return False

    def commit(self, answered: Answered, is_idle: Callable[[], bool]) -> None:
        """See `Handler`. An idle front waits for a quick disk, but not for other threads."""
        if answered.group is None:
            return
        engine = self._engine
        commit(
            engine,
            answered,
            lambda: engine.syncs_each and engine.syncs_quickly and is_idle(),
        )

    def give_up(self, body: bytes | BadEnvelope, error: BaseException) -> bytes:
        """See `Handler`."""
        return self._caller.give_up(None if isinstance(body, BadEnvelope) else body, error)

    def _refuse(self, batch: Batch, places: Sequence[int]) -> list[int]:
        """Answer the malformed messages at ``places``, and the requests that must not run.

        Returns:
            The places of the others.
        """
        left: list[int] = []
        for place in places:
            body = None if batch.is_request(place) else batch[place]
            if isinstance(body, BadEnvelope):
                call, refusal = self._caller.refuse(body.error(body.reason))
                batch.set_reply(place, self._caller.finish(call, refusal))
            elif (overload := batch.overload(place)) is not None:
                self._refuse_overload(batch, place, overload)
            else:
                left.append(place)
        return left

    def _refuse_overload(self, batch: Batch, place: int, overload: Overload) -> None:
        caller, body = self._caller, batch[place]
        if isinstance(body, BadEnvelope):  # There is no memory for it.
            call, refusal = caller.refuse(body.error(body.reason))
        else:
            call, refusal = caller.refuse_overload(body, batch.taken, batch.user(place), overload)
        batch.set_reply(place, caller.finish(call, refusal))


class Front:
    """Binds the endpoints; the thread between clients and workers.

    Args:
        context: the server's ZeroMQ context.
        endpoints: where clients connect.
        backend: inproc address where workers connect.
        limits: of each connection.
        monitor: counts the connections of clients.
        doors: opens the endpoints.
        account: the front's account.
        died: called, in the front's thread, if the thread ends unexpectedly.
    """

    def __init__(
        self,
        context: zmq.Context[_Socket],
        endpoints: list[str],
        backend: str,
        limits: ConnectionLimits,
        monitor: Monitor,
        doors: Doors,
        account: Account,
        died: Callable[[], None],
    ) -> None:
        self._context = context
        self._monitor = monitor
        self._doors = doors
        self.connections = ConnectionCounter()
        """The connections of clients."""
        self._endpoints = endpoints
        self._backend = backend
        self._limits = limits
        self.in_flight: InFlight = new_in_flight(FRAMES, limits.max_in_flight_bytes)
        """Counts the replies that wait, for all threads of the broker."""
        self._account = account
        self._died = died
        self._arrivals = Arrivals()
        self._bound: Future[list[str]] = Future()
        self._handler: Future[FrontHandler | None] = Future()
        self._mailbox: FrontMailbox | None = None
        self.may_go_on: Callable[[], None] = lambda: None
        """Lets the front go on if it has waited for the disk or the workers. Any thread."""
        self._thread = threading.Thread(target=self._run, name="zkv-front")

    def start(self) -> list[str]:
        """Start the thread, and return the endpoints with their real port numbers.

        Requests wait until `serve` is called. Raises EndpointError.
        """
        self._thread.start()
        return self._bound.result()

    def serve(self, handler: FrontHandler, taken: Callable[[], int]) -> None:
        """Begin to receive requests.

        Args:
            handler: answers them.
            taken: returns how many bytes of forwarded requests the workers have received.
        """
        if self._mailbox is not None:
            self._mailbox.taken = taken
            self._mailbox.must_wait = handler.must_wait
        self._handler.set_result(handler)

    def has_turned(self) -> bool:
        """Return True if the thread has looked for messages since the last call, or has ended.

        It will do so again, even if no message comes. Only one thread may call this.
        """
        mailbox = self._mailbox
        if mailbox is None or not self._thread.is_alive():
            return True
        turned, mailbox.turned = mailbox.turned, False
        mailbox.wake()
        return turned

    @property
    def passed(self) -> PassedMessages:
        """The messages that have passed, and those that could not."""
        return PassedMessages() if self._mailbox is None else self._mailbox.passed

    @property
    def bytes_forwarded(self) -> int:
        """Bytes of the requests that were forwarded to the workers."""
        return 0 if self._mailbox is None else self._mailbox.bytes_forwarded

    def drain(self, workers_alive: Callable[[], bool]) -> None:
        """Receive no more requests; return once the workers have all that had arrived.

        Args:
            workers_alive: returns true while any worker runs.
        """
        mailbox = self._mailbox
        if not self._handler.done():
            self._handler.set_result(None)
        elif mailbox is not None:
            mailbox.drain()
            while not mailbox.drained.wait(LIVENESS_SECONDS):
                if not workers_alive():
                    return

    def stop(self) -> None:
        """Send the workers' last replies, and end. Call this after `drain`, and after their end."""
        if self._mailbox is not None:
            self._mailbox.stop()
        self._thread.join()

    def _run(self) -> None:
        sockets: list[_Socket] = []
        try:
            clients, workers = self._open(sockets)
            try:
                bind = self._doors.bind
                bound = [bind(clients, each, "server.endpoints") for each in self._endpoints]
            except EndpointError as error:
                self._bound.set_exception(error)
                return
            self._mailbox = FrontMailbox(
                partial(
                    FRAMES,
                    clients,
                    bounds=FRONTS_BATCH,
                    behind=workers,
                    users=self._doors.users,
                    arrivals=self._arrivals,
                    in_flight=self.in_flight,
                )
            )
            self._arrivals.wake = self._mailbox.wake
            self.may_go_on = self._mailbox.may_go_on
            self._bound.set_result(bound)
            handler = self._handler.result()
            if handler is not None:
                serve(self._mailbox, handler, self._account, self._thread.name)
        except BaseException as error:
            _log.critical("the front died", exc_info=True)
            if not self._bound.done():
                self._bound.set_exception(error)
            self._died()
        finally:
            self._close(sockets)

    def _open(self, sockets: list[_Socket]) -> tuple[_Socket, _Socket]:
        clients, workers = (self._context.socket(kind) for kind in (zmq.ROUTER, zmq.DEALER))
        sockets += [clients, workers]
        clients.linger = LINGER_MS
        clients.rcvhwm = REQUESTS_PER_CLIENT
        # libzmq may learn that replies have been written after half of so many.
        clients.sndhwm = 2 * self._limits.max_in_flight
        clients.router_mandatory = True  # Else replies would be dropped unnoticed.
        clients.backlog = BACKLOG
        # libzmq compares it with what arrives, which may be encrypted.
        clients.maxmsgsize = self._limits.max_message_bytes + self._doors.overhead
        clients.handshake_ivl = HANDSHAKE_MS
        clients.heartbeat_ivl = HEARTBEAT_MS
        clients.heartbeat_timeout = 3 * HEARTBEAT_MS
        clients.tcp_keepalive = 1
        most = clients.maxmsgsize + ENVELOPE_BYTES
        self.connections = self._monitor.watch(
            clients, most, waiting=False, arrivals=self._arrivals
        )
        workers.linger = 0
        workers.rcvhwm = 0  # The requests that the workers hold bound the replies.
        workers.sndhwm = QUEUED_PER_WORKER
        workers.bind(self._backend)
        return clients, workers

    def _close(self, sockets: list[_Socket]) -> None:
        for socket in sockets:
            close(socket, self._endpoints)
        if self._mailbox is not None:
            self._mailbox.close()
            self._mailbox.drained.set()
