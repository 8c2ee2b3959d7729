"""A mailbox receives all requests that are queued, and sends their replies together.

Strategy: the cost of a thread of the broker is in socket calls, not in bytes. So the thread waits
for the first message, receives the others without waiting (up to a bound), runs the whole batch,
and replies to all. The mailbox keeps the envelope of each message, of any length, and puts it
before the reply; the handlers see only bodies. `zkv.broker.frames` does the socket calls, in Python
or in C.

A reply may also be pending: its envelope is parked. The thread that completes it wakes the
mailbox's thread, which then sends it. So no thread of the broker blocks on an op that waits for
something.

Invariants: a mailbox is created, used and closed in one thread; other threads may only call `stop`
and complete pending replies. Each received message gets exactly one reply: if making it fails, the
one of `give_up`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import zmq

from zkv.broker.frames import BadEnvelope, Envelope, Frames
from zkv.broker.waker import Waker

QUEUED_PER_WORKER: Final = 64
"""Requests that wait for one worker at most, on each side of its pipe.

DEALER assigns requests in turn, so those here wait for whatever that worker is busy with; the
others wait in the front for any worker. Measured with 50 clients x 16 in flight and one worker: 1
gives 0.35 of the throughput of 1,000, 8 gives 0.7, 32 gives 0.85, 128 all of it.
"""


TAKEN_AT_THE_END: Final = 10_000
"""Messages that the front still receives while it stops, since a client may never stop sending."""


class Pending(Protocol):
    """Replies that may not be sent yet."""

    def notify(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` once, in any thread, when `bodies` can return the replies."""

    def bodies(self) -> list[bytes]:
        """Return the replies; called once, in the mailbox's thread, after ``ready``."""

    def give_up(self, error: BaseException) -> list[bytes]:
        """Return as many error replies after `bodies` raised ``error``."""


class ReplyFailedError(Exception):
    """A pending reply could not be made: see the cause. The client got an error reply."""


Later = tuple[list[int], Pending]
"""The places of some requests in their batch, and the object that will make their replies."""


class Mailbox:
    """The mailbox of a worker. Created in the worker's thread.

    Args:
        open_frames: makes the `Frames`, given the descriptor of the waker.
    """

    def __init__(self, open_frames: Callable[[int], Frames]) -> None:
        self._waker = Waker()
        self._frames = open_frames(self._waker.fileno())
        self._envelopes: list[Envelope] = []  # Of the requests of the batch, until `reply`.
        self._bodies: list[bytes | BadEnvelope] = []  # Likewise.
        self._outbox: deque[tuple[list[Envelope], Pending]] = deque()
        self._parked = 0  # Number of pending objects of which the replies are not sent yet.
        self._stopping = False
        self._thread = threading.get_ident()

    @property
    def unroutable(self) -> int:
        """Number of messages and replies without a receiver."""
        return self._frames.unroutable

    def receive(self) -> list[bytes | BadEnvelope]:
        """Wait for requests, and return their bodies.

        The result is empty once `stop` was called and all queued requests have been answered.
        `reply` or `give_up` must be called before the next call.

        Raises:
            ReplyFailedError: a bug in what makes pending replies; the mailbox can still be used.
            MemoryError: nothing is lost, and it may be called again.
        """
        while True:
            self._send_completed()
            ending = self._stopping and not self._parked
            self._envelopes, self._bodies = self._frames.receive(wait=not ending)
            if self._bodies or ending:
                return self._bodies
            self._waker.clear()  # Before the outbox is read: a later entry wakes it again.

    def reply(
        self,
        replies: Sequence[bytes | None],
        later: Sequence[Later] = (),
        left: Sequence[int] = (),
    ) -> None:
        """Answer the batch.

        Args:
            replies: in the batch's order; None if the reply is pending or made by a worker.
            later: the pending replies.
            left: places of the requests to forward; only for `FrontMailbox`.
        """
        self._reply(self._take_envelopes(), replies, later)

    @property
    def unanswered(self) -> int:
        """Number of requests in the batch that have not been answered."""
        return len(self._envelopes)

    def give_up(self, reply_to: Callable[[bytes | BadEnvelope], bytes]) -> None:
        """Answer the rest of the batch after an error.

        Args:
            reply_to: makes the reply to a body.
        """
        bodies = self._bodies
        envelopes = self._take_envelopes()
        self._frames.send(envelopes, [reply_to(body) for body in bodies])

    def is_idle(self) -> bool:
        """Return True if no request is queued."""
        return not self._frames.readable()

    def stop(self) -> None:
        """Make `receive` return nothing once all queued requests are answered. Any thread."""
        self._stopping = True
        self._waker.wake()

    def close(self) -> None:
        """Close all descriptors. The front has the replies that have been sent."""
        self._frames.close()
        self._waker.close()

    def _take_envelopes(self) -> list[Envelope]:
        """Return the envelopes of the batch, which counts as answered from now on."""
        envelopes = self._envelopes
        self._envelopes, self._bodies = [], []
        return envelopes

    def _reply(
        self,
        envelopes: list[Envelope],
        replies: Sequence[bytes | None],
        later: Sequence[Later],
    ) -> None:
        for places, pending in later:
            self._park([envelopes[place] for place in places], pending)
        self._frames.send(envelopes, replies)

    def _send_completed(self) -> None:
        while self._outbox:
            envelopes, pending = self._outbox.popleft()
            self._parked -= 1
            try:
                bodies = pending.bodies()
            except BaseException as error:
                self._frames.send(envelopes, pending.give_up(error))
                raise ReplyFailedError from error
            self._frames.send(envelopes, bodies)

    def _park(self, envelopes: list[Envelope], pending: Pending) -> None:
        def ready() -> None:
            self._outbox.append((envelopes, pending))
            self._wake()

        self._parked += 1
        pending.notify(ready)

    def _wake(self) -> None:
        # In this thread `receive` comes next, and reads the outbox first. So a write that waits for
        # the disk in this thread need not pay for three system calls and a turn of the loop.
        if threading.get_ident() != self._thread:
            self._waker.wake()


