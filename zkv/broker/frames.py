"""Receives and sends batches of messages: in pure Python, and in C.

The cost of a thread of the broker is in socket calls, not in bytes. `PythonFrames` makes as few of
them as pyzmq allows, and specifies the behaviour. `_frames.c` does the same with one call for each
batch, and without holding Python's lock. It is built if a C compiler and Python's headers are there
when zkv is installed. `FRAMES` is the class in use; INFO names it.

The C part is not linked with libzmq. It looks the functions up in the library that pyzmq has
loaded, so one binary works with every pyzmq, and the process never has a second libzmq.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import zmq

from zkv.errors import BadRequest, Internal, RequestError

_log = logging.getLogger("zkv.broker")

BATCH: Final = 64
"""Requests in a batch at most: bounds how long the first of them waits for the last."""

COPIED: Final = 4_096
"""Bytes of a body above which it is copied before its envelope is sent."""

BATCH_BYTES: Final = 4 * 1024 * 1024
"""Bytes after which a batch ends: bounds its memory, apart from that of its largest message."""

Envelope = list[bytes]
"""All frames before the body."""


class BadEnvelope:
    """Takes the place of a body in a batch, for a message that has none or is malformed.

    Args:
        reason: what is wrong with the message.
        error: class of the error with which it is answered.
    """

    def __init__(self, reason: str, error: type[RequestError] = BadRequest) -> None:
        self.reason = reason
        self.error = error

    def __len__(self) -> int:
        """Return 0: it has no bytes."""
        return 0


NO_DELIMITER: Final = BadEnvelope("no empty delimiter frame before the body")
NO_BODY: Final = BadEnvelope("no body frame behind the delimiter")
TWO_BODIES: Final = BadEnvelope("more than one body frame behind the delimiter")
NO_MEMORY: Final = BadEnvelope("the server has no memory for this request", Internal)


class Frames(Protocol):
    """The sockets of a mailbox: one to clients and, in the front, one to the workers behind it.

    Must be used in one thread.
    """

    @property
    def unroutable(self) -> int:
        """Number of messages without a receiver."""

    def receive(
        self, *, wait: bool, take: bool = True, capacity: bool = False
    ) -> tuple[list[Envelope], list[bytes | BadEnvelope]]:
        """Receive the messages that are queued, within the bounds: their envelopes and bodies.

        Replies of the workers are sent on unchanged.

        Args:
            wait: if nothing is queued, wait for a message, the waker, or a worker's reply. The
                result may be empty after each of them.
            take: receive messages; if false, only send the workers' replies on.
            capacity: end the wait also when the workers have capacity.

        If there is no memory for a body, `NO_MEMORY` takes its place. If there is none for anything
        else, MemoryError is raised, and the next call returns what has been received.
        """

    def send(self, envelopes: list[Envelope], bodies: Sequence[bytes | None], /) -> None:
        """Send each body that is not None in its envelope; both lists have the same length.

        Raises MemoryError if there was none for some of them; the others have been sent.
        """

    def forward(self, envelopes: list[Envelope], bodies: Sequence[bytes | BadEnvelope], /) -> int:
        """Forward messages to the workers as long as they have capacity; return how many.

        Raises TypeError if a body is not bytes, and MemoryError if there is none for the first
        message. A lack of memory for a later one only ends the call.
        """

    def readable(self) -> bool:
        """Return True if a message is queued."""

    def close(self) -> None:
        """Close the sockets. Only `close` may be called afterwards."""


class MakeFrames(Protocol):
    """Makes `Frames`. The arguments are those of `PythonFrames`."""

    def __call__(
        self, socket: zmq.Socket[bytes], waker: int, behind: zmq.Socket[bytes] | None = None
    ) -> Frames:
        """Return `Frames`, which own the sockets from now on."""


class PythonFrames:
    """`Frames` by means of pyzmq.

    Args:
        socket: receives messages and sends replies. This object closes it.
        waker: descriptor that ends a wait when it becomes readable.
        behind: forwards messages to workers and receives their replies, likewise; None if there
            are none.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], waker: int, behind: zmq.Socket[bytes] | None = None
    ) -> None:
        self._socket = socket
        self._behind = behind
        self._waker = waker
        self._poller = self._make_poller(take=True, capacity=False)
        self._taken: tuple[list[Envelope], list[bytes | BadEnvelope]] = [], []
        self.unroutable = 0

    def receive(
        self, *, wait: bool, take: bool = True, capacity: bool = False
    ) -> tuple[list[Envelope], list[bytes | BadEnvelope]]:
        """See `Frames`."""
        self._pass_on()
        envelopes, bodies = self._taken
        if wait and not bodies and not (take and self.readable()):
            usual = take and not capacity
            (self._poller if usual else self._make_poller(take, capacity)).poll()
            self._pass_on()
        # Three calls of recv and a look at EVENTS are the cheapest way in pyzmq: `recv_multipart`,
        # and exceptions if nothing is queued, cost more than a whole request.
        size = 0
        while take and len(bodies) < BATCH and size < BATCH_BYTES and self.readable():
            taken = len(bodies)
            self._take(envelopes, bodies)
            if len(bodies) > taken:
                size += len(bodies[-1]) + sum(map(len, envelopes[-1]))
        self._taken = [], []
        return envelopes, bodies

    def send(self, envelopes: list[Envelope], bodies: Sequence[bytes | None], /) -> None:
        """See `Frames`."""
        failed: MemoryError | None = None
        for envelope, body in zip(envelopes, bodies, strict=True):
            try:
                if body is not None and not _send(self._socket, [*envelope, body]):
                    self.unroutable += 1
            except MemoryError as error:
                failed = error
        if failed is not None:
            raise failed

    def forward(self, envelopes: list[Envelope], bodies: Sequence[bytes | BadEnvelope], /) -> int:
        """See `Frames`."""
        for place, (envelope, body) in enumerate(zip(envelopes, bodies, strict=True)):
            try:
                if self._behind is None or not _send(self._behind, [*envelope, body]):
                    return place
            except MemoryError:
                if place:
                    return place
                raise
        return len(bodies)

    def readable(self) -> bool:
        """See `Frames`."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        """See `Frames`."""
        self._socket.close()
        if self._behind is not None:
            self._behind.close()

    def _make_poller(self, take: bool, capacity: bool) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._waker, zmq.POLLIN)
        if take:
            poller.register(self._socket, zmq.POLLIN)
        if self._behind is not None:
            poller.register(self._behind, zmq.POLLIN | zmq.POLLOUT if capacity else zmq.POLLIN)
        return poller

    def _pass_on(self) -> None:
        """Send all replies of the workers on."""
        behind = self._behind
        while behind is not None and int(behind.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            if not _send(self._socket, behind.recv_multipart()):
                self.unroutable += 1

    def _take(self, envelopes: list[Envelope], bodies: list[bytes | BadEnvelope]) -> None:
        """Receive one message. It is discarded if there is no memory for its envelope."""
        try:
            self._take_frames(envelopes, bodies)
        except MemoryError:
            self._skip_rest()
            self.unroutable += 1
            raise

    def _take_frames(self, envelopes: list[Envelope], bodies: list[bytes | BadEnvelope]) -> None:
        """Receive one message. Its first frame is the sender's address, which the ROUTER adds."""
        recv, option = self._socket.recv, self._socket.getsockopt
        envelope = [recv()]
        while option(zmq.RCVMORE):
            frame = recv()
            envelope.append(frame)
            if not frame:
                body = self._take_body()
                envelopes.append(envelope)
                bodies.append(body)
                return
        if len(envelope) < 2:
            self.unroutable += 1
            return
        # Without a delimiter, only the first frame is known to be an address.
        envelopes.append([envelope[0], b""])
        bodies.append(NO_DELIMITER)

    def _take_body(self) -> bytes | BadEnvelope:
        recv, option = self._socket.recv, self._socket.getsockopt
        if not option(zmq.RCVMORE):
            return NO_BODY
        try:
            body: bytes | BadEnvelope = recv()
        except MemoryError:
            body = NO_MEMORY
        if not option(zmq.RCVMORE):
            return body
        self._skip_rest()
        return TWO_BODIES

    def _skip_rest(self) -> None:
        """Receive and discard the remaining frames of a message."""
        while self._socket.getsockopt(zmq.RCVMORE):
            self._socket.recv(copy=False)


