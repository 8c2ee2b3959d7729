"""A batch: requests that are received, run and answered together.

A batch goes the whole way with its requests: `zkv.broker.frames` puts messages into it, the lane
or a worker's handler adds the replies, and `zkv.broker.frames` sends them. The compiled one
(zkv/compiled/batch.c) keeps messages as libzmq brought them, so that a simple request never becomes
an object of Python; `PythonBatch` specifies the behaviour.

Invariant: one thread at a time uses a batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from zkv import compiled
from zkv.errors import BadRequest, Internal, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.log import Answer

Envelope = list[bytes]
"""All frames before the body."""

ALL: Final = 2**63 - 1
"""A revision that is later than any that a reply reveals."""


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


class Batch(Protocol):
    """Requests in the order of their arrival; a request's index is its place."""

    def __len__(self) -> int:
        """Return the number of requests."""

    def __getitem__(self, place: int, /) -> bytes | BadEnvelope:
        """Return a body. The compiled batch makes it at each call."""

    def __iter__(self) -> Iterator[bytes | BadEnvelope]:
        """Iterate over the bodies."""

    def add(self, envelope: Envelope, body: bytes | BadEnvelope, /) -> None:
        """Add a request."""

    def clear(self) -> None:
        """Remove everything."""

    def is_request(self, place: int, /) -> bool:
        """Return True if the message has a body."""

    def envelope(self, place: int, /) -> Envelope | None:
        """Return the envelope that was added; None if libzmq has brought the request."""

    def reply(self, place: int, /) -> bytes | None:
        """Return the reply that waits to be sent; None if there is none."""

    def set_reply(self, place: int, reply: bytes, /) -> None:
        """Add a reply. It replaces the lane's, which then no longer counts as an answer."""

    def sent(self, place: int, /) -> None:
        """Drop the reply, since it has been sent."""

    def split(self, places: list[int], /) -> Batch:
        """Move requests, with their replies, into a batch of their own.

        Raises MemoryError; then nothing has been moved.
        """

    def places(self, after: int, /) -> list[int]:
        """Return the places of the lane's answers that reveal a later revision than this."""

    def ops(self, up_to: int, /) -> dict[str, int]:
        """Count the lane's answers that reveal no later revision than this, by op."""

    def answered(self, up_to: int, /) -> list[Answer]:
        """Return the log records of the lane's answers that reveal no later revision than this."""


class PythonBatch:
    """`Batch` in pure Python. There is no lane that could answer in it."""

    def __init__(self) -> None:
        self._bodies: list[bytes | BadEnvelope]
        self._envelopes: list[Envelope]
        self._replies: list[bytes | None]
        self.clear()

    def __len__(self) -> int:
        """See `Batch`."""
        return len(self._bodies)

    def __getitem__(self, place: int, /) -> bytes | BadEnvelope:
        """See `Batch`."""
        return self._bodies[place]

    def __iter__(self) -> Iterator[bytes | BadEnvelope]:
        """See `Batch`."""
        return iter(self._bodies)

    def add(self, envelope: Envelope, body: bytes | BadEnvelope, /) -> None:
        """See `Batch`."""
        self._bodies.append(body)
        self._envelopes.append(envelope)
        self._replies.append(None)

    def clear(self) -> None:
        """See `Batch`."""
        self._bodies, self._envelopes, self._replies = [], [], []

    def is_request(self, place: int, /) -> bool:
        """See `Batch`."""
        return isinstance(self._bodies[place], bytes)

    def envelope(self, place: int, /) -> Envelope:
        """See `Batch`."""
        return self._envelopes[place]

    def reply(self, place: int, /) -> bytes | None:
        """See `Batch`."""
        return self._replies[place]

    def set_reply(self, place: int, reply: bytes, /) -> None:
        """See `Batch`."""
        if not isinstance(reply, bytes):
            raise TypeError(f"expected bytes, not {type(reply).__name__}")
        self._replies[place] = reply

    def sent(self, place: int, /) -> None:
        """See `Batch`."""
        self._replies[place] = None

    def split(self, places: list[int], /) -> PythonBatch:
        """See `Batch`."""
        taken = PythonBatch()
        for place in places:
            taken.add(self._envelopes[place], self._bodies[place])
            taken._replies[-1] = self._replies[place]
            self._replies[place] = None
        return taken

    def places(self, after: int, /) -> list[int]:
        """See `Batch`."""
        return []

    def ops(self, up_to: int, /) -> dict[str, int]:
        """See `Batch`."""
        return {}

    def answered(self, up_to: int, /) -> list[Answer]:
        """See `Batch`."""
        return []


def new_batch() -> Batch:
    """Return an empty batch."""
    return compiled.store.Batch(no_memory=NO_MEMORY) if compiled.COMPILED else PythonBatch()
