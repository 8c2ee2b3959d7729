"""A worker's mailbox: takes every request that is queued, and sends the replies all together.

Strategy: what a worker pays for is calls on sockets, not bytes. So it waits for the first message,
takes the rest without waiting (bounded), works on the whole batch, and replies to all. The envelope
of each message, of any depth, stays in here and goes out again before its reply; a worker sees only
bodies.

A reply may also be pending: its envelope is parked, and whichever thread completes it rings this
mailbox's bell, which then sends it. So no worker ever blocks on an op that
waits for something else.

Invariants: a mailbox is made, used and closed in one thread; only `stop` and what
completes a pending reply may be called from another. Each received message gets exactly one reply.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

import zmq

from zkv.broker.bell import Bell

BATCH: Final = 64
"""Most requests taken at once: bounds how long the first of them waits for the last."""

QUEUED_PER_WORKER: Final = 64
"""Bound on requests that wait for one worker, on each side of its pipe.

DEALER deals them out blindly, so what waits here waits behind whatever that worker is busy with;
the rest waits in the proxy for whoever is free. Measured with 50 clients x 16 in flight and one
worker: 1 gives 0.35 of the throughput of 1,000, 8 gives 0.7, 32 gives 0.85, 128 all of it.
"""

GOODBYE: Final = b"goodbye"
"""Sent behind an empty first frame, which no client's routing id can be, when a mailbox closes."""


class Pending(Protocol):
    """A reply that may not leave yet."""

    def notify(self, deliver: Callable[[], None], wake: Callable[[], None]) -> None:
        """Have ``deliver`` and then ``wake`` called, in any thread, once `body` has a reply."""

    def body(self) -> bytes:
        """The reply; called once, in the mailbox's thread, after it was delivered."""


Body = bytes | Pending


class BadEnvelope:
    """Stands in a batch for a message that has no body where it should be.

    Args:
        reason: what is wrong with the message.
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __len__(self) -> int:
        """It holds no body."""
        return 0


NO_DELIMITER = BadEnvelope("no empty delimiter frame before the body")
NO_BODY = BadEnvelope("no body frame behind the delimiter")
TWO_BODIES = BadEnvelope("more than one body frame behind the delimiter")


class Mailbox:
    """Made in the worker's own thread.

    Args:
        context: the server's.
        backend: inproc address of the proxy's DEALER.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], backend: str) -> None:
        self._socket = context.socket(zmq.DEALER)
        self._socket.sndtimeo = 0  # It could only wait for a proxy that has died.
        self._socket.linger = 0  # A reply is in the proxy's hands as soon as it is sent: inproc.
        # Replies are bounded by the requests taken; a bound here could block the proxy's peer.
        self._socket.sndhwm = 0
        self._socket.rcvhwm = QUEUED_PER_WORKER
        self._socket.connect(backend)
        self._bell = Bell()
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._bell, zmq.POLLIN)
        self._envelopes: list[list[bytes]] = []
        self._outbox: deque[tuple[list[bytes], Pending]] = deque()
        self._parked = 0  # Futures whose reply has not been sent.
        self._stopping = False
        self.unroutable = 0

    def receive(self) -> list[bytes | BadEnvelope]:
        """Wait for requests and return their bodies.

        Nothing is returned once `stop` was called and all that was queued has been answered.
        Every body must be answered by `reply` before the next call.
        """
        while True:
            self._send_completed()
            if self._readable():
                batch = self._take()
                if batch:
                    return batch
            elif self._stopping and not self._parked:
                return []
            else:
                self._wait()

    def reply(self, bodies: list[Body]) -> None:
        """Answer the batch received last, in its order."""
        envelopes, self._envelopes = self._envelopes, []
        for envelope, body in zip(envelopes, bodies, strict=True):
            if isinstance(body, bytes):
                self._send(envelope, body)
            else:
                self._park(envelope, body)

    @property
    def unanswered(self) -> int:
        """How many requests of the batch received last have not been answered: all or none."""
        return len(self._envelopes)

    def is_idle(self) -> bool:
        """Whether nothing is queued at this moment."""
        return not self._readable()

    def stop(self) -> None:
        """Have `receive` return nothing once all that is queued is answered. Any thread."""
        self._stopping = True
        self._bell.ring()

    def close(self) -> None:
        """Say goodbye to the proxy and close every descriptor."""
        self._send([b""], GOODBYE)
        self._socket.close()
        self._bell.close()

    def _readable(self) -> bool:
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def _wait(self) -> None:
        self._poller.poll()
        self._bell.hush()  # Before the outbox is read: what comes later rings again.

    def _send_completed(self) -> None:
        while self._outbox:
            envelope, pending = self._outbox.popleft()
            self._send(envelope, pending.body())
            self._parked -= 1

    def _take(self) -> list[bytes | BadEnvelope]:
        batch: list[bytes | BadEnvelope] = []
        while len(batch) < BATCH and self._readable():
            body = self._take_one()
            if body is not None:
                batch.append(body)
        return batch

    def _take_one(self) -> bytes | BadEnvelope | None:
        """One message's body, its envelope kept; None for a message with nowhere to reply to."""
        recv, option = self._socket.recv, self._socket.getsockopt
        envelope = [recv()]
        while option(zmq.RCVMORE):
            frame = recv()
            envelope.append(frame)
            if not frame:
                return self._take_body(envelope)
        if len(envelope) < 2:
            self.unroutable += 1
            return None
        # Without a delimiter, only the first frame is known to be an address: the ROUTER put it
        # there.
        self._envelopes.append([envelope[0], b""])
        return NO_DELIMITER

    def _take_body(self, envelope: list[bytes]) -> bytes | BadEnvelope:
        self._envelopes.append(envelope)
        recv, option = self._socket.recv, self._socket.getsockopt
        if not option(zmq.RCVMORE):
            return NO_BODY
        body = recv()
        if not option(zmq.RCVMORE):
            return body
        while option(zmq.RCVMORE):
            recv()
        return TWO_BODIES

    def _send(self, envelope: list[bytes], body: bytes) -> None:
        send = self._socket.send
        try:
            for frame in envelope:
                send(frame, zmq.SNDMORE)
            send(body)
        except zmq.Again:
            self.unroutable += 1

    def _park(self, envelope: list[bytes], pending: Pending) -> None:
        self._parked += 1
        pending.notify(lambda: self._outbox.append((envelope, pending)), self._bell.ring)
