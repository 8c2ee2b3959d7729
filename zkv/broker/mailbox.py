"""A mailbox receives all requests that are queued, and sends their replies together.

Strategy: the cost of a thread of the broker is in socket calls, not in bytes. So the thread waits
for the first message, receives the others without waiting (up to a bound), runs the whole batch,
and replies to all. The batch (`zkv.requests.batch`) keeps the envelope of each message, of any
length, and the handlers add the replies to it. `zkv.broker.frames` does the socket calls, in Python
or in C.

A reply may also be pending: its request is parked, in a batch of its own. The thread that completes
it wakes the mailbox's thread, which then sends it. So no thread of the broker blocks on an op that
waits for something.

A batch whose replies become large is not run to its end: these replies are sent first, and the rest
becomes the next batch. So what one batch takes in memory is bounded, and the rest may be refused if
its connections have more waiting than they may.

Invariants: a mailbox is created, used and closed in one thread; other threads may only call `stop`
and complete pending replies. Each received message gets exactly one reply: if making it fails, the
one of `give_up`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import zmq

from zkv.broker.frames import Bounds, Frames, PassedMessages
from zkv.broker.waker import Waker
from zkv.requests.batch import BadEnvelope, Batch, new_batch

if TYPE_CHECKING:
    from zkv.broker.waiting import Answered

    Answer = Callable[[Batch], Answered | None]

QUEUED_PER_WORKER: Final = 64
"""Requests that wait for one worker at most, on each side of its pipe.

DEALER assigns requests in turn, so those here wait for whatever that worker is busy with; the
others wait in the front for any worker. Measured with 50 clients x 16 in flight and one worker: 1
gives 0.35 of the throughput of 1,000, 8 gives 0.7, 32 gives 0.85, 128 all of it.
"""

WORKERS_BATCH: Final = Bounds(64, 4 * 1024 * 1024)
"""Bounds of a worker's batch."""

FRONTS_BATCH: Final = Bounds(256, 256 * 1024)
"""Bounds of the front's batch. A simple request takes about 1 us."""

FORWARDED_BYTES: Final = 16 * 1024 * 1024
"""Bytes of requests that may wait for all workers, as numbers alone do not bound bytes. One more
request may be larger."""

TAKEN_AT_THE_END: Final = 10_000
"""Messages that the front still receives while it stops, since a client may never stop sending."""


class Pending(Protocol):
    """Replies that may not be sent yet.

    Attributes:
        sizes: about the bytes of each reply, as far as they are not packed yet.
    """

    sizes: list[int]

    def notify(self, ready: Callable[[], None]) -> None:
        """Call ``ready`` once, in any thread, when `complete` can be called."""

    def complete(self, batch: Batch) -> None:
        """Add the replies to the parked batch; called once, in the mailbox's thread."""

    def give_up(self, batch: Batch, error: BaseException) -> None:
        """Add error replies to the parked batch after `complete` raised ``error``."""


class ReplyFailedError(Exception):
    """A pending reply could not be made: see the cause. The client got an error reply."""


Later = tuple[list[int], Pending]
"""The places of some requests in their batch, and the object that completes their replies."""


