"""The front: the thread that owns the ROUTER, and answers what is plain.

Strategy: a thread that is woken costs as much as a plain request. So the front lets the lane answer
what that can (`zkv.requests.lane`), all that waits in one turn, and hands everything else over to
the workers, through a DEALER, as it came; what they answer it passes on. What blocks is theirs: the
front waits for nothing but news, and for a disk that is quick. What is plain, what exactly it waits
for, and what a large request does to the others stands in ARCHITECTURE.md.

When the workers have no more room, nothing is taken from clients until they have; what a batch then
has left waits here. Where the store is not compiled there is no lane, and all is handed over.

Both sockets are made, used and closed in this thread. Others set a flag and wake it.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final

import zmq

from zkv.broker.frames import BadEnvelope
from zkv.broker.mailbox import QUEUED_PER_WORKER, FrontMailbox
from zkv.broker.sockets import bind, close
from zkv.broker.waiting import Answered, PendingRun, Safe, commit, what_is_safe
from zkv.broker.worker import serve
from zkv.durability.committer import CommitGroup
from zkv.errors import EndpointError
from zkv.requests.call import Caller
from zkv.requests.lane import Answers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zkv.broker.frames import MakeFrames
    from zkv.requests.account import Account
    from zkv.requests.commands import Node
    from zkv.requests.lane import Lane

_log = logging.getLogger("zkv.broker")

REPLIES_PER_CLIENT: Final = 100_000
"""Replies that may wait for one client that does not read; further ones to it are dropped."""
LINGER_MS: Final = 5_000
"""How long the end waits for clients to take their last replies."""
HEARTBEAT_MS: Final = 10_000
"""A connection that stays silent this long is asked whether its peer lives."""

LIVENESS_SECONDS: Final = 1.0
"""How often the end looks whether the workers are still there."""

CONNECTING: Final = 4_096
"""Connections that may wait to be taken. With libzmq's 100, of 500 clients that came at once, as
after a restart, many waited a second for the system to try again."""

_Socket = zmq.Socket[bytes]


class FrontHandler:
    """Answers what is plain, and leaves the rest to the workers.

    All clients wait for the front, and so it waits for a quick disk alone. Where a sync takes
    0.2 ms, that saves a sixth of a write's time: two threads fewer to wake.

    Args:
        node: what requests run on.
        lane: answers what is plain; None where the store is not compiled, and all is left.
        account: of the front's thread.
        stopping: true once new requests are to be refused, which the workers do.
    """

    def __init__(
        self, node: Node, lane: Lane | None, account: Account, stopping: Callable[[], bool]
    ) -> None:
        self._engine = node.engine
        self._lane = lane
        self._account = account
        self._stopping = stopping
        self._caller = Caller(node, account, stopping)

    def answer(self, bodies: Sequence[bytes | BadEnvelope]) -> Answered:
        """As in `Handler`."""
        started = time.perf_counter()
        engine = self._engine
        epoch = engine.epoch
        answers, left = self._run(bodies)
        answered = Answered(answers.replies, [], left)
        # In this order: see `zkv.broker.waiting`. Most batches are safe, and end here.
        if answers.newest > engine.safe_rev or engine.epoch != epoch:
            self._hold(answered, answers, bodies, epoch, started)
        self._account.add_run(answers.ops, answers.subjects, started)
        self._account.flush()
        return answered

    def _hold(
        self,
        answered: Answered,
        answers: Answers,
        bodies: Sequence[bytes | BadEnvelope],
        epoch: int,
        started: float,
    ) -> None:
        """Take out of a batch what may not leave yet."""
        engine = self._engine
        revealed = Safe(answers.newest, 0)
        safe, answered.refusal = what_is_safe(engine, epoch, revealed, patient=False)
        if answers.newest <= safe.rev:
            return
        # No lane takes a write that asks for the disk where the policy does not.
        group = CommitGroup(epoch, durable=engine.syncs_each)
        run = PendingRun(self._caller, self._account, group, bodies, answers, safe.rev, started)
        if run.places:
            group.lsn = engine.last_lsn
            answered.group = group
            answered.later.append((run.places, run))

    def commit(self, answered: Answered, is_idle: Callable[[], bool]) -> None:
        """As in `Handler`; an idle front waits for a quick disk itself, and for nobody else."""
        if answered.group is None:
            return
        engine = self._engine
        commit(
            engine,
            answered,
            lambda: engine.syncs_each and engine.syncs_quickly and is_idle(),
            patient=False,
        )

    def give_up(self, body: bytes | BadEnvelope, error: BaseException) -> bytes:
        """As in `Handler`."""
        return self._caller.give_up(None if isinstance(body, BadEnvelope) else body, error)

    def _run(self, bodies: Sequence[bytes | BadEnvelope]) -> tuple[Answers, list[int]]:
        """What the lane answered, and the places of what it left."""
        answers = Answers(subjects=[] if self._account.logs_requests else None)
        left: list[int] = []
        lane = None if self._stopping() else self._lane
        while True:
            if lane is not None:
                lane.run(bodies, answers)
            place = len(answers.replies)
            if place == len(bodies):
                return answers, left
            body = bodies[place]
            if isinstance(body, BadEnvelope):
                answers.leave_out(
                    self._caller.finish(*self._caller.refuse(body.error(body.reason)))
                )
            else:
                left.append(place)
                answers.leave_out()


class Front:
    """Binds the endpoints, and stands between clients and workers.

    Args:
        context: the server's.
        endpoints: where clients connect.
        backend: inproc address where workers connect.
        max_message_bytes: a larger frame ends the connection it came on.
        frames: what takes and sends batches.
        account: of the thread.
        died: told, in the front's thread, when that ends without having been asked to.
    """

    def __init__(
        self,
        context: zmq.Context[_Socket],
        endpoints: list[str],
        backend: str,
        max_message_bytes: int,
        frames: MakeFrames,
        account: Account,
        died: Callable[[], None],
    ) -> None:
        self._context = context
        self._endpoints = endpoints
        self._backend = backend
        self._max_message_bytes = max_message_bytes
        self._frames = frames
        self._account = account
        self._died = died
        self._bound: Future[list[str]] = Future()
        self._handler: Future[FrontHandler | None] = Future()
        self._mailbox: FrontMailbox | None = None
        self._thread = threading.Thread(target=self._run, name="zkv-front")

    def start(self) -> list[str]:
        """Start the thread; the endpoints as bound, with real port numbers.

        Requests wait until `serve`. Raises EndpointError.
        """
        self._thread.start()
        return self._bound.result()

    def serve(self, handler: FrontHandler) -> None:
        """Begin to take requests, which ``handler`` answers or leaves."""
        self._handler.set_result(handler)

    @property
    def unroutable(self) -> int:
        """Messages that had nowhere to reply to."""
        return 0 if self._mailbox is None else self._mailbox.unroutable

    def drain(self, workers_alive: Callable[[], bool]) -> None:
        """Take no more requests; return once all that had arrived is with the workers.

        Args:
            workers_alive: whether any worker still runs.
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
        """Pass on what the workers have answered, who have ended, and end. After `drain`."""
        if self._mailbox is not None:
            self._mailbox.stop()
        self._thread.join()

    def _run(self) -> None:
        sockets: list[_Socket] = []
        try:
            clients, workers = self._open(sockets)
            try:
                bound = [bind(clients, each, "server.endpoints") for each in self._endpoints]
            except EndpointError as error:
                self._bound.set_exception(error)
                return
            self._mailbox = FrontMailbox(partial(self._frames, clients, behind=workers))
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
        clients.sndhwm = REPLIES_PER_CLIENT
        clients.backlog = CONNECTING
        clients.maxmsgsize = self._max_message_bytes
        clients.heartbeat_ivl = HEARTBEAT_MS
        clients.heartbeat_timeout = 3 * HEARTBEAT_MS
        clients.tcp_keepalive = 1
        workers.linger = 0
        workers.rcvhwm = 0  # Bounded by the requests in the workers' hands.
        workers.sndhwm = QUEUED_PER_WORKER
        workers.bind(self._backend)
        return clients, workers

    def _close(self, sockets: list[_Socket]) -> None:
        for socket in sockets:
            close(socket, self._endpoints)
        if self._mailbox is not None:
            self._mailbox.close()
            self._mailbox.drained.set()
