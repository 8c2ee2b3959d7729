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
from zkv.errors import BadRequest, OutOfMemory, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from zkv.errors import Overload
    from zkv.log import Answer
    from zkv.users.rights import User

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
NO_MEMORY: Final = BadEnvelope("out of memory", OutOfMemory)


class Batch(Protocol):
    """Requests in the order of their arrival; a request's index is its place."""

    taken: float
    """When the requests were received, by `time.perf_counter`."""
    waited: float
    """Seconds for which the thread has waited for the lock, in order to run them."""

    def __len__(self) -> int:
        """Return the number of requests."""

    def __getitem__(self, place: int, /) -> bytes | BadEnvelope:
        """Return a body. The compiled batch makes it at each call."""

    def __iter__(self) -> Iterator[bytes | BadEnvelope]:
        """Iterate over the bodies."""

    def queued(self, end: int, /) -> float:
        """Return for how long the requests before ``end`` waited between the front and this thread.

        It is the sum of their times, in seconds. The time for which the front waited for the lock
        is not part of it.
        """

    @property
    def replied(self) -> int:
        """Bytes of the lane's replies."""

    def add(
        self,
        envelope: Envelope,
        body: bytes | BadEnvelope,
        arrived: float = 0.0,
        waited: float = 0.0,
        user: User | None = None,
        user_id: str = "",
        /,
    ) -> None:
        """Add a request.

        Args:
            envelope: its envelope.
            body: its body.
            arrived: when the front took it up, by `time.perf_counter`; 0 = with the batch.
            waited: for how many seconds the front has waited for the lock before it left it.
            user: whose it is; None = everybody may do everything.
            user_id: by what the user was found.
        """

    def clear(self) -> None:
        """Remove everything."""

    def is_request(self, place: int, /) -> bool:
        """Return True if the message has a body."""

    def envelope(self, place: int, /) -> Envelope | None:
        """Return the envelope that was added; None if libzmq has brought the request."""

    def user(self, place: int, /) -> User | None:
        """Return the user whose request it is; None = everybody may do everything."""

    def user_id(self, place: int, /) -> str:
        """Return the User-Id with which the request was added."""

    def arrived(self, place: int, /) -> float:
        """Return when the front took up the request, by `time.perf_counter`."""

    def lock_wait(self, place: int, /) -> float:
        """Return for how many seconds the front waited for the lock before it left the request."""

    def overload(self, place: int, /) -> Overload | None:
        """Return why the request must not run; None = it may."""

    def refuse(self, place: int, overload: Overload, /) -> None:
        """Have a request not run."""

    def reply(self, place: int, /) -> bytes | None:
        """Return the reply that waits to be sent; None if there is none."""

    def set_reply(self, place: int, reply: bytes, /) -> None:
        """Add a reply. It replaces the lane's, which then no longer counts as an answer."""

    def amend_reply(self, place: int, reply: bytes, /) -> None:
        """Replace the lane's reply; it still counts as an answer."""

    def sent(self, place: int, /) -> None:
        """Drop the reply, since it has been sent."""

    def split(self, places: list[int], /) -> Batch:
        """Move requests, with their replies, into a batch of their own.

        Raises MemoryError; then nothing has been moved.
        """

    def places(self, after: int, /) -> list[int]:
        """Return the places of the lane's answers that reveal a later revision than this."""

    def answered(self, up_to: int, /) -> list[Answer]:
        """Return the log records of the lane's answers that reveal no later revision than this."""

    def summary(self, place: int, /) -> tuple[str, int, str | None, int] | None:
        """Return op, number of keys, trace and size of a request that the lane has answered.

        None if it has one key: then it is small, but for its value.
        """

    def timed_places(self, up_to: int, /) -> list[int]:
        """Return the places of those of these answers that are to say how long they took."""


class PythonBatch:
    """`Batch` in pure Python. There is no lane that could answer in it."""

    def __init__(self) -> None:
        self.taken = 0.0
        self.waited: float
        self._bodies: list[bytes | BadEnvelope]
        self._envelopes: list[Envelope]
        self._stamps: list[tuple[float, float]]
        self._users: list[tuple[User | None, str]]
        self._replies: list[bytes | None]
        self._overloads: dict[int, Overload]
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

    def queued(self, end: int, /) -> float:
        """See `Batch`."""
        places = range(min(end, len(self)))
        return sum(self.taken - self.arrived(each) - self.lock_wait(each) for each in places)

    @property
    def replied(self) -> int:
        """See `Batch`."""
        return 0

    def add(
        self,
        envelope: Envelope,
        body: bytes | BadEnvelope,
        arrived: float = 0.0,
        waited: float = 0.0,
        user: User | None = None,
        user_id: str = "",
        /,
    ) -> None:
        """See `Batch`."""
        self._stamps.append((arrived, waited))
        self._users.append((user, user_id))
        self._bodies.append(body)
        self._envelopes.append(envelope)
        self._replies.append(None)

    def clear(self) -> None:
        """See `Batch`."""
        self._bodies, self._envelopes, self._replies, self._stamps = [], [], [], []
        self._users = []
        self._overloads = {}
        self.waited = 0.0

    def is_request(self, place: int, /) -> bool:
        """See `Batch`."""
        return isinstance(self._bodies[place], bytes)

    def envelope(self, place: int, /) -> Envelope:
        """See `Batch`."""
        return self._envelopes[place]

    def user(self, place: int, /) -> User | None:
        """See `Batch`."""
        return self._users[place][0]

    def user_id(self, place: int, /) -> str:
        """See `Batch`."""
        return self._users[place][1]

    def arrived(self, place: int, /) -> float:
        """See `Batch`."""
        return self._stamps[place][0] or self.taken

    def lock_wait(self, place: int, /) -> float:
        """See `Batch`."""
        return self._stamps[place][1]

    def overload(self, place: int, /) -> Overload | None:
        """See `Batch`."""
        return self._overloads.get(place)

    def refuse(self, place: int, overload: Overload, /) -> None:
        """See `Batch`."""
        self._overloads[place] = overload

    def reply(self, place: int, /) -> bytes | None:
        """See `Batch`."""
        return self._replies[place]

    def set_reply(self, place: int, reply: bytes, /) -> None:
        """See `Batch`."""
        if not isinstance(reply, bytes):
            raise TypeError(f"expected bytes, not {type(reply).__name__}")
        self._replies[place] = reply

    amend_reply = set_reply

    def sent(self, place: int, /) -> None:
        """See `Batch`."""
        self._replies[place] = None

    def split(self, places: list[int], /) -> PythonBatch:
        """See `Batch`."""
        taken = PythonBatch()
        taken.taken, taken.waited = self.taken, self.waited
        for place in places:
            stamp, user = self._stamps[place], self._users[place]
            taken.add(self._envelopes[place], self._bodies[place], *stamp, *user)
            taken._replies[-1] = self._replies[place]
            self._replies[place] = None
            if place in self._overloads:
                taken._overloads[len(taken) - 1] = self._overloads[place]
        return taken

    def places(self, after: int, /) -> list[int]:
        """See `Batch`."""
        return []

    def answered(self, up_to: int, /) -> list[Answer]:
        """See `Batch`."""
        return []

    def summary(self, place: int, /) -> tuple[str, int, str | None, int] | None:
        """See `Batch`."""
        return None

    def timed_places(self, up_to: int, /) -> list[int]:
        """See `Batch`."""
        return []


def new_batch() -> Batch:
    """Return an empty batch."""
    return compiled.store.Batch(no_memory=NO_MEMORY) if compiled.COMPILED else PythonBatch()
