"""`PythonFrames` and `PythonPublisher` of `zkv.broker` in C."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import zmq

from zkv.compiled._store import Batch
from zkv.errors import Overload
from zkv.requests import batch
from zkv.requests.batch import BadEnvelope
from zkv.users.registry import Users

A = TypeVar("A")

def attach(path: str, /) -> tuple[int, int, int]: ...
def received(descriptors: Sequence[int], /) -> list[int]: ...

class InFlight:
    """`zkv.broker.in_flight.PythonInFlight` in C."""

    def __new__(
        cls, *, limit: int, least: int, overload: Overload, user_overload: Overload
    ) -> InFlight: ...

class Frames:
    def __new__(
        cls,
        *,
        socket: zmq.Socket[bytes],
        waker: int,
        woken: bytearray,
        batch_type: type[Batch],
        most: int,
        most_bytes: int,
        no_delimiter: BadEnvelope,
        no_body: BadEnvelope,
        two_bodies: BadEnvelope,
        error: Callable[[int], Exception],
        behind: zmq.Socket[bytes] | None = None,
        stamped: bool = False,
        users: Users | None = None,
        question: memoryview | None = None,
        senders: bytearray | None = None,
        in_flight: InFlight | None = None,
    ) -> Frames: ...
    @property
    def passed(self) -> tuple[int, int, int, int]: ...
    def receive(
        self,
        batch: batch.Batch,
        /,
        *,
        wait: bool,
        take: bool = True,
        capacity: bool = False,
        answer: Callable[[batch.Batch], A | None] | None = None,
    ) -> A | None: ...
    def look_again(self, batch: batch.Batch, /) -> None: ...
    def park(self, batch: batch.Batch, sizes: list[int], /) -> None: ...
    def send(self, batch: batch.Batch, /) -> None: ...
    @property
    def bytes_forwarded(self) -> int: ...
    def forward(self, batch: batch.Batch, places: list[int], room: int, /) -> int: ...
    def readable(self) -> bool: ...
    def close(self) -> None: ...

class Publisher:
    def __new__(cls, socket: zmq.Socket[bytes], error: Callable[[int], Exception]) -> Publisher: ...
    @property
    def waiting(self) -> tuple[int, int]: ...
    def send(self, topic: bytes, body: bytes, /) -> bool: ...
