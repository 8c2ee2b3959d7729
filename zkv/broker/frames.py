"""Batches of messages off and onto a mailbox's socket: in Python, and compiled.

What a thread that serves pays for is calls on sockets, not bytes. `PlainFrames` makes as few of
them as pyzmq allows, and says what is to be done. Its twin in C, `_frames.c`, does the same with
one call for a batch, without Python's lock meanwhile. It is built where a C compiler and Python's
headers are there when zkv is installed; `FRAMES` is the one that runs, and INFO tells which.

The twin is not linked with libzmq: it looks its functions up in the library that pyzmq has loaded,
so one binary fits every pyzmq, and there is never a second libzmq in the process.
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
"""Most requests taken at once: bounds how long the first of them waits for the last."""

COPIED: Final = 4_096
"""A larger body is copied before the envelope is sent."""

BATCH_BYTES: Final = 4 * 1024 * 1024
"""Bytes after which no further request is taken: bounds the memory for a batch beside that of its
largest message."""

Envelope = list[bytes]
"""Every frame before the body."""


class BadEnvelope:
    """Stands in a batch for a message that has no body where it should be.

    Args:
        reason: what is wrong with the message.
        error: what it is to be answered.
    """

    def __init__(self, reason: str, error: type[RequestError] = BadRequest) -> None:
        self.reason = reason
        self.error = error

    def __len__(self) -> int:
        """It holds no body."""
        return 0


NO_DELIMITER: Final = BadEnvelope("no empty delimiter frame before the body")
NO_BODY: Final = BadEnvelope("no body frame behind the delimiter")
TWO_BODIES: Final = BadEnvelope("more than one body frame behind the delimiter")
NO_MEMORY: Final = BadEnvelope("the server has no memory for this request", Internal)


class Frames(Protocol):
    """What a mailbox needs of its socket, and of one to those behind, if it has one.

    Used in one thread.
    """

    @property
    def unroutable(self) -> int:
        """How many messages had nobody to reply to, or nobody to take them."""

    def receive(
        self, *, wait: bool, take: bool = True, capacity: bool = False
    ) -> tuple[list[Envelope], list[bytes | BadEnvelope]]:
        """Take what is there, within the bounds: the envelopes, and what is to be answered.

        What those behind have answered is passed on, as it is.

        Args:
            wait: where nothing is there, wait for a message, the waker, or something to pass on.
                There may be nothing after any of them.
            take: whether anything is taken at all.
            capacity: whether capacity for those behind ends the wait, too.

        Where there is no memory for a body, `NO_MEMORY` stands in its place. Where there is none
        for anything else, MemoryError is raised; what has been taken is returned next time.
        """

    def send(self, envelopes: list[Envelope], bodies: Sequence[bytes | None], /) -> None:
        """Send each body in its envelope; none where it is None. As many of both.

        Raises MemoryError where there was none for some of them, once the others are sent.
        """

    def hand_over(self, envelopes: list[Envelope], bodies: Sequence[bytes | BadEnvelope], /) -> int:
        """Send to those behind as many as there is room for, from the first; how many.

        The bodies are bytes; raises TypeError. Raises MemoryError where there is none for the first
        of them; for others there may be next time.
        """

    def readable(self) -> bool:
        """Whether anything is queued at this moment."""

    def close(self) -> None:
        """Close what it was given. Nothing but closing again may follow."""


class MakeFrames(Protocol):
    """Makes `Frames`; see `PlainFrames` for what of."""

    def __call__(
        self, socket: zmq.Socket[bytes], waker: int, behind: zmq.Socket[bytes] | None = None
    ) -> Frames:
        """The frames, which own the sockets."""


class PlainFrames:
    """`Frames` with nothing but pyzmq.

    Args:
        socket: where messages come from and replies go to; belongs to this object from now on.
        waker: the descriptor whose readability ends a wait.
        behind: where messages are handed over to, likewise; None where nobody is.
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
        """As in `Frames`."""
        self._pass_on()
        envelopes, bodies = self._taken
        if wait and not bodies and not (take and self.readable()):
            usual = take and not capacity
            (self._poller if usual else self._make_poller(take, capacity)).poll()
            self._pass_on()
        # Three plain calls of recv and a look at EVENTS are the cheapest way in pyzmq:
        # `recv_multipart`, and exceptions where nothing is there, cost more than a whole request.
        size = 0
        while take and len(bodies) < BATCH and size < BATCH_BYTES and self.readable():
            taken = len(bodies)
            self._take(envelopes, bodies)
            if len(bodies) > taken:
                size += len(bodies[-1]) + sum(map(len, envelopes[-1]))
        self._taken = [], []
        return envelopes, bodies

    def send(self, envelopes: list[Envelope], bodies: Sequence[bytes | None], /) -> None:
        """As in `Frames`."""
        failed: MemoryError | None = None
        for envelope, body in zip(envelopes, bodies, strict=True):
            try:
                if body is not None and not _send(self._socket, [*envelope, body]):
                    self.unroutable += 1
            except MemoryError as error:
                failed = error
        if failed is not None:
            raise failed

    def hand_over(self, envelopes: list[Envelope], bodies: Sequence[bytes | BadEnvelope], /) -> int:
        """As in `Frames`."""
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
        """As in `Frames`."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        """As in `Frames`."""
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
        """Pass on all that those behind have answered."""
        behind = self._behind
        while behind is not None and int(behind.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            if not _send(self._socket, behind.recv_multipart()):
                self.unroutable += 1

    def _take(self, envelopes: list[Envelope], bodies: list[bytes | BadEnvelope]) -> None:
        """Take one message. Where there is no memory for its envelope, nobody gets it."""
        try:
            self._take_frames(envelopes, bodies)
        except MemoryError:
            self._skip_rest()
            self.unroutable += 1
            raise

    def _take_frames(self, envelopes: list[Envelope], bodies: list[bytes | BadEnvelope]) -> None:
        """Take one message. The first frame is the sender's address, the ROUTER's work."""
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
        """Take the frames that a message still has."""
        while self._socket.getsockopt(zmq.RCVMORE):
            self._socket.recv(copy=False)


def _send(socket: zmq.Socket[bytes], message: list[Any]) -> bool:
    """Send a message; whether anybody is there to take it."""
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
    """A last frame, made before those in front of it are sent, where it is large.

    If memory ended behind those, what is sent next would go on with them. Raises MemoryError.
    """
    if len(frame) <= COPIED:
        return frame
    try:
        return zmq.Frame(frame, copy=True)
    except zmq.ZMQError as error:
        raise MemoryError from error  # Nothing else can fail there.


def _find_compiled() -> MakeFrames | None:
    """The compiled twin, attached to pyzmq's libzmq; None where there is none, or it does not fit.

    Measured against `PlainFrames` on two cores: see BENCHMARKS.md.
    """
    try:
        from zkv.broker import _frames
    except ImportError:
        return None
    if not _attach(_frames.attach):
        _log.warning("the compiled mailbox does not find pyzmq's libzmq; the plain one runs")
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
    """Find libzmq through pyzmq's own extension module, whichever of its backends that is."""
    wanted = zmq.zmq_version_info()
    if not (4, 1) <= wanted < (5,):
        return False  # Another ABI than the one that the twin was written for.
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None)
        if name.startswith("zmq.") and path and not path.endswith(".py"):
            try:
                if attach(path) == wanted:
                    return True
            except ImportError:
                continue  # An extension module of pyzmq that does without libzmq.
    return False


def _error(number: int) -> zmq.ZMQError:
    """What pyzmq raises for an error number of libzmq."""
    return zmq.ContextTerminated(number) if number == zmq.ETERM else zmq.ZMQError(number)


COMPILED: Final = _find_compiled()
FRAMES: Final[MakeFrames] = COMPILED or PlainFrames