def _send(socket: zmq.Socket[bytes], message: list[Any]) -> bool:
    """Send a message; return False if there is no receiver, or it has no capacity."""
    send, last = socket.send, message.pop()
    last = copied(last)
    try:
        for frame in message:
            send(frame, zmq.SNDMORE | zmq.NOBLOCK)
        send(last, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


def copied(frame: bytes) -> bytes | zmq.Frame:
    """Copy a large last frame before the frames in front of it are sent. Raises MemoryError.

    If memory ran out after those were sent, the next message would become part of this one.
    """
    if len(frame) <= COPIED:
        return frame
    try:
        return zmq.Frame(frame, copy=True)
    except zmq.ZMQError as error:
        raise MemoryError from error  # The only possible cause.


def _find_compiled() -> MakeFrames | None:
    """Return the C part, attached to pyzmq's libzmq; None if it is not built or does not fit.

    BENCHMARKS.md compares it with `PythonFrames`.
    """
    try:
        from zkv.broker import _frames
    except ImportError:
        return None
    if not _attach(_frames.attach):
        _log.warning("the compiled mailbox does not find pyzmq's libzmq; using pure Python")
        return None

    def compiled(
        socket: zmq.Socket[bytes], waker: int, behind: zmq.Socket[bytes] | None = None
    ) -> Frames:
        return _frames.Frames(
            socket=socket,
            waker=waker,
            most=BATCH,
            most_bytes=BATCH_BYTES,
            no_delimiter=NO_DELIMITER,
            no_body=NO_BODY,
            two_bodies=TWO_BODIES,
            no_memory=NO_MEMORY,
            error=_error,
            behind=behind,
        )

    return compiled


def _attach(attach: Callable[[str], tuple[int, int, int]]) -> bool:
    """Find libzmq through pyzmq's own extension module, whichever of its backends is in use."""
    wanted = zmq.zmq_version_info()
    if not (4, 1) <= wanted < (5,):
        return False  # The C part was written for another ABI.
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.startswith("zmq.") and path and not path.endswith(".py"):
            try:
                if attach(path) == wanted:
                    return True
            except ImportError:
                continue  # An extension module of pyzmq that does not use libzmq.
    return False


def _error(number: int) -> zmq.ZMQError:
    """Return the exception that pyzmq raises for an error number of libzmq."""
    return zmq.ContextTerminated(number) if number == zmq.ETERM else zmq.ZMQError(number)


COMPILED: Final = _find_compiled()
FRAMES: Final[MakeFrames] = COMPILED or PythonFrames
