"""The front: the thread that owns the ROUTER, and answers what is plain.

Strategy: a thread that is woken costs as much as a plain request. So the front lets the lane answer
what that can (`zkv.keyspace.lane`), all that waits in one turn, and hands everything else over to
the workers, through a DEALER, as it came; what they answer it passes on. What blocks is theirs: the
front waits for nothing but news, and for a disk that is quick. What is plain, what exactly it waits
for, and what a large request does to the others stands in ARCHITECTURE.md.

When the workers have no more room, nothing is taken from clients until they have; what a batch then
has left waits here. Where the store is not compiled there is no lane, and all is handed over.

Both sockets are made, used and closed in this thread. Others set a flag and ring its bell.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Final

import zmq

from zkv.broker.frames import BadEnvelope, Envelope, Frames, MakeFrames
from zkv.broker.mailbox import QUEUED_PER_WORKER, Later, Mailbox
from zkv.broker.sockets import bind, close
from zkv.broker.worker import serve
from zkv.errors import EndpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from zkv.broker.service import Service

_log = logging.getLogger("zkv.broker")

REPLIES_PER_CLIENT: Final = 100_000
"""Replies that may wait for one client that does not read; further ones to it are dropped."""
LINGER_MS: Final = 5_000
"""How long the end waits for clients to take their last replies."""
HEARTBEAT_MS: Final = 10_000
"""A connection that stays silent this long is asked whether its peer lives."""

TAKEN_AT_THE_END: Final = 10_000
"""Messages that are still taken at the end: a client that never stops is not waited for."""
LIVENESS_SECONDS: Final = 1.0
"""How often the end looks whether the workers are still there."""

CONNECTING: Final = 4_096
"""Connections that may wait to be taken. With libzmq's 100, of 500 clients that came at once, as
after a restart, many waited a second for the system to try again."""

_Socket = zmq.Socket[bytes]


class FrontMailbox(Mailbox):
    """The mailbox of the front, which hands over to the workers what its service leaves.

    Args:
        open_frames: as for any mailbox; of both sockets.
    """

    def __init__(self, open_frames: Callable[[int], Frames]) -> None:
        super().__init__(open_frames)
        # There was no room for these.
        self._left: tuple[list[Envelope], list[bytes | BadEnvelope]] = [], []
        self._still_to_take = TAKEN_AT_THE_END
        self._draining = False
        self.drained = threading.Event()
        """Set once the workers have all that had arrived when `drain` was called, or at the end."""

    def drain(self) -> None:
        """Have no more taken than what has arrived. Any thread."""
        self._draining = True
        self._bell.ring()

    def receive(self) -> list[bytes | BadEnvelope]:
        """As in `Mailbox`. After `stop` nothing more is taken, and what the workers have sent goes.

        `drain` comes first, and the workers have ended before `stop`.
        """
        while not self._is_over():
            full = bool(self._left[0])
            if self._still_to_take <= 0 and not full:
                self.drained.set()
            taking = not full and not self.drained.is_set()
            last = taking and self._draining  # Read before the sockets are looked at.
            self._envelopes, self._bodies = self._frames.receive(not last, taking, full)
            if self._bodies:
                self._still_to_take -= len(self._bodies) if last else 0
                return self._bodies
            if last:
                self.drained.set()  # Nothing else had arrived.
            else:
                self._bell.hush()  # Before the outbox and the flags are read: see `Mailbox`.
        return []

    def _is_over(self) -> bool:
        """Send what has become ready; whether there is nothing more to wait for."""
        stopping = self._stopping
        self._send_completed()
        self._hand_over()
        if not stopping or self._parked:
            return False
        self._frames.receive(False, False)  # Passes on the last replies of the workers.
        return True

    def reply(
        self,
        replies: Sequence[bytes | None],
        later: Sequence[Later] = (),
        left: Sequence[int] = (),
    ) -> None:
        """As in `Mailbox`; what is left goes first, since a worker is still to be woken."""
        bodies, envelopes = self._bodies, self._take_envelopes()
        for place in left:
            self._left[0].append(envelopes[place])
            self._left[1].append(bodies[place])
        try:
            if left:
                self._hand_over()
        finally:
            self._reply(envelopes, replies, later)

    def _hand_over(self) -> None:
        envelopes, bodies = self._left
        if not envelopes:
            return
        try:
            count = self._frames.hand_over(envelopes, bodies)
        except BaseException:
            # None has gone, because of the first: that is to be given up. The others wait on.
            self._envelopes, self._bodies = envelopes[:1], bodies[:1]
            self._left = envelopes[1:], bodies[1:]
            raise
        self._left = envelopes[count:], bodies[count:]


class Front:
    """Binds the endpoints, and stands between clients and workers.

    Args:
        context: the server's.
        endpoints: where clients connect.
        backend: inproc address where workers connect.
        max_message_bytes: a larger frame ends the connection it came on.
        frames: what takes and sends batches.
        died: told, in the front's thread, when that ends without having been asked to.
    """

    def __init__(
        self,
        context: zmq.Context[_Socket],
        endpoints: list[str],
        backend: str,
        max_message_bytes: int,
        frames: MakeFrames,
        died: Callable[[], None],
    ) -> None:
        self._context = context
        self._endpoints = endpoints
        self._backend = backend
        self._max_message_bytes = max_message_bytes
        self._frames = frames
        self._died = died
        self._bound: Future[list[str]] = Future()
        self._make_service: Future[Callable[[], Service] | None] = Future()
        self._mailbox: FrontMailbox | None = None
        self.services: list[Service] = []
        """Every service that it has had; the last one is at work."""
        self._thread = threading.Thread(target=self._run, name="zkv-front")

    def start(self) -> list[str]:
        """Start the thread; the endpoints as bound, with real port numbers.

        Requests wait until `serve`. Raises EndpointError.
        """
        self._thread.start()
        return self._bound.result()

    def serve(self, make_service: Callable[[], Service]) -> None:
        """Begin to take requests.

        Args:
            make_service: makes what answers them, or leaves them.
        """
        self.services.append(make_service())
        self._make_service.set_result(make_service)

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
        if not self._make_service.done():
            self._make_service.set_result(None)
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
            make_service = self._make_service.result()
            if make_service is not None:
                serve(self._mailbox, self.services, make_service, self._thread.name)
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
