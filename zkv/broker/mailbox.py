"""A mailbox: takes every request that is queued, and sends the replies all together.

Strategy: what a thread that serves pays for is calls on sockets, not bytes. So it waits for the
first message, takes the rest without waiting (bounded), works on the whole batch, and replies to
all. The envelope of each message, of any depth, stays in here and goes out again before its reply;
who serves sees only bodies. What touches the socket is in `zkv.broker.frames`, once in Python and
once compiled.

A reply may also be pending: its envelope is parked, and whichever thread completes it wakes the
mailbox's thread, which then sends it. So no thread that serves blocks on an op that waits for
something else.

Invariants: a mailbox is made, used and closed in one thread; only `stop` and what
completes a pending reply may be called from another. Each received message gets exactly one reply,
also where making one fails: then from `give_up`.
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
"""Bound on requests that wait for one worker, on each side of its pipe.

DEALER deals them out blindly, so what waits here waits behind whatever that worker is busy with;
the rest waits in the front for whoever is free. Measured with 50 clients x 16 in flight and one
worker: 1 gives 0.35 of the throughput of 1,000, 8 gives 0.7, 32 gives 0.85, 128 all of it.
"""


TAKEN_AT_THE_END: Final = 10_000
"""Messages that are still taken at the end: a client that never stops is not waited for."""


class Pending(Protocol):
    """Replies that may not leave yet."""

    def notify(self, ready: Callable[[], None]) -> None:
        """Have ``ready`` called once, in any thread, when `bodies` has the replies."""

    def bodies(self) -> list[bytes]:
        """The replies; called once, in the mailbox's thread, after they became ready."""

    def give_up(self, error: BaseException) -> list[bytes]:
        """As many replies where `bodies` has raised ``error``."""


class ReplyFailedError(Exception):
    """A pending reply could not be made, as the cause says; who waited for it has been told."""


Later = tuple[list[int], Pending]
"""The places of some requests in their batch, and the replies that they will get."""


class Mailbox:
    """Made in the worker's own thread.

    Args:
        open_frames: makes what takes and sends batches, given the descriptor of the waker.
    """

    def __init__(self, open_frames: Callable[[int], Frames]) -> None:
        self._waker = Waker()
        self._frames = open_frames(self._waker.fileno())
        self._envelopes: list[Envelope] = []  # Of what has been received, and not answered.
        self._bodies: list[bytes | BadEnvelope] = []  # Likewise.
        self._outbox: deque[tuple[list[Envelope], Pending]] = deque()
        self._parked = 0  # Groups of replies that are pending and have not been sent.
        self._stopping = False
        self._thread = threading.get_ident()

    @property
    def unroutable(self) -> int:
        """Messages that had nobody to reply to, and replies that nobody was there to take."""
        return self._frames.unroutable

    def receive(self) -> list[bytes | BadEnvelope]:
        """Wait for requests and return their bodies.

        Nothing is returned once `stop` was called and all that was queued has been answered.
        Every body must be answered by `reply`, or `give_up`, before the next call.

        Raises:
            ReplyFailedError: a bug in what makes replies; the mailbox goes on.
            MemoryError: it may be called again, and loses nothing.
        """
        while True:
            self._send_completed()
            ending = self._stopping and not self._parked
            self._envelopes, self._bodies = self._frames.receive(wait=not ending)
            if self._bodies or ending:
                return self._bodies
            self._waker.clear()  # Before the outbox is read: what comes later wakes it again.

    def reply(
        self,
        replies: Sequence[bytes | None],
        later: Sequence[Later] = (),
        left: Sequence[int] = (),
    ) -> None:
        """Answer the batch received last.

        Args:
            replies: in its order; None where a reply is pending, or made by others.
            later: those that are pending.
            left: the places of those that others are to make; only `FrontMailbox` has any.
        """
        self._reply(self._take_envelopes(), replies, later)

    @property
    def unanswered(self) -> int:
        """How many requests of the batch received last have not been answered."""
        return len(self._envelopes)

    def give_up(self, reply_to: Callable[[bytes | BadEnvelope], bytes]) -> None:
        """Answer what has been received and not answered, where that has failed.

        Args:
            reply_to: makes a reply to a body.
        """
        bodies = self._bodies
        envelopes = self._take_envelopes()
        self._frames.send(envelopes, [reply_to(body) for body in bodies])

    def is_idle(self) -> bool:
        """Whether nothing is queued at this moment."""
        return not self._frames.readable()

    def stop(self) -> None:
        """Have `receive` return nothing once all that is queued is answered. Any thread."""
        self._stopping = True
        self._waker.wake()

    def close(self) -> None:
        """Close every descriptor. Replies that have been sent are in the front's hands."""
        self._frames.close()
        self._waker.close()

    def _take_envelopes(self) -> list[Envelope]:
        """Of what was received last, which counts as answered from now on."""
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
        # In this thread `receive` comes next, and looks into the outbox first: a write that waits
        # for the disk here would pay for three system calls, and a turn of its loop, in vain.
        if threading.get_ident() != self._thread:
            self._waker.wake()


class FrontMailbox(Mailbox):
    """The mailbox of the front, which hands over to the workers what is left of a batch.

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
        self._waker.wake()

    def receive(self) -> list[bytes | BadEnvelope]:
        """As in `Mailbox`. After `stop` nothing more is taken, and what the workers have sent goes.

        `drain` comes first, and the workers have ended before `stop`.
        """
        while True:
            stopping = self._stopping  # Read before the replies: the last ones come before `stop`.
            self._send_completed()
            self._hand_over()
            if stopping and not self._parked:
                self._frames.receive(wait=False, take=False)  # Sends the workers' last replies.
                return []
            full = bool(self._left[0])
            if self._still_to_take <= 0 and not full:
                self.drained.set()
            taking = not full and not self.drained.is_set()
            last = taking and self._draining  # Read before the sockets are looked at.
            self._envelopes, self._bodies = self._frames.receive(
                wait=not last, take=taking, capacity=full
            )
            if self._bodies:
                self._still_to_take -= len(self._bodies) if last else 0
                return self._bodies
            if last:
                self.drained.set()  # Nothing else had arrived.
            else:
                self._waker.clear()  # Before the outbox and the flags are read: see `Mailbox`.

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


def connect_worker(context: zmq.Context[zmq.Socket[bytes]], backend: str) -> zmq.Socket[bytes]:
    """The socket of a worker's mailbox.

    Args:
        context: the server's.
        backend: inproc address of the front's DEALER.
    """
    socket = context.socket(zmq.DEALER)
    socket.linger = 0  # A reply is in the front's hands as soon as it is sent: inproc.
    # Replies are bounded by the requests taken; a bound here could block the front's peer.
    socket.sndhwm = 0
    socket.rcvhwm = QUEUED_PER_WORKER
    socket.connect(backend)
    return socket