class FrontMailbox(Mailbox):
    """The mailbox of the front, which forwards to the workers the requests that are left.

    Args:
        open_frames: as for `Mailbox`, with both sockets.
    """

    def __init__(self, open_frames: Callable[[int], Frames]) -> None:
        super().__init__(open_frames)
        # Requests that the workers had no capacity for.
        self._left: tuple[list[Envelope], list[bytes | BadEnvelope]] = [], []
        self._still_to_take = TAKEN_AT_THE_END
        self._draining = False
        self.drained = threading.Event()
        """Set once the workers have all requests that had arrived at `drain`, and at the end."""

    def drain(self) -> None:
        """Receive only requests that have already arrived. Any thread."""
        self._draining = True
        self._waker.wake()

    def receive(self) -> list[bytes | BadEnvelope]:
        """See `Mailbox`. After `stop` it only sends the last replies of the workers.

        `drain` must be called first, and the workers must have ended before `stop`.
        """
        while True:
            stopping = self._stopping  # Read before the replies: the last ones come before `stop`.
            self._send_completed()
            self._forward()
            if stopping and not self._parked:
                self._frames.receive(wait=False, take=False)  # Sends the workers' last replies.
                return []
            if self._receive_batch():
                return self._bodies

    def _receive_batch(self) -> bool:
        """Wait for requests, or for something else to do; return True if there are requests."""
        full = bool(self._left[0])
        if self._still_to_take <= 0 and not full:
            self.drained.set()
        taking = not full and not self.drained.is_set()
        last = taking and self._draining  # Read before the sockets are.
        self._envelopes, self._bodies = self._frames.receive(
            wait=not last, take=taking, capacity=full
        )
        if self._bodies:
            self._still_to_take -= len(self._bodies) if last else 0
        elif last:
            self.drained.set()  # No other request had arrived.
        else:
            self._waker.clear()  # Before the outbox and the flags are read: see `Mailbox`.
        return bool(self._bodies)

    def reply(
        self,
        replies: Sequence[bytes | None],
        later: Sequence[Later] = (),
        left: Sequence[int] = (),
    ) -> None:
        """See `Mailbox`. The requests that are left go first, since a worker has to be woken."""
        bodies, envelopes = self._bodies, self._take_envelopes()
        for place in left:
            self._left[0].append(envelopes[place])
            self._left[1].append(bodies[place])
        try:
            if left:
                self._forward()
        finally:
            self._reply(envelopes, replies, later)

    def _forward(self) -> None:
        envelopes, bodies = self._left
        if not envelopes:
            return
        try:
            count = self._frames.forward(envelopes, bodies)
        except BaseException:
            # None was sent, because of the first: `give_up` will answer that. The others wait.
            self._envelopes, self._bodies = envelopes[:1], bodies[:1]
            self._left = envelopes[1:], bodies[1:]
            raise
        self._left = envelopes[count:], bodies[count:]


def connect_worker(context: zmq.Context[zmq.Socket[bytes]], backend: str) -> zmq.Socket[bytes]:
    """Return the socket for a worker's mailbox.

    Args:
        context: the server's ZeroMQ context.
        backend: inproc address of the front's DEALER.
    """
    socket = context.socket(zmq.DEALER)
    socket.linger = 0  # The transport is inproc: a reply is in the front once it is sent.
    # The requests that were received bound the replies; a bound here could block the front.
    socket.sndhwm = 0
    socket.rcvhwm = QUEUED_PER_WORKER
    socket.connect(backend)
    return socket
