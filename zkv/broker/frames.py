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
    """

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __len__(self) -> int:
        """It holds no body."""
        return 0


NO_DELIMITER: Final = BadEnvelope("no empty delimiter frame before the body")
NO_BODY: Final = BadEnvelope("no body frame behind the delimiter")
TWO_BODIES: Final = BadEnvelope("more than one body frame behind the delimiter")


class Frames(Protocol):
    """What a mailbox needs of its socket, and of one to those behind, if it has one.

    Used in one thread.
    """

    @property
    def unroutable(self) -> int:
        """How many messages had nobody to reply to, or nobody to take them."""

    def receive(
        self, wait: bool, take: bool = True, room: bool = False, /
    ) -> tuple[list[Envelope], list[bytes | BadEnvelope]]:
        """Take what is there, within the bounds: the envelopes, and what is to be answered.

        What those behind have answered is passed on, as it is.

        Args:
            wait: where nothing is there, wait for a message, the bell, or something to pass on.
                There may be nothing after any of them.
            take: whether anything is taken at all.
            room: whether room for those behind ends the wait, too.
        """

    def send(self, envelopes: list[Envelope], bodies: Sequence[bytes | None], /) -> None:
        """Send each body in its envelope; none where it is None. As many of both."""

    def hand_over(self, envelopes: list[Envelope], bodies: Sequence[bytes | BadEnvelope], /) -> int:
        """Send to those behind as many as there is room for, from the first; how many.

        The bodies are bytes; raises TypeError.
        """

    def readable(self) -> bool:
        """Whether anything is queued at this moment."""

    def close(self) -> None:
        """Close what it was given. Nothing but closing again may follow."""


class MakeFrames(Protocol):
    """Makes `Frames`; see `PlainFrames` for what of."""

    def __call__(
        self, socket: zmq.Socket[bytes], bell: int, behind: zmq.Socket[bytes] | None = None
    ) -> Frames:
        """The frames, which own the sockets."""


class PlainFrames:
    """`Frames` with nothing but pyzmq.

    Args:
        socket: where messages come from and replies go to; belongs to this object from now on.
        bell: the descriptor whose readability ends a wait.
        behind: where messages are handed over to, likewise; None where nobody is.
    """

    def __init__(
        self, socket: zmq.Socket[bytes], bell: int, behind: zmq.Socket[bytes] | None = None
    ) -> None:
        self._socket = socket
        self._behind = behind
        self._bell = bell
        self._poller = self._make_poller(take=True, room=False)
        self.unroutable = 0

    def receive(
        self, wait: bool, take: bool = True, room: bool = False, /
    ) -> tuple[list[Envelope], list[bytes | BadEnvelope]]:
        """As in `Frames`."""
        self._pass_on()
        if wait and not (take and self.readable()):
            usual = take and not room
            (self._poller if usual else self._make_poller(take, room)).poll()
            self._pass_on()
        envelopes: list[Envelope] = []
        bodies: list[bytes | BadEnvelope] = []
        # Three plain calls of recv and a look at EVENTS are the cheapest way in pyzmq:
        # `recv_multipart`, and exceptions where nothing is there, cost more than a whole request.
        size = 0
        while take and len(bodies) < BATCH and size < BATCH_BYTES and self.readable():
            taken = len(bodies)
            self._take(envelopes, bodies)
            if len(bodies) > taken:
                size += len(bodies[-1]) + sum(map(len, envelopes[-1]))
        return envelopes, bodies

    def send(self, envelopes: list[Envelope], bodies: Sequence[bytes | None], /) -> None:
        """As in `Frames`."""
        for envelope, body in zip(envelopes, bodies, strict=True):
            if body is not None and not _send(self._socket, [*envelope, body]):
                self.unroutable += 1

    def hand_over(self, envelopes: list[Envelope], bodies: Sequence[bytes | BadEnvelope], /) -> int:
        """As in `Frames`."""
        for place, (envelope, body) in enumerate(zip(envelopes, bodies, strict=True)):
            if self._behind is None or not _send(self._behind, [*envelope, body]):
                return place
        return len(bodies)

    def readable(self) -> bool:
        """As in `Frames`."""
        return bool(int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        """As in `Frames`."""
        self._socket.close()
        if self._behind is not None:
            self._behind.close()

    def _make_poller(self, take: bool, room: bool) -> zmq.Poller:
        poller = zmq.Poller()
        poller.register(self._bell, zmq.POLLIN)
        if take:
            poller.register(self._socket, zmq.POLLIN)
        if self._behind is not None:
            poller.register(self._behind, zmq.POLLIN | zmq.POLLOUT if room else zmq.POLLIN)
        return poller

    def _pass_on(self) -> None:
        """Pass on all that those behind have answered."""
        behind = self._behind
        while behind is not None and int(behind.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            if not _send(self._socket, behind.recv_multipart()):
                self.unroutable += 1

    def _take(self, envelopes: list[Envelope], bodies: list[bytes | BadEnvelope]) -> None:
        """Take one message. The first frame is the sender's address, the ROUTER's work."""
        recv, option = self._socket.recv, self._socket.getsockopt
        envelope = [recv()]
        while option(zmq.RCVMORE):
            frame = recv()
            envelope.append(frame)
            if not frame:
                envelopes.append(envelope)
                bodies.append(self._take_body())
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
        body = recv()
        if not option(zmq.RCVMORE):
            return body
        while option(zmq.RCVMORE):
            recv()
        return TWO_BODIES


def _send(socket: zmq.Socket[bytes], message: list[Any]) -> bool:
    """Send a message; whether anybody is there to take it."""
    send, last = socket.send, message.pop()
    if len(last) > COPIED:
        # Where memory ended behind the frames before it, what is sent next would go on with them.
        last = zmq.Frame(last, copy=True)
    try:
        for frame in message:
            send(frame, zmq.SNDMORE | zmq.NOBLOCK)
        send(last, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


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
        socket: zmq.Socket[bytes], bell: int, behind: zmq.Socket[bytes] | None = None
    ) -> Frames:
        stand_ins = NO_DELIMITER, NO_BODY, TWO_BODIES
        return _frames.Frames(socket, bell, BATCH, BATCH_BYTES, *stand_ins, _error, behind)

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
