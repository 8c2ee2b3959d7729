"""Mailboxes of both ways to their socket, with what is at the other ends of their pipes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import zmq

from tests.support import LIMIT, Frames, eventually
from zkv.broker import frames
from zkv.broker.frames import COMPILED, Bounds, PythonFrames
from zkv.broker.mailbox import WORKERS_BATCH, FrontMailbox, Later, Mailbox, connect_worker
from zkv.broker.waker import Waker
from zkv.requests.batch import BadEnvelope, Batch, new_batch

Socket = zmq.Socket[bytes]
Context = zmq.Context[Socket]
Make = frames.MakeFrames

WAYS = {"plain": PythonFrames, "compiled": COMPILED}


Bodies = list[bytes | BadEnvelope]

BOUNDS: Bounds = WORKERS_BATCH


class Held:
    """A mailbox in a test's hands."""

    mailbox: Mailbox | FrontMailbox
    frames: frames.Frames
    _batch: Batch

    def take(self) -> Bodies:
        """The bodies of the next batch."""
        self._batch = self.mailbox.receive()
        return list(self._batch)

    def reply(
        self,
        replies: Sequence[bytes | None],
        later: Sequence[Later] = (),
        left: Sequence[int] = (),
        end: int | None = None,
    ) -> None:
        """Answer the batch up to ``end``; None where the reply is pending, or a worker's."""
        for place, each in zip(range(len(self._batch)), replies, strict=True):
            if each is not None:
                self._batch.set_reply(place, each)
        self.mailbox.reply(later, left, end)

    def queued(self, *, take: bool = True, capacity: bool = False) -> Bodies:
        """What the frames receive without waiting."""
        batch = new_batch()
        self.frames.receive(batch, wait=False, take=take, capacity=capacity)
        return list(batch)


class Peer(Held):
    """A mailbox, and the socket at the other end of its pipe."""

    def __init__(self, context: Context, way: Make) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.sndhwm = self.socket.rcvhwm = 0
        self.socket.rcvtimeo = round(LIMIT * 1000)
        backend = f"inproc://{id(self)}"
        self.socket.bind(backend)
        self.inner: Socket

        def make(inner: Socket, waker: Waker) -> frames.Frames:
            self.inner, self.frames = inner, way(inner, waker, BOUNDS)
            return self.frames

        self.mailbox = Mailbox(partial(make, connect_worker(context, backend)))

    def send(self, *messages: Frames) -> None:
        """Put messages into the mailbox."""
        for message in messages:
            self.socket.send_multipart(message)

    def receive(self) -> Frames:
        """The next message that the mailbox has sent."""
        return self.socket.recv_multipart()

    def waiting(self) -> list[Frames]:
        """What the mailbox has sent and nobody has taken."""
        waiting = []
        while self.socket.poll(0):
            waiting.append(self.receive())
        return waiting


class Middle(Held):
    """What stands between clients and workers: a client in front of it, two workers behind."""

    mailbox: FrontMailbox

    def __init__(self, context: Context, way: Make, room: int = 1_000) -> None:
        self._context = context
        self.clients, self.behind = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        self.behind.sndhwm = room
        for socket in (self.clients, self.behind):
            socket.linger = 0
            socket.bind(f"inproc://{id(socket)}")
        self.mailbox: FrontMailbox = FrontMailbox(partial(self._make, way))
        self.client = self._connect(self.clients)

    def _make(self, way: Make, waker: Waker) -> frames.Frames:
        self.frames = way(self.clients, waker, BOUNDS, self.behind)
        return self.frames

    def _connect(self, to: Socket) -> Socket:
        socket = self._context.socket(zmq.DEALER)
        socket.linger, socket.rcvtimeo = 0, round(LIMIT * 1000)
        socket.rcvhwm = 1
        socket.connect(f"inproc://{id(to)}")
        return socket

    def connect_client(self) -> Socket:
        """One more client."""
        return self._connect(self.clients)

    def add_worker(self) -> Socket:
        """One more who is behind."""
        return self._connect(self.behind)

    def ask(self, *bodies: bytes) -> None:
        """Have the client send requests."""
        for body in bodies:
            self.client.send_multipart([b"", body])

    def take_all(self, count: int) -> Bodies:
        """So many requests at once."""
        eventually(self.frames.readable, "a message is there")
        bodies = self.take()
        assert len(bodies) == count
        return bodies

    def close(self) -> None:
        """Let go of all but the workers."""
        self.mailbox.close()
        self.client.close()