class Mailbox:
    """The mailbox of a worker. Created in the worker's thread.

    Args:
        open_frames: makes the `Frames`, given the waker.
        received: called after requests have been received.
    """

    def __init__(
        self, open_frames: Callable[[Waker], Frames], received: Callable[[], None] = lambda: None
    ) -> None:
        self._waker = Waker()
        self._frames = open_frames(self._waker)
        self._received = received
        self._batch = new_batch()
        self._rest: Batch | None = None  # Of the last batch: what is still to run.
        self._unanswered: Sequence[int] = ()  # Places in the batch that `give_up` must answer.
        self._outbox: deque[tuple[Batch, Pending]] = deque()
        self._parked = 0  # Number of pending objects of which the replies are not sent yet.
        self._stopping = False
        self._thread = threading.get_ident()

    @property
    def passed(self) -> PassedMessages:
        """The messages that have passed, and those that could not. Any thread."""
        return PassedMessages(*self._frames.passed)

    def receive(self) -> Batch:
        """Wait for requests, and return them.

        The result is empty once `stop` was called and all queued requests have been answered.
        `reply` or `give_up` must be called before the next call, which may empty the batch.

        Raises:
            ReplyFailedError: a bug in what makes pending replies; the mailbox can still be used.
            MemoryError: it may be called again.
        """
        batch = self._batch
        while True:
            if self._outbox:
                self._send_completed()
            if self._rest is not None:
                return self._take_rest(self._rest)
            ending = self._stopping and not self._parked
            self._frames.receive(batch, wait=not ending)
            self._received()
            if len(batch) or ending:
                self._unanswered = range(len(batch))
                return batch
            self._waker.clear()  # Before the outbox is read: a later entry wakes it again.

    def turn(self, answer: Answer) -> Answered | None:
        """Receive batches and answer them, as long as each is answered whole.

        Args:
            answer: adds the replies to a batch; see `zkv.broker.worker.Handler.answer`.

        Returns:
            What is not answered yet of the last batch, for `reply`; None once `stop` was called.

        Raises what `receive`, `reply` and ``answer`` raise.
        """
        while len(batch := self.receive()):
            answered = answer(batch)
            if answered is not None:
                return answered
            self.reply()
        return None

    def reply(
        self, later: Sequence[Later] = (), left: Sequence[int] = (), end: int | None = None
    ) -> None:
        """Answer the batch: send the replies that it has.

        Args:
            later: the pending replies.
            left: places of the requests to forward; only for `FrontMailbox`.
            end: the place from which on the requests are the next batch; None = there are none.
        """
        self._unanswered = ()
        self._park(later)
        self._keep_rest(end)
        self._frames.send(self._batch)

    @property
    def unanswered(self) -> int:
        """Number of requests in the batch that have not been answered."""
        return len(self._unanswered)

    def give_up(self, reply_to: Callable[[bytes | BadEnvelope], bytes]) -> None:
        """Answer the rest of the batch after an error.

        Args:
            reply_to: makes the reply to a body.
        """
        unanswered, self._unanswered = self._unanswered, ()
        for place in unanswered:
            self._batch.set_reply(place, reply_to(self._batch[place]))
        self._frames.send(self._batch)

    def is_idle(self) -> bool:
        """Return True if no request is queued."""
        return not self._frames.readable()

    def wake(self) -> None:
        """Make the thread look for messages, even if none has come. Any thread."""
        self._waker.wake()

    def stop(self) -> None:
        """Make `receive` return nothing once all queued requests are answered. Any thread."""
        self._stopping = True
        self._waker.wake()

    def close(self) -> None:
        """Close all descriptors. The front has the replies that have been sent."""
        self._frames.close()
        self._waker.close()

    def _keep_rest(self, end: int | None) -> None:
        if end is not None:
            self._unanswered = range(end, len(self._batch))  # If there is no memory to split.
            self._rest = self._batch.split(list(self._unanswered))
            self._unanswered = ()

    def _take_rest(self, rest: Batch) -> Batch:
        self._batch, self._rest = rest, None
        self._unanswered = range(len(rest))
        self._frames.look_again(rest)
        return rest

    def _send_completed(self) -> None:
        while self._outbox:
            batch, pending = self._outbox.popleft()
            self._parked -= 1
            try:
                pending.complete(batch)
            except BaseException as error:
                pending.give_up(batch, error)
                self._frames.send(batch)
                raise ReplyFailedError from error
            self._frames.send(batch)

    def _park(self, later: Sequence[Later]) -> None:
        for places, pending in later:
            parked = self._batch.split(places)
            self._frames.park(parked, pending.sizes)
            self._park_batch(parked, pending)

    def _park_batch(self, batch: Batch, pending: Pending) -> None:
        def ready() -> None:
            self._outbox.append((batch, pending))
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

    def __init__(self, open_frames: Callable[[Waker], Frames]) -> None:
        super().__init__(open_frames)
        self._answer: Answer | None = None  # Of `turn`, and what it returned for the batch.
        self._answered: Answered | None = None
        self.must_wait: Callable[[], bool] = lambda: False
        """Returns true while no request is to be taken up, as too much waits for the disk."""
        self.taken: Callable[[], int] = lambda: self._frames.bytes_forwarded
        """Returns how many bytes of the forwarded requests the workers have received."""
        self._room = FORWARDED_BYTES  # That there is for requests to the workers, at least.
        self._waits = False  # For the workers to take something, or for the disk.
        self._left: list[int] = []  # Places of requests that the workers had no capacity for.
        self._nothing = new_batch()  # Stays empty: in its place while `_left` is not.
        self._still_to_take = TAKEN_AT_THE_END
        self._draining = False
        self.turned = False
        """True if the thread has looked for messages since somebody set it to False. Any thread."""
        self.drained = threading.Event()
        """Set once the workers have all requests that had arrived at `drain`, and at the end."""

    def drain(self) -> None:
        """Receive only requests that have already arrived. Any thread."""
        self._draining = True
        self._waker.wake()

    @property
    def bytes_forwarded(self) -> int:
        """Bytes of the requests that were forwarded. Any thread."""
        return self._frames.bytes_forwarded

    def may_go_on(self) -> None:
        """Note that the disk or the workers may have room again. Any thread."""
        if self._waits:
            self._waker.wake()

    def receive(self) -> Batch:
        """See `Mailbox`. After `stop` it only sends the last replies of the workers.

        `drain` must be called first, and the workers must have ended before `stop`.
        """
        batch = self._batch
        while True:
            self.turned = True
            stopping = self._stopping  # Read before the replies: the last ones come before `stop`.
            if self._outbox:
                self._send_completed()
            if self._left:
                self._forward()
            if self._rest is not None and not self._left:
                return self._take_rest(self._rest)
            if stopping and not self._parked:
                self._frames.receive(batch, wait=False, take=False)  # The workers' last replies.
                return batch
            if self._left or self._draining or self.must_wait():
                self._receive_rest()
            else:
                self._receive_and_answer(batch)
            if len(batch) and not self._left:
                self._unanswered = range(len(batch))
                return batch
            self._waker.clear()  # Before the outbox and the flags are read: see `Mailbox`.

    def turn(self, answer: Answer) -> Answered | None:
        """See `Mailbox`. Within one call, the frames have many batches answered and sent."""
        self._answer = answer
        while True:
            batch = self.receive()
            answered, self._answered = self._answered, None
            if answered is None:
                if not len(batch):
                    return None
                answered = answer(batch)
            if answered is not None:
                return answered
            self.reply()

    def _receive_and_answer(self, batch: Batch) -> None:
        try:
            self._answered = self._frames.receive(batch, wait=True, answer=self._answer)
        except BaseException:
            self._unanswered = range(len(batch))
            raise

    def _receive_rest(self) -> None:
        """Receive while the workers or the disk have no capacity, or the front is to stop."""
        self._waits = True  # First: from now on `may_go_on` wakes this thread.
        full = bool(self._left)
        if full and self._room <= 0 and self._find_room() > 0:
            return
        must_wait = self.must_wait()
        self._waits = must_wait or (full and self._room <= 0)
        if self._still_to_take <= 0 and not full:
            self.drained.set()
        taking = not full and not must_wait and not self.drained.is_set()
        last = taking and self._draining  # Read before the sockets are.
        batch = self._nothing if full else self._batch
        self._frames.receive(batch, wait=not last, take=taking, capacity=full and self._room > 0)
        if last:
            self._still_to_take -= len(batch)
            if not len(batch):
                self.drained.set()  # No other request had arrived.

    def reply(
        self, later: Sequence[Later] = (), left: Sequence[int] = (), end: int | None = None
    ) -> None:
        """See `Mailbox`. The requests that are left go first, since a worker has to be woken."""
        self._unanswered = ()
        try:
            if left:
                self._left = list(left)
                self._forward()
        finally:
            if later:
                self._park(later)
            self._keep_rest(end)
            self._frames.send(self._batch)

    def _forward(self) -> None:
        left, frames = self._left, self._frames
        before = frames.bytes_forwarded
        if self._room <= 0 and self._find_room() <= 0:
            return
        try:
            count = frames.forward(self._batch, left, self._room)
        except BaseException:
            # None was sent, because of the first: `give_up` will answer that. The others wait.
            self._unanswered, self._left = left[:1], left[1:]
            raise
        self._left = left[count:]
        self._room -= frames.bytes_forwarded - before

    def _find_room(self) -> int:
        self._room = FORWARDED_BYTES - (self._frames.bytes_forwarded - self.taken())
        return self._room


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
