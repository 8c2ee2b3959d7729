"""A stand-in for a server, to answer as a real one never would."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

import zmq

from tests.support import FREE_PORT, LIMIT, Frames, Message, pack, unpack

Answer = Callable[[Message], list[Frames]]
"""Takes a request, gives the messages to send back, each without its routing id."""


def swallow(_request: Message) -> list[Frames]:
    """Answer nothing: the reply is lost."""
    return []


def body(packed: bytes) -> Answer:
    """Answer with these bytes as the body."""
    return lambda _request: [[b"", packed]]


def reply(**fields: object) -> Answer:
    """Answer with these fields, and the request's id unless there is one among them."""
    return lambda request: [[b"", pack({"id": request["id"], **fields})]]


class Peer:
    """A plain ROUTER that gives one scripted answer to each request. Use as a context manager.

    Args:
        *answers: in their order.
        afterwards: answers all later requests; None = they are not answered.
        keys: public and secret key; with them the peer asks for CURVE.
    """

    def __init__(
        self,
        *answers: Answer,
        afterwards: Answer | None = None,
        keys: tuple[bytes, bytes] | None = None,
    ) -> None:
        self._answers = answers
        self._afterwards = afterwards
        self._leaving = threading.Event()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._router = self._context.socket(zmq.ROUTER)
        if keys is not None:
            self._router.curve_server = True
            self._router.curve_publickey, self._router.curve_secretkey = keys
        self._router.bind(FREE_PORT)
        self._thread = threading.Thread(target=self._run)
        self.endpoint = str(self._router.get_string(zmq.LAST_ENDPOINT))
        self.requests: list[Message] = []
        self.done = threading.Event()
        """Set once the last of the answers has been given."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.set()
        self._thread.join()
        self._router.close(linger=round(LIMIT * 1000))  # what was sent still arrives
        self._context.term()

    def _run(self) -> None:
        for answer in self._answers:
            if not self._router.poll(round(LIMIT * 1000)):
                return
            self._answer(answer)
        self.done.set()
        while self._afterwards is not None and not self._leaving.is_set():
            if self._router.poll(10):
                self._answer(self._afterwards)

    def _answer(self, answer: Answer) -> None:
        peer, _, packed = self._router.recv_multipart()
        self.requests.append(unpack(packed))
        for message in answer(self.requests[-1]):
            self._router.send_multipart([peer, *message])
